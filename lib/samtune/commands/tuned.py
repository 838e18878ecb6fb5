"""Tuned checkpoints: writes and reads the files of `samtune tune`, and exports to SAM's own format."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from samtune import __version__
from samtune.commands.settings import TuneSettings
from samtune.common.errors import InputError
from samtune.common.paths import names_a_file, resolve
from samtune.methods import Method, build_method
from samtune.methods.predictor import MethodPredictor, SPTPredictor
from samtune.methods.spt import SPT
from samtune.methods.spt_released import is_released, load_released
from samtune.sam.checkpoints import (
    OFFICIAL,
    holds_sam,
    is_safetensors,
    load_sam,
    read_state,
    sam_of_state,
    save_official,
    save_safetensors,
    sha256,
    state_hash,
    weights_hash,
)

TUNED = "tuned.safetensors"


@dataclass(frozen=True)
class TunedModel:
    """A tuned model.

    Fields:
        method: in eval mode.
        preprocess: in tuning: "pad" or "stretch".
        prompts: kinds of prompts in tuning.
        backbone: its name.
        white: value of white in the 16-bit pictures that it was tuned on; None: there were none.
    """

    method: Method
    preprocess: str
    prompts: tuple[str, ...]
    backbone: str
    white: int | None = None

    def predictor(self, device: str = "cpu") -> MethodPredictor:
        """`SamPredictor`'s interface for it."""
        kind = SPTPredictor if isinstance(self.method, SPT) else MethodPredictor
        return kind(self.method.to(device), self.preprocess)


def save_tuned(method: Method, path: Path, settings: TuneSettings, weights: str, about: Mapping[str, object]) -> None:
    """Write the trained parameters of `method` and all that `load_tuned` needs.

    Args:
        method: tuned.
        path: a .safetensors file.
        settings: of the tuning.
        weights: hash of the backbone's weights.
        about: further facts on the training (how many images, how long).
    """
    state = method.trainable_state()
    metadata = {
        "samtune": __version__,
        "method": settings.method,
        "options": json.dumps(dict(settings.options)),
        "backbone": settings.backbone,
        "weights_hash": weights,
        "preprocess": settings.preprocess,
        "prompts": ",".join(settings.prompts),
        "target": settings.target,
        "seed": str(settings.seed),
        "sha256": _digest(state),
    }
    metadata |= {name: str(value) for name, value in about.items()}
    save_safetensors(state, path, torch.float32, metadata)


def load_tuned(checkpoint: str | Path, backbone: str | None = None) -> TunedModel:
    """The tuned model in `checkpoint`, on its backbone.

    Args:
        checkpoint: a file that `samtune tune` wrote, or its folder; or one that SPT's authors released; or a whole SAM,
            such as `export` writes, which becomes method "zero_shot".
        backbone: its file, if it has moved since tuning. Needed for a released checkpoint, which does not name it; not
            for a whole SAM.

    Raises `InputError` when the file is missing, corrupt (sha256 expected and found) or of another kind, or when the
    backbone has other weights than in tuning.
    """
    checkpoint = _file(Path(checkpoint))
    if not (is_safetensors(checkpoint) and "method" in _about(checkpoint)):
        state = read_state(checkpoint)
        if is_released(state):
            if backbone is None:
                raise InputError(f"{checkpoint} does not say which SAM it was tuned on: name it by --backbone")
            sam = load_sam(backbone)
            return TunedModel(load_released(checkpoint, sam), "stretch", ("box", "point10"), sam.backbone)
        if holds_sam(state):
            sam = sam_of_state(state, checkpoint)
            return TunedModel(build_method("zero_shot", sam).eval(), "pad", ("box", "point10"), sam.backbone)
        raise InputError(
            f"{checkpoint} was not written by `samtune tune`, and holds neither a whole SAM nor what SPT's authors "
            "released"
        )
    state, about = read_tuned(checkpoint)
    name = backbone or about["backbone"]
    if backbone is None and names_a_file(name) and not resolve(name).is_file():
        raise InputError(f"{checkpoint} was tuned on {name}, which is no longer there: name its file by --backbone")
    sam = load_sam(name)
    found = weights_hash(sam)
    if found != about["weights_hash"]:
        raise InputError(
            f"{checkpoint} was tuned on {about['backbone']} with weights {about['weights_hash']}, but those of {name} "
            f"are {found}: name the file with the right ones by --backbone"
        )
    method = build_method(about["method"], sam, **json.loads(about["options"]))
    method.load_trainable_state(state, str(checkpoint))
    white = int(about["white"]) if "white" in about else None
    return TunedModel(method.eval(), about["preprocess"], tuple(about["prompts"].split(",")), sam.backbone, white)


def read_tuned(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The trained parameters in a file that `samtune tune` wrote, and its metadata.

    Raises `InputError` when it is missing, corrupt (sha256 expected and found) or of another kind.
    """
    about = _about(checkpoint)
    needed = ("method", "options", "backbone", "weights_hash", "preprocess", "prompts", "sha256")
    if missing := [name for name in needed if name not in about]:
        raise InputError(f"{checkpoint} was not written by `samtune tune`: it does not name its {missing[0]}")
    state = read_state(checkpoint)
    if _digest(state) != about["sha256"]:
        raise InputError(
            f"corrupt checkpoint {checkpoint}: its tensors have sha256 {_digest(state)}, it was written with "
            f"{about['sha256']}"
        )
    return state, about


def export(checkpoint: Path, out: Path, backbone: str | None = None, say: Callable[[str], None] = print) -> Path:
    """Write a tuned model as one SAM in SAM's own format, which plain `segment_anything` loads.

    Raises `InputError` for methods that do not fit into SAM's own weights, see `Method.merged`, and for encoders that
    are none of SAM's; and where `out` is there already.
    """
    tuned = load_tuned(checkpoint, backbone)
    merged = tuned.method.merged()
    if merged is None:
        raise InputError(
            f"{tuned.method.name} has no merged form: it is more than SAM's own weights can hold; "
            "use `samtune predict`, or samtune.load_tuned in Python"
        )
    if tuned.backbone not in (*OFFICIAL, "nano"):
        raise InputError(
            f"segment_anything has no class for the encoder of {tuned.backbone}: use `samtune predict`, or "
            "samtune.load_tuned in Python"
        )
    if out.suffix.lower() not in (".pth", ".pt"):
        raise InputError(f"{out}: SAM's own format is a .pth file")
    if out.exists():  # it may be the very backbone that was tuned
        raise InputError(f"{out} is there already: give another name, or remove it")
    save_official(merged, out)
    say(f"{out}: {tuned.backbone} tuned by {tuned.method.name}, in SAM's own format")
    if tuned.backbone == "nano":
        say("note: segment_anything has no builder for nano's sizes: samtune.sam.checkpoints.load_sam(path) gives")
        say("the Sam that segment_anything.SamPredictor takes")
    else:
        say(f"load it with segment_anything.sam_model_registry['{tuned.backbone}'](checkpoint='{out}')")
    if not tuned.method.takes_prompts:
        say(f"note: it gives the first, unprompted pass; what {tuned.method.name} makes of that is not in SAM's format")
    if tuned.preprocess == "stretch":
        say("note: it was tuned on stretched pictures; SamPredictor pads, which is the same for square ones only")
    if tuned.preprocess == "stretch" or "none" in tuned.prompts:
        say(f"note: `samtune predict` on it pads and wants a prompt; on {checkpoint} it does as in tuning")
    return out


def _file(checkpoint: Path) -> Path:
    return checkpoint / TUNED if checkpoint.is_dir() else checkpoint


def _about(checkpoint: Path) -> dict[str, str]:
    """The metadata of a .safetensors file."""
    if not checkpoint.is_file():
        raise InputError(f"no checkpoint at {checkpoint}")
    try:
        with safe_open(checkpoint, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"corrupt checkpoint {checkpoint} (sha256 {sha256(checkpoint)}): {error}") from error


def _digest(state: Mapping[str, Tensor]) -> str:
    return state_hash(state)[:16]
