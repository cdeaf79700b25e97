import torch

from gambeson.parts import CarriedPerturbation
from gambeson.parts.state import CarriedState


def test_it_builds_an_empty_perturbation_with_its_step() -> None:
    part = CarriedPerturbation(0.6).build(torch.nn.Identity())
    assert isinstance(part, CarriedState)
    assert part.rel_step_size == 0.6
    assert part.delta.numel() == 0


def test_the_step_of_the_release_is_the_whole_radius() -> None:
    assert CarriedPerturbation() == CarriedPerturbation(1.0)
