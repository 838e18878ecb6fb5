"""Equal cells have equal keys, different ones different keys."""

import dataclasses
import json

import numpy as np
import pytest

from samtune.common.errors import InputError
from samtune.study.cells import EvaluationCell, GenerationCell, TrainingCell, cell_from_plain, plain_cell

TRAINING = TrainingCell("lora", ("magnetic-tile",), "nano", seed=1, images=3000, hyper={"rank": 8, "rate": 1e-3})


def test_keys_are_stable_and_depend_on_everything_but_where_a_cell_is_shown():
    # Written down once: a change would orphan every committed record.
    assert TRAINING.key() == "f4b6baa49c0a62db3c44"
    assert TRAINING.evaluation("neu-seg").key() == "bd61e423b3dacdd3d371"
    changes = {
        "method": "spt", "train_datasets": ("neu-seg",), "backbone": "vit_b", "seed": 2, "images": 10,
        "preprocess": "pad", "prompt": "box+point1", "target": "instances", "hyper": (("rank", 4),),
        "weights_hash": "ab", "pictures": 200,
    }  # fmt: skip
    assert set(changes) == {one.name for one in dataclasses.fields(TRAINING)} - {
        "tables",
        "generated",
    }  # train_datasets names it
    keys = {dataclasses.replace(TRAINING, **{name: value}).key() for name, value in changes.items()}
    assert len(keys | {TRAINING.key()}) == len(changes) + 1
    shown = dataclasses.replace(TRAINING, tables=("speed",))
    assert shown == TRAINING and shown.key() == TRAINING.key() and hash(shown) == hash(TRAINING)
    evaluation = TRAINING.evaluation("neu-seg")
    others = [TRAINING.evaluation("neu-seg", **change) for change in
              ({"prompt": "point1"}, {"split": "val"}, {"options": {"passes": 2}}, {"max_images": 5})]  # fmt: skip
    others.append(dataclasses.replace(TRAINING, images=10).evaluation("neu-seg"))
    assert len({cell.key() for cell in [evaluation, *others]}) == 6


def test_keys_of_generated_pictures_too():
    made = GenerationCell("inversion", "bsds500+ccp", 200, "nano", "ab", options={"recipe": "direct", "steps": 20})
    attack = dataclasses.replace(made, method="attack", backbone="nano", weights_hash="cd", prompt="box",
                                 options={"steps": 10}, inversion=made)  # fmt: skip
    assert (made.key(), attack.key()) == ("defd32f01bc792cabc8b", "f64c6adfb4771eef98d5")  # as above: once
    changes = {
        "method": "sample", "dataset": "ccp", "pictures": 40, "diffusion": "other", "diffusion_hash": "cd",
        "controlnet": "masks.pth", "split": "val", "backbone": "vit_b", "weights_hash": "ef", "prompt": "point10",
        "seed": 1, "options": (("steps", 50),), "inversion": attack,
    }  # fmt: skip
    assert set(changes) == {one.name for one in dataclasses.fields(made)} - {"tables"}
    keys = {dataclasses.replace(made, **{name: value}).key() for name, value in changes.items()}
    assert len(keys | {made.key()}) == len(changes) + 1


def test_equal_cells_have_equal_keys_whatever_their_options_were_written_as():
    alike = [{"a": 1, "b": [2, 3]}, (("b", (2.0, 3)), ("a", 1.0)), {"b": (np.int64(2), 3), "a": np.float32(1)}]
    cells = [dataclasses.replace(TRAINING, hyper=hyper) for hyper in alike]
    assert cells[0] == cells[1] == cells[2] and len({cell.key() for cell in cells}) == 1
    with pytest.raises(ValueError, match="twice"):
        dataclasses.replace(TRAINING, hyper=(("a", 1), ("a", 2)))
    with pytest.raises(ValueError, match="seed"):
        EvaluationCell("lora", "nano", "neu-seg", seed=0, training=TRAINING)


def test_a_cell_survives_as_plain_data():
    measured = TRAINING.evaluation("neu-seg", options={"scales": [1, 2]}, tables=("baselines",))
    untrained = EvaluationCell("zero_shot", "nano", "drive", prompt="point1", tables=("nano_sam:best of 3",))
    for cell in (TRAINING, measured, untrained):
        again = cell_from_plain(cell.kind, json.loads(json.dumps(plain_cell(cell))), cell.tables)
        assert again == cell and again.key() == cell.key() and again.tables == cell.tables
    with pytest.raises(InputError, match="not a cell"):
        cell_from_plain("training", {"rank": 8})
