"""RobustBench's model-info JSON, for a leaderboard or a table of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any


def model_info(
    record: Mapping[str, Any], *, name: str, dataset: str, architecture: str, additional_data: bool = False
) -> dict[str, Any]:
    """What RobustBench's `model_info/DATASET/THREAT/NAME.json` says of a model, as far as an evaluation knows it.

    Args:
        record: An `AutoAttackReport` of the version `standard`, as its `to_dict` gives it.
        name: The model's.
        dataset: Such as `cifar10`.
        architecture: Such as `WideResNet-28-10`.
        additional_data: Whether it was trained on more than the data set.

    Returns:
        Accuracies in percent as strings, the budget as RobustBench writes it. Authors, link and venue are empty: they
        are the user's to fill. `footnote` says on how many images it was measured, and if the search was in less than
        the model's precision.

    Raises:
        ValueError: The record is of another version.

    References:
        Croce, Andriushchenko, Sehwag, Debenedetti, Flammarion, Chiang, Mittal, Hein, "RobustBench: a standardized
        adversarial robustness benchmark", NeurIPS Datasets and Benchmarks 2021, https://arxiv.org/abs/2010.09670
    """
    if record["version"] != "standard":
        raise ValueError(f"RobustBench lists the version standard of AutoAttack, not {record['version']}")
    robust = record["robust"]
    return {
        "link": "",
        "name": name,
        "authors": "",
        "additional_data": additional_data,
        "number_forward_passes": 1,
        "dataset": dataset,
        "venue": "",
        "architecture": architecture,
        "eps": budget(record["eps"]),
        "clean_acc": f"{100 * record['clean']['value']:.2f}",
        "reported": "",
        "autoattack_acc": f"{100 * robust['value']:.2f}",
        "footnote": (
            f"{record['norm']}, {record['n']} images; 95 % interval of the robust accuracy"
            f" {100 * robust['low']:.2f} to {100 * robust['high']:.2f}{_precision(record)}"
        ),
    }


def _precision(record: Mapping[str, Any]) -> str:
    found = record.get("search_dtype")
    return f"; searched in {found}, every fall confirmed in {record['confirmed_in']}" if found else ""


def budget(eps: float) -> str:
    """A budget as RobustBench writes it: `8/255` for grey levels, else the number.

    Examples:
        >>> budget(8 / 255), budget(0.5)
        ('8/255', '0.5')
    """
    levels = Fraction(eps).limit_denominator(255)
    return f"{round(eps * 255)}/255" if 255 % levels.denominator == 0 and levels.denominator > 1 else f"{eps:g}"
