"""A row of one's own in a table: a method with changed options, checked before the work."""

import inspect
import math
from collections.abc import Mapping

from samtune.common.errors import InputError, check_range, first_line, unknown
from samtune.methods import METHODS, trainable_parameters
from samtune.training_config import TrainingConfig

OWN = "own: "  # begins the variant of a row of one's own, which claims and answers leave out
# Options of a training that such a row may change; the others are the profile's, or the study's.
OF_TRAINING = {"learning_rate": (0, 1), "weight_decay": (0, 1), "warm_up": (0, 1), "train_share": (0, 1)}  # least, most
NAMED = ("optimiser", "schedule", "augmentation")


def own_variant(method: str, changes: Mapping[str, object]) -> str:
    """The name of a row with changed options of `method` or its training: "own: rank 16, temperature 0.5"; "" without
    any.

    Raises `InputError` for what is no such option, or out of its range, so that it is told before the work.
    """
    known = [*inspect.signature(METHODS[method]).parameters, *OF_TRAINING, *NAMED]
    known.remove("sam")
    for name, value in changes.items():
        if name not in known:
            raise unknown(f"option of {method}", name, known)
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{name} is {value}: it has to be a finite number (1e9, say)")
        if name in OF_TRAINING:
            least, most = OF_TRAINING[name]
            check_range(name, value, least, most, above=name in ("learning_rate", "train_share"))
    try:
        TrainingConfig(1, **{name: value for name, value in changes.items() if name in NAMED})
        options = {name: value for name, value in changes.items() if name not in (*OF_TRAINING, *NAMED)}
        trainable_parameters(method, "nano", **options)
    except InputError:
        raise
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise InputError(f"{method} cannot be trained with {dict(changes)}: {first_line(error)}") from error
    return OWN + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in changes.items()) if changes else ""
