"""SAMtune: adapt the Segment Anything Model, and reproduce SPT, SAM-SP and ASAM."""

__version__ = "0.1.0"
