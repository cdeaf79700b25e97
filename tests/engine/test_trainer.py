import inspect
import json
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from gambeson.core.errors import CheckpointError, DataError, DivergenceError, InputError
from gambeson.core.threat import Linf
from gambeson.core.types import Task
from gambeson.data.catalog import load
from gambeson.data.splits import Examples
from gambeson.engine.checkpoint import load_checkpoint, section
from gambeson.engine.interruption import Interrupted
from gambeson.engine.run import Run
from gambeson.engine.sentinel import Probe, Sentinel
from gambeson.engine.settings import Settings
from gambeson.engine.trainer import Selection, Trainer
from gambeson.evaluation.statistics import wilson
from gambeson.methods import METHODS, Recipe, free_at, n_lap, part, pgd_at, rs_fgsm, standard
from gambeson.parts import EMA, PixelBudget

Net = Callable[..., nn.Sequential]
Data = Callable[..., Examples]
Snapshot = Callable[[nn.Module], dict[str, Tensor]]
Make = Callable[..., tuple[Trainer, Run]]

SETTINGS = Settings(epochs=2, batch_size=5, lr=0.1, log_every=2, checkpoint_every=3, probe_every=0)  # 5 steps an epoch


@pytest.fixture
def make(tiny_net: Net, tiny_examples: Data, tiny_task: Task, tmp_path: Path) -> Make:
    """Builds a trainer and its run; a second call with the same name opens the run of the first."""

    def build(
        recipe: Recipe | None = None,
        name: str = "run",
        seed: int = 0,
        val: int = 6,
        select: Selection | None = None,
        **changes: Any,
    ) -> Any:
        trainer = Trainer(
            tiny_net(seed),
            recipe or pgd_at(eps=0.1, steps=2),
            tiny_examples(24),
            tiny_examples(val, seed=1),
            tiny_task,
            replace(SETTINGS, **changes),
            pad=1,
            description={"method": "test"},
            select=select,
        )
        path = tmp_path / name
        return trainer, Run.open(path) if path.exists() else Run.create(path, {})

    return build


def weights(run: Run, name: str) -> dict[str, Tensor]:
    return section(load_checkpoint(run.checkpoint(name))[0], "model")


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(t, b[name]) for name, t in a.items())


PROBED = ("fgsm_acc", "pgd10_acc", "gap", "aae", "alignment")


def test_a_training_writes_its_metrics_and_checkpoints(make: Make, snapshot: Snapshot) -> None:
    trainer, run = make(probe_every=4)
    heard: list[dict[str, Any]] = []
    trainer.fit(run, heard.append)
    rows = run.rows()
    assert [row for row in heard if len(row) > 1] == rows
    assert [row["step"] for row in heard if len(row) == 1] == list(range(1, 11))
    common = {"step", "epoch", "seconds"}
    train = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in train] == [2, 4, 5, 6, 8, 10]
    assert all(set(row) == common | {"train/loss", "train/adv_acc", "train/lr"} for row in train)
    val = [row for row in rows if "val/pgd10_acc" in row]
    assert [(row["step"], row["epoch"]) for row in val] == [(5, 1.0), (10, 2.0)]
    assert all(set(row) == common | {"val/clean_acc", "val/pgd10_acc"} for row in val)
    probes = [row for row in rows if "probe/gap" in row]
    assert [row["step"] for row in probes] == [0, 4, 8]
    assert all(set(row) == common | {f"probe/{n}" for n in PROBED} for row in probes)
    assert len(rows) == len(train) + len(val) + len(probes)
    assert sorted(os.listdir(run.path / "checkpoints")) == [f"{n}.safetensors" for n in ("best", "final", "last")]
    assert equal(weights(run, "final"), snapshot(trainer.model))
    assert load_checkpoint(run.checkpoint("last"))[1]["step"] == 10


def test_training_learns(make: Make) -> None:
    trainer, run = make(standard(eps=0.01), epochs=12, momentum=0.5)
    trainer.fit(run)
    rows = [row for row in run.rows() if "train/loss" in row]
    assert rows[-1]["train/loss"] < rows[0]["train/loss"] / 3
    assert trainer.best is not None
    assert trainer.best["val/clean_acc"] == 1.0
    assert "train/clean_acc" in rows[0]


def test_logged_sums_are_means_over_the_examples_since_the_last_line(make: Make) -> None:
    each, run = make(name="each", log_every=1)
    each.fit(run)
    every, other = make(name="every", log_every=5)
    every.fit(other)
    fine = [row["train/loss"] for row in run.rows() if "train/loss" in row]
    coarse = [row["train/loss"] for row in other.rows() if "train/loss" in row]
    sizes = [5, 5, 5, 5, 4]
    for epoch in (0, 1):
        expected = sum(loss * n for loss, n in zip(fine[5 * epoch :], sizes, strict=False)) / 24
        assert coarse[epoch] == pytest.approx(expected, rel=1e-6)


def test_best_is_selected_by_robust_accuracy_on_val(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, run = make(epochs=4)
    judged: list[Tensor] = []
    accuracies = iter([(9, 2), (1, 5), (10, 4), (0, 5)])  # clean, PGD-10, of ten

    class Fake:
        def __init__(self) -> None:
            self.clean, self.pgd = next(accuracies)

        def accuracy(self, name: str) -> Any:
            return wilson({"clean": self.clean, "pgd-10": self.pgd}[name], 10)

    def evaluate(model: nn.Module, x: Tensor, y: Tensor, attacks: Any, *rest: Any, **settings: Any) -> Fake:
        judged.append(x)
        assert attacks == ["pgd-10"]
        return Fake()

    monkeypatch.setattr("gambeson.engine.trainer.evaluate", evaluate)
    trainer.fit(run)
    assert trainer.best == {"val/clean_acc": 0.1, "val/pgd10_acc": 0.5, "step": 10}
    assert load_checkpoint(run.checkpoint("best"))[1]["step"] == 10
    assert all(torch.equal(x, trainer.val.x) for x in judged)


def test_best_may_be_selected_by_clean_accuracy_and_then_nothing_is_attacked(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, run = make(standard(eps=0.01), select="val/clean_acc", epochs=5)
    accuracies = iter([3, 9, 9, 10, 4])  # of ten; with robust accuracy these would be no order

    def evaluate(model: nn.Module, x: Tensor, y: Tensor, attacks: Any, *rest: Any, **settings: Any) -> Any:
        assert attacks == []
        count = next(accuracies)

        class Fake:
            def accuracy(self, name: str) -> Any:
                assert name == "clean"
                return wilson(count, 10)

        return Fake()

    monkeypatch.setattr("gambeson.engine.trainer.evaluate", evaluate)
    trainer.fit(run)
    assert trainer.best == {"val/clean_acc": 1.0, "step": 20}
    assert load_checkpoint(run.checkpoint("best"))[1]["step"] == 20


def test_what_is_selected_by_follows_from_the_recipe_unless_it_is_said(make: Make) -> None:
    assert make(pgd_at(eps=0.1))[0].select == "val/pgd10_acc"
    assert make(free_at(eps=0.1), name="free")[0].select == "val/pgd10_acc"
    assert make(standard(eps=0.1), name="standard")[0].select == "val/clean_acc"
    assert make(standard(eps=0.1), name="said", select="val/pgd10_acc")[0].select == "val/pgd10_acc"


def test_selection_by_clean_accuracy_never_attacks(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gambeson.attacks.pgd.PGD.__call__", lambda *_: pytest.fail("attacked"))
    trainer, run = make(standard(eps=0.01))
    trainer.fit(run)
    rows = [row for row in run.rows() if "val/clean_acc" in row]
    assert len(rows) == 2
    assert all(set(row) == {"step", "epoch", "seconds", "val/clean_acc"} for row in rows)


def test_of_equally_good_epochs_the_first_is_kept(make: Make) -> None:
    trainer, run = make(standard(eps=0.01), select="val/clean_acc", lr=0.0, schedule="constant", epochs=3)
    trainer.recipe = replace(trainer.recipe, bn="frozen")  # nothing at all moves
    trainer.fit(run)
    assert trainer.best is not None
    assert trainer.best["step"] == 5


def test_an_unknown_selection_is_refused(make: Make) -> None:
    with pytest.raises(InputError, match="unknown selection 'val/acc'") as error:
        make(select="val/acc")
    assert error.value.hint == "known: val/pgd10_acc, val/clean_acc"


def test_only_the_trainable_parameters_move(make: Make, snapshot: Snapshot) -> None:
    trainer, run = make(replace(pgd_at(eps=0.1, steps=1), trainable=("4.bias", "1.weight")))
    before = snapshot(trainer.model)
    trainer.fit(run)
    changed = {name for name, t in trainer.model.state_dict().items() if not torch.equal(t, before[name])}
    assert changed == {"4.bias", "1.weight", "1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert all(p.grad is None for name, p in trainer.model.named_parameters() if name not in changed)


def test_what_is_not_trained_has_no_optimizer_state(make: Make) -> None:
    trainer, run = make(replace(standard(eps=0.01), trainable=("4.bias",)))
    assert [id(p) for g in trainer.optimizer.param_groups for p in g["params"]] == [id(trainer.model[4].bias)]
    trainer.fit(run)
    kept = section(load_checkpoint(run.checkpoint("last"))[0], "optimizer")
    assert kept
    assert all(name.startswith("4.bias") for name in kept)


def test_frozen_statistics_normalise_and_stay(make: Make, snapshot: Snapshot) -> None:
    trainer, run = make(replace(standard(eps=0.01), bn="frozen"), epochs=1, log_every=1)
    trainer.model[1].running_mean += 0.3
    before = snapshot(trainer.model)
    with torch.no_grad():
        batch = trainer.loader.batch(0)
        wanted = nn.functional.cross_entropy(trainer.model.eval()(batch.x), batch.y)
        other = nn.functional.cross_entropy(trainer.model.train()(batch.x), batch.y)
    trainer.model.load_state_dict(before)
    trainer.fit(run)
    first = next(row for row in run.rows() if "train/loss" in row)
    assert first["train/loss"] == pytest.approx(float(wanted), rel=1e-5)
    assert first["train/loss"] != pytest.approx(float(other), rel=1e-3)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(trainer.model.state_dict()[f"1.{name}"], before[f"1.{name}"])
    assert not torch.equal(trainer.model[1].weight, before["1.weight"])


def test_a_parameter_that_the_model_lacks_is_named(make: Make) -> None:
    with pytest.raises(InputError, match=r"no parameter '0\.wieght', '9\.x'") as error:
        make(replace(standard(), trainable=("0.wieght", "4.bias", "9.x")))
    assert "did you mean 0.weight" in str(error.value.hint)


def test_the_trainer_is_given_no_test_set() -> None:
    for function in (Trainer.__init__, Trainer.fit):
        assert not [name for name in inspect.signature(function).parameters if "test" in name or name == "splits"]


def test_without_validation_images_nothing_is_selected(make: Make) -> None:
    trainer, run = make(val=0)
    trainer.fit(run)
    assert trainer.best is None
    assert not run.checkpoint("best").exists()
    assert not [row for row in run.rows() if "val/pgd10_acc" in row]
    assert run.checkpoint("final").exists()


def test_validation_every_few_epochs_and_always_at_the_end(make: Make) -> None:
    trainer, run = make(epochs=5, val_every=2)
    trainer.fit(run)
    assert [row["epoch"] for row in run.rows() if "val/pgd10_acc" in row] == [2, 4, 5]


def test_the_schedule_goes_by_steps(make: Make) -> None:
    trainer, run = make(log_every=1, schedule="cyclic")
    trainer.fit(run)
    rates = [row["train/lr"] for row in run.rows() if "train/lr" in row]
    assert rates == pytest.approx([0.1 * (1 - abs(2 * step / 10 - 1)) for step in range(10)])


def test_a_batch_larger_than_the_data_is_refused(make: Make) -> None:
    with pytest.raises(InputError, match="between 1 and the 24 training images, got 25"):
        make(batch_size=25)


def test_replays_count_as_steps(make: Make) -> None:
    trainer, run = make(free_at(eps=0.1, replays=3), probe_every=0)
    assert (trainer.steps_per_epoch, trainer.total) == (15, 30)
    trainer.fit(run)
    assert trainer.step == 30


# --- divergence ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_every", [1, 4])
def test_a_loss_that_is_not_finite_stops_the_training_and_says_where(
    log_every: int, make: Make, snapshot: Snapshot
) -> None:
    trainer, run = make(lr=1e20, schedule="constant", log_every=log_every)
    before = snapshot(trainer.model)
    with pytest.raises(DivergenceError, match="NaN or infinite") as error:
        trainer.fit(run)
    found = re.search(r"at step (\d+) \(learning rate 1e\+20\)", error.value.message)
    assert found is not None
    assert int(found[1]) == _first_bad_step(make)
    assert str(run.checkpoint("last")) in error.value.message
    assert "lower --lr" in str(error.value.hint)
    assert equal(weights(run, "last"), before)
    assert not run.checkpoint("final").exists()


def _first_bad_step(make: Make) -> int:
    """By single steps, each looked at."""
    trainer, _ = make(name="single", lr=1e20, schedule="constant")
    while True:
        trainer._train_step()
        if not bool(trainer.sums[0].isfinite()):
            return trainer.step - 1


# --- the sentinel --------------------------------------------------------------------------------------------------


@pytest.fixture
def collapse_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], bool]], None]:
    """Replaces the sentinel's look by a verdict that depends on the number of the look alone."""

    def install(collapsed: Callable[[int], bool]) -> None:
        def look(self: Sentinel, model: nn.Module, step: int) -> Probe:
            return Probe(0.9, 0.1, True, 0.4, 0.1) if collapsed(step) else Probe(0.5, 0.5, False, 0.0, 0.9)

        monkeypatch.setattr(Sentinel, "look", look)

    return install


def test_a_collapse_is_reported_and_training_goes_on(make: Make, collapse_at: Any) -> None:
    collapse_at(lambda step: step == 4)
    trainer, run = make(probe_every=2, on_overfitting="warn")
    trainer.fit(run)
    events = [row for row in run.rows() if "event" in row]
    assert [(row["step"], row["event"]) for row in events] == [(4, "catastrophic overfitting")]
    assert not list((run.path / "checkpoints").glob("healthy*"))


def test_a_collapse_stops_the_training(make: Make, collapse_at: Any) -> None:
    collapse_at(lambda step: step == 4)
    trainer, run = make(probe_every=2, on_overfitting="stop")
    with pytest.raises(DivergenceError, match=r"catastrophic overfitting at step 4: .*90\.0%, PGD-10 10\.0%"):
        trainer.fit(run)
    assert trainer.step == 4
    assert load_checkpoint(run.checkpoint("last"))[1]["step"] == 3
    assert not run.checkpoint("final").exists()


def test_a_rollback_returns_to_the_healthy_weights_and_goes_on(
    make: Make, collapse_at: Any, snapshot: Snapshot
) -> None:
    fired: list[int] = []
    collapse_at(lambda step: step == 6 and not fired and fired.append(step) is None)
    trainer, run = make(rs_fgsm(eps=0.1), probe_every=2, on_overfitting="rollback")
    seen: dict[int, dict[str, Tensor]] = {}
    after: dict[str, Tensor] = {}

    def listen(row: dict[str, Any]) -> None:
        if len(row) == 1:
            seen[row["step"]] = snapshot(trainer.model)
        if str(row.get("event")).startswith("rollback"):
            assert row["event"] == "rollback 1 of 3"
            after.update(snapshot(trainer.model))
            assert trainer.step == 6  # the next batches come, not the old ones again

    trainer.fit(run, listen)
    assert equal(after, seen[4])
    assert not equal(after, seen[6])
    assert trainer.rollbacks == 1
    assert [file.stem for file in (run.path / "checkpoints").glob("healthy*")] == ["healthy-10"]  # older ones are gone
    assert trainer.step == 10
    assert run.checkpoint("final").exists()
    assert [row["event"] for row in run.rows() if "event" in row] == ["catastrophic overfitting", "rollback 1 of 3"]


def test_after_three_rollbacks_the_training_stops(make: Make, collapse_at: Any) -> None:
    collapse_at(lambda step: step > 0)
    trainer, run = make(probe_every=1, on_overfitting="rollback")
    with pytest.raises(DivergenceError, match=r"at step 4: .*, after 3 rollbacks"):
        trainer.fit(run)
    assert trainer.rollbacks == 3
    assert load_checkpoint(run.checkpoint("last"))[1]["step"] == 3
    assert equal(weights(run, "last"), weights(run, "healthy-0"))


@pytest.mark.parametrize(
    ("recipe", "probe_every", "expected"),
    [(rs_fgsm(), None, 50), (free_at(), None, 50), (pgd_at(), None, 0), (pgd_at(), 7, 7), (rs_fgsm(), 0, 0)],
)
def test_the_sentinel_watches_single_step_methods(
    recipe: Recipe, probe_every: int | None, expected: int, make: Make
) -> None:
    trainer, _ = make(recipe, probe_every=probe_every)
    assert trainer.probe_every == expected
    assert (trainer.sentinel is not None) == (expected > 0)


# --- interruption and resumption -----------------------------------------------------------------------------------


def kill_at(step: int, signum: int = signal.SIGTERM) -> Callable[[dict[str, Any]], None]:
    def listen(row: dict[str, Any]) -> None:
        if row == {"step": step}:
            os.kill(os.getpid(), signum)

    return listen


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops_and_the_handlers_come_back(signum: int, make: Make, snapshot: Snapshot) -> None:
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    trainer, run = make()
    with pytest.raises(Interrupted, match=f"stopped by {signal.Signals(signum).name} after step 4") as stop:
        trainer.fit(run, kill_at(4, signum))
    assert (stop.value.signum, stop.value.step) == (signum, 4)
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before
    assert load_checkpoint(run.checkpoint("last"))[1]["step"] == 4
    assert equal(weights(run, "last"), snapshot(trainer.model))


def test_a_signal_at_the_last_step_lets_the_training_end(make: Make) -> None:
    trainer, run = make()
    trainer.fit(run, kill_at(10))
    assert run.checkpoint("final").exists()


def test_handlers_come_back_after_an_error(make: Make) -> None:
    before = signal.getsignal(signal.SIGTERM)
    trainer, run = make()

    def fail(row: dict[str, Any]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trainer.fit(run, fail)
    assert signal.getsignal(signal.SIGTERM) is before
    with run.locked():
        pass


def test_training_in_another_thread_leaves_the_signals_alone(make: Make) -> None:
    trainer, run = make(epochs=1)
    thread = threading.Thread(target=trainer.fit, args=(run,))
    thread.start()
    thread.join()
    assert run.checkpoint("final").exists()


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        (pgd_at(eps=0.1, steps=2), {}),
        (n_lap(eps=0.1, beta=0.1), {"probe_every": 2, "on_overfitting": "rollback", "schedule": "piecewise"}),
        (free_at(eps=0.1, replays=2), {"log_every": 3}),
        (replace(standard(), parts=(EMA(0.9),)), {"flip": True, "fill": "reflect"}),
        (replace(standard(), trainable=("0.weight",)), {"select": "val/clean_acc"}),
        (replace(pgd_at(eps=0.1, steps=2), trainable=("4.bias", "1.weight"), bn="frozen"), {}),
    ],
)
@pytest.mark.parametrize("stop", [1, 4])
def test_a_resumed_training_is_the_uninterrupted_one_to_the_bit(
    recipe: Recipe, changes: dict[str, Any], stop: int, make: Make
) -> None:
    whole, run = make(recipe, name="whole", **changes)
    whole.fit(run)
    first, other = make(recipe, name="halves", **changes)
    with pytest.raises(Interrupted):
        first.fit(other, kill_at(stop))
    other.log({"step": stop + 1, "train/loss": "of a step that will be done again"})
    torch.manual_seed(99)
    second, again = make(recipe, name="halves", seed=5, **changes)
    second.resume(again)
    assert second.step == stop
    second.fit(again)
    for name in ("final", "best"):
        assert equal(weights(run, name), weights(again, name))
    assert whole.best == second.best
    tensors = [load_checkpoint(r.checkpoint("last"))[0] for r in (run, again)]
    assert equal(*tensors)

    def timeless(r: Run) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in r.rows()]

    assert timeless(run) == timeless(again)


def test_a_rollback_before_the_crash_is_repeated_by_the_resumed_run(make: Make, collapse_at: Any) -> None:
    collapse_at(lambda step: step == 6)  # `last` is of step 5, `healthy` of 4, and soon of 8
    changes = {"probe_every": 2, "on_overfitting": "rollback", "checkpoint_every": 100, "val": 0}
    whole, run = make(name="whole", **changes)
    whole.fit(run)
    first, other = make(name="halves", **changes)

    def crash(row: dict[str, Any]) -> None:
        if row == {"step": 9}:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.fit(other, crash)
    second, again = make(name="halves", **changes)
    second.resume(again)
    second.fit(again)
    assert equal(weights(run, "final"), weights(again, "final"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lr": 0.3}, ["settings.lr is 0.1 there, 0.3 here"]),
        ({"seed": 5}, ["settings.seed is 0 there, 5 here"]),
        ({"recipe": pgd_at(eps=0.1, steps=3)}, ["recipe", "steps=2", "steps=3"]),
        ({"recipe": replace(pgd_at(eps=0.1, steps=2), trainable=("0.weight",))}, ["trainable=('0.weight',)"]),
    ],
)
def test_another_training_is_refused_and_named(changes: dict[str, Any], named: list[str], make: Make) -> None:
    trainer, run = make()
    trainer.save(run, "last")
    recipe = changes.pop("recipe", None)
    other, _ = make(recipe, **{k: v for k, v in changes.items() if k != "seed"})
    if "seed" in changes:
        other.settings = replace(other.settings, **changes)
    with pytest.raises(CheckpointError, match="belongs to another training") as error:
        other.resume(run)
    for said in named:
        assert said in error.value.message
    assert error.value.message.count(" there, ") == 1


def test_another_description_or_task_is_refused_and_named(make: Make, tiny_task: Task) -> None:
    trainer, run = make()
    trainer.save(run, "last")
    trainer.description = {"method": "other"}
    trainer.task = replace(tiny_task, num_classes=4)
    with pytest.raises(CheckpointError) as error:
        trainer.resume(run)
    said = "belongs to another training: method is 'test' there, 'other' here; task.num_classes is 3 there, 4 here"
    assert error.value.message.endswith(said)


def test_resuming_nothing_is_refused(make: Make) -> None:
    trainer, run = make()
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        trainer.resume(run)


def test_a_finished_training_resumes_to_nothing(make: Make) -> None:
    trainer, run = make()
    trainer.fit(run)
    final = run.checkpoint("final").read_bytes()
    again, _ = make(seed=3)
    again.resume(run)
    again.fit(run)
    assert again.step == 10
    assert run.checkpoint("final").read_bytes() == final


# --- what a checkpoint holds ---------------------------------------------------------------------------------------


def test_checkpoints_can_be_opened_alone(make: Make, tiny_task: Task) -> None:
    trainer, run = make()
    trainer.fit(run)
    for name in ("last", "best", "final"):
        header = load_checkpoint(run.checkpoint(name))[1]
        assert header["method"] == "test"
        assert Task(**{**header["task"], "mean": (0.5,), "std": (0.25,)}) == tiny_task
        assert header["recipe"] == repr(trainer.recipe)
        assert Settings(**{**header["settings"], "milestones": (0.5, 0.75)}) == trainer.settings
        json.dumps(header)


def test_the_average_is_what_is_validated_and_saved_for_use(make: Make, snapshot: Snapshot) -> None:
    trainer, run = make(replace(standard(), parts=(EMA(0.9),)))
    trainer.fit(run)
    assert trainer.evaluated is trainer.parts[0].average
    assert equal(weights(run, "final"), snapshot(trainer.evaluated))
    assert not equal(weights(run, "final"), snapshot(trainer.model))
    assert equal(weights(run, "last"), snapshot(trainer.model))


def test_an_average_and_bf16_go_together(make: Make) -> None:
    trainer, run = make(replace(standard(), parts=(EMA(0.9),)), bf16=True, epochs=1)
    trainer.fit(run)
    assert int(trainer.parts[0].steps) == trainer.total
    assert set(weights(run, "final")) == set(trainer.model.state_dict())  # the average has no wrapper's prefix


def test_bf16_trains_float32_weights(make: Make) -> None:
    trainer, run = make(n_lap(eps=0.1, beta=0.1), bf16=True, epochs=1)
    trainer.fit(run)
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert set(weights(run, "final")) == set(trainer.model.state_dict())  # without the wrapper's prefix


def test_training_leaves_the_global_generator_alone(make: Make) -> None:
    trainer, run = make(epochs=1)
    before = torch.get_rng_state()
    trainer.fit(run)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_is_drawn_by_step_and_not_by_what_came_before(
    tiny_examples: Data, tiny_task: Task, tmp_path: Path
) -> None:
    found = []
    for k in range(2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3))
        torch.manual_seed(k)
        recipe = replace(standard(), threat=Linf(0.01))
        trainer = Trainer(model, recipe, tiny_examples(), tiny_examples(0), tiny_task, replace(SETTINGS, epochs=1))
        trainer.fit(Run.create(tmp_path / str(k), {}))
        found.append(model[2].weight.detach().clone())
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["n-lap", "at-awp", "trades", "free-at"])
def test_compiled_steps_are_the_same_and_compile_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    found = []
    for compiled in (False, True):
        settings = replace(SETTINGS, compile=compiled, batch_size=8, lr=0.02)
        trainer = Trainer(zoo.net(), zoo.recipe(name), zoo.examples(20, 0), zoo.examples(6, 1), zoo.TASK, settings)
        for step in range(trainer.total):
            trainer._train_step()
            if step == 0:
                first = counter.frame_count
        found.append(trainer.model.state_dict())
    assert counter.frame_count == first > 0
    for key, t in found[0].items():
        torch.testing.assert_close(found[1][key], t, rtol=1e-3, atol=1e-4, msg=key)


def test_a_penalty_cannot_be_compiled(make: Make) -> None:
    with pytest.raises(InputError, match="differentiates twice"):
        make(METHODS["grad-align"](eps=0.1), compile=True)


STREAMED = {
    "ema": n_lap(eps=0.1, beta=0.01),
    "maps": part(eps=0.1, eps_low=0.05, steps=1, warmup=1),
    "release": replace(
        part(eps=0.1, eps_low=0.05, steps=1, warmup=1),
        parts=(PixelBudget(eps_low=0.05, warmup=1, assign="release"),),
    ),
}
"""Recipes that look at the training set in the ways there are: batches and a probe, a walk, an augmented walk."""


def rgb_net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.2),  # draws from the global generator
            nn.Linear(4, 3),
        )


@pytest.mark.parametrize("name", STREAMED)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_streamed_training_is_the_one_in_memory_to_the_bit(
    name: str, workers: int, photos: Path, tmp_path: Path
) -> None:
    recipe = replace(STREAMED[name], parts=(*STREAMED[name].parts, EMA(0.9)))
    settings = replace(SETTINGS, epochs=3, probe_every=2)

    def trained(how: str, stop_at: int | None = None) -> tuple[dict[str, Tensor], list[str]]:
        path = tmp_path / how
        data = load(
            f"folder:{photos}",
            size=8,
            val_fraction=0.25,
            stream="off" if how == "memory" else "on",
            workers=None if how == "memory" else workers,
        )
        trainer = Trainer(rgb_net(), recipe, data.train, data.val, data.facts.task, settings, pad=1, flip=True)
        run = Run.open(path) if path.exists() else Run.create(path, {})
        if trainer.total and run.checkpoint("last").is_file():
            trainer.resume(run)

        def listen(row: dict[str, Any]) -> None:
            if stop_at is not None and row == {"step": stop_at}:
                os.kill(os.getpid(), signal.SIGTERM)

        trainer.fit(run, listen)
        assert not multiprocessing.active_children()
        rows = [re.sub(r'"seconds": [^,]*,', "", line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        return trainer.state()[0], rows

    state, rows = trained("memory")
    with pytest.raises(Interrupted, match="after step 6"):  # in the middle of the second epoch
        trained("streamed", stop_at=6)
    assert not multiprocessing.active_children()
    streamed, streamed_rows = trained("streamed")
    assert streamed.keys() == state.keys()
    assert all(torch.equal(streamed[key], tensor) for key, tensor in state.items())
    assert streamed_rows == rows


def test_a_damaged_image_ends_a_streamed_training_and_leaves_its_last_state(
    tmp_path: Path, write_photos: Callable[..., Path]
) -> None:
    folder = write_photos(tmp_path / "photos")
    data = load(f"folder:{folder}", size=8, val_fraction=0, stream="on", workers=1)
    trainer = Trainer(rgb_net(), standard(), data.train, data.val, data.facts.task, SETTINGS)
    file = folder / data.train.x.names[int(data.train.x.rows[int(trainer.loader.rows(4)[0])])]  # type: ignore[union-attr]
    file.write_bytes(b"cut")
    run = Run.create(tmp_path / "run", {})
    with pytest.raises(DataError, match=f"{file.name} cannot be decoded"):
        trainer.fit(run)
    assert trainer.step == 4
    assert not multiprocessing.active_children()
    assert load_checkpoint(run.checkpoint("last"))[1]["step"] == 3
