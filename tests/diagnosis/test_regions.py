"""The regional experiment's numbers by hand, its sentences, and its picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from gambeson.core.errors import InputError
from gambeson.diagnosis import PUBLISHED, SETUPS, Regions, draw_regions, regions_picture
from gambeson.diagnosis.regions import PAIRS, budget_text, mean_budget, scaled


def regions(**changes: Any) -> Regions:
    """Three seeds; only robust accuracy of low-br is clearly different."""
    alike = {"clean": (0.80, 0.82, 0.81), "pgd-20": (0.50, 0.52, 0.51)}
    accuracy = {name: dict(alike) for name in SETUPS}
    accuracy["low-br"] = {"clean": (0.82, 0.81, 0.80), "pgd-20": (0.40, 0.43, 0.41)}
    values: dict[str, Any] = {"eps": 12 / 255, "eps_low": 6 / 255, "eval_eps": 8 / 255, "n": 100, "flip": False}
    return Regions(**{**values, "seeds": (0, 1, 2), "accuracy": accuracy, **changes})


def test_the_setups_and_what_is_compared() -> None:
    assert SETUPS == {"uniform": None, "low-ul": "ul", "low-ur": "ur", "low-bl": "bl", "low-br": "br"}
    assert [a for a, b in PAIRS if b == "uniform"] == ["low-ul", "low-ur", "low-bl", "low-br"]
    assert PAIRS[-1] == ("low-ul", "low-br")


def test_the_published_numbers_give_the_published_differences() -> None:
    upper, bottom = PUBLISHED["low-ul"], PUBLISHED["low-br"]
    assert [round(100 * (upper[key] - bottom[key]), 2) for key in ("clean", "pgd-20")] == [1.23, 0.94]


@pytest.mark.parametrize(
    ("eps", "high", "low", "mean"),
    [(8 / 255, 12 / 255, 6 / 255, 10.5 / 255), (0.2, 0.3, 0.15, 0.2625), (0.3, 0.45, 0.225, 0.39375)],
)
def test_budgets_are_what_one_would_type(eps: float, high: float, low: float, mean: float) -> None:
    assert (scaled(eps, 1.5), scaled(eps, 0.75)) == (high, low)
    assert mean_budget(high, low) == mean


def test_budgets_to_read() -> None:
    assert [budget_text(eps) for eps in (8 / 255, 7.17 / 255, 0.15)] == ["8/255", "7.17/255", "0.15"]


def test_differences_by_hand() -> None:
    robust = regions().difference("low-br", "uniform", "pgd-20")  # -0.10, -0.09, -0.10: s = 0.0057735
    half = 4.302653 * 0.0057735 / 3**0.5

    assert robust.mean == pytest.approx(-0.29 / 3)
    assert (robust.low, robust.high) == pytest.approx((-0.29 / 3 - half, -0.29 / 3 + half), rel=1e-4)
    assert robust.excludes_zero
    assert not regions().difference("low-br", "uniform", "clean").excludes_zero
    assert regions().difference("low-ul", "low-br", "pgd-20").mean == pytest.approx(0.29 / 3)


def test_a_setup_that_differs_is_named_with_what_chance_does() -> None:
    (verdict,) = regions().sentences()

    assert "excludes zero for pgd-20 of low-br (by chance" in verdict
    assert "one or more of 8 intervals do in up to 40% of experiments" in verdict
    assert "clean of" not in verdict
    assert "low-ul" not in verdict  # it differs from low-br, not from the control


def test_no_difference_is_said() -> None:
    accuracy = {name: {"clean": (0.8, 0.9, 0.7)} for name in SETUPS}
    (verdict,) = regions(seeds=(0, 1, 2), accuracy=accuracy).sentences()

    assert verdict == "None of the 4 intervals (95 %) of a difference to the uniform control excludes zero."


def test_two_seeds_conclude_nothing() -> None:
    """Two equal differences have an interval without width."""
    accuracy = {name: {"clean": (0.8, 0.9)} for name in SETUPS} | {"low-ul": {"clean": (0.7, 0.8)}}
    found = regions(seeds=(0, 1), accuracy=accuracy)

    assert found.sentences() == ["Fewer than three seeds: nothing follows from these differences."]


def test_one_seed_concludes_nothing() -> None:
    accuracy = {name: {"clean": (0.8,)} for name in SETUPS} | {"low-ul": {"clean": (0.1,)}}
    found = regions(seeds=(7,), accuracy=accuracy)

    assert found.sentences() == ["Fewer than three seeds: nothing follows from these differences."]
    assert found.difference("low-ul", "uniform", "clean").low is None


def test_mirrored_images_are_remarked() -> None:
    assert "ul and ur, and bl and br, are the same experiment" in regions(flip=True).sentences()[1]
    assert len(regions(flip=False).sentences()) == 1


def test_the_record_is_complete() -> None:
    found = regions(flip=True)
    record = json.loads(json.dumps(found.to_dict()))

    assert record["uniform_eps"] == 10.5 / 255
    assert record["accuracy"]["low-br"]["pgd-20"]["values"] == [0.40, 0.43, 0.41]
    assert record["accuracy"]["uniform"]["clean"]["std"] == pytest.approx(0.01)
    assert len(record["differences"]) == 10
    last = record["differences"][-1]
    assert (last["setup"], last["to"], last["attack"]) == ("low-ul", "low-br", "pgd-20")
    assert last["values"] == pytest.approx([0.10, 0.09, 0.10])
    assert record["sentences"] == found.sentences()
    assert record["published"] == PUBLISHED


@pytest.mark.parametrize(
    "change",
    [
        {"accuracy": {"uniform": {"clean": (0.1, 0.2, 0.3)}}},
        {"accuracy": {name: {"clean": (0.8,) * (2 if name == "low-bl" else 3)} for name in SETUPS}},
        {"accuracy": {name: {"fgsm" if name == "low-bl" else "clean": (0.8,) * 3} for name in SETUPS}},
    ],
)
def test_a_hole_in_the_table_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        regions(**change)


def said(picture: Path) -> list[str]:
    return [line.strip(" <>!-") for line in picture.read_text().splitlines() if line.strip().startswith("<!--")]


def test_the_picture_shows_budgets_seeds_and_accuracies(tmp_path: Path) -> None:
    draw_regions(regions(), tmp_path / "a.svg", "data $\\x$, model_y")
    words = said(tmp_path / "a.svg")

    assert [words.count(number) for number in ("12", "6", "10.5")] == [12, 4, 1]
    assert {"natural accuracy, %", "PGD-20 accuracy, %", "uniform", "upper left", "bottom right"} <= set(words)
    assert "data $\\x$, model_y, n = 100 test images, 3 seeds, attacked at eps 8/255" in words
    assert any("small dots: seeds" in word for word in words)


def test_the_small_budget_is_drawn_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(regions_picture, "save", lambda figure, path, dpi: figures.append(figure))
    draw_regions(regions(), tmp_path / "a.svg")
    axis = figures[0].axes[0]
    middle = [(text.get_position(), text.get_text()) for text in axis.texts]

    assert axis.yaxis_inverted()
    for line, corner in enumerate(SETUPS.values()):
        places = {text: (x, y - line) for (x, y), text in middle if abs(y - line) < 0.5}
        if corner:
            x, y = places["6"]
            assert ("u" if y < 0 else "b") + ("l" if x < 0.38 else "r") == corner


def test_large_budgets_are_shown_as_fractions_and_one_seed_without_bars(tmp_path: Path) -> None:
    accuracy = {name: {"clean": (0.8,)} for name in SETUPS}
    found = regions(eps=0.3, eps_low=0.15, eval_eps=0.2, seeds=(0,), accuracy=accuracy)
    draw_regions(found, tmp_path / "a.svg")
    words = said(tmp_path / "a.svg")

    assert [words.count(number) for number in ("0.3", "0.15", "0.26")] == [12, 4, 1]
    assert "n = 100 test images, 1 seed, attacked at eps 0.2" in words
    assert not any("small dots" in word for word in words)


def test_the_picture_is_a_picture(tmp_path: Path) -> None:
    draw_regions(regions(), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(10**7)) > 20  # type: ignore[arg-type]
