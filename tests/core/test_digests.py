"""Digests of named tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gambeson.core.digests import digest_of

BASE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}


@pytest.mark.parametrize(
    "other",
    [
        {"a": BASE["a"].reshape(3, 2), "b": BASE["b"]},
        {"a": BASE["a"] + 1e-6, "b": BASE["b"]},
        {"a": BASE["a"].double(), "b": BASE["b"]},
        {"c": BASE["a"], "b": BASE["b"]},
        {"a": BASE["a"]},
    ],
    ids=["shape", "bytes", "type", "name", "less"],
)
def test_what_differs_is_told_apart(other: dict[str, Tensor]) -> None:
    assert digest_of(other) != digest_of(BASE)


def test_how_values_lie_in_memory_is_no_difference() -> None:
    transposed = BASE["a"].t().contiguous().t().requires_grad_()
    assert not transposed.is_contiguous()
    assert digest_of({"a": transposed, "b": BASE["b"]}) == digest_of(BASE)
