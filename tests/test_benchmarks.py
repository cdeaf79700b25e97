"""The harness of the benchmarks: what it times, when it refuses, and what it writes. No test depends on a speed."""

import importlib
import importlib.util
import json
import time

import pytest
import torch
from bench import load

case = load("benchmarks.case")
cli = load("benchmarks.cli")
pairs = load("benchmarks.pairs")
report = load("benchmarks.report")
reference = load("benchmarks.references.part_masks")
part_masks = load("benchmarks.workloads.part_masks")
mrc = load("benchmarks.workloads.mrc")
pgd = load("benchmarks.workloads.pgd")
against, verdicts = load("benchmarks.autoattack"), load("benchmarks.verdicts")
roofline = load("benchmarks.roofline")

Bound, Case, Check, Ratio = case.Bound, case.Case, case.Check, case.Ratio


@pytest.fixture
def small(monkeypatch):
    """The workloads with small networks, without real images; torch's threads come back."""
    build, transformer = part_masks.create, part_masks.VisionTransformer
    monkeypatch.setattr(part_masks, "create", lambda name, task, *, width, seed: build(name, task, width=4, seed=seed))
    for one in (mrc, pgd):
        monkeypatch.setattr(one, "create", lambda name, task, *, width, seed: build("small-cnn", task, seed=seed))
    monkeypatch.setattr(
        part_masks, "VisionTransformer", lambda task, **_: transformer(task, patch=8, dim=16, depth=2, heads=2)
    )
    monkeypatch.delenv("GAMBESON_DATA", raising=False)
    monkeypatch.setattr(roofline, "MAPS", ((4, 8),))
    monkeypatch.setattr(roofline, "SIDES", (16,))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def a_case(variants, passed=True):
    check = Check("equal", 1.0 if passed else 0.9, Bound(">=", 0.9999))
    return Case("a case", variants, "unit", lambda: [check], (Ratio("slow / unit", "slow", "unit", Bound(">=", 1)),))


def test_every_variant_runs_once_per_round_in_changing_order():
    calls = []
    variants = {name: lambda name=name: calls.append(name) for name in "abc"}
    samples = pairs.measure(variants, rounds=5, seed=3)
    order = [tuple(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert len(order) == 6  # with the warm-up
    assert all(sorted(one) == ["a", "b", "c"] for one in order)
    assert len(set(order)) > 1
    for clock in ("cpu", "wall"):
        assert {name: len(values) for name, values in samples.by(clock).items()} == {"a": 5, "b": 5, "c": 5}
    calls.clear()
    pairs.measure(variants, rounds=5, seed=3)
    assert [tuple(calls[i : i + 3]) for i in range(0, len(calls), 3)] == order


def test_both_clocks_are_real():
    samples = pairs.measure({"sleep": lambda: time.sleep(0.02), "work": lambda: sum(range(200_000))}, rounds=2)
    assert min(samples.wall["sleep"]) >= 0.02
    assert max(samples.cpu["sleep"]) < 0.02  # sleeping is no processor time
    assert min(samples.cpu["work"]) > 0


def test_ratios_pair_the_times_of_the_same_round():
    seconds = {"slow": [2.0, 6.0, 4.0], "fast": [1.0, 2.0, 0.5]}
    assert pairs.ratios(seconds, "slow", "fast") == [2.0, 3.0, 8.0]
    assert pairs.spread([2.0, 3.0, 8.0]) == (2.0, 2.5, 3.0, 5.5, 8.0)
    with pytest.raises(ValueError, match="zip"):
        pairs.ratios({"slow": [1.0, 2.0], "fast": [1.0]}, "slow", "fast")


@pytest.mark.parametrize(
    ("bound", "met"),
    [(Bound(">=", 2.5), True), (Bound(">=", 2.6), False), (Bound("<=", 5.5), True), (Bound("<=", 5.4), False)],
)
def test_a_goal_is_judged_by_the_quartile_on_its_far_side(bound, met):
    assert Ratio("r", "a", "b", bound).met(pairs.spread([2.0, 3.0, 8.0])) is met
    assert Ratio("r", "a", "b").met(pairs.spread([1.0])) is None
    assert not bound.holds(float("nan"))


@pytest.mark.parametrize("checks", [[], [Check("equal", 0.9, Bound(">=", 0.9999))]], ids=["none", "failed"])
def test_nothing_is_timed_where_the_guard_fails(checks):
    ran = []
    result = case.run(Case("a case", {"unit": lambda: ran.append(1)}, "unit", lambda: checks, ()), rounds=2)
    assert not ran
    assert result.samples is None
    with pytest.raises(case.GuardError, match="a case: no times and no ratios"):
        result.ratio("unit", "unit", "cpu")
    assert "forwards" not in report.text(result, "cpu")
    assert report.record("w", result)["ratios"] is None


def test_the_table_says_what_was_missed():
    result = case.run(a_case({"slow": lambda: sum(range(200_000)), "unit": lambda: None}), rounds=3)
    shown = report.text(result, "cpu")
    ratio = result.ratio("slow", "unit", "cpu")
    assert f"| slow / unit | {ratio.median:.2f} (" in shown
    assert shown.endswith("| >= 1 | met |")
    seconds = {"slow": [1.0], "unit": [2.0]}
    never = case.Result(a_case(dict.fromkeys(seconds)), result.checks, pairs.Samples(seconds, seconds))
    assert report.text(never, "cpu").endswith("| slow / unit | 0.50 (0.50 to 0.50) | 0.50 to 0.50 | >= 1 | missed |")


def test_part_masks_reports_ratios_of_two_timings(small, tmp_path, capsys):
    file = tmp_path / "out.json"
    words = ["part-masks", "--rounds", "2", "--batch-size", "6", "--json", str(file)]
    assert cli.main(words) == 0
    shown, content = capsys.readouterr().out, json.loads(file.read_text())
    assert content["command"] == "python -m benchmarks part-masks --rounds 2 --batch-size 6 --json " + str(file)
    assert content["machine"]["processor"]
    assert content["machine"]["versions"]["torch"] == torch.__version__
    assert len(content["cases"]) == 4
    for one in content["cases"]:
        assert all(check["passed"] for check in one["checks"])
        assert one["title"] in shown
        assert {"one by one (reference)", "backward through the head", "forward"} <= set(one["samples"]["cpu"])
        for clock in ("cpu", "wall"):
            assert all(len(values) == 2 and min(values) > 0 for values in one["samples"][clock].values())
        for table in one["ratios"]:
            for row in table["rows"]:
                of, to = (one["samples"][table["clock"]][row[key]] for key in ("of", "to"))
                by_hand = sorted(a / b for a, b in zip(of, to, strict=True))
                assert (row["min"], row["max"]) == pytest.approx(by_hand)


def test_part_masks_gives_no_ratio_for_other_masks(small, tmp_path, capsys, monkeypatch):
    jet = part_masks.Jet
    monkeypatch.setattr(part_masks, "Jet", lambda: lambda u: ~jet()(u))
    file = tmp_path / "out.json"
    assert cli.main(["part-masks", "--rounds", "1", "--batch-size", "4", "--json", str(file)]) == 1
    shown = capsys.readouterr().out
    assert "FAILED" in shown
    assert " | " not in shown
    assert all(one["samples"] is None and one["ratios"] is None for one in json.loads(file.read_text())["cases"])


def test_mrc_reports_its_ratios(small, tmp_path, capsys):
    file = tmp_path / "out.json"
    assert cli.main(["mrc", "--rounds", "1", "--batch-size", "4", "--json", str(file)]) == 0
    (one,) = json.loads(file.read_text())["cases"]
    assert "5 layers, 2 epochs instead of 10" in one["title"]
    assert one["title"] in capsys.readouterr().out
    assert all(check["passed"] for check in one["checks"])
    names = {"layer by layer (reference)", "cached", "cached, contiguous", "wavefront", "paper's protocol", "forward"}
    assert set(one["samples"]["cpu"]) == names


def test_mrc_gives_no_ratio_for_other_values(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(mrc, "RELEASE_RADIUS", 0.11)
    assert cli.main(["mrc", "--rounds", "1", "--batch-size", "4"]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_pgd_reports_its_ratios(small, tmp_path, capsys):
    file = tmp_path / "out.json"
    assert cli.main(["pgd", "--rounds", "1", "--batch-size", "4", "--json", str(file)]) == 0
    (one,) = json.loads(file.read_text())["cases"]
    assert one["title"] in capsys.readouterr().out
    assert {"gambeson", "plain loop (reference)", "forward"} <= set(one["samples"]["cpu"])
    peers = {name for name in pgd.GOALS if importlib.util.find_spec(name)}
    assert {check["label"].rpartition(", ")[2] for check in one["checks"]} >= peers
    rows = {row["label"]: row for row in one["ratios"][0]["rows"]}
    assert set(rows) == {f"{name} / ours" for name in peers} | {"reference / ours", "ours / forward"}


def test_pgd_gives_no_ratio_for_other_images(small, capsys, monkeypatch):
    monkeypatch.setattr(pgd.reference, "attack", lambda net, x, y, **_: (x + 0.5).clamp(0, 1))
    assert cli.main(["pgd", "--rounds", "1", "--batch-size", "4"]) == 1
    assert "FAILED" in capsys.readouterr().out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run on digits."""
    from gambeson.app.cli import main

    path = tmp_path_factory.mktemp("benchmark") / "r"
    words = ["standard", "--eps", "0.3", "--epochs", "4", "--test-size", "20", "--attack", "clean"]
    assert main(["train", *words, "--device", "cpu", "--run", str(path)]) == 0
    return path


def test_autoattack_is_compared_part_by_part(run, tmp_path, capsys, monkeypatch):
    threads = torch.get_num_threads()
    order = []

    def side(name, first):
        def attack(model, x, y, threat, options):
            order.append(name)
            meter = against.Meter(model)
            with torch.no_grad():
                standing = model(x).argmax(1) == y
            standing[:first] = False
            for attack in against.STAGES:
                model(x.requires_grad_()).sum().backward()
                meter.read(attack, int(standing.sum()))
            return standing, meter.stages

        return attack

    monkeypatch.setattr(against, "RUNNERS", {"gambeson": side("gambeson", 0), "pyautoattack": side("pyautoattack", 5)})
    file = tmp_path / "out.json"
    words = [str(run), "--test-size", "30", "--part", "10", "--batch-size", "10", "--json", str(file)]
    code = against.main(words)
    torch.set_num_threads(threads)
    shown = capsys.readouterr().out
    (found,) = json.loads(file.read_text())["runs"]
    lost = round(30 * (found["robust"]["gambeson"]["value"] - found["robust"]["pyautoattack"]["value"]))

    assert order == ["gambeson", "pyautoattack", "pyautoattack", "gambeson", "gambeson", "pyautoattack"]
    assert found["n"] == 30
    again = list(order)
    against.main(words)  # everything is there
    assert order == again
    assert found["differing"] == lost > 0
    assert code == 1  # more than 2 of 500 apart
    assert [len(part["stages"]["gambeson"]) for part in found["parts"]] == [4, 4, 4]
    assert verdicts.total(found, "gambeson", "forwards") == [50, 50, 50]  # with the clean forward
    assert verdicts.total(found, "gambeson", "backwards") == [40, 40, 40]
    assert f"| all | {100 * found['robust']['gambeson']['value']:.1f} |" in shown
    assert "150 | 150 | 120 | 120 |" in shown
    assert "pyautoattack / gambeson, part by part: " in shown
    into = tmp_path / "d.md"
    into.write_text("before\n<!-- record: out -->\nold\n<!-- end of out -->\nafter\n")
    assert cli.main(["document", str(file), "--into", str(into)]) == 0
    written = into.read_text()
    assert f"<!-- record: out -->\n\n{shown.strip()}\n\n2" in written
    assert written.endswith("process CPU time.\n\n<!-- end of out -->\nafter\n")
    assert "Seconds are process CPU time." in written
    assert f"verdicts differ for {lost} of 30 images; parts: 3; BatchNorm folded in our search; " in written
    assert "; the release's model contiguous." in written
    order.clear()
    against.main([*words[:2], "40", "--skip", "30", *words[3:]])
    torch.set_num_threads(threads)
    assert order == ["gambeson", "pyautoattack"]
    assert "n = 10 after the first 30" in capsys.readouterr().out
    assert [one["n"] for one in json.loads(file.read_text())["runs"]] == [30, 10]


def test_autoattack_agrees_with_its_release(run, capsys):
    pytest.importorskip("pyautoattack")
    threads = torch.get_num_threads()
    words = [str(run), "--test-size", "6", "--part", "6", "--batch-size", "6"]
    code = against.main(words)
    torch.set_num_threads(threads)
    assert code == 0
    assert "verdicts differ for 0 of 6 images" in capsys.readouterr().out


def test_a_dead_map_keeps_the_low_budget_everywhere_in_the_reference():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(128, 2)).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()  # no feature, no gradient
    budget = reference.budgets(net, torch.rand(2, 3, 8, 8), "0")
    assert torch.equal(budget, torch.full((2, 3, 8, 8), 7 / 255))


def test_the_list_and_what_is_refused(capsys):
    assert cli.main(["--list"]) == 0
    assert capsys.readouterr().out.startswith("corruptions ")
    for words, said in (
        (["nothing"], "there are corruptions, data, growth, mrc, part-masks"),
        (["--rounds", "0"], "--rounds must be at least 1"),
    ):
        with pytest.raises(SystemExit):
            cli.main(words)
        assert said in capsys.readouterr().err
