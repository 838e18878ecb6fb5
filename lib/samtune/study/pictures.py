"""What running a generation cell means: pictures, each with its numbers in a file, and rows of these."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from samtune.common.errors import InputError, explains_out_of_memory
from samtune.data.generated import chosen_pictures, picture_name, read_facts
from samtune.data.registry import open_dataset
from samtune.data.sample import without_empty_masks
from samtune.diffusion import generation
from samtune.diffusion.captions import check_captions, stored_captions
from samtune.diffusion.pipeline import LatentDiffusion
from samtune.methods import Method
from samtune.study.cells import GenerationCell
from samtune.study.runner import Result, files_folder


def make_pictures(
    cell: GenerationCell, results: Path, model: LatentDiffusion, victim: Method | None, batch: int
) -> Result:
    """Make the pictures of `cell` that are not there yet, `batch` at a time.

    Args:
        cell: the cells that it needs have run.
        results: the profile's results folder.
        model: the cell's diffusion model, on its device.
        victim: the cell's, on the same device, in eval mode; None: the cell has none.
        batch: pictures at once.

    Raises `InputError` where there is nothing to make pictures of.
    """
    generation.check_options(cell.method, options := dict(cell.options))
    folder, first_cell = files_folder(results, cell), cell
    while first_cell.inversion is not None:
        first_cell = first_cell.inversion
    chosen = chosen_pictures(cell.dataset, cell.split, cell.pictures, open_dataset)
    if first_cell is cell:
        there = {path.stem for path in folder.glob("*.json")}
        missing = [(one, id) for one, id in chosen if picture_name(one.name, id) not in there]
        check_captions(str(options.get("captions", "classes")), missing)
    empty = 0
    for first in tqdm(range(0, len(chosen), batch), cell.describe(), mininterval=2, leave=False):
        places = [
            (dataset, id)
            for dataset, id in chosen[first : first + batch]
            if not (folder / f"{picture_name(dataset.name, id)}.json").is_file()
        ]
        loaded = [without_empty_masks(dataset.load(id)) for dataset, id in places]
        samples = [sample for sample in loaded if len(sample.masks)]
        empty += len(places) - len(samples)
        if not samples:
            continue
        # What was inverted with a caption is denoised with the same one: BLIP-2's may depend on the batch.
        words = stored_captions(files_folder(results, cell.inversion), samples) if cell.inversion else None
        objects = sum(len(sample.masks) for sample in samples)
        smaller = "a smaller diffusion model" if victim is None else "a smaller backbone as victim"
        smaller = f"generation.batch {batch // 2}" if batch > 1 else smaller
        with explains_out_of_memory(f"{cell.describe()} at generation.batch {batch}, {objects} objects", smaller):
            first_options, denoised = dict(first_cell.options), cell.method not in ("before", "change")
            given = generation.scene(model, samples, first_options, str(model.unet.device), words, denoised)
            made = _make(cell, model, victim, given, results)
        for sample, words, one in zip(samples, given.captions, made, strict=True):
            generation.write_picture(folder, sample, words, one)
    return _result(cell, results, empty)


def _make(
    cell: GenerationCell, model: LatentDiffusion, victim: Method | None, given: generation.Scene, results: Path
) -> list[generation.Made]:
    """The pictures of a scene, as the cell makes them."""
    options, start = dict(cell.options), cell.inversion
    if cell.method == "inversion":
        return generation.inverted(model, given, options)
    if cell.method == "sample":
        return generation.sampled(model, given, options, cell.seed)
    if cell.method == "before":
        return generation.before_attack(given, files_folder(results, start))
    if cell.method == "change":
        return generation.changed(victim, given, files_folder(results, start), cell.prompt, cell.seed)
    stored = [generation.read_inversion(files_folder(results, start), sample) for sample in given.samples]
    return generation.attacked(
        model, victim, given, stored, dict(start.options), cell.method, options, cell.prompt, cell.seed
    )


def _result(cell: GenerationCell, results: Path, empty: int) -> Result:
    """What the files of a finished cell say; `empty`: pictures without a mask, which were left out."""
    facts = read_facts(files_folder(results, cell))
    if not facts:
        raise InputError(f"{cell.dataset} {cell.split}: no picture with an object to generate from")
    rows = [
        {"image": f"{one['dataset']}/{one['id']}", "group": one["group"], "output": output, **numbers}
        for one in facts
        for output, numbers in one["numbers"].items()
    ]
    spent = _seconds(facts)  # an attack's holds its inversion's, a change's is the attack's
    started = _seconds(read_facts(files_folder(results, cell.inversion))) if cell.method in ("attack", "random") else {}
    seconds = sum(spent.values()) - sum(started.get(picture, 0.0) for picture in spent)
    extras = {"dropped": {"images without a mask": empty}, "seconds_with_inversion": sum(spent.values())}
    seconds = None if cell.method in ("before", "change") else seconds
    return Result(objects=pd.DataFrame(rows), precision="fp32", seconds=seconds, extras=extras)


def _seconds(facts: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """What each picture of a generated set took, also those made before a break."""
    return {(one["dataset"], one["id"]): one["numbers"]["final"]["seconds"] for one in facts}
