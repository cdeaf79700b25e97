"""The workloads of training steps: the guards pass, and fail for other procedures. No test depends on a speed."""

import copy
import json
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from bench import load
from torch import nn

from gambeson.engine import step as engine_step

case = load("benchmarks.case")
cli = load("benchmarks.cli")
operations = load("benchmarks.operations")
single = load("benchmarks.references.steps")
multi = load("benchmarks.references.multi_steps")
steps = load("benchmarks.workloads.steps")

ALL = [(name, number) for name, pairs in steps.PAIRS.items() for number in range(len(pairs))]


class Net(nn.Module):
    """Three convolutions with BatchNorm and a linear layer, on 32x32 images."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.linear = nn.Linear(6 * 64, 10)

    def forward(self, x):
        return self.linear(self.layers((x - 0.5) / 0.25))


@pytest.fixture
def small(monkeypatch):
    """The workloads with a small network; torch's threads come back."""

    def create(name, task, *, width, seed):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return Net()

    for module in (steps, operations):
        monkeypatch.setattr(module, "create", create)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def the_case(name, number=0, batch_size=6, device="cpu"):
    return list(steps.cases(name, case.Setup(batch_size, torch.device(device), seed=0, full=False)))[number]


def failed(name, number=0):
    """The labels of the checks that failed, without the numbers' precision."""
    return [check.label for check in the_case(name, number).guard() if not check.passed]


def kinds(labels):
    return {label.removeprefix("largest relative difference of ").partition(",")[0] for label in labels}


@pytest.mark.parametrize("name", steps.PAIRS)
def test_every_workload_reports_ratios_of_two_timings(name, small, tmp_path, capsys):
    file = tmp_path / "out.json"
    assert cli.main([name, "--rounds", "2", "--batch-size", "6", "--json", str(file)]) == 0
    shown, content = capsys.readouterr().out, json.loads(file.read_text())
    assert len(content["cases"]) == len(steps.PAIRS[name])
    for one, pair in zip(content["cases"], steps.PAIRS[name], strict=True):
        assert one["title"] in shown
        assert all(check["passed"] for check in one["checks"])
        idle = {steps.IDLE} if pair.idle else set()
        assert set(one["samples"]["cpu"]) == {steps.OURS, steps.CONTIGUOUS, steps.REFERENCE, "forward"} | idle
        compared = [check["label"] for check in one["checks"] if "double precision" in check["label"]]
        assert len(compared) == 6 + 2 * len(idle)  # the statistics of the idle passes are those of another network
        for table in one["ratios"]:
            for row in table["rows"]:
                of, to = (one["samples"][table["clock"]][row[key]] for key in ("of", "to"))
                by_hand = sorted(a / b for a, b in zip(of, to, strict=True))
                assert (row["min"], row["max"]) == pytest.approx(by_hand)


def test_goals_count_for_batches_of_64_on_the_cpu(small):
    goals = {name: the_case(name, batch_size=64).ratios[0] for name in steps.PAIRS}
    assert {name: str(ratio.bound) for name, ratio in goals.items()} == {
        "fgsm": ">= 1.5",
        "n-fgsm": "None",
        "lap": ">= 1.35",
        "pgd-at": ">= 1.4",
        "trades": ">= 1.7",
        "mart": ">= 1.1",
        "at-awp": ">= 1.5",
    }
    assert all((ratio.of, ratio.to) == (steps.REFERENCE, steps.OURS) for ratio in goals.values())
    assert all(ratio.bound is None for ratio in the_case("fgsm", batch_size=63).ratios)


@pytest.mark.parametrize(("name", "number"), ALL)
def test_another_budget_fails(name, number, small, monkeypatch):
    for module in (single, multi):
        monkeypatch.setattr(module, "EPS", 7 / 255)
    assert {"weights", "momentum"} <= kinds(failed(name, number))


def test_no_ratio_where_the_guard_fails(small, capsys, monkeypatch):
    monkeypatch.setattr(single, "EPS", 7 / 255)
    assert cli.main(["fgsm", "--rounds", "1", "--batch-size", "6"]) == 1
    shown = capsys.readouterr().out
    assert "FAILED" in shown
    assert "reference / ours" not in shown


@pytest.mark.parametrize("number", [0, 1], ids=["reference", "both"])
@pytest.mark.parametrize("name", ["fgsm", "at-awp"])
def test_steps_that_change_nothing_fail(name, number, small, monkeypatch):
    if number:  # both agree then, and the movement alone can tell
        monkeypatch.setattr(steps, "LR", 0.0)
    else:
        pair = steps.PAIRS[name][0]
        idle = lambda model, optimizer: lambda batch, rng: torch.ones(())  # noqa: E731
        monkeypatch.setitem(steps.PAIRS, name, (pair._replace(reference=idle, idle=None),))
    labels = failed(name)
    assert "movement of the weights in two steps, relative" in labels
    assert (len(labels) == 1) == bool(number)


def test_a_release_whose_momentum_is_not_restored_fails(small, monkeypatch):
    """LAP's loop on torch >= 2.1, where `load_state_dict` shares the tensors."""
    shallow = SimpleNamespace(deepcopy=lambda v: v if isinstance(v, dict) else copy.deepcopy(v))
    monkeypatch.setattr(single, "copy", shallow)
    assert {"weights", "momentum"} <= kinds(failed("lap"))


@pytest.mark.parametrize(("name", "number"), [("pgd-at", 1), ("at-awp", 0)])
def test_idle_passes_leave_other_statistics_and_the_same_weights(name, number, small, monkeypatch):
    pair = steps.PAIRS[name][number]
    monkeypatch.setitem(steps.PAIRS, name, (pair._replace(reference=pair.idle, idle=None),))
    assert kinds(failed(name)) == {"BatchNorm statistics"}


def test_a_second_clean_pass_that_is_forgotten_fails(small, monkeypatch):
    monkeypatch.setattr(engine_step, "replay_statistics", lambda *_: None)
    assert "BatchNorm statistics" in kinds(failed("trades"))


@pytest.mark.parametrize("side", ["ours", "reference"])
def test_a_loss_that_is_not_finite_ends_it(side, small):
    pair = steps.PAIRS["fgsm"][0]
    make = steps.ours(pair.recipe) if side == "ours" else pair.reference
    train = steps.training(make, Net(), torch.rand(2, 3, 32, 32), torch.tensor([1, 2]), torch.device("cpu"))
    assert math.isfinite(train())
    with torch.no_grad():
        train.model.linear.bias.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="step 2 has a loss of nan"):
        train()


def test_a_state_that_is_no_number_is_the_largest_difference():
    one, nan = torch.ones(2), torch.tensor([1.0, math.nan])
    found = [steps._distance({"w": a}, {"w": b}) for a, b in ((one, one), (one + 0.5, one), (nan, one), (one, 0 * one))]
    assert found == [0.0, pytest.approx(0.5), math.inf, math.inf]


def test_operations_are_counted_by_name_with_the_backward():
    x = torch.ones(3, requires_grad=True)
    assert operations.operations(lambda: (x * 2).sum().detach()) == {"mul": 1, "sum": 1}
    found = operations.operations(lambda: (x * 2).sum().backward())
    assert found["mul"] == 2
    assert operations.operations(lambda: float(x.detach().max())) == {"max": 1, "_local_scalar_dense": 1}


@pytest.mark.parametrize(("name", "number"), ALL)
def test_no_step_waits_for_the_device(name, number, small):
    found = operations.of_a_step(steps.ours(steps.PAIRS[name][number].recipe))
    assert found.total() > 100
    assert not operations.WAITS & found.keys()


def test_the_table_of_operations(small, capsys, monkeypatch):
    monkeypatch.setattr(operations, "PAIRS", {name: steps.PAIRS[name] for name in ("fgsm", "lap")})
    monkeypatch.setattr(operations, "GOALS", {"lap": case.Bound("<=", 50)})
    assert operations.main([]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[0].partition(":")[0] for row in rows] == ["| step", "| fgsm", "| lap"]
    (pair,) = steps.PAIRS["lap"]
    ours, theirs = (operations.of_a_step(make).total() for make in (steps.ours(pair.recipe), pair.reference))
    assert rows[2][1:] == [str(ours), str(theirs), "0", "<= 50", "missed |"]
    assert ours < theirs  # nothing is stepped, copied or restored


def test_steps_of_the_same_number_draw_the_same_noise():
    seen = []

    def look(batch, rng):
        seen.append(torch.rand(2, generator=rng("attack")))
        return torch.zeros(())

    for _ in range(2):
        train = steps.training(
            lambda *_: look, Net(), torch.rand(2, 3, 32, 32), torch.tensor([1, 2]), torch.device("cpu")
        )
        train()
        train()
    first, second, again, _ = seen
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_compiled_steps_are_timed_beside_the_others(small, capsys, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    assert cli.main(["lap", "--rounds", "1", "--batch-size", "6", "--compile"]) == 0
    shown = capsys.readouterr().out
    assert f"single precision, {steps.COMPILED}: " in shown
    assert "| reference / ours, compiled | " in shown
    assert f"double precision, {steps.COMPILED}" not in shown
