"""Zero-shot SAM: the prompted model as it was pre-trained (Kirillov et al., "Segment Anything", 2023)."""

from samtune.methods.method import Method


class ZeroShot(Method):
    """Nothing trains. Every table compares with it."""
