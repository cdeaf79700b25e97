"""Accuracies by class and two checkpoints on the same images, against counts made by hand."""

from __future__ import annotations

import json

import pytest
import torch

from gambeson.core.errors import InputError
from gambeson.diagnosis.class_gaps import class_gaps, compare_best_and_final, strongest_common
from gambeson.evaluation import Report, mcnemar, paired_difference, wilson

Y = torch.tensor([0] * 10 + [1] * 20 + [3] * 5)


def report(right: dict[str, tuple[int, int, int]], y: torch.Tensor = Y) -> Report:
    """By attack, how many of the first images of the classes 0, 1 and 3 are right; class 2 has no images."""
    outcomes = {
        name: torch.cat([torch.arange(n) < count for n, count in zip((10, 20, 5), counts, strict=True)])
        for name, counts in right.items()
    }
    return Report(outcomes, y, ("cat", "dog", "none", "ship"), {})


def test_every_class_has_its_accuracies_and_the_share_that_falls() -> None:
    found = class_gaps(report({"clean": (9, 20, 3), "pgd-10": (4, 6, 1), "fgsm": (5, 7, 1)}), "pgd-10")
    assert [row.name for row in found.rows] == ["cat", "dog", "ship"]
    cat = found.rows[0]
    assert (cat.clean, cat.robust, cat.gap) == (wilson(9, 10), wilson(4, 10), wilson(5, 10))
    assert (found.worst.name, found.widest.name) == ("ship", "dog")  # 1 of 5; 14 of 20
    record = json.loads(json.dumps(found.to_dict()))
    assert (record["attack"], record["worst"], record["widest"]) == ("pgd-10", "ship", "dog")
    assert record["classes"]["dog"]["gap"] == vars(wilson(14, 20))


def test_of_equal_classes_the_first_is_named() -> None:
    found = class_gaps(report({"clean": (10, 20, 5), "fgsm": (0, 0, 0)}), "fgsm")
    assert (found.worst.name, found.widest.name) == ("cat", "cat")


def test_an_attack_that_was_not_made_is_refused() -> None:
    with pytest.raises(InputError, match="no attack 'mm3'") as error:
        class_gaps(report({"clean": (1, 1, 1)}), "mm3")
    assert error.value.hint == "the evaluation has clean"


def test_best_and_final_are_paired_image_by_image() -> None:
    reports = {
        "best": report({"clean": (10, 20, 5), "fgsm": (8, 2, 5)}),
        "final": report({"clean": (10, 20, 5), "fgsm": (3, 4, 5)}),
    }
    found = compare_best_and_final(reports, "fgsm")
    assert found is not None
    assert (found.only_best, found.only_final) == (5, 2)
    assert found.difference == paired_difference(5, 2, 35)
    assert found.p == mcnemar(5, 2)
    assert json.loads(json.dumps(found.to_dict()))["difference"]["value"] == pytest.approx(3 / 35)


def test_other_images_and_a_missing_checkpoint_are_not_paired() -> None:
    one = report({"clean": (1, 1, 1), "fgsm": (1, 1, 1)})
    assert compare_best_and_final({"final": one}, "fgsm") is None
    assert compare_best_and_final({"best": report({"fgsm": (1, 1, 1)}, Y.flip(0)), "final": one}, "fgsm") is None


def test_the_strongest_attack_is_the_one_that_all_have() -> None:
    best = report({"clean": (9, 9, 5), "fgsm": (5, 5, 5), "pgd-10": (9, 9, 5)})
    final = report({"clean": (9, 9, 5), "fgsm": (4, 4, 4), "pgd-10": (3, 3, 3), "mm3": (0, 0, 0)})
    assert strongest_common({"best": best, "final": final}) == "pgd-10"
    assert strongest_common({"final": final}) == "mm3"
    assert strongest_common({"final": report({"clean": (1, 1, 1)})}) is None
    assert strongest_common({}) is None
