"""Parity: formulas transcribed from the specifications, in plain PyTorch, against the library."""
