"""Ships the nano diffusion pipeline: weights, and a card that says how they were made and what they can do.

Run as `python -m samtune.nano.diffusion_card DIR`, with the folder where `samtune.nano.diffusion` trained all stages.
"""

import itertools
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import typer
from torch import Tensor
from torch.nn import functional as F

from samtune.common.errors import InputError
from samtune.common.paths import asset
from samtune.diffusion.attack import Victim
from samtune.diffusion.generation import victim_iou
from samtune.diffusion.inversion import GUIDANCE, STEPS, Denoising, denoise
from samtune.diffusion.pipeline import NANO, LatentDiffusion, load_diffusion
from samtune.methods import build_method
from samtune.nano.diffusion import STAGES
from samtune.nano.diffusion_pictures import Pictures, read_pictures, whole_views
from samtune.prompts import Prompts, make_prompts
from samtune.report.figures import STYLE, Picture, panels
from samtune.report.labels import OTHERS
from samtune.sam.checkpoints import load_sam

SCORED = 16  # validation pictures of each set, whose box IoU stands in the card
AT_ONCE = 8
SMALLEST = 64  # pixels of 128 x 128: smaller objects have no box worth the name
FOLLOWS = 0.1  # of IoU, that the ControlNet has to bring
SAMPLES, GUIDED_MASKS, WITHOUT = "samples", "samples, masks guided", "samples without ControlNet"
CURVE, LOGS = "learning_curve.png", "training.json"


def ship_diffusion(folder: Path, pictures: Pictures) -> Path:
    """Replace the package's pipeline by that in `folder`; write its card, the trainings' logs and their curve.

    The log of a stage that was not trained anew is the package's. Returns the card's path. Raises `InputError` where
    neither has it.
    """
    target = asset(NANO)
    known = json.loads((target / LOGS).read_text()) if (target / LOGS).is_file() else {}
    logs = {}
    for stage in STAGES:
        new = folder / f"{stage}.json"
        if not new.is_file() and stage not in known:
            raise InputError(f"no log of the training at {new}, and none of an earlier one: train stage {stage} first")
        logs[stage] = json.loads(new.read_text()) if new.is_file() else known[stage]
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder / "pipeline", target)
    victim = build_method("zero_shot", load_sam("nano")).eval()
    scores = box_ious(load_diffusion("nano"), victim, some_of_each(pictures, SCORED))
    logs = {stage: log | {"losses": [round(loss, 4) for loss in log["losses"]]} for stage, log in logs.items()}
    (target / LOGS).write_text(json.dumps(logs))
    learning_curve(logs).savefig(target / CURVE, dpi=100)
    card = target / "README.md"
    card.write_text(card_text(logs, scores), encoding="utf-8")
    return card


def some_of_each(pictures: Pictures, count: int) -> Pictures:
    """The first `count` pictures of each set that show an object large enough."""
    rows: list[int] = []
    for name in dict.fromkeys(pictures.sets):
        fit = (row for row, one in enumerate(pictures.sets) if one == name and len(_large(pictures.objects[row])))
        rows += itertools.islice(fit, count)
    texts = [[column[row] for row in rows] for column in (pictures.captions, pictures.sets)]
    return Pictures(pictures.images[rows], pictures.objects[rows], *texts)


@torch.no_grad()
def box_ious(model: LatentDiffusion, victim: Victim, pictures: Pictures, steps: int = STEPS) -> dict[str, float]:
    """Mean IoU of the victim's masks from true boxes, by kind of picture.

    The kinds: "pictures", "reconstructions" (autoencoder alone), and samples from noise with the pictures' captions:
    "samples" (with their masks, through the ControlNet), "samples, masks guided" (see `Denoising`) and "samples without
    ControlNet".
    """
    signed, conditions = whole_views(pictures)
    found: dict[str, list[Tensor]] = {}
    for number, rows in enumerate(torch.arange(len(pictures)).split(AT_ONCE)):
        images = signed[rows] / 2 + 0.5
        prompts, masks = _boxes(pictures.objects[rows], victim.image_size)
        captions = [pictures.captions[row] for row in rows]
        text, empty = model.embed(captions), model.embed([""] * len(rows))
        kinds = {"pictures": images, "reconstructions": model.decode(model.encode(images))}
        side = model.unet.config.sample_size
        generator = torch.Generator().manual_seed(number)
        noise = torch.randn(len(rows), model.unet.config.in_channels, side, side, generator=generator)
        plan = Denoising(text, conditions[rows], empty.expand(steps, -1, -1, -1), GUIDANCE, steps=steps)
        plans = (plan, replace(plan, guided_masks=True), replace(plan, condition=None))
        for name, one in zip((SAMPLES, GUIDED_MASKS, WITHOUT), plans, strict=True):
            kinds[name] = model.decode(denoise(model, noise, one))
        for name, images in kinds.items():
            found.setdefault(name, []).append(victim_iou(victim, images.clamp(0, 1), prompts, masks))
    return {name: float(torch.cat(values).mean()) for name, values in found.items()}


def _large(objects: Tensor) -> Tensor:
    """The masks, bool `(N, S, S)`, of the objects of an index map `(S, S)` that have at least `SMALLEST` pixels."""
    masks = objects == torch.arange(1, int(objects.max()) + 1).view(-1, 1, 1)
    return masks[masks.flatten(1).sum(1) >= SMALLEST]


def _boxes(objects: Tensor, size: int) -> tuple[Prompts, Tensor]:
    """Boxes of the large objects of B index maps `(B, S, S)`, and their masks `(P, 1, S, S)`, both stretched to `size`
    pixels."""
    prompts, masks = [], []
    for number, one in enumerate(objects):
        shown, scale = _large(one), size / one.shape[-1]
        prompts.append(make_prompts("box", shown.numpy(), str(number)).scaled(scale, scale).at_image(number))
        masks.append(F.interpolate(shown[:, None].float(), (size, size), mode="area"))
    return Prompts.concatenate(prompts), torch.cat(masks)


def card_text(logs: Mapping[str, Mapping[str, Any]], scores: Mapping[str, float]) -> str:
    """The card of a pipeline with those training logs and box IoUs."""
    stages = "\n".join(
        f"| {stage} | {log['step']:,} of {log['steps']:,} | {log['batch_size']} | {log['seconds'] / 60:.1f} |"
        f" {log['hardware']} | {_validation(log)} |"
        for stage, log in logs.items()
    )
    measured = "\n".join(f"| {name} | {value:.3f} |" for name, value in scores.items())
    gain, strongest = (scores[name] - scores[WITHOUT] for name in (SAMPLES, GUIDED_MASKS))
    follows = (
        "Samples follow the masks" if max(gain, strongest) >= FOLLOWS else "**Samples do not follow the masks yet**"
    )
    return f"""# Nano diffusion pipeline

Stable Diffusion 1.5's own classes in small sizes (`samtune/nano/diffusion_models.py`), with a mask ControlNet, in
diffusers' folder format, float16. Pictures have 128 pixels. It stands in for Stable Diffusion where that cannot be had,
so that ASAM runs offline.

**Use: research only.** It knows street photographs, cars and BSDS500's scenes, no more; samples from noise are crude.

## Training
By `python -m samtune.nano.diffusion`, one stage after another:

| stage | steps | pictures a step | minutes | hardware | on validation pictures |
|---|---|---|---|---|---|
{stages}

Data: bsds500, ccp, car-parts (training parts only), procedural scenes. BSDS500: non-commercial research and education;
Clothing Co-Parsing: Apache-2.0; Car Parts: none stated, cited. The learning curve: [{CURVE}]({CURVE}).

## Scores
Mean IoU of the nano SAM's masks from true boxes, on up to {SCORED} validation pictures of each set; samples from noise
at guidance {GUIDANCE:g} in {STEPS} steps:

| pictures | IoU |
|---|---|
{measured}

{follows}: the ControlNet brings {strongest:+.3f} with its masks guided (in the conditional branch alone,
so that guidance strengthens them), and {gain:+.3f} with them in both branches, as in ASAM's inversion and attack.
"""


def _validation(log: Mapping[str, Any]) -> str:
    last = {name: value for name, value in log["validation"][-1].items() if name != "step"}
    return ", ".join(
        f"{name} {value:.2f} dB" if "psnr" in name else f"{name} {value:.3f}" for name, value in last.items()
    )


@matplotlib.rc_context(STYLE)
def learning_curve(logs: Mapping[str, Mapping[str, Any]]) -> Picture:
    """The training loss of each stage (mean of the last twentieth of all steps), and the validation scores."""
    figure, axes = panels("How the nano diffusion pipeline learns", len(logs), 4.2, 3.2)
    for axis, (stage, log) in zip(axes, logs.items(), strict=True):
        window = max(1, len(log["losses"]) // 20)
        losses = np.convolve(log["losses"], np.ones(window) / window, "valid")
        drawn = slice(None, None, max(1, len(losses) // 500))  # thousands of points make a slow svg
        axis.plot((np.arange(len(losses)) + window)[drawn], losses[drawn], label="training loss")
        psnr = "psnr" in "".join(log["validation"][-1])
        other = axis.twinx() if psnr else axis
        for number, name in enumerate(name for name in log["validation"][-1] if name != "step"):
            points = [(row["step"], row[name]) for row in log["validation"]]
            other.plot(*zip(*points, strict=True), marker="o", color=OTHERS[number], label=name)
        if psnr:
            other.set_ylabel("PSNR, dB")
        axis.set(title=stage, xlabel="step", ylabel="loss")
        lines = [*axis.lines, *(other.lines if psnr else [])]
        axis.legend(
            lines, [line.get_label() for line in lines], loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2
        )
    return figure


def shipped_card() -> tuple[str, Picture]:
    """The card of the shipped pipeline, markdown, and its learning curve."""
    folder = asset(NANO)
    text = (folder / "README.md").read_text(encoding="utf-8").replace(f"[{CURVE}]({CURVE})", "below")
    return text, learning_curve(json.loads((folder / LOGS).read_text()))


def main(folder: Path) -> None:
    """Ship the pipeline that was trained in FOLDER."""
    print(ship_diffusion(folder, read_pictures(folder / "pictures.npz")["val"]))


if __name__ == "__main__":
    typer.run(main)
