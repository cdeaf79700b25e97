"""Reports: one self-contained page per run or comparison, and the same as JSON."""
