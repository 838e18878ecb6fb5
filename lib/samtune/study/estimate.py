"""How long cells will take here, and how much disk they need: from recorded cells, else from the bench."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

from samtune.common import provenance
from samtune.data.registry import open_dataset
from samtune.methods import METHODS, trainable_parameters
from samtune.study.cells import NO_BACKBONE, Cell, EvaluationCell, GenerationCell, TimingCell, TrainingCell
from samtune.study.records import Record, cell_of

# Images a second by batch size; by method, backbone (of an inversion or attack: diffusion model) and phase.
Speeds = dict[tuple[str, str, str], dict[int, float]]
CHECKPOINT_COPIES = 4  # the trained weights; and to resume, the same with Adam's two averages
PICTURE_BYTES = 500_000  # of a generated picture, as PNG
# Numbers that an inversion keeps of a picture at each denoising step, of Stable Diffusion 1.5 and of the nano pipeline.
KEPT = {"null_text": (77 * 768, 32 * 128), "direct": (4 * 64 * 64, 4 * 32 * 32)}
RECORD_BYTES = 10_000
# Network evaluations a picture and step, of an inversion with the denoising after it; null-text optimisation: the most.
INVERSION_CALLS = {"ddim": 3, "negative_prompt": 2, "direct": 5, "null_text": 15, "autoencoder": 0}


def estimate_seconds(cells: Sequence[Cell], records: Sequence[Record]) -> float | None:
    """About how many seconds `cells` take on this hardware; None when nothing similar was run or timed.

    The time is proportional to a cell's `parts` (the images that a training sees); of generated pictures to their
    network evaluations too. It is taken from the most similar records of this hardware: same method, backbone and test
    set; else same method and backbone; else the bench; else same backbone.
    """
    here = provenance.hardware()
    costs: dict[tuple, list[float]] = {}
    speeds: Speeds = {}
    for record in records:
        if record.hardware != here:
            continue
        cell = cell_of(record)
        if isinstance(cell, TimingCell) and not cell.compiled:  # the study compiles nothing
            by_batch = speeds.setdefault((cell.method, cell.diffusion or cell.backbone, cell.phase), {})
            by_batch[cell.batch] = max(by_batch.get(cell.batch, 0.0), record.extras["images_per_second"])
        for likeness in _likenesses(cell):
            costs.setdefault(likeness, []).append(record.seconds / max(_size(cell), 1))
    total = 0.0
    for cell in cells:
        *near, far = ([costs[likeness]] if likeness in costs else [] for likeness in _likenesses(cell))
        found = next((one[0] for one in near if one), None)
        timed = _timed(cell, speeds) if found is None else None
        if timed is not None:
            total += timed
            continue
        found = found or (far[0] if far else None)
        if found is None:
            return None
        total += sum(found) / len(found) * _size(cell)
    return total


def _likenesses(cell: Cell) -> list[tuple]:
    """Descriptions of a cell, from exact to rough; cells that share one cost about the same."""
    values = [getattr(cell, name, "") for name in ("backbone", "method", "dataset")]
    kind = cell.kind
    if isinstance(cell, GenerationCell):
        kind = "diffusion" if _evaluations(cell) else f"autoencoder: {cell.method}"
    return [(kind, *values[:count]) for count in (3, 2, 1)]


def _size(cell: Cell) -> int:
    """What a cell's time is proportional to."""
    return cell.parts * max(_evaluations(cell), 1) if isinstance(cell, GenerationCell) else cell.parts


def _speed(by_batch: Mapping[int, float], most: float = math.inf) -> float:
    """Images a second in the best batch of at most `most` images, else in the smallest that was timed."""
    return max((speed for batch, speed in by_batch.items() if batch <= most), default=by_batch[min(by_batch)])


def _timed(cell: Cell, speeds: Speeds) -> float | None:
    """Seconds of a cell by the bench's images a second, if it timed this backbone (or diffusion model); a training at
    the cell's batch size, all else at the fastest.

    Of methods that it did not reach, each counts as the slowest that it did; a decoding that it did not reach, as a
    training step. Zero-shot SAM takes as long as decoder tuning does to measure. Baselines without a network count
    as 0.

    Args:
        cell: of any kind.
        speeds: see `Speeds`.
    """
    if isinstance(cell, GenerationCell):
        if cell.method in ("attack", "random") and not _evaluations(cell):
            return None  # the bench times no attack on the autoencoder alone
        what = "attack" if cell.method == "attack" else "inversion"
        speed = _speed(speeds.get((what, cell.diffusion, "evaluate"), {1: 0.0}))
        return cell.pictures * _evaluations(cell) / speed if speed else None
    if cell.method not in METHODS:
        return 0.0
    method = "decoder_tuning" if cell.method == "zero_shot" else cell.method

    most = dict(cell.hyper).get("batch_size", math.inf) if isinstance(cell, TrainingCell) else math.inf

    def seconds(phase: str, images: int) -> float:
        if cell.backbone == NO_BACKBONE:
            alike = [timed for (name, _, what), timed in speeds.items() if (name, what) == (method, phase)]
        elif (method, cell.backbone, phase) in speeds:
            alike = [speeds[method, cell.backbone, phase]]
        else:
            alike = [timed for (_, *place), timed in speeds.items() if place == [cell.backbone, phase]]
        return images / min(speed for timed in alike if (speed := _speed(timed, most)))

    try:
        if isinstance(cell, TrainingCell):
            return seconds("train", cell.images)
        if isinstance(cell, EvaluationCell):
            try:
                a_picture = seconds("encode", 1) + seconds("decode", 1)
            except ValueError:
                a_picture = seconds("train", 1)
            return a_picture * (cell.max_images or _pictures(cell.dataset, cell.split))
    except (ValueError, ZeroDivisionError):  # not timed, or did not fit
        pass
    return None


@lru_cache
def _pictures(dataset: str, split: str) -> int:
    """How many there are: some sets read every mask to know."""
    return len(open_dataset(dataset).ids(split))


def _evaluations(cell: GenerationCell) -> int:
    """About how many network evaluations a picture of the cell takes, without the inversion that it starts from; a
    backward pass through an attack's last steps counts as two, one of null-text optimisation as none."""
    options, start = dict(cell.options), dict(cell.inversion.options) if cell.inversion else {}
    if cell.method == "inversion":
        calls = INVERSION_CALLS[options.get("recipe", "null_text")]
        return options.get("steps", 50) * (calls + options.get("rounds", 0) * (calls > 0))
    if cell.method in ("before", "change"):
        return 0
    if cell.method == "sample":
        return 2 * options.get("steps", 50)
    renderings = options.get("steps", 10) + 1 if cell.method == "attack" else 2
    calls = {"autoencoder": 0, "negative_prompt": 1}.get(start.get("recipe"), 2)  # guided: two
    steps = start.get("steps", 50)
    again = 3 * min(options.get("last_steps", 0), steps)  # of each update, forward once more and backward
    return calls * (steps * renderings + again * (renderings - 1))


def disk_bytes(cells: Sequence[Cell]) -> int:
    """About how many bytes `cells` leave on disk: a record each, the checkpoints of trainings, generated images."""
    checkpoints = sum(
        4 * CHECKPOINT_COPIES * trainable_parameters(cell.method, cell.backbone)
        for cell in cells
        if cell.kind == "training"
    )
    pictures = sum(cell.pictures * _picture_bytes(cell) for cell in cells if isinstance(cell, GenerationCell))
    return checkpoints + pictures + RECORD_BYTES * len(cells)


def _picture_bytes(cell: GenerationCell) -> int:
    options = dict(cell.options)
    if cell.method != "inversion":
        return PICTURE_BYTES * (2 if cell.method in ("attack", "random") else 1)  # before and after
    kept = KEPT.get(options.get("recipe", "null_text"), (0, 0))[cell.diffusion == "nano"]
    return PICTURE_BYTES + 4 * kept * options.get("steps", 50)  # float32
