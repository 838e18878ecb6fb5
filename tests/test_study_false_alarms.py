"""False alarms: what is marked on pictures without an object, by masks whose area is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from samtune.common.errors import InputError
from samtune.data.sample import Sample
from samtune.evaluation import EvaluationConfig
from samtune.study.false_alarms import SIDES, false_alarms
from small_sam import ListedSamples, disc_sample

CONFIG = EvaluationConfig(batch_size=2)


def empty_sample(number: int) -> Sample:
    sample = disc_sample(number)
    return replace(sample, id=f"empty{number}", masks=sample.masks[:0], object_class=(), group="tile 7")


def left_half(samples, prompts):
    """A method that marks the left half of every picture, and nothing as its draft."""
    answers = []
    for sample in samples:
        height, width = sample.image.shape[:2]
        logits = torch.full((1, 1, height, width), -1.0)
        draft = logits.clone()
        logits[..., : width // 2] = 1
        answers.append({"final": logits, "draft": draft})
    return answers


def test_area_is_a_share_of_the_picture_and_objects_are_left_out() -> None:
    data = ListedSamples([empty_sample(number) for number in range(3)] + [disc_sample(9)])
    rows, dropped = false_alarms(left_half, data, CONFIG, progress=False)
    assert dropped == {"images with an object": 1} and len(rows) == 2 * 3
    area = rows.groupby("output")["false_alarm_area"].agg(["min", "max"])
    assert (area.loc["final"] == 0.5).all() and (area.loc["draft"] == 0).all()
    assert set(rows["group"]) == {"tile 7"}
    assert np.allclose(rows["box_area"], rows["box_w"] * rows["box_h"] / (48 * 64))


def test_boxes_lie_inside_have_the_stated_sides_and_depend_on_seed_and_picture_alone() -> None:
    data = ListedSamples([empty_sample(number) for number in range(40)])
    seen = []

    def remember(samples, prompts):
        seen.extend(prompt.boxes[0].tolist() for prompt in prompts)
        return left_half(samples, prompts)

    for config in (CONFIG, replace(CONFIG, batch_size=7), replace(CONFIG, seed=1)):
        false_alarms(remember, data, config, progress=False)
    first, other_batches, other_seed = seen[:40], seen[40:80], seen[80:]
    assert first == other_batches and first != other_seed and len({tuple(box) for box in first}) == 40
    boxes = np.array(first)
    assert (boxes >= 0).all() and (boxes[:, [0, 2]] <= 63).all() and (boxes[:, [1, 3]] <= 47).all()
    sides = (boxes[:, 2:] - boxes[:, :2] + 1) / (64, 48)
    assert (sides > SIDES[0] - 0.5 / 48).all() and (sides < SIDES[1] + 0.5 / 48).all() and sides.std() > 0.05


def test_set_without_such_pictures_is_refused() -> None:
    with pytest.raises(InputError, match="listed test: every picture has an object"):
        false_alarms(left_half, ListedSamples([disc_sample(0)]), CONFIG, progress=False)
