"""What the command-line tests share: one call of the command, its error form, and damage to files."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from gambeson.app.sweep_plan import Job
from gambeson.engine.checkpoint import save_checkpoint
from gambeson.engine.run import Run

SMALL = ("--epochs", "1", "--train-size", "200", "--test-size", "50", "--attack", "clean,fgsm", "--device", "cpu")
"""A run of two steps."""
FAST = (*SMALL, "--no-report")
"""The same without the page, which takes longer than the two steps."""

COMMAND = (sys.executable, "-m", "gambeson")
ENV = {**{k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}, "OMP_NUM_THREADS": "1"}
"""The environment of child processes: one thread, and a buffered standard output as users have it."""


class Result(NamedTuple):
    """What a call of the command gave."""

    code: int | str | None
    out: str
    err: str


Cli = Callable[..., Result]
Child = subprocess.Popen[str]


def assert_error(result: Result, code: int, *fragments: str) -> None:
    """The call failed in the agreed form: a sentence, at most one line of hint, no traceback, nothing on stdout."""
    assert result.code == code, result
    assert result.err.startswith("gambeson: "), result.err
    assert "Traceback" not in result.err
    assert result.out == ""
    lines = result.err.rstrip("\n").split("\n")
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: ")), result.err
    assert " hint: " not in lines[0], result.err
    for fragment in fragments:
        assert fragment in result.err


def fingerprint(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder, by relative path; folders too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def header_of(file: Path) -> dict[str, Any]:
    """The JSON header of a checkpoint."""
    with safe_open(file, "pt") as opened:
        header: dict[str, Any] = json.loads(opened.metadata()["gambeson"])
    return header


def edit_header(file: Path, **changes: Any) -> None:
    """Rewrite a checkpoint with another header."""
    header = {**header_of(file), **changes}
    save_file(load_file(file), file, metadata={"gambeson": json.dumps(header)})


def tensors_of(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint."""
    found: dict[str, Tensor] = load_file(file)
    return found


def rows_of(run: Path) -> list[dict[str, Any]]:
    """The metrics without the only field that may differ between equal runs."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


class Touch:
    """Unpickling it makes a file: evidence that a pickle was executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def bomb(evidence: Path) -> bytes:
    """A pickle that makes the file `evidence` when it is executed."""
    return pickle.dumps(Touch(evidence))


def args_of(call: dict[str, Any]) -> dict[str, Any]:
    """The method's arguments in a call."""
    found: dict[str, Any] = call["method"]["args"]
    return found


def write_npz(name: str, counts: list[int], *, size: int = 8, channels: int = 1) -> str:
    """Random images of classes with `counts` training images and 3 test images each."""
    draw = np.random.default_rng(0)
    arrays = {}
    for split, numbers in (("train", counts), ("test", [3] * len(counts))):
        y = np.repeat(np.arange(len(numbers)), numbers)
        shape = (len(y), size, size) if channels == 1 else (len(y), size, size, channels)
        arrays |= {f"x_{split}": draw.integers(0, 256, shape, dtype=np.uint8), f"y_{split}": y}
    np.savez(name, **arrays)
    return f"npz:{name}"


def write_sweep(text: str, name: str = "s.yaml") -> Path:
    """A sweep's file in the working directory."""
    path = Path(name)
    path.write_text(text)
    return path


def make_run(
    job: Job,
    accuracy: dict[str, float],
    *,
    n: int = 100,
    ood: tuple[str, float] | None = None,
    collapsed: bool = False,
    eps: float | None = None,
) -> Path:
    """What a finished run of a sweep's job would leave, as far as the sweep reads it; `eps` is a fine-tuning's."""
    tuned = {"method": {"name": "fgsm", "args": {"eps": eps}}, "data": {"name": "digits"}, "model": {"name": "m"}}
    tuned |= {"settings": {"epochs": 1}, "ema": None, "attack": "clean", "test_size": None, "finetune": {}}
    run = Run.create(job.path, tuned if job.record is None else dict(job.record))
    save_checkpoint(run.checkpoint("final"), {"model/w": torch.zeros(1)}, {"step": 2})
    own, data = run.call["method"]["args"]["eps"], run.call["data"]["name"]
    record = {"checkpoint": "final", "step": 2, "data": data, "split": "test", "eps": own, "norm": "Linf", "n": n}
    correct = {name: np.arange(n) < round(value * n) for name, value in accuracy.items()}
    record["accuracy"] = {name: {"value": float(some.mean())} for name, some in correct.items()}
    (run.path / "evaluations/final-test-1.json").write_text(json.dumps(record))
    np.savez(run.path / "evaluations/final-test-1.npz", y=np.zeros(n, dtype=int), **correct)  # type: ignore[arg-type]
    for step, (fgsm, pgd) in enumerate([(0.4, 0.3), (0.6, 0.0 if collapsed else 0.5)], start=1):
        run.log({"step": step, "seconds": 1.0 + 2 * step, "probe/fgsm_acc": fgsm, "probe/pgd10_acc": pgd})
    if ood is not None:
        (run.path / "diagnosis").mkdir()
        (run.path / "diagnosis" / ood[0]).write_text(json.dumps({"ood": {"value": ood[1]}}))
    return run.path


def free_port() -> str:
    """A port that nobody listens at."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return str(sock.getsockname()[1])


def command(
    folder: Path,
    words: Sequence[str],
    world: int = 2,
    *,
    others: Path | None = None,
    agent: Mapping[str, str] | None = None,
) -> list[Child]:
    """A command of gambeson in several processes, with the environment that torchrun gives them.

    Args:
        folder: Where they run.
        words: The words after `gambeson`.
        world: How many there are.
        others: Where all but the first run, if not there.
        agent: What torchrun's agent tells of its store; without it the first process keeps one.
    """
    made = []
    there = agent or {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for rank in range(world):
        where = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
        environment = {**os.environ, **where, **there}
        made.append(
            subprocess.Popen(
                [*COMMAND, *words],
                env=environment,
                cwd=others if others and rank else folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return made
