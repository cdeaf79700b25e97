"""The workloads of loading, corruptions and growth: what they compare and refuse. No test depends on a speed."""

import json

import numpy as np
import pytest
import torch
from bench import load
from PIL import Image

cli = load("benchmarks.cli")
roofline = load("benchmarks.roofline")
corruptions = load("benchmarks.workloads.corruptions")
data = load("benchmarks.workloads.data")
growth = load("benchmarks.workloads.growth")


@pytest.fixture
def run(monkeypatch, tmp_path):
    """A workload through the command line, without real images: exit code and record. Torch's threads come back."""
    monkeypatch.delenv("GAMBESON_DATA", raising=False)
    monkeypatch.setattr(roofline, "MAPS", ((4, 8),))
    monkeypatch.setattr(roofline, "SIDES", (16,))
    build = growth.create
    monkeypatch.setattr(
        growth, "create", lambda name, task, *, width, seed: build(name, task, width=width // 4, seed=0)
    )
    monkeypatch.setattr(growth, "WIDTHS", (16, 32))
    monkeypatch.setattr(growth, "BASE_STEPS", 2)
    monkeypatch.setattr(growth, "BATCHES", (0.5, 1))
    monkeypatch.setattr(growth, "STEPS", (1, 3))
    monkeypatch.setattr(growth, "CLASSES", (10, 20))
    threads = torch.get_num_threads()

    def call(name, rounds, batch_size):
        file = tmp_path / "out.json"
        words = [name, "--rounds", str(rounds), "--batch-size", str(batch_size), "--json", str(file)]
        return cli.main(words), json.loads(file.read_text())

    yield call
    torch.set_num_threads(threads)


def check_ratios(case, count):
    """Every ratio is one of two timings of the same round."""
    for table in case["ratios"]:
        assert len(table["rows"]) == count
        for row in table["rows"]:
            of, to = (case["samples"][table["clock"]][row[key]] for key in ("of", "to"))
            assert row["of"] != row["to"]
            assert min(of) > 0 < min(to)
            by_hand = sorted(a / b for a, b in zip(of, to, strict=True))
            assert (row["min"], row["max"]) == pytest.approx((by_hand[0], by_hand[-1]))


def test_data_is_compared_with_one_image_at_a_time(run, capsys):
    code, content = run("data", 2, 6)
    assert code == 0
    shown = capsys.readouterr().out
    for case, checks in zip(content["cases"], (3, 2), strict=True):
        assert len(case["checks"]) == checks
        assert all(check["passed"] for check in case["checks"])
        check_ratios(case, 1)
        assert set(case["images"].values()) == {48}
        assert all(cost["flops"] == 0 < cost["peak"] for cost in case["costs"].values())
        assert case["title"] in shown
    assert "| images/s | peak MB |" in shown


@pytest.mark.parametrize("wrong", ["to_tensor", "augmented"])
def test_data_gives_no_ratio_for_other_images(run, monkeypatch, wrong):
    right = getattr(data.reference, wrong)
    other = {
        "to_tensor": lambda image: right(image) * 0.99,
        "augmented": lambda image, placement, pad: right(image, (placement[1], placement[0], placement[2]), pad),
    }
    monkeypatch.setattr(data.reference, wrong, other[wrong])
    code, content = run("data", 1, 6)
    assert code == 1
    assert content["cases"][0]["samples"] is None


def test_the_reference_draws_every_place_and_both_sides():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        draws = [data.reference.drawn(4) for _ in range(400)]
    tops, lefts, mirrored = (set(values) for values in zip(*draws, strict=True))
    assert tops == lefts == set(range(9))
    assert mirrored == {True, False}


def test_corruptions_are_compared_where_there_is_a_reference(run, capsys):
    code, content = run("corruptions", 2, 4)
    assert code == 0
    paired, alone = content["cases"]
    check_ratios(paired, 11)
    assert len(paired["samples"]["cpu"]) == 22
    assert len(alone["samples"]["cpu"]) == 8
    assert alone["ratios"] == [{"clock": "cpu", "rows": []}, {"clock": "wall", "rows": []}]
    names = {name.removesuffix(", one by one (reference)") for name in (*paired["images"], *alone["images"])}
    assert names == set(corruptions.CORRUPTIONS)
    shown = capsys.readouterr().out
    assert shown.count("| ratio, round by round |") == 1
    assert "corruptions without a reference: 4 random images" in shown


def test_corruptions_gives_no_ratio_for_other_images(run, monkeypatch):
    monkeypatch.setitem(corruptions.reference.FUNCTIONS, "contrast", lambda image, c, random: np.array(image) + 2)
    code, content = run("corruptions", 1, 4)
    assert code == 1
    assert [case["samples"] is None for case in content["cases"]] == [True, False]


def test_the_numbers_are_those_of_the_image_in_its_block():
    x = (torch.arange(3 * 102 * 64) % 251).to(torch.uint8).view(102, 3, 8, 8)  # a block and two images
    found = corruptions.replayed(x, "gaussian_noise")
    assert np.array_equal(found, corruptions.corrupt(x, "gaussian_noise", corruptions.SEVERITY).numpy())


def test_the_reference_draws_new_numbers_for_every_image():
    image = Image.new("RGB", (8, 8), (128, 128, 128))
    legacy = corruptions.Legacy(0)
    for name in ("gaussian_noise", "glass_blur", "fog"):
        row = corruptions.TABLES["cifar"][name][2]
        image.putpixel((3, 3), (255, 0, 0))
        first, second = (corruptions.reference.FUNCTIONS[name](image, row, legacy) for _ in range(2))
        assert not np.array_equal(first, second)


def test_growth_fits_exponents_to_real_steps(run, capsys):
    code, content = run("growth", 2, 4)
    assert code == 0
    shown = capsys.readouterr().out
    assert [case["factor"]["name"] for case in content["cases"]] == [
        *("batch", "width", "steps", "classes"),
        *("batch", "width"),
    ]
    for case in content["cases"]:
        assert all(check["passed"] for check in case["checks"])
        values, seconds = list(case["factor"]["values"].values()), case["samples"]["cpu"]
        assert values == sorted(values)
        slopes = [
            np.polyfit(np.log(values), np.log([seconds[name][round_] for name in seconds]), 1)[0] for round_ in (0, 1)
        ]
        found = case["growth"]["cpu"]["seconds"]
        assert (found["min"], found["max"]) == pytest.approx(sorted(slopes))
        assert f"| exponent of the growth with {case['factor']['name']} |" in shown
    batch, width, steps, classes, *_ = (case["growth"]["cpu"] for case in content["cases"])
    assert batch["flops"] == pytest.approx(1)
    assert width["flops"] == pytest.approx(2, abs=0.1)
    assert 0.3 < steps["flops"] < 1  # linear, from the pass that trains
    assert 0 < classes["flops"] < 0.1  # of the last layer alone
    assert 0.5 < batch["peak"] < 1.1
    assert steps["peak"] == pytest.approx(0, abs=0.1)  # nothing of a step of the attack stays


def test_growth_is_not_reported_for_steps_that_do_nothing(run, monkeypatch):
    monkeypatch.setattr(growth, "robust_step", lambda net, batch, *_: net(batch.x))
    code, content = run("growth", 1, 4)
    assert code == 1
    assert all(case["samples"] is None and case["growth"] is None for case in content["cases"])
    failed = [[check["label"] for check in case["checks"] if not check["passed"]] for case in content["cases"]]
    assert failed[0] == ["passes forward too many or too few", "share of parameters that the step moved"]
