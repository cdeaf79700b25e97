import pytest
import torch

from gambeson.data.facts import FACTS, channel_statistics, measured_facts


@pytest.mark.parametrize("name", FACTS)
def test_a_line_of_the_table_agrees_with_itself(name: str) -> None:
    facts = FACTS[name]
    assert facts.name == name
    assert facts.num_classes == len(facts.class_names) == len(set(facts.class_names))
    assert facts.channels == len(facts.mean) == len(facts.std)
    assert all(0 < value < 1 for value in (*facts.mean, *facts.std, facts.eps))
    assert facts.task.num_classes == facts.num_classes
    assert (facts.task.channels, facts.task.size) == (facts.channels, facts.size)
    assert (facts.task.mean, facts.task.std) == (facts.mean, facts.std)


def test_class_counts_and_order() -> None:
    counts = {name: facts.num_classes for name, facts in FACTS.items()}
    assert counts.pop("cifar100") == 100
    assert counts.pop("tiny-imagenet") == 200
    assert set(counts.values()) == {10}
    for name in ("cifar10", "cifar100", "tiny-imagenet"):  # labels follow the alphabet in these three
        assert list(FACTS[name].class_names) == sorted(FACTS[name].class_names)


def test_tiny_imagenet_is_not_normalised_with_the_constants_of_cifar100() -> None:
    assert FACTS["tiny-imagenet"].mean != FACTS["cifar100"].mean


def test_channel_statistics_against_a_direct_computation() -> None:
    x = torch.randint(256, (7, 3, 5, 5), dtype=torch.uint8)
    mean, std = channel_statistics(x)
    scaled = x.double() / 255
    assert mean == pytest.approx(scaled.mean((0, 2, 3)).tolist())
    assert std == pytest.approx(scaled.std((0, 2, 3), correction=0).tolist())


def test_a_constant_channel_has_a_deviation_to_divide_by() -> None:
    assert channel_statistics(torch.full((2, 1, 4, 4), 9, dtype=torch.uint8))[1] == (1 / 255,)


def test_measured_facts() -> None:
    facts = measured_facts("npz:a", ["x", "y"], torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8), flip=True)
    assert (facts.num_classes, facts.channels, facts.size, facts.pad, facts.flip) == (2, 3, 64, 8, True)
    assert facts.eps == 4 / 255


def test_channel_statistics_do_not_depend_on_the_blocks_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randint(256, (23, 3, 5, 5), dtype=torch.uint8)
    whole = channel_statistics(x)
    monkeypatch.setattr("gambeson.data.facts.BLOCK", 4)
    assert channel_statistics(x) == whole
