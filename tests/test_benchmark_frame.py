"""What stands beside the times: best rate, operations, memory and growth; and the document made of records."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from bench import load
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
case = load("benchmarks.case")
cli = load("benchmarks.cli")
costs = load("benchmarks.costs")
document = load("benchmarks.document")
pairs = load("benchmarks.pairs")
report = load("benchmarks.report")
roofline = load("benchmarks.roofline")

Bound, Case, Check, Cost, Ratio = case.Bound, case.Case, case.Check, costs.Cost, case.Ratio
CPU = torch.device("cpu")
RATE = {"operation": "matmul", "size": "2x2", "layout": "contiguous", "dtype": "float32"}


def a_result(case_, cost, **seconds):
    return case.Result(case_, case_.guard(), pairs.Samples(seconds, seconds), cost)


def a_case(names, unit=None, **rest):
    return Case("a case", dict.fromkeys(names), unit, lambda: [Check("equal", 1.0, Bound(">=", 1))], (), **rest)


# operations and memory


def test_operations_of_a_convolution_and_its_gradients_by_hand():
    conv = torch.nn.Conv2d(4, 8, 3, padding=1)
    x = torch.rand(2, 4, 16, 16, requires_grad=True)
    one = 2 * (2 * 16 * 16) * (4 * 8 * 9)
    assert costs.count_flops(lambda: conv(x)) == one
    assert costs.count_flops(lambda: torch.autograd.grad(conv(x).sum(), x)) == 2 * one
    assert costs.count_flops(lambda: conv(x).sum().backward()) == 3 * one
    with torch.inference_mode():
        assert costs.count_flops(lambda: conv(x)) == one
    assert costs.count_flops(lambda: torch.nn.functional.relu(x)) == 0


@pytest.mark.parametrize("name", ["small-cnn", "vit"])
def test_operations_are_those_of_torchs_counter(name):
    from gambeson.data.facts import FACTS
    from gambeson.models import create
    from gambeson.models.vit import VisionTransformer

    task = FACTS["cifar10"].task
    net = VisionTransformer(task, patch=8, dim=16, depth=2, heads=2) if name == "vit" else create(name, task)
    x = torch.rand(2, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        net(x).sum().backward()
    assert costs.count_flops(lambda: net(x).sum().backward()) == counter.get_total_flops() > 0


def test_the_peak_of_tensors_by_hand():
    def call():
        first = torch.empty(1000, 1000)  # 4 MB
        second = torch.empty(500, 1000)  # 6 MB together: the peak
        del first, second
        return torch.empty(1000, 1000)  # 4 MB

    for _ in range(2):  # what a first call leaves to the allocator does not matter
        tensors, arrays = costs.host_peak(call)
        assert tensors == 6_000_000
        assert arrays < 50_000


def test_what_a_backward_keeps_counts_and_what_was_there_does_not():
    x = torch.rand(1000, 1000, requires_grad=True)

    def call():
        # Two results of 4 MB are kept. The first gradient comes to them; the second comes when a result is given up.
        torch.autograd.grad(x.exp().exp().sum(), x)

    assert costs.host_peak(call)[0] == pytest.approx(12_000_000, rel=0.001)
    assert costs.host_peak(lambda: x.detach().sum())[0] < 100


def test_the_peak_of_arrays_by_hand():
    def call():
        first, second = np.empty((1000, 1000)), np.empty((500, 1000))
        del first
        return second

    tensors, arrays = costs.host_peak(call)
    assert tensors == 0
    assert arrays == pytest.approx(12_000_000, rel=0.01)
    assert costs.measure_cost(call).peak == pytest.approx(12_000_000, rel=0.01)


# the best rate


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(roofline, "MAPS", ((4, 8), (8, 4)))
    monkeypatch.setattr(roofline, "SIDES", (16, 32))


def test_rates_are_operations_over_the_fastest_time(small, monkeypatch):
    seconds = []

    def measure(functions, rounds, synchronize=None):
        counted = {name: costs.count_flops(function) for name, function in functions.items()}
        seconds.append(counted)
        samples = {name: [4e-9 * flops, 1e-9 * flops, 2e-9 * flops] for name, flops in counted.items()}
        return pairs.Samples(samples, {name: [2 * value for value in values] for name, values in samples.items()})

    monkeypatch.setattr(roofline, "measure", measure)
    rates = roofline.measure_rates(CPU, (torch.float32, torch.bfloat16))
    assert len(rates) == len(seconds[0]) == 2 * (2 * 2 + 2)  # types, maps in two layouts, matrices
    for rate in rates:
        assert rate.gflops == pytest.approx({"cpu": 1.0, "wall": 0.5})  # counts by hand and by the counter agree
    assert {(r.operation, r.layout) for r in rates} == {
        ("convolution", "contiguous"),
        ("convolution", "channels_last"),
        ("matmul", "contiguous"),
    }


def test_rates_are_measured_and_the_best_is_the_largest(small):
    rates = roofline.measure_rates(CPU)
    assert {rate.dtype for rate in rates} == {"float32"}
    for clock in ("cpu", "wall"):
        assert all(rate.gflops[clock] > 0 for rate in rates)
        assert roofline.best(rates, clock).gflops[clock] == max(rate.gflops[clock] for rate in rates)
        own = [rate.gflops[clock] for rate in rates if rate.operation == "matmul"]
        assert roofline.best(rates, clock, "matmul").gflops[clock] == max(own)
    again = roofline.read_rates(json.loads(json.dumps({"roofline": [rate._asdict() for rate in rates]})))
    assert again == rates


# tables


def test_the_table_of_times_has_rates_shares_and_memory():
    made = a_case(("slow", "fast"), "fast", images={"slow": 10, "fast": 20})
    cost = {"slow": Cost(3_000_000_000, 2_000_000, 500_000), "fast": Cost(0, 1_000, 0)}
    shown = report.text(a_result(made, cost, slow=[2.0, 2.0], fast=[1.0, 1.0]), "cpu", 15.0)
    head, _, slow, fast = shown.splitlines()[4:8]
    assert head.endswith("| forwards | images/s | GFLOP | share of the best rate | peak MB |")
    assert slow.endswith("| 2.00 | 5.00 | 3.00 | 10 % | 2.50 |")
    assert fast.endswith("| 1.00 | 20.0 | - | - | 0.001 |")


def test_columns_that_say_nothing_are_left_out():
    made = a_case(("slow", "fast"))
    shown = report.text(a_result(made, {}, slow=[2.0], fast=[1.0]), "cpu", 15.0)
    assert shown.splitlines()[4] == "| variant | ms, process CPU time: median (quartiles) | min to max |"


@pytest.mark.parametrize("rounds", [1, 3])
def test_growth_is_the_exponent_of_a_power(rounds):
    values = {"1": 1, "2": 2, "8": 8}
    made = a_case(values, factor=case.Factor("batch", values))
    seconds = {name: [(round_ + 1) * value**1.5 for round_ in range(rounds)] for name, value in values.items()}
    cost = {name: Cost(7 * value**2, 5 * value, 0) for name, value in values.items()}
    growth = a_result(made, cost, **seconds).growth("cpu")
    assert growth.seconds == pytest.approx([1.5] * 5)
    assert (growth.flops, growth.peak) == pytest.approx((2, 1))
    assert "| time | 1.50 (1.50 to 1.50) | 1.50 to 1.50 |\n| operations | 2.00 | - |" in report.text(
        a_result(made, cost, **seconds), "cpu"
    )
    nothing = a_result(made, dict.fromkeys(values, Cost(0, 0, 0)), **seconds).growth("cpu")
    assert (nothing.flops, nothing.peak) == (None, None)


# the document


@pytest.fixture
def content():
    made = a_case(("slow", "fast"), "fast", images=4)
    found = a_result(made, {"slow": Cost(2 * 10**9, 10**6, 0), "fast": Cost(0, 0, 0)}, slow=[2.0], fast=[1.0])
    return {
        "command": "python -m benchmarks w",
        "date": "2026-11-28T01:02:03+00:00",
        "clock": "cpu",
        "rounds": 1,
        "machine": report.machine(CPU),
        "load_before": [1.5, 1, 1],
        "load_after": None,
        "roofline": [{**RATE, "gflops": {"cpu": 10.0, "wall": 10.0}}],
        "cases": [report.record("w", found)],
    }


def test_a_section_is_written_between_its_markers_and_nowhere_else(content):
    text = "before\n<!-- record: one -->\nold\n<!-- end of one -->\n<!-- record: two -->\nkept\n<!-- end of two -->\n"
    new = document.document(text, {"one": content})
    assert new.startswith("before\n<!-- record: one -->\n\n`python -m benchmarks w`, 2026-11-28, 1 rounds: ")
    assert new.endswith("\n<!-- end of one -->\n<!-- record: two -->\nkept\n<!-- end of two -->\n")
    assert "old" not in new
    assert "Load average before and after: 1.5 and unknown." in new
    assert "### a case\n\nGuard: 1 of 1 checks passed.\n\n| variant |" in new
    assert "| slow | 2000.0 (2000.0 to 2000.0) | 2000.0 to 2000.0 | 2.00 | 2.00 | 2.00 | 10 % | 1.00 |" in new
    assert document.document(new, {"one": content}) == new


def test_a_record_whose_guard_failed_has_no_tables(content):
    failed = case.Result(a_case(("a",)), [Check("equal", 0.5, Bound(">=", 1))], None)
    content["cases"] = [report.record("w", failed)]
    shown = document.section(json.loads(json.dumps(content)))
    assert "Guard: 0 of 1 checks passed, so that there are no times and no ratios (equal)." in shown
    assert "|" not in shown


def test_markers_that_are_missing_are_named(content, tmp_path, capsys):
    file, into = tmp_path / "w.json", tmp_path / "d.md"
    file.write_text(json.dumps(content))
    into.write_text("<!-- record: w -->\n<!-- end of w -->\n")
    words = ["document", str(file), "--into", str(into)]
    assert cli.main([*words, "--check"]) == 1
    assert into.read_text() == "<!-- record: w -->\n<!-- end of w -->\n"
    assert cli.main(words) == 0
    assert "| variant |" in into.read_text()
    assert cli.main([*words, "--check"]) == 0
    into.write_text("nothing")
    with pytest.raises(SystemExit):
        cli.main(words)
    assert "<!-- record: w --> and <!-- end of w --> once each, in this order; there are 0" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "folder"), [("performance.md", "performance"), ("results.md", "results")])
def test_the_documents_of_the_repository_are_what_their_records_say(name, folder):
    records = sorted((ROOT / "docs" / folder).glob("*.json"))
    text = (ROOT / "docs" / name).read_text()
    assert records
    assert {match["name"] for match in document._SECTION.finditer(text)} == {path.stem for path in records}
    assert document.document(text, {path.stem: json.loads(path.read_text()) for path in records}) == text
    assert sum(path.stat().st_size for path in records) < 500_000
