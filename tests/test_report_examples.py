"""Pictures of predictions: the same masks as evaluation measures, all outputs, and the relation's row."""

import numpy as np
import pandas as pd
import torch

from samtune.evaluation import EvaluationConfig, evaluate, predict_with
from samtune.methods import build_method
from samtune.methods.spt import relation_matrix
from samtune.report import examples
from samtune.sam.preprocess import Preprocess
from samtune.study.records import Record
from small_sam import ListedSamples, disc_sample, small_sam

DISCS = ListedSamples([disc_sample(number) for number in range(4)])


def test_examples_show_what_is_measured_with_the_draft_before_the_final_mask() -> None:
    methods = {name: build_method(name, small_sam()).eval() for name in ("zero_shot", "spt")}
    rows, _ = evaluate(predict_with(methods["spt"], EvaluationConfig()), DISCS, EvaluationConfig(), progress=False)
    shown = examples.of_pictures(methods, DISCS, {"worst": "001", "best": "002"}, "box")
    assert [example.note for example in shown] == ["worst", "best"]
    for example, id in zip(shown, ("001", "002"), strict=True):
        assert list(example.predictions) == ["zero_shot", "spt draft", "spt"]
        for name, output in (("spt draft", "draft"), ("spt", "final")):
            measured = rows[(rows["image"] == id) & (rows["output"] == output)]["iou"].item()
            assert abs(example.scores[name] - measured) < 1e-6


def test_box_that_sam_sp_made_itself_lies_around_its_first_pass() -> None:
    method = build_method("sam_sp", small_sam(), iterations=2).eval()
    for id in ("000", "001", "002"):
        example = examples.of_pictures({"sam_sp": method}, DISCS, {"case": id}, "none")[0]
        assert list(example.predictions) == ["sam_sp pass0", "sam_sp pass1", "sam_sp"]
        rows, columns = np.nonzero(example.predictions["sam_sp pass1"])
        if len(rows):
            box = [columns.min(), rows.min(), columns.max(), rows.max()]
            assert example.own_prompts["sam_sp pass1"].boxes.tolist() == [box]
        else:
            assert not example.own_prompts
    assert len(rows)  # else nothing was compared


def test_cases_are_the_worst_median_and_best_image() -> None:
    objects = pd.DataFrame({"image": list("aabcde"), "output": "final", "iou": [0.0, 0.4, 0.9, 0.5, 0.3, 0.1]})
    assert examples.cases(Record("key", "evaluation", {}, objects=objects)) == {
        "worst": "e",
        "median": "d",
        "best": "b",
    }


def test_relation_row_is_that_of_the_token_under_the_cross() -> None:
    sample, method = DISCS.load("000"), build_method("spt", small_sam()).eval()
    example = examples.relation_example({"SPT": method}, (1.0, 0.1), sample)
    column, row = example.place
    assert sample.masks[0][row, column] and set(example.maps) == {"SPT, temperature 1", "SPT, temperature 0.1"}
    with torch.no_grad():
        embedding = method.encode(Preprocess(64, "stretch").image(sample.image)[None])
    relation = relation_matrix(embedding)[0].view(8, 8, 8, 8)
    own = relation[row * 8 // 48, column * 8 // 64].numpy()
    assert np.allclose(example.maps["SPT, temperature 1"], own) and own[row * 8 // 48, column * 8 // 64] == 0


def test_cases_of_a_set_without_a_record_are_those_that_evaluation_ranks() -> None:
    method = build_method("zero_shot", small_sam()).eval()
    config = EvaluationConfig(max_images=3)
    rows, _ = evaluate(predict_with(method, config), DISCS, config, progress=False)
    scores = rows.groupby("image")["iou"].mean()
    found = examples.cases_elsewhere(method, DISCS, count=3)
    assert scores.nunique() > 1 and (found["worst"], found["best"]) == (scores.idxmin(), scores.idxmax())
