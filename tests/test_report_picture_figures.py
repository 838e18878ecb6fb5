"""Figures of pictures: chosen by rule, every mask, prompt and mistake drawn where it is."""

import dataclasses

import cv2
import matplotlib.colors
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from samtune.data.sample import Sample
from samtune.prompts import make_prompts
from samtune.report.picture_figures import (
    FALSE_ALARM,
    HIT,
    MISSED,
    Example,
    contact_sheet,
    pick_cases,
    qualitative_grid,
    surroundings,
)


def sample(number: int, height: int = 40, width: int = 60) -> Sample:
    generator = np.random.default_rng(number)
    masks = np.zeros((2, height, width), bool)
    masks[0, 5:15, 10:30] = masks[1, 25:35, 40:55] = True
    return Sample(f"a-rather-long-name-of-a-picture-{number}", "mine", "test",
                  generator.integers(0, 255, (height, width, 3), dtype=np.uint8), masks)  # fmt: skip


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_cases_are_picked_by_rule():
    scores = pd.Series({"d": 0.9, "b": 0.2, "a": 0.2, "c": 0.5, "e": np.nan})
    assert pick_cases(scores) == {"worst": "a", "median": "b", "best": "d"}
    assert set(pick_cases(pd.Series({"x": 0.3})).values()) == {"x"}


def test_grid_colours_hits_false_alarms_and_misses():
    one = sample(0)
    truth, shifted = one.masks.any(0), np.roll(one.masks.any(0), 4, axis=1)
    example = Example(one.image, truth, {"lora": shifted, "SPT draft": truth}, {"lora": 0.5},
                      make_prompts("box", truth[None], one.id), "worst")  # fmt: skip
    figure = qualitative_grid([example, Example(one.image, truth, {"lora": truth})], "Look here")
    axes = np.array(figure.axes).reshape(2, 4)
    assert [axis.get_title(loc="center") for axis in axes[0]] == ["image, prompt", "truth", "LoRA", "SPT draft"]
    assert figure.alt == "Look here. IoU of the picture: worst: LoRA 0.50; : ."
    layers = {matplotlib.colors.to_hex(layer.get_array()[0, 0, :3]).upper(): np.asarray(layer.get_array()[..., 3]) > 0
              for layer in axes[0, 2].images[1:]}  # fmt: skip
    np.testing.assert_array_equal(layers[HIT], truth & shifted)
    np.testing.assert_array_equal(layers[FALSE_ALARM], shifted & ~truth)
    np.testing.assert_array_equal(layers[MISSED], truth & ~shifted)
    assert axes[0, 2].get_xlabel() == "IoU 0.50" and axes[0, 0].get_ylabel() == "worst"
    box = axes[0, 0].patches[0]
    assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == (9.5, 4.5, 45, 30)  # pixels 10-54, 5-34


def test_grid_draws_a_methods_own_prompt_on_its_mask_alone():
    one = sample(0)
    truth, own = one.masks.any(0), make_prompts("box", one.masks[:1], one.id)
    masks = {"sam_sp pass0": one.masks[0], "sam_sp": truth}
    figure = qualitative_grid([Example(one.image, truth, masks, own_prompts={"sam_sp": own})], "Own")
    assert [len(axis.patches) for axis in figure.axes] == [0, 0, 0, 2]  # dark on a white rim
    assert figure.axes[3].patches[0].get_xy() == (9.5, 4.5)
    assert legend(figure)[3:] == ["box that the method gives itself"]


def test_a_thin_object_is_shown_with_its_surroundings_and_the_whole_picture_small():
    truth = np.zeros((400, 600), bool)
    truth[100:160, 300:304] = True
    thick, crack = np.zeros_like(truth), np.zeros_like(truth)
    thick[100:160, 300:360] = crack[200:204] = True
    assert surroundings(truth) == (slice(76, 184), slice(276, 328))
    assert surroundings(thick) is None and surroundings(np.zeros_like(truth)) is None
    rows, columns = surroundings(crack)  # from edge to edge: a part of it
    assert (rows.stop - rows.start, columns.stop - columns.start) == (133, 133) and crack[rows, columns].any()
    missed = np.roll(truth, 2, axis=1)
    image = np.zeros((400, 600, 3), np.uint8)
    shown = [Example(image, mask, {"lora": found}, prompt=make_prompts("box", mask[None], "thin"))
             for mask, found in ((truth, missed), (thick, thick))]  # fmt: skip
    figure = qualitative_grid(shown, "Thin")
    axes = np.array(figure.axes).reshape(2, 4)
    assert [axis.get_xlim() for axis in axes[0]] == [(275.5, 327.5)] * 3 + [(-0.5, 599.5)]
    layers = [np.asarray(layer.get_array()[..., 3]) > 0 for layer in axes[0, 2].images[1:]]
    assert [layer.sum() for layer in layers] == [120, 120, 120]  # hits, false alarms, misses: none is lost
    window = axes[0, 3].patches[0]
    assert (*window.get_xy(), window.get_width(), window.get_height()) == (276, 76, 52, 108)
    assert axes[1, 2].get_xlim() == (-0.5, 599.5) and not axes[1, 3].axison
    assert legend(figure) == ["hit", "false alarm", "missed", "part shown at the left"]
    alone = qualitative_grid([dataclasses.replace(shown[0], prompt=None)], "No prompt")  # false alarms may be anywhere
    assert [axis.get_xlim() for axis in alone.axes] == [(-0.5, 599.5)] * 3


def test_contact_sheet_shows_every_sample_object_and_prompt():
    samples = [sample(number) for number in range(8)]
    prompts = [make_prompts("point5", one.masks, one.id) for one in samples[:-1]] + [None]
    figure = contact_sheet(samples, "Look at them", prompts, columns=6)
    assert len(figure.axes) == 12
    assert [len(axis.images) for axis in figure.axes] == [3] * 8 + [0] * 4  # the picture and two objects
    clicks = figure.axes[0].collections[-2].get_offsets()  # positive, then (none) negative
    assert sorted(map(tuple, clicks)) == sorted(map(tuple, prompts[0].points.reshape(-1, 2).tolist()))


def test_large_pictures_shrink_but_keep_their_coordinates():
    one = sample(0, 400, 1200)
    (axis, *_) = contact_sheet([one], "Large").axes
    assert axis.images[0].get_array().shape[:2] == (67, 200)
    assert axis.images[0].get_extent() == [-0.5, 1199.5, 399.5, -0.5]


def coloured(layer: AxesImage) -> np.ndarray:
    return np.asarray(layer.get_array())[..., 3] > 0


def thin_and_thick() -> tuple[Sample, float]:
    """A large picture with a crack, a slanted one, a speck, a disk; and how many shrunk pixels the disk is."""
    masks = np.zeros((4, 1000, 1500), np.uint8)
    masks[0, 500:502, 100:1400] = masks[2, 150:154, 1200:1204] = 1
    cv2.line(masks[1], (100, 900), (1400, 560), 1, 2)
    cv2.circle(masks[3], (400, 250), 180, 1, -1)
    return Sample("large", "mine", "test", np.zeros((1000, 1500, 3), np.uint8), masks > 0), masks[3].sum() / 7.5**2


def test_no_object_vanishes_in_a_contact_sheet_and_thick_ones_keep_their_area():
    one, disk = thin_and_thick()
    (axis, *_) = contact_sheet([one], "Thin and thick").axes
    crack, slanted, speck, thick = (coloured(layer) for layer in axis.images[1:])
    for line in (crack, slanted):
        assert line.any(0).sum() >= 173 and line.sum() <= 200  # all along, and a pixel wide
        assert cv2.connectedComponents(line.astype(np.uint8))[0] == 2  # the surroundings, and one line
    assert speck.sum() == 1 and speck[20, 160]
    assert abs(thick.sum() / disk - 1) < 0.02
    lines = Sample("lines", "mine", "test", np.zeros((320, 480, 3), np.uint8), np.eye(320, 480, dtype=bool)[None])
    assert coloured(contact_sheet([lines], "Lines").axes[0].images[1]).any(0).sum() >= 133


def test_no_mistake_about_an_object_vanishes_and_a_rim_does_not_grow():
    one, disk = thin_and_thick()
    crack, _, speck, thick = one.masks
    wider = cv2.dilate(thick.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0  # false alarms all around, a pixel wide
    truth = speck | thick
    (*_, axis) = qualitative_grid([Example(one.image, truth, {"lora": wider | crack})], "Mistakes").axes
    hit, false_alarm, missed = (coloured(layer) for layer in axis.images[1:])
    assert abs(hit.sum() / disk - 1) < 0.02 and missed.sum() == 1
    assert 173 <= false_alarm.sum() <= 200 and set(np.nonzero(false_alarm)[0]) == {66}  # the crack that is not there
