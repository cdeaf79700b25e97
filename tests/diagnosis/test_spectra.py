"""Spectra against numpy and matrices whose singular values are known; drift between checkpoints."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from gambeson.core.errors import InputError, UnhealthyError
from gambeson.core.types import Task
from gambeson.diagnosis.spectra import measure_spectra, spectrum
from gambeson.models import create

TASK = Task(num_classes=10, channels=3, size=32, mean=(0.5,) * 3, std=(0.25,) * 3)


def test_a_convolution_is_the_matrix_of_its_filters() -> None:
    weight = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    found = spectrum("stem.weight", weight)
    matrix = weight.double().numpy().reshape(6, 27)
    values = np.linalg.svd(matrix, compute_uv=False)
    shares = values**2 / (values**2).sum()
    assert found.layer == "stem"
    assert found.shape == (6, 3, 3, 3)
    assert found.values == pytest.approx(values)
    assert found.norm == pytest.approx(np.linalg.norm(matrix))
    assert found.largest == pytest.approx(np.linalg.norm(matrix, 2))
    assert found.stable_rank == pytest.approx((values**2).sum() / values[0] ** 2)
    assert found.entropy_rank == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))
    assert found.drift is None


def test_ranks_of_matrices_that_are_known() -> None:
    one = spectrum("a", torch.outer(torch.arange(1.0, 4), torch.ones(5)))
    assert one.stable_rank == pytest.approx(1)
    assert one.entropy_rank == pytest.approx(1)
    full = spectrum("a", 3 * torch.eye(4))
    assert (full.largest, full.stable_rank, full.entropy_rank) == pytest.approx((3, 4, 4))
    nothing = spectrum("a", torch.zeros(3, 2))
    assert (nothing.norm, nothing.largest, nothing.stable_rank, nothing.entropy_rank) == (0, 0, 0, 0)


def test_drift_is_relative_to_the_checkpoint_before() -> None:
    first, second, third = (nn.Linear(3, 4) for _ in range(3))
    with torch.no_grad():
        second.weight.copy_(1.5 * first.weight)
        third.weight.copy_(second.weight)
    found = measure_spectra({"start": first, "middle": second, "end": third})
    assert [one.drift for one in found.of("weight")] == [None, pytest.approx(0.5), 0.0]
    assert spectrum("a", torch.ones(2, 2), torch.zeros(2, 2)).drift == math.inf
    record = json.loads(json.dumps(found.to_dict()))
    assert record["checkpoints"] == ["start", "middle", "end"]
    assert record["layers"]["middle"][0]["drift"] == pytest.approx(0.5)


def test_all_layers_of_a_network_or_some() -> None:
    model = create("preact-resnet18", TASK, width=4)
    found = measure_spectra({"final": model})
    assert len(found.layers[0]) == 21
    assert found.layers[0][0].layer == "conv1"
    some = measure_spectra({"final": model}, ["conv1.weight"])
    assert [one.layer for one in some.layers[0]] == ["conv1"]
    assert some.layers[0][0] == found.layers[0][0]


def test_what_cannot_be_measured_is_refused() -> None:
    model = nn.Linear(3, 4)
    with pytest.raises(InputError, match="at least one checkpoint"):
        measure_spectra({})
    with pytest.raises(InputError, match="final has no weights head"):
        measure_spectra({"final": model}, ["head"])
    with pytest.raises(InputError, match="b has other layers"):
        measure_spectra({"a": model, "b": nn.Linear(4, 4)})
    broken = nn.Linear(3, 4)
    with torch.no_grad():
        broken.weight[0, 0] = math.nan
    with pytest.raises(UnhealthyError, match="last has weights that are not finite: weight"):
        measure_spectra({"last": broken})
    with pytest.raises(InputError, match="no layer 'head'"):
        measure_spectra({"a": model}).of("head")
