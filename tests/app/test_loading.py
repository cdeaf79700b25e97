"""`gambeson.load_run`: a run's model in Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import gambeson
from app.helpers import FAST, Cli
from gambeson.core.errors import CheckpointError, DataError, GambesonWarning, InputError, RunError
from gambeson.core.threat import Linf
from gambeson.data.loader import to_unit
from gambeson.engine.run import Run
from gambeson.evaluation import evaluate

Finished = Callable[[str], Path]


def test_a_run_is_loaded_as_the_command_evaluates_it(trained: Path) -> None:
    run = gambeson.load_run(trained)
    data = run.data()
    report = evaluate(run.model, data.test.x, data.test.y, ["fgsm"], run.threat, num_classes=run.task.num_classes)
    stored = Run.open(trained).outcomes("best-test-fgsm-1")

    assert isinstance(run, gambeson.LoadedRun)
    assert not any(module.training for module in run.model.modules())
    assert (run.path, run.checkpoint, run.step, run.unfinished) == (trained, "best", 2, None)
    assert (run.threat, run.task, len(data.facts.class_names)) == (Linf(0.2), data.facts.task, 10)
    assert run.recipe.weight_perturbation is not None
    assert run.call["method"]["name"] == "n-lap"
    assert len(data.train) == 200
    for name in ("clean", "fgsm"):
        assert report.outcomes[name][:50].tolist() == stored[name].tolist()


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_paths_and_devices_as_words_or_objects(kind: type, device: str | torch.device, trained: Path) -> None:
    run = gambeson.load_run(kind(trained), "final", device=device)
    images = to_unit(run.data().test.x[:3])

    assert run.checkpoint == "final"
    assert run.model(images).shape == (3, 10)
    assert next(run.model.parameters()).device.type == "cpu"


def test_without_validation_the_last_weights_are_loaded(cli: Cli) -> None:
    assert cli("train", "standard", *FAST, "--val-fraction", "0", "--run", "r").code == 0
    assert gambeson.load_run("r").checkpoint == "final"


def test_data_that_have_moved_are_read_where_it_is_said(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def note(name: str, root: str | None, **_: object) -> None:
        asked.append((name, root))
        raise DataError("not there")

    monkeypatch.setattr("gambeson.app.build.load", note)
    for root in (None, "elsewhere", Path("elsewhere")):
        with pytest.raises(DataError, match="not there"):
            gambeson.load_run(trained).data(root)

    assert asked == [("digits", None), ("digits", "elsewhere"), ("digits", "elsewhere")]


def test_an_unfinished_run_is_remarked(finished: Finished) -> None:
    (finished("r") / "checkpoints/final.safetensors").unlink()
    with pytest.warns(GambesonWarning, match="r: training has not finished: step 2 of 2, stopped"):
        run = gambeson.load_run("r", "last")

    assert run.unfinished == {"stage": "training", "step": 2, "steps": 2, "running": False}


def test_what_cannot_be_loaded_is_said(finished: Finished) -> None:
    run = finished("r")
    with pytest.raises(RunError, match="nothing is not a run directory"):
        gambeson.load_run("nothing")
    with pytest.raises(InputError, match="unknown checkpoint 'bset'") as error:
        gambeson.load_run("r", "bset")
    assert "best, final, last" in str(error.value.hint)
    with pytest.raises(InputError, match="unknown device 'gpu'"):
        gambeson.load_run("r", device="gpu")
    Run.create(Path("bare"), {})
    with pytest.raises(RunError, match="was not written by `gambeson train`"):
        gambeson.load_run("bare")
    (run / "checkpoints/final.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        gambeson.load_run("r", "final")
