"""A user's own pictures in, a tuned checkpoint out; and that checkpoint in SAM's own format where it has one."""

import hashlib
import inspect
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from samtune import __version__
from samtune.common.atomic import write_atomically
from samtune.common.errors import InputError, counted, unknown
from samtune.common.provenance import choose_precision
from samtune.data.folder import FolderDataset
from samtune.data.listed import ListedDataset
from samtune.data.sample import TARGETS, Sample
from samtune.data.splits import by_split, make_split
from samtune.embeddings import EmbeddingCache
from samtune.evaluation import EvaluationConfig, evaluate, predict_with
from samtune.methods import METHODS, Method, build_method
from samtune.methods.predictor import MethodPredictor, SPTPredictor
from samtune.methods.spt import SPT
from samtune.methods.spt_released import load_released
from samtune.prompts import parse_kind
from samtune.sam.checkpoints import load_sam, read_state, save_official, save_safetensors, sha256, weights_hash
from samtune.sam.preprocess import MODES
from samtune.training import TrainingConfig, train, usable_device

TUNED, SETTINGS, METRICS_FILE = "tuned.safetensors", "settings.json", "metrics.csv"
METRICS = ("iou", "boundary_iou", "dice")
EPOCHS, FEWEST_IMAGES = 16, 400  # SPT's 16 epochs; a handful of pictures is seen more often than that
FEW = 10  # held-out pictures below which a mean says little
CHECKPOINT_EVERY = 20  # batches


@dataclass(frozen=True)
class TuneSettings:
    """What the tuned weights depend on, besides the pictures; two runs into one folder must agree in it.

    `options` are the method's own (LoRA's rank); `epochs` or `train_images` (seen in all) say how long, none of them:
    16 epochs and at least 400 images; `learning_rate` None is the method's own; `prompts` drawn in tuning and measured
    afterwards (none named: the method's own); `objects`: with target "instances", the most masks taken of a picture at
    a time.
    """

    method: str = "lora"
    backbone: str = "nano"
    options: Mapping[str, Any] = field(default_factory=dict)
    epochs: float | None = None
    train_images: int | None = None
    learning_rate: float | None = None
    batch_size: int = 4
    accumulate: int = 1
    prompts: tuple[str, ...] = ()
    target: str = "union"
    objects: int = 4
    preprocess: str = "pad"
    mask_coding: str = "binary255"
    void: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.prompts and self.method in METHODS:
            object.__setattr__(self, "prompts", METHODS[self.method].prompts)

    def check(self) -> None:
        """Raise `InputError` for whatever can be told wrong before a file is opened."""
        if self.method not in METHODS:
            raise unknown("method", self.method, METHODS)
        if self.method not in _tunable():
            reason = "nothing to tune" if self.method == "zero_shot" else "no SAM in it: a yardstick for tables alone"
            raise InputError(f"{self.method} has {reason}; methods to tune with: {', '.join(_tunable())}")
        known = [name for name in inspect.signature(METHODS[self.method]).parameters if name != "sam"]
        for name in self.options:
            if name not in known:
                raise unknown(f"option of {self.method}", name, known)
        for kind, name, names in (("preprocessing", self.preprocess, MODES), ("target", self.target, TARGETS)):
            if name not in names:
                raise unknown(kind, name, names)
        for prompt in self.prompts:
            parse_kind(prompt)
        if not METHODS[self.method].takes_prompts and self.prompts != ("none",):
            raise InputError(f"{self.method} takes no prompt: it is tuned and used with none, not {self.prompts[0]}")
        if self.epochs is not None and self.train_images is not None:
            raise InputError("epochs and train_images both say how long to tune; give one of them")

    def images(self, pictures: int) -> int:
        """Images to see in all, when there are `pictures` to tune on."""
        if self.train_images is not None:
            return self.train_images
        if self.epochs is not None:
            return max(1, round(self.epochs * pictures))
        return max(EPOCHS * pictures, FEWEST_IMAGES)


class HeldOut(ListedDataset):
    """The user's pictures, a fifth of them (drawn with seed 0) held out as "val"; the rest is "train"."""

    def __init__(self, pictures: FolderDataset) -> None:
        split_of = make_split(pictures.ids("train"), fractions=(0.8, 0.2), names=("train", "val"))
        super().__init__(pictures.name, by_split(split_of), pictures.dropped)
        if not self.ids("val"):
            raise InputError(f"{len(split_of)} pictures with a mask are too few to hold a fifth out: 3 are needed")
        self._pictures = pictures

    def load(self, id: str) -> Sample:
        """Read one picture and its masks."""
        return replace(self._pictures.load(id), split=self.split_of(id))


@dataclass(frozen=True)
class TuneResult:
    """What tuning gave.

    `checkpoint` and `metrics` are files; `scores` mean IoU on the held-out pictures, one row a prompt, columns
    zero_shot and tuned; `pictures` were held out; `skipped` one line a bad file that was left out; `dropped` counts
    by reason.
    """

    checkpoint: Path
    metrics: Path
    scores: pd.DataFrame
    pictures: int
    skipped: tuple[str, ...]
    dropped: Mapping[str, int]


def tune(
    images: Path,
    masks: Path,
    out: Path,
    settings: TuneSettings,
    skip_bad: bool = False,
    device: str = "auto",
    precision: str = "auto",
    say: Callable[[str], None] = print,
) -> TuneResult:
    """Tune SAM on a folder of pictures and a folder of masks; what is measured is said before and after.

    Writes `out/tuned.safetensors` (the trained parameters and what they belong to) and `out/metrics.csv` (one row an
    object of the held-out pictures). Broken off, it goes on from `out/last.pt` with the same final weights; finished,
    it only measures again. Raises `InputError` for bad input, other settings than those of a run in `out`, a loss
    that is no number, and too little memory.
    """
    settings.check()
    device = usable_device(device)
    precision = choose_precision(precision, device)
    pictures = open_pictures(images, masks, settings, skip_bad)
    data = HeldOut(pictures)
    for_training, held_out = len(data.ids("train")), len(data.ids("val"))
    left_out = "".join(f"; left out, {reason}: {count}" for reason, count in data.dropped.items())
    say(f"{counted(for_training + held_out, 'picture')}: {for_training} to tune on, {held_out} held out{left_out}")

    sam = load_sam(settings.backbone)
    _same_run(out, settings, weights_hash(sam), data)
    metadata = _metadata(settings, weights_hash(sam), for_training)
    cache = EmbeddingCache(out / "cache")

    def measure(method: Method, stage: str) -> pd.DataFrame:
        parts = []
        for prompt in settings.prompts:
            config = EvaluationConfig(
                "val", settings.target, prompt, settings.preprocess, METRICS, settings.seed,
                batch_size=settings.batch_size, device=device, precision=precision,
            )  # fmt: skip
            found, _ = evaluate(predict_with(method, config, cache), data, config, name=f"{stage}, {prompt}")
            parts.append(found[found["output"] == "final"].assign(stage=stage, prompt=prompt))
        return pd.concat(parts)

    before = measure(build_method("zero_shot", sam), "zero_shot")
    torch.manual_seed(settings.seed)  # a method's new weights (LoRA's A) must not depend on what ran before
    method = build_method(settings.method, sam, **settings.options).to(device)
    checkpoint = out / TUNED
    if checkpoint.is_file():
        say(f"already tuned, only measured again: {checkpoint}")
        method.load_trainable_state(_read_tuned(checkpoint)[0], str(checkpoint))
    else:
        config = _training_config(settings, for_training, device, precision, method)
        total = sum(parameter.numel() for parameter in method.parameters())
        say(
            f"{settings.method} on {settings.backbone}: {method.count_trainable():,} of {total:,} parameters train, "
            f"{config.steps} batches of {config.batch_size}, {device}, {precision}"
        )
        if (out / "last.pt").is_file():
            say(f"going on from {out / 'last.pt'}")
        try:
            train(method, [(data, "train")], config, out, cache)
        except FloatingPointError as error:
            raise InputError(f"{error}: look at those pictures, or take a smaller learning rate") from error
        state = method.trainable_state()
        save_safetensors(state, checkpoint, torch.float32, metadata | {"sha256": _digest(state)})
        (out / "last.pt").unlink(missing_ok=True)
    after = measure(method, "tuned")
    shutil.rmtree(out / "cache", ignore_errors=True)

    table = pd.concat([before, after])
    first = ["stage", "prompt", "image", "object", "object_class"]
    table = table[first + [name for name in table if name not in (*first, "group", "output")]].round(6)
    write_atomically(out / METRICS_FILE, table.to_csv(index=False).encode())
    scores = table.groupby(["prompt", "stage", "image"])["iou"].mean().groupby(["prompt", "stage"]).mean().unstack()
    scores = scores.loc[list(settings.prompts), ["zero_shot", "tuned"]]
    return TuneResult(checkpoint, out / METRICS_FILE, scores, held_out, tuple(pictures.skipped), data.dropped)


def open_pictures(images: Path, masks: Path, settings: TuneSettings, skip_bad: bool) -> FolderDataset:
    """The two folders as one data set; a bad file is an `InputError` that also says how many there are in all."""
    options = (images, masks, settings.mask_coding, settings.void)
    try:
        return FolderDataset(*options, skip_bad, "train", "pictures")
    except InputError as error:
        if skip_bad:
            raise
        try:
            bad = len(FolderDataset(*options, True, "train", "pictures").skipped)
        except InputError:  # the folders are at fault, not some of their files
            raise error from None
        raise InputError(f"{error} (bad in all: {bad}; --skip-bad leaves such out and lists them)") from error


@dataclass(frozen=True)
class TunedModel:
    """A tuned method, its preprocessing ("pad" or "stretch"), the prompts it was tuned with and its backbone."""

    method: Method
    preprocess: str
    prompts: tuple[str, ...]
    backbone: str

    def predictor(self, device: str = "cpu") -> MethodPredictor:
        """`SamPredictor`'s interface on it."""
        kind = SPTPredictor if isinstance(self.method, SPT) else MethodPredictor
        return kind(self.method.to(device), self.preprocess)


def load_tuned(checkpoint: str | Path, backbone: str | None = None) -> TunedModel:
    """The method in `checkpoint`, a file that `tune` wrote or that SPT's authors released (.pth), on its backbone.

    `backbone`: where that lies now, when it was a file that has moved; a released file does not name it. Raises
    `InputError` when the file is missing, corrupt (sha256 expected and found) or of neither kind, or when the
    backbone's weights are not those that it was tuned on.
    """
    checkpoint = Path(checkpoint)
    if checkpoint.suffix == ".pth":
        if backbone is None:
            raise InputError(f"{checkpoint} does not say which SAM it was tuned on: name it by --backbone")
        sam = load_sam(backbone)
        return TunedModel(load_released(checkpoint, sam), "stretch", ("box", "point10"), sam.backbone)
    state, about = _read_tuned(checkpoint)
    name = backbone or about["backbone"]
    sam = load_sam(name)
    found = weights_hash(sam)
    if found != about["weights_hash"]:
        raise InputError(
            f"{checkpoint} was tuned on {about['backbone']} with weights {about['weights_hash']}, but those of {name} "
            f"are {found}: name the file with the right ones by --backbone"
        )
    method = build_method(about["method"], sam, **json.loads(about["options"]))
    method.load_trainable_state(state, str(checkpoint))
    return TunedModel(method.eval(), about["preprocess"], tuple(about["prompts"].split(",")), sam.backbone)


def export(checkpoint: Path, out: Path, backbone: str | None = None, say: Callable[[str], None] = print) -> Path:
    """Write what `tune` gave as one SAM in SAM's own format, which plain `segment_anything` loads.

    Raises `InputError` for methods that have more to them than SAM's own weights can hold.
    """
    tuned = load_tuned(checkpoint, backbone)
    merged = tuned.method.merged()
    if merged is None:
        raise InputError(
            f"{tuned.method.name} has no merged form: it is more than SAM's own weights can hold; "
            "use `samtune predict`, or samtune.commands.tune.load_tuned in Python"
        )
    if out.suffix not in (".pth", ".pt"):
        raise InputError(f"{out}: SAM's own format is a .pth file")
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
    return out


def _training_config(
    settings: TuneSettings, pictures: int, device: str, precision: str, method: Method
) -> TrainingConfig:
    return TrainingConfig(
        images=settings.images(pictures),
        batch_size=settings.batch_size,
        learning_rate=method.learning_rate if settings.learning_rate is None else settings.learning_rate,
        prompts=settings.prompts,
        target=settings.target,
        preprocess=settings.preprocess,
        objects=settings.objects,
        accumulate=settings.accumulate,
        seed=settings.seed,
        precision=precision,
        device=device,
        checkpoint_every=CHECKPOINT_EVERY,
    )


def _same_run(out: Path, settings: TuneSettings, weights: str, data: HeldOut) -> None:
    """Note in `out` what is run there; `InputError` when a run of other settings or pictures is there already."""
    ids = json.dumps([data.ids("train"), data.ids("val")])
    wanted = json.loads(json.dumps(asdict(settings)))
    wanted |= {"weights_hash": weights, "pictures": hashlib.sha256(ids.encode()).hexdigest()[:12]}
    path = out / SETTINGS
    if path.is_file() and ((out / TUNED).is_file() or (out / "last.pt").is_file()):
        try:
            there = json.loads(path.read_text())
        except ValueError:
            there = {}
        other = [f"{name} {there.get(name)}, now {wanted[name]}" for name in wanted if there.get(name) != wanted[name]]
        if other:
            raise InputError(f"{out} holds another run ({'; '.join(other)}): give another folder, or remove that one")
    write_atomically(path, (json.dumps(wanted, indent=1) + "\n").encode())


def _metadata(settings: TuneSettings, weights: str, pictures: int) -> dict[str, str]:
    """What a tuned checkpoint says of itself: all that `load_tuned` needs."""
    return {
        "samtune": __version__,
        "method": settings.method,
        "options": json.dumps(dict(settings.options)),
        "backbone": settings.backbone,
        "weights_hash": weights,
        "preprocess": settings.preprocess,
        "prompts": ",".join(settings.prompts),
        "target": settings.target,
        "pictures": str(pictures),
        "images_seen": str(settings.images(pictures)),
        "seed": str(settings.seed),
    }


def _read_tuned(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The trained parameters in a file that `tune` wrote, and what it says of itself."""
    if checkpoint.is_dir():
        checkpoint = checkpoint / TUNED
    if not checkpoint.is_file():
        raise InputError(f"no checkpoint at {checkpoint}")
    try:
        with safe_open(checkpoint, "pt") as file:
            about = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"corrupt checkpoint {checkpoint} (sha256 {sha256(checkpoint)}): {error}") from error
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


def _digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and values, 16 digits."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _tunable() -> list[str]:
    return sorted(name for name, method in METHODS.items() if method.needs_sam and name != "zero_shot")
