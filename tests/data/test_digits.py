import pytest
import torch

from gambeson.data.digits import read_digits
from gambeson.data.facts import FACTS, channel_statistics


def test_digits_are_scaled_split_and_stratified() -> None:
    train, test, val, facts = read_digits()
    assert train.x.shape == (1400, 1, 8, 8)
    assert test.x.shape == (397, 1, 8, 8)
    assert val is None
    assert facts is FACTS["digits"]
    levels = torch.cat([train.x, test.x]).unique()
    assert levels.tolist() == [round(level * 255 / 16) for level in range(17)]
    share = torch.bincount(test.y) / (torch.bincount(test.y) + torch.bincount(train.y))
    assert (share - 397 / 1797).abs().max() < 0.006
    assert torch.equal(read_digits().test.x, test.x)


def test_the_table_holds_the_statistics_of_the_digits() -> None:
    mean, std = channel_statistics(read_digits().train.x)
    assert mean == pytest.approx(FACTS["digits"].mean, abs=5e-5)
    assert std == pytest.approx(FACTS["digits"].std, abs=5e-5)
