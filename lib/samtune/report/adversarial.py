"""ASAM's pictures, from the record of an attack or of samples from noise: a gallery and a contact sheet."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from samtune.data.registry import missing_parts, open_dataset
from samtune.data.sample import without_empty_masks
from samtune.diffusion.attack import AttackConfig
from samtune.diffusion.conditions import MOST_MASKS
from samtune.diffusion.generation import AUTOENCODER
from samtune.metrics import iou
from samtune.prompts import make_prompts
from samtune.report.examples import predict_masks
from samtune.report.figures import SOFT, STYLE, may_be_committed
from samtune.report.labels import OTHERS
from samtune.report.picture_figures import fill, picture_grid, show_picture
from samtune.study.execute import cell_method
from samtune.study.records import Record, cell_of

COLUMNS = [
    "original",
    "reconstruction",
    "adversarial",
    "difference x 5",
    "truth",
    "SAM on reconstruction",
    "SAM on adversarial",
]


@dataclass(frozen=True)
class Example:
    """One adversarial picture: `original`, `reconstruction` and `adversarial` uint8 `(H, W, 3)`, the objects' `truth`
    bool `(N, H, W)`, and SAM's masks of them on the reconstruction (`before`) and on the adversarial one (`after`)."""

    original: np.ndarray
    reconstruction: np.ndarray
    adversarial: np.ndarray
    truth: np.ndarray
    before: np.ndarray
    after: np.ndarray


def kept_attack(records: Iterable[Record]) -> Record | None:
    """The first attack (but DAT's) whose pictures are here, as a fresh clone has records alone; None: there is none."""
    for record in records:
        if record.kind == "generation" and record.method == "attack":
            cell = cell_of(record)
            if dict(cell.inversion.options)["recipe"] != AUTOENCODER and not missing_parts(cell.name):
                return record
    return None


def kept_samples(records: Iterable[Record]) -> Record | None:
    """The first pictures from noise that are here; None: there are none."""
    samples = (record for record in records if record.kind == "generation" and record.method == "sample")
    return next((record for record in samples if not missing_parts(cell_of(record).name)), None)


def recipe(record: Record) -> str:
    """An attack's pictures and how they were made: "200 pictures, direct inversion in 20 steps, 10 updates of 0.02"."""
    cell = cell_of(record)
    inversion, attack = dict(cell.inversion.options), asdict(AttackConfig()) | dict(cell.options)
    words = f"{inversion['recipe']} inversion in {inversion['steps']} steps".replace("_", "-")
    return f"{cell.pictures} pictures, {words}, {attack['steps']} updates of {attack['step_size']:g}"


def by_drop(record: Record, count: int) -> list[str]:
    """`count` pictures of an attack's record, evenly from the least to the largest loss of IoU: by rule, not by hand.

    Only those of sets whose pictures may be passed on, if there are any.
    """
    drops = record.objects[record.objects["output"] == "final"].set_index("image")["iou_drop"]
    free = drops[[may_be_committed(source) for source in _sources(drops.index)]]
    ranked = (free if len(free) else drops).sort_index().sort_values(kind="stable").index
    return list(ranked[np.unique(np.linspace(0, len(ranked) - 1, count).round().astype(int))])


def examples_of(record: Record, ids: Sequence[str], mode: str = "stretch") -> list[Example]:
    """Pictures `ids` of an attack's record at the size of the originals, and what its victim makes of them, prompted as
    in the attack. Raises `InputError` where the pictures are not here.
    """
    cell = cell_of(record)
    made, victim, rows = open_dataset(cell.name), cell_method(cell), []
    for id, source in zip(ids, _sources(ids), strict=True):
        original = without_empty_masks(open_dataset(source).load(id.removeprefix(f"{source}/")))
        reconstruction, adversarial = made.before(id), made.load(id)
        masks = original.masks[:MOST_MASKS]
        prompts = make_prompts(cell.prompt, masks, id, cell.seed)
        before, after = (predict_masks(victim, one, prompts, mode)["final"] for one in (reconstruction, adversarial))
        rows.append(Example(original.image, reconstruction.image, adversarial.image, masks, before, after))
    return rows


@matplotlib.rc_context(STYLE)
def gallery(examples: Sequence[Example], title: str) -> Figure:
    """A row a picture, `COLUMNS`: what the attack changed five times as strong (grey: nothing), SAM's masks before and
    after with their mean IoU over the objects; an object keeps its colour."""
    images = [example.original for example in examples]
    figure, axes = picture_grid(title, len(examples), len(COLUMNS), images, margins=(0.1, 0.7))
    for row, example in zip(axes, examples, strict=True):
        change = example.adversarial.astype(int) - example.reconstruction
        shown = [example.original, example.reconstruction, example.adversarial]
        for axis, image in zip(row, [*shown, (127.5 + 5 * change).clip(0, 255).astype(np.uint8), *shown], strict=True):
            show_picture(axis, image)
        for axis, masks in zip(row[4:], (example.truth, example.before, example.after), strict=True):
            for mask, colour in zip(masks, cycle(OTHERS), strict=False):
                fill(axis, mask, colour)
        for axis, masks in zip(row[5:], (example.before, example.after), strict=True):
            overlap = np.mean([iou(mask, truth) for mask, truth in zip(masks, example.truth, strict=True)])
            axis.set_xlabel(f"IoU {overlap:.2f}", fontsize=8.5, labelpad=2)
    for axis, name in zip(axes[0], COLUMNS, strict=True):
        axis.set_title(name, fontsize=9, loc="center")
    return figure


@matplotlib.rc_context(STYLE)
def contact_sheet(record: Record, ids: Sequence[str], title: str, columns: int = 6) -> Figure:
    """Pictures `ids` of a record with the outlines of the originals' objects; of an attack, below each the victim's IoU
    on the reconstruction and on the picture, on the grid on which it draws masks."""
    made = open_dataset(cell_of(record).name)
    samples = [made.load(id) for id in ids]
    overlap = record.objects.set_index(["output", "image"]).get("iou")
    columns = min(columns, len(ids))
    figure, axes = picture_grid(title, -(-len(ids) // columns), columns, [sample.image for sample in samples])
    for axis in axes.flat[len(ids) :]:
        axis.set_axis_off()
    for axis, id, sample in zip(axes.flat, ids, samples, strict=False):
        show_picture(axis, sample.image)
        for mask, colour in zip(sample.masks, cycle(OTHERS), strict=False):
            axis.contour(mask, levels=[0.5], colors=[colour], linewidths=0.9)
        if overlap is not None:
            words = f"{overlap['before', id]:.2f} → {overlap['final', id]:.2f}"
            axis.set_xlabel(words, fontsize=7, color=SOFT, labelpad=2)
    return figure


def _sources(ids: Iterable[str]) -> list[str]:
    """The data set that each picture was made from: ids of generated pictures begin with it."""
    return [id.partition("/")[0] for id in ids]
