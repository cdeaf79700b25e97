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


@pytest.mark.parametrize(("name", "below"), [("lr", "inf"), ("weight_decay", "inf"), ("momentum", "1")])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_rates_are_finite_and_not_negative(name: str, below: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"^{name} must lie in \[0, {below}\), got {value:g}$"):
        Settings(**{name: value})  # type: ignore[arg-type]
    Settings(**{name: 0.0})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["momentum", "momentum_low"])
def test_momentum_stays_below_one(name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name} must lie in \[0, 1\), got 1$"):
        Settings(**{name: 1.0})  # type: ignore[arg-type]


def test_a_seed_fits_the_generators() -> None:
    assert (Settings(seed=0).seed, Settings(seed=2**63 - 1).seed) == (0, 2**63 - 1)
    for seed in (-1, 2**63):
        with pytest.raises(InputError, match=rf"^seed must lie in \[0, 2\^63\), got {seed}$"):
            Settings(seed=seed)


@pytest.mark.parametrize("count", [-1, 4])
def test_there_are_at_most_as_many_snapshots_as_epochs(count: int) -> None:
    Settings(epochs=3, snapshots=3)
    with pytest.raises(InputError, match=rf"^snapshots are kept at ends of epochs: 0 to 3 of them, got {count}$"):
        Settings(epochs=3, snapshots=count)


def test_records_say_all_settings_but_later_ones_that_are_not_used() -> None:
    plain = Settings(milestones=(0.2, 0.4)).to_dict()
    assert set(plain) == {field.name for field in fields(Settings)} - {"snapshots", "sync_bn", "compile"}
    assert plain["milestones"] == [0.2, 0.4]
    assert Settings(epochs=3, snapshots=1).to_dict() == {**Settings(epochs=3).to_dict(), "snapshots": 1}
    assert Settings(sync_bn=True, compile=True).to_dict() == {**Settings().to_dict(), "sync_bn": True, "compile": True}


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
