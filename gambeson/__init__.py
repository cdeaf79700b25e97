"""gambeson: train, fine-tune, attack, measure and explain adversarially robust image classifiers."""

__version__ = "0.1.0"
