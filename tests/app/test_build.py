"""From a call to data, model and checkpoint."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.helpers import header_of, tensors_of
from gambeson.app import build
from gambeson.core.errors import CheckpointError, DataError, GambesonError, InputError
from gambeson.core.threat import L2, Linf
from gambeson.engine.run import Run
from gambeson.methods import METHODS
from gambeson.parts.averaging import EMA

Plan = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def call(trained: Path) -> dict[str, Any]:
    return Run.open(trained).call


def data_call(call: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**call, "data": {**call["data"], **changes}}


@pytest.mark.parametrize("name", METHODS)
def test_a_call_survives_json(name: str, planned: Plan) -> None:
    """`resume` builds from run.json what `train` built from the options."""
    call = planned(name, "--eps", "0.1", "--ema", "0.9")

    assert json.loads(json.dumps(call)) == call
    assert build.recipe(json.loads(json.dumps(call))) == build.recipe(call)


def test_the_average_becomes_a_part(planned: Plan) -> None:
    assert build.recipe(planned("free-at", "--eps", "0.1", "--ema", "0.9")).parts[-1] == EMA(0.9)
    assert build.recipe(planned("n-lap", "--eps", "0.1")).parts == ()


def test_the_cpu_is_always_there() -> None:
    assert build.device("cpu") == torch.device("cpu")
    assert build.device("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gpu", "unknown device 'gpu'"),
        ("CPU!", "unknown device 'CPU!'"),
        ("", "unknown device ''"),
        ("meta", "unknown device 'meta'"),  # one of torch's, without memory
        ("cuda:x", "unknown device 'cuda:x'"),
        ("cuda:99", "device 'cuda:99' cannot be used: ."),
    ],
)
def test_a_device_that_is_not_there(name: str, said: str) -> None:
    """A word that is none is wrong usage; a device that this machine lacks is not."""
    with pytest.raises(GambesonError, match=f"^{said}") as caught:
        build.device(name)

    assert caught.value.exit_code == (2 if said.startswith("unknown") else 1)
    assert "\n" not in caught.value.message
    assert caught.value.hint == "use auto, cpu, cuda, cuda:N or mps"


def test_a_training_subset_is_stratified_and_leaves_val_and_test(call: dict[str, Any]) -> None:
    some, every = build.splits(call), build.splits(data_call(call, train_size=None))
    counts = some.train.y.bincount()

    assert (len(some.train), len(every.train)) == (200, 1330)
    assert counts.max() - counts.min() <= 2
    assert torch.equal(some.val.x, every.val.x)
    assert torch.equal(some.test.x, every.test.x)
    assert torch.equal(some.train.x, build.splits(call).train.x)


@pytest.mark.parametrize("size", [10, 63, 1330])
def test_any_training_size_is_kept_exactly(size: int, call: dict[str, Any]) -> None:
    assert len(build.splits(data_call(call, train_size=size)).train) == size


@pytest.mark.parametrize("size", [1321, 1325, 1329])
def test_a_training_size_just_below_all(size: int, call: dict[str, Any]) -> None:
    assert len(build.splits(data_call(call, train_size=size)).train) == size


@pytest.mark.parametrize("size", [0, -1, 1331])
def test_a_training_size_outside_the_data(size: int, call: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"--train-size must be between 1 and the 1330 training images, got {size}"):
        build.splits(data_call(call, train_size=size))


def test_a_training_size_below_the_number_of_classes_is_explained() -> None:
    call = {"data": {"name": "digits", "dir": None, "val_fraction": 0.05, "verify": False, "size": None}}
    with pytest.raises((InputError, DataError), match="train-size"):
        build.splits(data_call(call, train_size=5))


def test_the_checkpoint_for_use_is_the_best(trained: Path) -> None:
    model, task, name, step = build.load_model(Run.open(trained), "best", torch.device("cpu"))
    weights = tensors_of(trained / "checkpoints/best.safetensors")

    assert (name, task.num_classes, model.training) == ("best", 10, False)
    assert step == header_of(trained / "checkpoints/best.safetensors")["step"]
    assert all(torch.equal(t, weights[f"model/{key}"]) for key, t in model.state_dict().items())


@pytest.mark.parametrize(("missing", "taken"), [(["best"], "final"), (["best", "final"], "last")])
def test_without_a_best_the_latest_is_taken(missing: list[str], taken: str, finished: Callable[[str], Path]) -> None:
    run = Run.open(finished("r"))
    for name in missing:
        run.checkpoint(name).unlink()

    assert build.load_model(run, "best", torch.device("cpu"))[2] == taken


def with_snapshots(run: Run, *steps: int) -> Run:
    """The run, as if it had kept its last weights at these steps."""
    for step in steps:
        shutil.copy(run.checkpoint("final"), run.checkpoint(f"snapshot-{step}"))
    return run


def test_a_snapshot_is_a_checkpoint_for_use(finished: Callable[[str], Path]) -> None:
    run = with_snapshots(Run.open(finished("r")), 2)
    model, _, name, step = build.load_model(run, "snapshot-2", torch.device("cpu"))

    assert (name, step) == ("snapshot-2", 2)
    weights = tensors_of(run.checkpoint("snapshot-2"))
    assert all(torch.equal(t, weights[f"model/{key}"]) for key, t in model.state_dict().items())


@pytest.mark.parametrize(
    ("kept", "name", "said", "hint"),
    [
        ((), "snapshot-3", "r kept no snapshots", "it has best, final, last; `gambeson train ... --snapshots N` keeps"),
        ((), "snapshots", "r kept no snapshots", "it has best, final, last; "),
        ((2, 10), "snapshot-3", "r has no snapshot-3", "it has best, final, last, snapshot-2, snapshot-10"),
        (
            (2, 10),
            "snapshots",
            "one checkpoint is needed, and 'snapshots' are 2",
            "r has best, final, last, snapshot-2",
        ),
        ((2, 10), "newest", "unknown checkpoint 'newest'", "r has best, final, last, snapshot-2, snapshot-10"),
    ],
)
def test_a_snapshot_that_is_not_there(
    kept: tuple[int, ...], name: str, said: str, hint: str, finished: Callable[[str], Path]
) -> None:
    run = with_snapshots(Run.open(finished("r")), *kept)
    with pytest.raises(InputError) as error:
        build.existing_checkpoint(run, name)
    assert error.value.message == said
    assert str(error.value.hint).startswith(hint)


def test_a_list_of_checkpoints_may_say_all_snapshots(finished: Callable[[str], Path]) -> None:
    run = with_snapshots(Run.open(finished("r")), 10, 2)

    assert build.listed_checkpoints(run, "snapshots", "") == ["snapshot-2", "snapshot-10"]
    assert build.listed_checkpoints(run, " best, snapshots,,snapshot-2,final", "") == [
        "best",
        "snapshot-2",
        "snapshot-10",
        "final",
    ]
    with pytest.raises(InputError, match="names no checkpoint") as error:
        build.listed_checkpoints(run, " ,", "final")
    assert error.value.hint == "such as final"


@pytest.mark.parametrize(("key", "value"), [("method", "trades"), ("model", {"name": "small-cnn", "width": 3})])
def test_a_checkpoint_of_another_run(key: str, value: Any, trained: Path) -> None:
    other = copy.deepcopy(Run.open(trained).call)
    if key == "method":
        other["method"]["name"] = value
    else:
        other["model"] = value

    with pytest.raises(CheckpointError, match=rf"is of {key}"):
        build.load_model(Run(trained, other), "best", torch.device("cpu"))


def test_the_checkpoints_say_what_they_are_of(trained: Path) -> None:
    for name in ("best", "final", "last"):
        header = header_of(trained / f"checkpoints/{name}.safetensors")
        assert header["method"] == "n-lap"
        assert header["model"] == {"name": "small-cnn", "width": None}
        assert header["settings"]["batch_size"] == 128


def test_run_names_count_up(tmp_path: Path) -> None:
    assert Run.free_path(tmp_path, "a").name == "a-1"
    (tmp_path / "a-1").mkdir()
    (tmp_path / "a-3").mkdir()
    assert Run.free_path(tmp_path, "a").name == "a-2"


def test_a_budget_is_the_runs_own_unless_another_is_asked_for() -> None:
    own = Linf(0.2)
    assert build.threat_of(own, None, None) is own
    assert build.threat_of(own, "linf", None) == Linf(0.2)
    assert build.threat_of(own, None, 0.1) == Linf(0.1)
    assert build.threat_of(own, "L2", 0.5) == L2(0.5)
    with pytest.raises(InputError, match="the run's budget is one of Linf, one of L2 must be given") as error:
        build.threat_of(own, "l2", None)
    assert "--eps 0.5" in (error.value.hint or "")
