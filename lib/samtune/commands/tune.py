"""A user's own pictures in, a tuned checkpoint out."""

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas as pd

from samtune.commands.pictures import HeldOut, alike_text, look_through, open_pictures, small_objects_text
from samtune.commands.search import SEARCH, mean_iou_by_prompt, search
from samtune.commands.settings import TuneSettings
from samtune.commands.tuned import TUNED, read_tuned, save_tuned
from samtune.common.atomic import alone, write_atomically
from samtune.common.devices import choose_precision, refuse_several_processes, usable_device
from samtune.common.errors import InputError, counted, duration_text
from samtune.common.paths import check_is_no_file
from samtune.data.listed import ListedDataset
from samtune.data.pixels import white_of_folder
from samtune.data.sample import CachedDataset
from samtune.embeddings import EmbeddingCache
from samtune.evaluation import EvaluationConfig, evaluate, predict_with
from samtune.methods import Method, build_method
from samtune.sam.checkpoints import load_sam, weights_hash
from samtune.training import LAST, train
from samtune.training_config import TrainingConfig

SETTINGS, METRICS_FILE = "settings.json", "metrics.csv"
CACHE = ".samtune-cache"  # deleted at the end; its name is one that no user's folder has
METRICS = ("iou", "boundary_iou", "dice")
FEW = 10  # held-out pictures below which a mean says little
CHECKPOINT_EVERY = 20  # batches
WORKERS = 4  # that read pictures for a graphics card, which would wait for one


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
    save_memory: bool = False,
    say: Callable[[str], None] = print,
) -> TuneResult:
    """Tune SAM on a folder of pictures and a folder of masks; what is measured is said before and after.

    Writes `out/tuned.safetensors` (the trained parameters and what they belong to) and `out/metrics.csv` (one row an
    object of the held-out pictures). Broken off, it goes on from `out/last.pt` with the same final weights; finished,
    it only measures again. Raises `InputError` for bad input, other settings or pictures than those of a run in `out`,
    a loss that is no number, too little memory, and where another process tunes into `out`.
    """
    settings.check()
    if settings.method == "asam":
        say("asam: its tokens are tuned on these pictures as they are (samtune attack makes adversarial ones)")
    refuse_several_processes()
    device = usable_device(device)
    precision = choose_precision(precision, device)
    check_is_no_file(out)
    if out.resolve().is_relative_to(masks.resolve()):
        raise InputError(f"{out} is inside the folder of masks, where it would be taken for masks: give another --out")
    sam = load_sam(settings.backbone)
    method = settings.build(sam)  # before the work: a value may be out of its range
    pictures, skipped = open_pictures(images, masks, settings, skip_bad)
    data = HeldOut(CachedDataset(pictures))
    for_training, held_out = len(data.ids("train")), len(data.ids("val"))
    left_out = "".join(f"; left out, {reason}: {count}" for reason, count in data.dropped.items())
    say(f"{counted(for_training + held_out, 'picture')}: {for_training} to tune on, {held_out} held out{left_out}")

    weights = weights_hash(sam)
    try:
        contents = look_through(data, settings, sam)
    except InputError as error:
        if skip_bad:
            raise
        raise InputError(f"{error} (--skip-bad leaves such out and lists them)") from error
    if line := alike_text(contents):
        say(line)
    cache = EmbeddingCache(out / CACHE)

    def measure(method: Method, data: ListedDataset, stage: str) -> pd.DataFrame:
        parts, embeddings = [], {}  # of the held-out pictures, for one kind of prompt after another
        for prompt in settings.prompts:
            config = EvaluationConfig(
                "val", settings.target, prompt, settings.preprocess, METRICS, settings.seed,
                batch_size=settings.batch_size, mask_size=method.mask_size, device=device, precision=precision,
            )  # fmt: skip
            found, _ = evaluate(
                predict_with(method, config, cache, embeddings), data, config, name=f"{stage}, {prompt}"
            )
            parts.append(found[found["output"] == "final"].assign(stage=stage, prompt=prompt))
        return pd.concat(parts)

    with alone(out, "samtune tune"):
        _same_run(out, settings, weights, contents.digest)
        zero_shot = build_method("zero_shot", sam)
        before = measure(zero_shot, data, "zero_shot")
        sam.to("cpu")  # a card has room for one
        checkpoint = out / TUNED
        if checkpoint.is_file():
            say(f"already tuned, only measured again: {checkpoint}")
            method.load_trainable_state(read_tuned(checkpoint)[0], str(checkpoint))
        else:
            config = _training_config(settings, for_training, device, precision, save_memory, method)
            total = sum(parameter.numel() for parameter in method.parameters())
            parameters = f"{method.count_trainable():,} of {total:,} parameters train"
            say(f"{settings.method} on {settings.backbone}: {parameters}, {device}, {precision}")
            if line := small_objects_text(contents, sam):
                say(line)
            seconds = 0.0  # a batch; not known without a search
            if settings.learning_rate is None:
                config, seconds = search(config, settings, sam, data, measure, out, cache, say)
            time = f", about {duration_text(seconds * config.steps)}" if seconds else ""
            say(f"{config.steps} batches of {config.batch_size}, learning rate {config.learning_rate:g}{time}")
            if (out / LAST).is_file():
                say(f"going on from {out / LAST}")
            try:
                trained = train(method, [(data, "train")], config, out, cache)
            except FloatingPointError as error:
                raise InputError(f"{error}: look at those pictures, or take a smaller learning rate") from error
            if trained.dropped:
                views = config.steps * config.batch_size
                say(
                    f"warning: {trained.dropped} of {views} views had no object left at {sam.image_size} pixels, and "
                    f"{trained.idle} of {config.steps} batches trained nothing"
                )
            about = {"pictures": for_training, "images_seen": config.images, "learning_rate": config.learning_rate}
            if (white := white_of_folder(images)) is not None:
                about["white"] = white
            save_tuned(method, checkpoint, settings, weights, about)
            for name in (LAST, SEARCH):
                (out / name).unlink(missing_ok=True)
        after = measure(method, data, "tuned")
        shutil.rmtree(out / CACHE, ignore_errors=True)
        table = pd.concat([before, after])
        first = ["stage", "prompt", "image", "object", "object_class"]
        table = table[first + [name for name in table if name not in (*first, "group", "output")]].round(6)
        write_atomically(out / METRICS_FILE, table.to_csv(index=False).encode())

    stages = {"zero_shot": mean_iou_by_prompt(before), "tuned": mean_iou_by_prompt(after)}
    scores = pd.DataFrame(stages).loc[list(settings.prompts)]
    return TuneResult(checkpoint, out / METRICS_FILE, scores, held_out, tuple(skipped), data.dropped)


def _training_config(
    settings: TuneSettings, pictures: int, device: str, precision: str, save_memory: bool, method: Method
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
        save_memory=save_memory,
        workers=WORKERS if device.startswith("cuda") else 0,
        checkpoint_every=CHECKPOINT_EVERY,
        **method.recipe,
    )


def _same_run(out: Path, settings: TuneSettings, weights: str, pictures: str) -> None:
    """Note in `out` what is run there; `InputError` when a run of other settings or pictures, or a file of that name
    that is none of samtune's, is there already.
    """
    wanted = json.loads(json.dumps(asdict(settings))) | {"weights_hash": weights, "pictures": pictures}
    path = out / SETTINGS
    there = {}
    if path.is_file():
        with suppress(ValueError):
            there = json.loads(path.read_text())
        if not isinstance(there, dict) or "weights_hash" not in there:
            raise InputError(f"{path} is not a file of samtune tune: give another --out, or remove that file")
        there = {one.name: one.default for one in fields(TuneSettings)} | there  # those that a later version has added
    elif (out / METRICS_FILE).exists():
        raise InputError(f"{out / METRICS_FILE} is of no run of samtune tune: give another --out, or remove that file")
    other = [f"{name} {there.get(name)}, now {wanted[name]}" for name in wanted if there.get(name) != wanted[name]]
    kept = [name for name in (TUNED, LAST) if (out / name).is_file()]
    if other and kept:
        run = f"{out} holds another run, {kept[0]} ({'; '.join(other)})"
        raise InputError(f"{run}: give another folder, or remove that one")
    if other:
        (out / SEARCH).unlink(missing_ok=True)
    write_atomically(path, (json.dumps(wanted, indent=1) + "\n").encode())
