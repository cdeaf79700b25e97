import pytest
import torch

from gambeson.core.errors import InputError
from gambeson.engine.optim import Schedule, cycled_momentum, learning_rate


def reference(make: str, total: int, peak: float) -> tuple[list[float], list[float]]:
    """Learning rate and momentum that torch's own scheduler gives each step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak, momentum=0.9)
    scheduler = {
        "cyclic": lambda: torch.optim.lr_scheduler.CyclicLR(
            optimizer, base_lr=0, max_lr=peak, step_size_up=total / 2, step_size_down=total / 2
        ),
        "piecewise": lambda: torch.optim.lr_scheduler.MultiStepLR(optimizer, [total // 2, total * 3 // 4], gamma=0.1),
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total),
    }[make]()
    rates, momenta = [], []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        scheduler.step()
    return rates, momenta


@pytest.mark.parametrize("total", [4, 100, 1000])
@pytest.mark.parametrize("peak", [0.2, 0.01])
@pytest.mark.parametrize("schedule", ["cyclic", "piecewise", "cosine"])
def test_learning_rates_are_torchs(schedule: Schedule, peak: float, total: int) -> None:
    rates = [learning_rate(schedule, step, total, peak) for step in range(total)]
    assert rates == pytest.approx(reference(schedule, total, peak)[0], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("total", [4, 100, 1001])
def test_momentum_is_cycled_as_the_releases_do(total: int) -> None:
    rates, momenta = reference("cyclic", total, 0.2)
    assert [cycled_momentum("cyclic", step, total, 0.9, 0.8) for step in range(total)] == pytest.approx(momenta)
    assert [learning_rate("cyclic", step, total, 0.2) for step in range(total)] == pytest.approx(rates, abs=1e-12)


def test_momentum_is_cycled_under_the_cyclic_schedule_alone_and_never_raised() -> None:
    assert {cycled_momentum("cosine", step, 10, 0.9, 0.8) for step in range(10)} == {0.9}
    assert {cycled_momentum("cyclic", step, 10, 0.0, 0.8) for step in range(10)} == {0.0}


def test_constant_and_milestones() -> None:
    assert {learning_rate("constant", step, 10, 0.3) for step in range(10)} == {0.3}
    rates = [learning_rate("piecewise", step, 10, 1.0, (0.2, 0.5, 0.9)) for step in range(10)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01, 0.001])


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(InputError, match="unknown schedule 'linear'") as error:
        learning_rate("linear", 0, 10, 0.1)  # type: ignore[arg-type]
    assert error.value.hint == "known: constant, cosine, cyclic, piecewise"
