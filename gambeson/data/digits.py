"""The 8x8 digits that come with scikit-learn: real data without a download, for tests, examples and a first try."""

from __future__ import annotations

import numpy as np

from gambeson.data.facts import FACTS
from gambeson.data.splits import Pool, hold_out, labelled

_TEST_FRACTION = 397 / 1797


def read_digits() -> Pool:
    """Read scikit-learn's 1,797 digits: 1,400 to train on, 397 to test, always the same ones.

    The 17 grey levels 0..16 are scaled to 0..255.

    Returns:
        Training and test examples, stratified.

    Examples:
        >>> pool = read_digits()
        >>> len(pool.train), len(pool.test)
        (1400, 397)
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = np.rint(bunch.images[:, None] * (255 / 16)).astype(np.uint8)
    digits = labelled(x, bunch.target, 10, "scikit-learn's digits")
    train, test = hold_out(digits, _TEST_FRACTION, 10, seed=0)
    return Pool(digits.subset(train), digits.subset(test), None, FACTS["digits"])
