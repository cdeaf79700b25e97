import math
from dataclasses import FrozenInstanceError, fields

import pytest

from gambeson.core.errors import InputError
from gambeson.engine.settings import Settings


@pytest.mark.parametrize("name", ["epochs", "batch_size", "val_every", "log_every", "checkpoint_every"])
def test_counts_start_at_one(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} must be at least 1, got 0"):
        Settings(**{name: 0})  # type: ignore[arg-type]
    Settings(**{name: 1})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["lr", "weight_decay", "momentum"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_rates_are_finite_and_not_negative(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{name} is out of range, got {value:g}"):
        Settings(**{name: value})  # type: ignore[arg-type]
    Settings(**{name: 0.0})  # type: ignore[arg-type]


def test_momentum_stays_below_one() -> None:
    with pytest.raises(InputError, match="momentum is out of range, got 1"):
        Settings(momentum=1.0)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(InputError, match="unknown schedule 'linear'"):
        Settings(schedule="linear")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"on_overfitting": "ignore"},
        {"probe_every": -1},
        {"momentum_low": math.nan},
        {"milestones": (0.5, math.nan)},
        {"fill": "edge"},
        {"pad": -1},
    ],
)
def test_names_and_ranges_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Settings(**wrong)  # type: ignore[arg-type]


def test_settings_are_a_frozen_documented_value() -> None:
    assert Settings() == Settings()
    with pytest.raises(FrozenInstanceError):
        Settings().lr = 1.0  # type: ignore[misc]
    for field in fields(Settings):
        assert f"\n        {field.name}: " in str(Settings.__doc__)
