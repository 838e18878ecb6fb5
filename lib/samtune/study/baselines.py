"""The cells of notebooks 00 and 90: simple tuning against zero-shot SAM, and the nano SAM before tuning."""

from collections.abc import Sequence

from samtune.evaluation import CLASSICAL
from samtune.study.cells import NO_BACKBONE, EvaluationCell
from samtune.study.execute import executor
from samtune.study.plan import ON_BOXES, Plan, backbone_hash
from samtune.study.profile import Profile
from samtune.study.records import Record
from samtune.study.runner import run_cells


def run_baselines(profile: Profile, datasets: Sequence[str], seeds: Sequence[int]) -> list[Record]:
    """Table `baselines`: zero_shot, decoder_tuning and lora on the test split of every set, with every prompt and seed.

    Trained on boxes and ten clicks in turn, so that one model answers both. A variant of lora is trained on boxes
    alone, at lora's learning rate, and measured with boxes.
    """
    tuned = ("decoder_tuning", "lora")
    plan = Plan(profile).choose_rates(datasets, tuned, seeds=profile.seeds)
    cells: list[EvaluationCell] = []
    for dataset in datasets:
        for seed in seeds:
            cells += plan.zero_shot(dataset, seed, "baselines")
            for method in tuned:
                cells += plan.measured(plan.training(method, dataset, seed), dataset, "baselines")
            boxes = plan.training("lora", dataset, seed, prompt="box")
            shared = {"max_images": profile.evaluation.max_images, "tables": (f"baselines:{ON_BOXES}",)}
            cells.append(boxes.evaluation(dataset, prompt="box", **shared))
    return plan.run(cells)


def run_nano_sam(profile: Profile, datasets: Sequence[str]) -> list[Record]:
    """Table `nano_sam`: the nano SAM, an ellipse and GrabCut, with the same boxes, for objects of at least 16 pixels.

    With a single click, at the object's centre (as SAM's authors evaluate) or anywhere in it, the best of three masks
    by the truth is reported too (output "best_of_3"): an upper bound.
    """
    hash = backbone_hash("nano")
    cells = []
    for dataset in datasets:
        shared = {
            "dataset": dataset, "target": "instances", "preprocess": "pad", "tables": ("nano_sam",),
            "max_images": profile.evaluation.max_images,
        }  # fmt: skip
        cells.append(EvaluationCell("zero_shot", "nano", weights_hash=hash, options={"min_side": 16}, **shared))
        for prompt in ("point_centre", "point1"):
            options = {"min_side": 16, "multimask": True}
            cells.append(
                EvaluationCell("zero_shot", "nano", weights_hash=hash, prompt=prompt, options=options, **shared)
            )
        cells += [EvaluationCell(name, NO_BACKBONE, options={"min_side": 16}, **shared) for name in CLASSICAL]
    return run_cells(cells, profile.name, executor(profile))
