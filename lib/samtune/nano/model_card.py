"""Ships the nano SAM: weights in half precision, and a card that says how they were made and what they can do."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from PIL import Image

from samtune.commands.tune import TuneSettings, tune
from samtune.common import provenance
from samtune.common.paths import asset
from samtune.data.registry import open_dataset
from samtune.nano.pretraining import Recipe
from samtune.report.figures import STYLE, Picture, panels
from samtune.report.labels import colours
from samtune.sam.build import Sam, new_sam, set_image_size
from samtune.sam.checkpoints import NANO, save_safetensors, weights_hash
from samtune.study.records import Record


def averaged_sam(saved: Mapping[str, Any]) -> Sam:
    """The nano SAM with the averaged weights of a pre-training checkpoint, at 256 pixels, in eval mode."""
    sam = new_sam("nano")
    size = sam.image_size
    set_image_size(sam, saved["image_size"])
    sam.load_state_dict(saved["average"])
    return set_image_size(sam, size).eval()


def ship_nano(saved: Mapping[str, Any]) -> Path:
    """Write the averaged weights of a pre-training checkpoint as the package's nano SAM (float16 safetensors)."""
    path = asset(NANO)
    state = saved["state"]
    metadata = {"pictures": str(state["pictures"]), "hours": f"{state['seconds'] / 3600:.2f}"}
    save_safetensors(averaged_sam(saved).state_dict(), path, torch.float16, metadata)
    return path


def ship_lora(folder: Path, images: int, dataset: str = "synthetic-industrial") -> Path:
    """Tune the shipped nano SAM with LoRA on a procedural set, as `samtune tune` does, and ship the trained parameters.

    The images are first written to `folder`. The result is smaller than a megabyte; notebook 00 compares it with
    zero-shot.
    """
    pictures = open_dataset(dataset)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for id in pictures.ids("train"):
        sample = pictures.load(id)
        Image.fromarray(sample.image).save(folder / "images" / f"{id}.png")
        Image.fromarray(sample.masks.any(0).astype(np.uint8) * 255).save(folder / "masks" / f"{id}.png")
    settings = TuneSettings("lora", train_images=images, learning_rate=3e-3, batch_size=8, preprocess="stretch")
    result = tune(folder / "images", folder / "masks", folder / "tuned", settings, device="cpu", precision="fp32")
    path = asset(f"assets/lora_{dataset.replace('-', '_')}.safetensors")
    shutil.copyfile(result.checkpoint, path)
    print(result.scores.round(3))
    return path


def write_card(sam: Sam, state: Mapping[str, Any], config: Recipe, records: Sequence[Record]) -> Path:
    """`assets/nano_sam.md`: data, steps, hardware, scores (from `records` of table nano_sam), use and licence."""
    size = config.stages[min(state["stage"], len(config.stages) - 1)].image_size
    stages = "\n".join(
        f"| {stage.image_size} | {stage.steps} | {stage.batch} | {stage.learning_rate:g} |"
        f" {'falls to 0' if stage.decay else 'constant'} |"
        for stage in config.stages
    )
    ended = state["stage"] >= len(config.stages)
    reached = "all finished" if ended else f"number {state['stage'] + 1} reached, at its step {state['step']}"
    scores = "\n".join(f"| {' | '.join(row)} |" for row in score_rows(records)) or "| not run | | | | |"
    latest = state["validation"][-1] if state["validation"] else {}
    validation = ", ".join(f"{name} {value:.3f}" for name, value in latest.items() if name != "pictures")
    text = f"""# Nano SAM

A small SAM from segment_anything's own classes: {sum(p.numel() for p in sam.parameters()):,} parameters,
{sam.image_size} pixels, patches of {sam.image_encoder.patch_embed.proj.stride[0]}, masks of {sam.mask_size}.
It stands in for the real SAM where that cannot be had, so that every method of the kit runs offline. Weights hash
`{weights_hash(sam)}`.

**Use: research only.** It is far weaker than SAM ViT-B and no substitute for it.

## Training
Class-agnostic, from scratch, by `notebooks/90_train_nano_models.ipynb` (profile `cpu`): prompt side alone for
{config.warm_up_steps} steps, then jointly; {state["pictures"]:,} pictures with up to {config.objects} objects each in
{state["seconds"] / 3600:.1f} hours on {provenance.hardware()}, fp32. Weights averaged over steps ({config.average}).
Stages ({reached}):

| pixels | steps | pictures a step | learning rate | schedule |
|---|---|---|---|---|
{stages}

Data: {", ".join(config.sets)} (training parts only), copy-paste composites of their segments, procedural scenes.
BSDS500: non-commercial research and education; Clothing Co-Parsing: Apache-2.0; Car Parts: none stated, cited.
Never trained on: coco128-seg, bsds500 test, car-parts test, bbbc038, drive, magnetic-tile, neu-seg, crackforest,
cvc-clinicdb.

## Scores
Mean IoU over objects of at least 16 x 16 pixels at original resolution (mean an image first, then over images).

| set | prompt | method | output | IoU |
|---|---|---|---|---|
{scores}

On validation pictures (one true box; one click, best of three masks), after {latest.get("pictures", 0):,} pictures at
{size} pixels a side: {validation or "not run"}.

The learning curve: [nano_sam_learning_curve.png](nano_sam_learning_curve.png).
"""
    learning_curve(state).savefig(asset(NANO).with_name("nano_sam_learning_curve.png"), dpi=100)
    path = asset(NANO).with_suffix(".md")
    path.write_text(text, encoding="utf-8")
    return path


def score_rows(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """set, prompt, method, output, IoU of evaluation records, as text."""
    rows = []
    for record in records:
        means = record.objects.groupby(["output", "image"])["iou"].mean().groupby("output").mean()
        prompt = record.cell["prompt"]
        rows += [(record.dataset, prompt, record.method, output, f"{mean:.3f}") for output, mean in means.items()]
    return sorted(rows)


@matplotlib.rc_context(STYLE)
def learning_curve(state: Mapping[str, Any], window: int = 50) -> Picture:
    """IoU of each kind of prompt on training pictures (low resolution, moving mean) and on validation pictures."""
    figure, axes = panels(
        "How the nano SAM learns: on training pictures (left) and validation pictures (right)", 2, 5.2, 3.6
    )
    curve = pd.DataFrame(state["curve"])
    names = [name for name in ("box", "point", "mask", "none", "box+click", "point+click") if name in curve]
    palette = colours(names)
    for name in names:
        smooth = curve[name].rolling(window, min_periods=1).mean()
        axes[0].plot(curve.index, smooth, color=palette[name], label=name)
    axes[0].set_xlabel("step")
    axes[0].set_ylabel("IoU at low resolution")
    validation = pd.DataFrame(state["validation"])
    if len(validation):
        columns = [name for name in validation if name != "pictures"]
        palette = colours(columns)
        for name in columns:
            axes[1].plot(validation["pictures"] / 1000, validation[name], marker="o", color=palette[name], label=name)
    axes[1].set_xlabel("thousand pictures seen")
    axes[1].set_ylabel("IoU at original resolution")
    for axis in axes:
        if axis.lines:
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3)
    return figure
