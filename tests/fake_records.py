"""Records made up for tests: IoU of a fixed level per method, noise per image and seed from a seeded generator."""

from pathlib import Path

import numpy as np
import pandas as pd

from samtune.study.cells import Cell, EvaluationCell, TrainingCell
from samtune.study.runner import Result, files_folder

LEVELS = {"zero_shot": 0.5, "ellipse": 0.4, "decoder_tuning": 0.55, "lora": 0.6, "spt": 0.65, "asam": 0.52, "pgd": 0.45}


def fake_objects(cell: EvaluationCell, images: int = 12, objects: int = 2) -> pd.DataFrame:
    """Two objects an image; the same images are hard for every method."""
    hard = np.random.default_rng(7).normal(0, 0.05, images)
    noise = np.random.default_rng([cell.seed, sorted(LEVELS).index(cell.method)]).normal(0, 0.01, (images, objects))
    level = LEVELS[cell.method]
    rows = []
    outputs = {"draft": -0.02, "final": 0.0} if cell.method == "spt" else {"final": 0.0}
    for image in range(images):
        for number in range(objects):
            for output, shift in outputs.items():
                iou = level + shift + hard[image] + noise[image, number]
                rows.append(
                    {"image": f"{image:03d}", "object": number, "object_class": ["crack", "dent"][number],
                     "area": [400, 20000][number], "box_w": 20, "box_h": 20, "output": output,
                     "iou": iou, "boundary_iou": iou - 0.1, "hd95_strict": 50 * (1 - iou)}
                )  # fmt: skip
    return pd.DataFrame(rows)


def fake_execute(cell: Cell, results: Path) -> Result:
    """What a cell would give; a training (or generation) writes its "weights", a measurement reads them."""
    if cell.keeps_files:
        folder = files_folder(results, cell)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights.txt").write_text(cell.key())
        curve = [{"images": 100 * (step + 1), "loss": 1 / (step + 1), "validation_iou": 0.5 + step / 100}
                 for step in range(6)]  # fmt: skip
        return Result(curve=curve, precision="fp32", seconds=30.0, extras={"trainable_parameters": 1234})
    for need in cell.needs:
        assert (files_folder(results, need) / "weights.txt").read_text() == need.key()
    return Result(
        objects=fake_objects(cell),
        precision="fp32",
        seconds=2.0,
        extras={"dropped": {"images without a mask": 1, "other": 0}},
    )


def fake_cells(
    tables: tuple[str, ...] = ("baselines",),
    datasets: tuple[str, ...] = ("magnetic-tile", "neu-seg"),
    methods: tuple[str, ...] = ("lora",),
    seeds: tuple[int, ...] = (0, 1, 2),
) -> list[EvaluationCell]:
    """Zero-shot SAM and each of `methods`, tuned on the set that it is measured on."""
    cells = []
    for dataset in datasets:
        for seed in seeds:
            for method in methods:
                training = TrainingCell(method, (dataset,), "nano", seed, images=3000, tables=("speed",))
                cells.append(training.evaluation(dataset, tables=tables))
            cells.append(EvaluationCell("zero_shot", "nano", dataset, seed=seed, tables=tables))
    return cells
