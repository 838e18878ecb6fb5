"""SAMtune: adapt the Segment Anything Model, and reproduce SPT, SAM-SP and ASAM.

The names that scripts need first; each is imported when it is asked for, as torch takes seconds.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
_PUBLIC = {
    "build_method": "samtune.methods",
    "load_sam": "samtune.sam.checkpoints",
    "load_tuned": "samtune.commands.tuned",
    "open_dataset": "samtune.data.registry",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
