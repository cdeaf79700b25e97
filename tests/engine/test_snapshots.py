"""Snapshots: which steps are kept, through collapses, rollbacks and crashes, and that nothing else changes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gambeson.core.errors import CheckpointError, DivergenceError
from gambeson.core.types import Task
from gambeson.data.splits import Examples
from gambeson.engine.checkpoint import load_checkpoint, save_checkpoint, section
from gambeson.engine.interruption import Interrupted
from gambeson.engine.run import Run
from gambeson.engine.sentinel import Probe, Sentinel
from gambeson.engine.settings import Settings
from gambeson.engine.snapshots import Snapshots
from gambeson.engine.trainer import Trainer
from gambeson.methods import Recipe, rs_fgsm, standard
from gambeson.parts import EMA

Make = Callable[..., tuple[Trainer, Run]]

# Five steps an epoch, looks at 0, 2, 4 and so on, snapshots at 10 and 20, a collapse at 6.
SETTINGS = Settings(epochs=4, batch_size=5, lr=0.1, log_every=2, checkpoint_every=3, probe_every=2, snapshots=2)
KEPT = ["snapshot-4", "snapshot-6", "snapshot-10", "snapshot-20"]


@pytest.fixture
def make(
    tiny_net: Callable[..., nn.Sequential], tiny_examples: Callable[..., Examples], tiny_task: Task, tmp_path: Path
) -> Make:
    """Builds a trainer and its run; a second call with the same name opens the run of the first."""

    def build(name: str = "run", recipe: Recipe | None = None, **changes: Any) -> tuple[Trainer, Run]:
        trainer = Trainer(
            tiny_net(0),
            recipe or rs_fgsm(eps=0.1),
            tiny_examples(24),
            tiny_examples(6, seed=1),
            tiny_task,
            replace(SETTINGS, **changes),
            description={"method": "test"},
        )
        path = tmp_path / name
        return trainer, Run.open(path) if path.exists() else Run.create(path, {})

    return build


@pytest.fixture
def collapsed(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The steps at which a look calls a collapse; the others are healthy."""
    steps = {6}

    def look(self: Sentinel, model: nn.Module, step: int) -> Probe:
        return Probe(0.9, 0.1, True, 0.4, 0.1) if step in steps else Probe(0.5, 0.5, False, 0.0, 0.9)

    monkeypatch.setattr(Sentinel, "look", look)
    return steps


def weights(run: Run, name: str) -> dict[str, Tensor]:
    return section(load_checkpoint(run.checkpoint(name))[0], "model")


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(t, b[name]) for name, t in a.items())


def contents(run: Run) -> dict[str, bytes]:
    """Every snapshot, headers included, to the bit."""
    return {name: run.checkpoint(name).read_bytes() for name in run.snapshots()}


def timeless(run: Run) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in run.rows()]


# which steps


@pytest.mark.parametrize(
    ("count", "epochs", "expected"),
    [(0, 4, []), (1, 4, [4]), (2, 4, [2, 4]), (3, 10, [3, 6, 10]), (4, 10, [2, 5, 7, 10]), (3, 3, [1, 2, 3])],
)
def test_the_course_is_even_and_ends_at_the_end(count: int, epochs: int, expected: list[int]) -> None:
    found = Snapshots(count, epochs, steps_per_epoch=7)
    assert [step for step in range(7 * epochs + 1) if found.due(step)] == [7 * epoch for epoch in expected]


def test_only_the_first_collapse_counts_and_the_last_healthy_look_before_it() -> None:
    found = Snapshots(1, epochs=2, steps_per_epoch=50)
    assert [found.watch(step, step in (30, 50)) for step in (0, 10, 20, 30, 40, 50)] == [True] * 4 + [False] * 2
    assert found.kept(60) == {20, 30}
    assert found.kept(100) == {20, 30, 100}


def test_without_a_collapse_the_last_healthy_look_is_kept_until_the_end() -> None:
    found = Snapshots(1, epochs=2, steps_per_epoch=50)
    for step in (0, 10, 20):
        found.watch(step, False)
    assert (found.kept(99), found.kept(100)) == ({20}, {100})


def test_none_asked_for_is_none_kept_and_nothing_deleted(tmp_path: Path) -> None:
    found, run = Snapshots(0, epochs=2, steps_per_epoch=50), Run.create(tmp_path / "run", {})
    run.checkpoint("snapshot-7").write_text("somebody's own")
    assert not found.watch(10, True)
    found.prune(run, 20)
    assert run.snapshots() == {"snapshot-7": 7}


def test_names_are_in_the_order_of_the_steps_and_others_are_not_taken_for_them(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {})
    for name in ("snapshot-100", "snapshot-9", "snapshot-0", "snapshot-07", "snapshot-x", "healthy-3", "best"):
        run.checkpoint(name).write_text("")
    (run.path / "checkpoints" / ".snapshot-5.safetensors.partial").write_text("")
    assert list(run.snapshots().items()) == [("snapshot-0", 0), ("snapshot-9", 9), ("snapshot-100", 100)]


# in a training


@pytest.mark.parametrize("policy", ["warn", "rollback"])
def test_the_snapshots_are_the_weights_right_after_their_steps(
    policy: str, make: Make, collapsed: set[int], snapshot: Callable[[nn.Module], dict[str, Tensor]]
) -> None:
    collapsed |= {10, 12}  # at 10 a rollback and the end of an epoch meet
    trainer, run = make(on_overfitting=policy)
    seen: dict[int, dict[str, Tensor]] = {}
    trainer.fit(run, lambda row: seen.update({row["step"]: snapshot(trainer.model)}) if len(row) == 1 else None)
    assert list(run.snapshots()) == KEPT
    for name, step in run.snapshots().items():
        assert equal(weights(run, name), seen[step])
        assert load_checkpoint(run.checkpoint(name))[1]["step"] == step
    assert equal(weights(run, "snapshot-20"), weights(run, "final"))


@pytest.mark.usefixtures("collapsed")
def test_snapshots_change_nothing_else(make: Make) -> None:
    runs = []
    for count in (0, 4):
        trainer, run = make(name=str(count), snapshots=count, on_overfitting="rollback")
        trainer.fit(run)
        runs.append(run)
    assert runs[0].snapshots() == {}
    assert timeless(runs[0]) == timeless(runs[1])
    for name in ("final", "best", "last"):
        assert equal(*(load_checkpoint(run.checkpoint(name))[0] for run in runs))


def test_a_healthy_training_keeps_its_course_only(make: Make, collapsed: set[int]) -> None:
    collapsed.clear()
    trainer, run = make()
    during: set[str] = set()
    trainer.fit(run, lambda row: during.update(run.snapshots()))
    assert list(run.snapshots()) == ["snapshot-10", "snapshot-20"]
    assert "snapshot-8" in during


def test_a_model_that_has_collapsed_at_the_first_look_was_never_healthy(make: Make, collapsed: set[int]) -> None:
    collapsed.add(0)
    trainer, run = make()
    trainer.fit(run)
    assert list(run.snapshots()) == ["snapshot-0", "snapshot-10", "snapshot-20"]


def test_without_a_sentinel_the_course_is_kept(make: Make) -> None:
    trainer, run = make(probe_every=0)
    trainer.fit(run)
    assert list(run.snapshots()) == ["snapshot-10", "snapshot-20"]


def test_an_average_is_what_is_kept(make: Make, snapshot: Callable[[nn.Module], dict[str, Tensor]]) -> None:
    trainer, run = make(recipe=replace(standard(), parts=(EMA(0.9),)), probe_every=0)
    trainer.fit(run)
    assert equal(weights(run, "snapshot-20"), snapshot(trainer.evaluated))
    assert not equal(weights(run, "snapshot-20"), snapshot(trainer.model))


def test_nothing_is_kept_after_a_loss_that_was_not_finite(make: Make) -> None:
    trainer, run = make(lr=1e20, schedule="constant", log_every=100, checkpoint_every=100)
    with pytest.raises(DivergenceError, match="NaN or infinite"):
        trainer.fit(run)
    assert list(run.snapshots()) == ["snapshot-0", "snapshot-2"]  # the first loss that is not finite is that of step 2


# through crashes


@pytest.mark.parametrize("policy", ["warn", "rollback"])
@pytest.mark.parametrize("clean", [True, False], ids=["signal", "crash"])
@pytest.mark.parametrize("stop", [6, 7, 19])
@pytest.mark.usefixtures("collapsed")
def test_a_resumed_training_has_the_snapshots_of_the_uninterrupted_one(
    stop: int, clean: bool, policy: str, make: Make
) -> None:
    whole, run = make(name="whole", on_overfitting=policy)
    whole.fit(run)

    def halt(row: dict[str, Any]) -> None:
        if row == {"step": stop}:
            if not clean:
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)

    first, other = make(name="halves", on_overfitting=policy)
    with pytest.raises(Interrupted if clean else KeyboardInterrupt):
        first.fit(other, halt)
    second, again = make(name="halves", on_overfitting=policy)
    second.resume(again)
    assert set(again.snapshots().values()) <= set(range(second.step + 1))
    second.fit(again)
    assert list(run.snapshots()) == KEPT
    assert contents(again) == contents(run)


@pytest.mark.parametrize("killed", [4, 6, 20])
@pytest.mark.parametrize("moment", ["before last is saved", "after last is saved"])
@pytest.mark.usefixtures("collapsed")
def test_a_kill_between_a_snapshot_and_the_last_state(
    moment: str, killed: int, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, run = make(name="whole", checkpoint_every=1)
    whole.fit(run)
    with monkeypatch.context() as patch:
        if moment == "before last is saved":
            save = Trainer.save

            def die(self: Trainer, at: Run, name: str) -> None:
                if self.step == killed:
                    raise KeyboardInterrupt
                save(self, at, name)

            patch.setattr(Trainer, "save", die)
        else:
            prune = Snapshots.prune

            def die_too(self: Snapshots, at: Run, step: int) -> None:
                if step == killed:
                    raise KeyboardInterrupt
                prune(self, at, step)

            patch.setattr(Snapshots, "prune", die_too)
        first, other = make(name="halves", checkpoint_every=1)
        with pytest.raises(KeyboardInterrupt):
            first.fit(other)
    second, again = make(name="halves", checkpoint_every=1)
    second.resume(again)
    second.fit(again)
    assert contents(again) == contents(run)


@pytest.mark.usefixtures("collapsed")
def test_a_training_that_stops_at_the_collapse_keeps_both_sides_of_it(make: Make) -> None:
    for _ in range(2):  # again after a resumption
        trainer, run = make(on_overfitting="stop", checkpoint_every=100)
        if run.checkpoint("last").exists():
            trainer.resume(run)
            assert list(run.snapshots()) == ["snapshot-4"]
        with pytest.raises(DivergenceError, match="catastrophic overfitting at step 6"):
            trainer.fit(run)
        assert list(run.snapshots()) == KEPT[:2]


# who may go on


def test_a_checkpoint_older_than_the_setting_goes_on(make: Make) -> None:
    trainer, run = make(snapshots=0)
    trainer.save(run, "last")
    tensors, header = load_checkpoint(run.checkpoint("last"))
    del header["snapshots"]
    header["settings"] = {  # as it was written before
        "epochs": 4,
        "batch_size": 5,
        "lr": 0.1,
        "schedule": "cyclic",
        "milestones": [0.5, 0.75],
        "momentum": 0.9,
        "momentum_low": 0.8,
        "weight_decay": 5e-4,
        "pad": None,
        "flip": None,
        "fill": "zero",
        "bf16": False,
        "channels_last": None,
        "deterministic": True,
        "seed": 0,
        "val_every": 1,
        "log_every": 2,
        "checkpoint_every": 3,
        "probe_every": 2,
        "on_overfitting": "warn",
    }
    assert list(header["settings"]) == list(json.loads(json.dumps(trainer.settings.to_dict())))
    save_checkpoint(run.checkpoint("last"), tensors, {key: value for key, value in header.items() if key != "format"})
    again, _ = make(snapshots=0)
    again.resume(run)
    assert again.step == 0


def test_another_number_of_snapshots_is_another_training(make: Make) -> None:
    trainer, run = make(snapshots=0)
    trainer.save(run, "last")
    other, _ = make(snapshots=2)
    with pytest.raises(CheckpointError, match=r"settings\.snapshots is None there, 2 here"):
        other.resume(run)
