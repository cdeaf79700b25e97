"""Training by several processes: the gradients of one, equal weights, resuming, a process that dies."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from app.helpers import command
from torch import Generator, Tensor, nn
from torch.distributed.run import get_args_parser

from gambeson.core.processes import rank_and_world, shard
from gambeson.core.sync_batch_norm import share_batch_norms
from gambeson.core.threat import Linf, Threat, box
from gambeson.core.types import Batch
from gambeson.engine.run import Run
from gambeson.engine.settings import Settings
from gambeson.engine.step import robust_step
from gambeson.engine.trainer import Trainer
from gambeson.evaluation import evaluate
from gambeson.methods import Recipe
from gambeson.parts.state import Parts

EXACT = ("standard", "fgsm", "v-lap", "lap-a", "pgd-at-batch", "trades", "mart", "score-at", "at-awp", "trades-awp")
TRAINED = ("n-lap", "at-awp", "trades", "part-t-awp-ema", "free-at", "stored maps", "lap-random", "grad-align")


@dataclass(frozen=True)
class Fixed:
    """A start that looks random and depends on the image alone, so that it does not matter who draws it."""

    def __call__(self, x: Tensor, threat: Threat, rng: Generator) -> Tensor:
        return box(x + 0.7 * threat.eps * (97 * x).sin())


def recipe(name: str, *, fixed: bool = False) -> Recipe:
    made = zoo.METHODS["part-t"](steps=2, warmup=0, eps_low=2 / 255, refresh=1) if name == "stored maps" else None
    made = made or zoo.recipe(name)
    return replace(made, attack=replace(made.attack, start=Fixed())) if fixed and made.attack else made  # type: ignore[arg-type,call-arg]


def stepped(name: str, rank: int, world: int, *, shared: bool) -> tuple[dict[str, Tensor], list[float]]:
    """The state after five steps in double precision, on batches of 8 and of 7 images, and the losses."""
    net: nn.Module = zoo.net().double()
    net = share_batch_norms(net, torch.device("cpu")) if shared else net
    made = recipe(name, fixed=True)
    parts = Parts(part.build(net) for part in made.parts)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    losses = []
    for step in range(5):
        whole = zoo.batch(step, count=8 - step % 2, dtype=torch.float64)
        mine = shard(len(whole.y), rank, world)
        share = None if world == 1 else (mine.stop - mine.start) / len(whole.y)
        batch = Batch(whole.x[mine], whole.y[mine], whole.index[mine], None, share)
        rng: Callable[[str], Generator] = partial(lambda purpose, at: torch.Generator().manual_seed(at), at=step)
        losses.append(float(robust_step(net, batch, made, parts, optimizer, rng, epoch=1).loss) * (share or 1))
    return {k: t.clone() for k, t in net.state_dict().items()}, losses


def trainer(name: str, **changes: Any) -> Trainer:
    settings = Settings(epochs=2, batch_size=6, lr=0.05, log_every=5, checkpoint_every=2, probe_every=0)
    return Trainer(
        zoo.net(),
        recipe(name),
        zoo.examples(59, seed=0),  # ten steps an epoch, the last of five images
        zoo.examples(9, seed=1),
        zoo.TASK,
        replace(settings, **changes),
        pad=1,
        flip=True,
    )


def work(scenario: str, folder: Path) -> None:
    """What every process does."""
    rank, world = rank_and_world()
    found: dict[str, Any] = {}
    if scenario == "steps":
        found = {name: stepped(name, rank, world, shared=True) for name in EXACT}
        found["outcomes"] = measured().outcomes
    if scenario == "trainings":
        for name in TRAINED:
            one = trainer(name, probe_every=7, on_overfitting="rollback")
            run = Run(folder / name, {}) if rank else Run.create(folder / name, {})
            one.fit(run)
            found[name] = {**one.model.state_dict(), **{f"parts/{k}": t for k, t in one.parts.state_dict().items()}}
    if scenario == "half":
        for name in ("free-at", "stored maps", "n-lap"):
            one = trainer(name)
            run = Run(folder / name, {}) if rank else Run.create(folder / name, {})
            one.total = one.steps_per_epoch + 2  # within the second epoch, after a checkpoint
            one.fit(run)
            found[name] = {"sums": one.sums, "parts": one.parts.state_dict()}
    if scenario == "resume":
        for name in ("free-at", "stored maps", "n-lap"):
            one = trainer(name)
            run = Run.open(folder / name)
            one.resume(run)
            found[name] = copy.deepcopy({"step": one.step, "sums": one.sums, "parts": one.parts.state_dict()})
            one.fit(run)
            found[name]["weights"] = one.model.state_dict()
    torch.save(found, folder / f"rank{rank}of{world}.pt")


def measured() -> Any:
    x = zoo.examples(23, seed=4).x
    net = zoo.net().eval()
    with torch.no_grad():
        y = net(x / 255).argmax(1)
    attacks = ["fgsm", "pgd-3-2", "apgd-ce"]
    return evaluate(net, x, y, attacks, Linf(EPS), num_classes=5, batch_size=5, checks=False)


EPS = 0.03
"""A budget at which some images fall."""


SCRIPT = """
import sys, torch
from pathlib import Path
from engine.test_processes import work
torch.set_num_threads(1)
scenario, folder, rank, world = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
meet = f"file://{folder}/meet-{scenario}-{world}"
torch.distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=world)
work(scenario, folder)
torch.distributed.destroy_process_group()
"""


def together(scenario: str, folder: Path, world: int = 2) -> list[dict[str, Any]]:
    """What the processes found."""
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    words = [sys.executable, "-c", SCRIPT, scenario, str(folder)]
    processes = [subprocess.Popen([*words, str(rank), str(world)], env=environment) for rank in range(world)]
    assert [process.wait(timeout=300) for process in processes] == [0] * world
    return [torch.load(folder / f"rank{rank}of{world}.pt") for rank in range(world)]


def alone(scenario: str, folder: Path) -> dict[str, Any]:
    """What this process finds by itself."""
    work(scenario, folder)
    return torch.load(folder / "rank0of1.pt")  # type: ignore[no-any-return]


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(t, b[name]) for name, t in a.items())


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return together("steps", tmp_path_factory.mktemp("steps"), 3)


@pytest.mark.parametrize("name", EXACT)
def test_steps_are_those_of_one_process(steps: list[dict[str, Any]], name: str) -> None:
    """Shares of unequal size, BatchNorm over all images: parameters and running statistics to rounding."""
    wanted, losses = stepped(name, 0, 1, shared=False)
    start = zoo.net().double().state_dict()
    for state, _ in (one[name] for one in steps):
        assert equal(state, steps[0][name][0])  # to the bit, in all processes
        for key, t in wanted.items():
            torch.testing.assert_close(state[key], t, rtol=1e-9, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")
    assert float((wanted["conv1.weight"] - start["conv1.weight"]).abs().max()) > 1e-2
    parts = [sum(losses) for losses in zip(*(one[name][1] for one in steps), strict=True)]
    assert parts == pytest.approx(losses, rel=1e-9)


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("trainings")
    return folder, together("trainings", folder)


@pytest.mark.parametrize("name", TRAINED)
def test_after_twenty_steps_all_processes_hold_the_same(
    trainings: tuple[Path, list[dict[str, Any]]], name: str
) -> None:
    folder, (first, second) = trainings
    own = "parts/0.delta" if name == "free-at" else "parts/0.counts"  # of the process's own images
    for key, t in first[name].items():
        assert key == own or torch.equal(t, second[name][key]), key
    rows = Run.open(folder / name).rows()
    assert rows[-1]["step"] == (40 if name == "free-at" else 20)
    assert len([row for row in rows if "val/pgd10_acc" in row]) == 2  # written once, not by every process
    assert all(torch.isfinite(t).all() for t in first[name].values())
    if name == "stored maps":
        assert first[name]["parts/0.maps"].shape[0] == 59
        assert float(first[name]["parts/0.maps"].amax()) == 1
        assert all(0 < row["train/full_budget"] < 1 for row in rows if "train/loss" in row)
    if name == "free-at":
        assert not torch.equal(first[name][own], second[name][own])


def test_another_number_of_processes_goes_on(tmp_path: Path) -> None:
    two = together("half", tmp_path)
    kept = {name: Run.open(tmp_path / name).checkpoint("last").read_bytes() for name in two[0]}
    one = alone("resume", tmp_path)
    for name, found in one.items():
        replays = 2 if name == "free-at" else 1
        assert found["step"] == 10 * replays + 2
        assert float(found["sums"][2]) == pytest.approx(sum(float(rank[name]["sums"][2]) for rank in two))
        assert all(torch.isfinite(t).all() for t in found["weights"].values())
    whole = torch.cat([rank["free-at"]["parts"]["0.delta"] for rank in two])
    assert torch.equal(one["free-at"]["parts"]["0.delta"], whole)  # perturbations of the batch that they share
    counts = sum(rank["stored maps"]["parts"]["0.counts"] for rank in two)
    assert torch.equal(one["stored maps"]["parts"]["0.counts"], counts)
    for name, content in kept.items():  # three go on where two had stopped
        run = Run.open(tmp_path / name)
        run.checkpoint("last").write_bytes(content)
    three = together("resume", tmp_path, 3)
    for name in kept:
        assert {found[name]["step"] for found in three} == {one[name]["step"]}
        assert all(equal(found[name]["weights"], three[0][name]["weights"]) for found in three)
        assert sum(float(found[name]["sums"][2]) for found in three) == pytest.approx(float(one[name]["sums"][2]))
    assert torch.equal(torch.cat([found["free-at"]["parts"]["0.delta"] for found in three]), whole)


def test_an_evaluation_is_shared_and_the_same(steps: list[dict[str, Any]]) -> None:
    whole = measured()
    for found in steps:
        assert found["outcomes"].keys() == whole.outcomes.keys()
        for name, outcome in whole.outcomes.items():
            assert torch.equal(found["outcomes"][name], outcome), name
    assert 0 < int(whole.outcomes["pgd-3-2"].sum()) < int(whole.outcomes["clean"].sum())


TRAIN = ["train", "pgd-at", "--model", "preact-resnet18", "--width", "4", "--attack", "fgsm", "--no-report"]


def test_a_killed_process_stops_the_other_with_words_and_the_run_goes_on(tmp_path: Path) -> None:
    long = [
        *TRAIN,
        "--run",
        "r",
        "--epochs",
        "200",
        "--checkpoint-every",
        "2",
        "--log-every",
        "1",
        "--val-every",
        "200",
    ]
    processes = command(tmp_path, long)
    file, deadline = tmp_path / "r" / "metrics.jsonl", time.monotonic() + 120
    while not (file.is_file() and len(file.read_text().splitlines()) > 5):
        assert all(process.poll() is None for process in processes), [process.communicate() for process in processes]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    survivor, victim = processes
    victim.send_signal(signal.SIGKILL)
    _, said = survivor.communicate(timeout=60)
    victim.communicate()
    assert survivor.returncode == 1
    assert "process 0 of 2 lost the others" in said
    assert "gambeson resume RUN" in said
    assert "Traceback" not in said
    before = json.loads(file.read_text().splitlines()[-1])["step"]
    again = command(tmp_path, ["resume", "r"])
    while json.loads(file.read_text().splitlines()[-1])["step"] < before + 3:
        assert all(process.poll() is None for process in again), [process.communicate() for process in again]
        time.sleep(0.1)
    for process in again:
        process.send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=60) for process in again]  # type: ignore[assignment]
    assert [process.returncode for process in again] == [143, 143], said
    assert "saved. Go on with: gambeson resume r" in said[0][1]
    assert said[1] == ("", "")


def test_a_training_and_an_evaluation_from_the_command_line(tmp_path: Path) -> None:
    words = [*TRAIN, "--run", "r", "--epochs", "1", "--test-size", "40"]
    processes = command(tmp_path, words)
    (out, err), silent = (process.communicate(timeout=240) for process in processes)
    assert [process.returncode for process in processes] == [0, 0], (err, silent)
    assert silent == ("", "")
    assert "accuracy on the test set" in out
    run = Run.open(tmp_path / "r")
    assert run.checkpoint("final").is_file()
    assert len(run.evaluations()) >= 1
    words = ["evaluate", "r", "--attack", "pgd-5", "--test-size", "40", "--batch-size", "16", "--json"]
    several, alone = command(tmp_path, words), command(tmp_path, words, 1)
    found = [process.communicate(timeout=240) for process in (*several, *alone)]
    assert [process.returncode for process in (*several, *alone)] == [0, 0, 0], found
    assert json.loads(found[0][0])["accuracy"] == json.loads(found[2][0])["accuracy"]
    assert found[1][0] == ""


@pytest.mark.parametrize("name", ["finetune", "runs", "diagnose"])
def test_other_commands_work_in_one_process(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gambeson.app.cli import main

    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([name, "list"]) == 2
    assert f"gambeson {name} works in one process, and torchrun has started 2" in capsys.readouterr().err


def test_torchrun_leaves_the_options_to_gambeson() -> None:
    """`--run` is the beginning of options of torchrun: the README's `--` keeps them apart."""
    parser = get_args_parser()
    words = ["train", "n-lap", "--run", "r", "--epochs", "1"]
    found = parser.parse_args(["--nproc-per-node", "2", "-m", "--", "gambeson", *words])
    assert (found.module, found.training_script) == (True, "gambeson")
    assert found.training_script_args == words
    assert "torchrun --nproc-per-node 4 -m -- gambeson train" in (Path(__file__).parents[2] / "README.md").read_text()
