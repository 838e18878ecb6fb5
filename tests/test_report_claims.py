"""Claims: verdicts from known effects, pairing by image and seed, the papers' own effects."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fake_records import LEVELS, fake_cells, fake_execute, fake_objects
from samtune.common.paths import repository_root
from samtune.data.polyps import TEST_SETS
from samtune.report.claim_list import KINDS
from samtune.report.claims import (
    CLAIMS,
    COLUMNS,
    VERDICTS,
    Claim,
    build_claims,
    check_claims,
    claims_markdown,
    effect_text,
    paper_effect,
)
from samtune.report.contrasts import Contrast, Place, Side, above, contrasts, interval
from samtune.report.paper_numbers import load_paper_numbers
from samtune.report.statistics import Interval, paired_bootstrap
from samtune.report.tables import TABLES, write_tables
from samtune.study.cells import EvaluationCell, GenerationCell, TrainingCell
from samtune.study.records import read_records
from samtune.study.runner import Result, run_cells


def claims_of(tmp_path, cells, execute=fake_execute, claims=CLAIMS):
    run_cells(cells, tmp_path, execute, say=lambda line: None)
    return build_claims(read_records(tmp_path / "records"), "cpu", "nano", claims)


def test_every_claim_of_the_sheets_is_there_once():
    ids = [claim.id for claim in CLAIMS]
    assert len(set(ids)) == len(ids)
    assert {id.rstrip("abcd") for id in ids} == {
        *(f"S{n}" for n in range(1, 8)), *(f"P{n}" for n in range(1, 7)), *(f"A{n}" for n in range(1, 9)),
    }  # fmt: skip
    for claim in CLAIMS:
        assert claim.source and claim.statement
        assert claim.kind in KINDS and (claim.margin == 0 or claim.kind == "own")  # a margin is ours
        assert sum(weight for weight, _ in claim.terms) == 0  # a contrast
        assert all(side.table in TABLES for _, side in claim.terms)


def test_without_records_nothing_is_said():
    table = build_claims([], "cpu", "nano")
    assert list(table.columns) == COLUMNS and len(table) == len(CLAIMS)
    assert set(table["verdict"]) == {"not run"} and table["effect"].isna().all()


def test_verdicts_follow_the_interval(tmp_path):
    cells = fake_cells(("spt_main",), ("magnetic-tile", "neu-seg"), ("lora", "spt"))
    table = claims_of(tmp_path, cells).set_index(["id", "dataset"])
    for dataset in ("magnetic-tile", "neu-seg", "mean of sets"):
        found = table.loc[("S1a", dataset)]
        assert found["verdict"] == "reproduced" and found["effect"] == pytest.approx(0.05, abs=0.01)
        assert found["low"] < found["effect"] < found["high"]
    effects = table.loc["S1a", "effect"]
    assert effects["mean of sets"] == pytest.approx((effects["magnetic-tile"] + effects["neu-seg"]) / 2)
    assert table.loc[("S4", "neu-seg"), "effect"] == pytest.approx(0.02, abs=1e-6)  # final against its own draft
    assert table.loc[("S2a", ""), "verdict"] == "not run" and set(table["verdict"]) <= set(VERDICTS)
    command = table.loc[("S1a", "neu-seg"), "command"]
    assert command == "papermill notebooks/10_spt.ipynb out.ipynb -p profile cpu"

    against = Claim(
        "S9", "", "iou", ((1.0, Side("spt_main", "lora", "box")), (-1.0, Side("spt_main", "spt", "box"))), ""
    )
    none = dataclasses.replace(against, terms=((1.0, against.terms[0][1]), (-1.0, against.terms[0][1])))
    unknown = dataclasses.replace(against, reference=False)
    allowed = dataclasses.replace(against, margin=0.1)
    verdicts = [claims_of(tmp_path, cells, claims=[claim])["verdict"].unique().tolist()
                for claim in (against, none, unknown, allowed)]  # fmt: skip
    assert verdicts == [["not reproduced"], ["inconclusive"], ["no reference"], ["reproduced"]]


def test_the_interval_is_that_of_paired_differences(tmp_path):
    """Images differ far more than methods: unpaired, nothing could be said."""
    cells = fake_cells(("spt_main",), ("neu-seg",), ("lora", "spt"))
    found = claims_of(tmp_path, cells).set_index("id").loc["S1a"]

    def values(method):
        chosen = [cell for cell in cells if cell.method == method]
        objects = [fake_objects(cell).query("output == 'final'") for cell in chosen]
        return np.array([frame["iou"].to_numpy().reshape(12, 2).mean(axis=1) for frame in objects])

    paired = values("spt") - values("lora")
    draw = np.random.default_rng(3)
    means = [paired[draw.integers(0, 3, 3)][:, draw.integers(0, 12, 12)].mean() for _ in range(4000)]
    assert found["effect"] == pytest.approx(paired.mean(), abs=1e-5)
    np.testing.assert_allclose([found["low"], found["high"]], np.percentile(means, [2.5, 97.5]), atol=0.001)
    assert found["high"] - found["low"] < 0.5 * (values("spt").std() * 4 / np.sqrt(12))


def test_commands_name_notebooks_that_are_there(tmp_path):
    commands = claims_of(tmp_path, []).set_index("id")["command"]
    for claim, command in commands.items():
        assert command.startswith("papermill notebooks/"), claim
        for notebook in re.findall(r"notebooks/\w+\.ipynb", command):
            assert (repository_root() / notebook).is_file()
    assert [part[:33] for part in commands["P3"].split(" && ")] == [
        "papermill notebooks/20_sam_sp.ipy", "papermill notebooks/21_sam_sp_abl"
    ]  # fmt: skip
    assert commands["S5b"].endswith("-p profile paper") and commands["S6"].endswith("-p profile cpu")


def test_baselines_stand_in_until_the_papers_table_is_there(tmp_path):
    table = claims_of(tmp_path, fake_cells(("baselines",), ("neu-seg",))).set_index("id")
    assert table.loc["S1b", "verdict"] == "reproduced"
    assert table.loc["S1b", "command"].startswith("papermill notebooks/00_start_here.ipynb")
    assert table.loc["S1a", "verdict"] == "not run"
    assert table.loc["S1a", "command"].startswith("papermill notebooks/10_spt.ipynb")  # notebook 00 has no SPT


def test_zero_shot_needs_one_seed_and_partial_runs_compare_common_seeds(tmp_path):
    cells = fake_cells(("spt_main",), ("neu-seg",), ("lora", "spt"))
    cells = [cell for cell in cells if (cell.method, cell.seed) in
             {("zero_shot", 0), ("lora", 1), ("lora", 2), ("spt", 0), ("spt", 1)}]  # fmt: skip
    table = claims_of(tmp_path, cells).set_index("id")
    assert table.loc["S1b", "verdict"] == "reproduced"
    lora, spt = (next(cell for cell in cells if (cell.method, cell.seed) == (method, 1)) for method in ("lora", "spt"))
    one_seed = fake_objects(spt).query("output == 'final'")["iou"].mean() - fake_objects(lora)["iou"].mean()
    assert table.loc["S1a", "effect"] == pytest.approx(one_seed, abs=1e-5)
    apart = [cell for cell in cells if (cell.method, cell.seed) in {("lora", 2), ("spt", 0)}]
    assert claims_of(tmp_path / "apart", apart).set_index("id").loc["S1a", "verdict"] == "not run"


def test_a_row_of_ones_own_changes_no_claim(tmp_path: Path) -> None:
    cells = fake_cells(("spt_main",), ("magnetic-tile",), ("lora", "spt"))
    before = claims_of(tmp_path / "before", cells)
    trainings = [dataclasses.replace(one.training, hyper={"learning_rate": 0.4}) for one in cells if one.training]
    own = [one.evaluation("magnetic-tile", tables=("spt_main:own: learning rate 0.4",)) for one in trainings]

    def worse(cell, folder):
        result = fake_execute(cell, folder)
        return Result(objects=result.objects.assign(iou=0.0)) if cell in own else result

    pd.testing.assert_frame_equal(claims_of(tmp_path / "with", [*cells, *own], worse), before)


@pytest.mark.parametrize(("few", "verdict"), [(9, "inconclusive"), (10, "reproduced"), ("groups", "inconclusive")])
def test_fewer_than_ten_images_or_groups_say_nothing(tmp_path: Path, few: int | str, verdict: str) -> None:
    def execute(cell, folder):
        result = fake_execute(cell, folder)
        if result.objects is None:
            return result
        if few != "groups":
            return Result(objects=result.objects[result.objects["image"] < f"{few:03d}"])
        return Result(objects=result.objects.assign(group="tile " + result.objects["image"].str[:2]))

    table = claims_of(tmp_path, fake_cells(("spt_main",), ("neu-seg",), ("lora", "spt")), execute).set_index("id")
    assert table.loc["S1a", "verdict"] == verdict and table.loc["S1a", "low"] > 0


def test_one_model_on_several_sets_draws_its_seeds_once_and_so_it_is_with_the_pictures_of_a_set() -> None:
    random = np.random.default_rng(0)
    noise = random.normal(0, 1, (3, 1))
    tables = [noise + random.normal(0, 0.3, (3, 20)) for _ in range(4)]
    groups = [f"tile {image // 4}" if image < 12 else "" for image in range(20)]

    def of(places: list[Place]) -> Interval:
        pairs = zip(places, tables, strict=True)
        return interval([Contrast(place, table[None], table, groups, (), frozenset()) for place, table in pairs])

    def drawn(places: list[tuple[object, object]]) -> Interval:
        return paired_bootstrap(tables, [groups] * 4, places)

    assert of([(("a", "b"), str(n)) for n in range(4)]) == drawn([("one model", n) for n in range(4)])
    assert of([((str(n),), "a") for n in range(4)]) == drawn([(n, "one set") for n in range(4)])
    polyps = list(TEST_SETS)[:4]  # of one training set
    assert of([((name,), name) for name in polyps]) == drawn([("one model", name) for name in polyps])
    assert of([((), str(n)) for n in range(4)]) == drawn([(n, n) for n in range(4)])  # prompts alone: a set's own


def test_a_set_has_its_own_model_before_the_one_for_all_sets_and_test_pictures_count_alone(tmp_path: Path) -> None:
    sets, place = ("magnetic-tile", "neu-seg"), {"tables": ("spt_main",)}
    cells = []
    for method in ("lora", "spt"):
        union, single = (TrainingCell(method, trained, "nano") for trained in (sets, sets[1:]))
        cells += [union.evaluation(one, **place) for one in sets] + [single.evaluation(sets[1], **place)]
    terms = above(Side("spt_main", "spt", "box"), Side("spt_main", "lora", "box"))
    for split, expected in (("test", {(sets, sets[0]), (sets[1:], sets[1])}), ("val", set())):
        asked = [dataclasses.replace(cell, split=split) for cell in cells]
        run_cells(asked, tmp_path / split, fake_execute, say=lambda line: None)
        assert contrasts(terms, read_records(tmp_path / split / "records"), "iou", "nano").keys() == expected


def test_transfer_compares_only_what_was_not_trained_on(tmp_path):
    sets = ("magnetic-tile", "neu-seg")
    cells = []
    for method in ("lora", "spt"):
        for trained in sets:
            training = TrainingCell(method, (trained,), "nano", prompt="box,point10")
            cells += [training.evaluation(tested, tables=("spt_ablation:transfer",)) for tested in sets]
    table = claims_of(tmp_path, cells)
    assert table.query("id == 'S6'")["dataset"].tolist() == [
        "magnetic-tile > neu-seg", "neu-seg > magnetic-tile", "mean of sets",
    ]  # fmt: skip
    cells += [TrainingCell(method, ("drive",), "nano", prompt="box,point10").evaluation("neu-seg", tables=(
        "spt_ablation:transfer",)) for method in ("lora", "spt")]  # fmt: skip
    mean = claims_of(tmp_path, cells).query("id == 'S6' and dataset == 'mean of sets'").iloc[0]
    assert (mean["sets"], mean["images"]) == (2, 24)  # neu-seg's pictures once, though measured after two trainings
    own = Claim("S9", "", "iou", ((1.0, Side("spt_ablation", "spt", "box")),
                                  (-1.0, Side("spt_ablation", "lora", "box"))), "")  # fmt: skip
    assert claims_of(tmp_path, cells, claims=[own])["dataset"].tolist() == [*sets, "mean of sets"]


def test_rows_are_found_by_what_they_vary_whatever_their_label(tmp_path):
    usual = TrainingCell("spt", ("neu-seg",), "nano", prompt="box,point10")
    alone = dataclasses.replace(usual, hyper={"relation": False})
    cells = [usual.evaluation("neu-seg", tables=("spt_ablation:as it is",)),
             alone.evaluation("neu-seg", tables=("spt_ablation:any words",)),
             dataclasses.replace(usual, images=9).evaluation("neu-seg", tables=("spt_ablation:plateau",))]  # fmt: skip

    def execute(cell, folder):
        result = fake_execute(cell, folder)
        if result.objects is None or cell.training == usual:
            return result
        return Result(objects=result.objects.assign(iou=0.0 if cell.training == alone else 1.0))

    table = claims_of(tmp_path, cells, execute).set_index("id")
    whole = fake_objects(cells[0]).query("output == 'final'")["iou"].mean()
    assert table.loc["S3c", "effect"] == pytest.approx(whole, abs=1e-5) and table.loc["S3d", "verdict"] == "not run"


def test_asam_on_unseen_sets_and_the_papers_own_effects(tmp_path):
    pgd = TrainingCell("pgd", ("bsds500", "ccp"), "nano", hyper={"learning_rate": 0.003})
    made = GenerationCell("sample", "bsds500+ccp", 200, "nano")  # read as what they are made from
    training = dataclasses.replace(pgd, method="asam", train_datasets=(made.name,), generated=made)
    training = dataclasses.replace(training, hyper={"learning_rate": 0.1})
    cells = [
        one.evaluation(dataset, tables=("asam_main",))
        for one in (training, pgd)
        for dataset in ("drive", "neu-seg", "bsds500")
    ]
    cells += [
        EvaluationCell("zero_shot", "nano", dataset, tables=("asam_main",))
        for dataset in ("drive", "neu-seg", "bsds500")
    ]
    table = claims_of(tmp_path, cells).set_index(["id", "dataset"])
    assert table.loc[("A1", "drive"), "effect"] == pytest.approx(LEVELS["asam"] - LEVELS["zero_shot"], abs=0.01)
    assert table.loc[("A2c", "mean of sets"), "verdict"] == "reproduced"
    for claim in ("A1", "A2a", "A2c"):  # not bsds500, which was tuned on
        assert table.loc[claim].index.tolist() == ["drive", "neu-seg", "mean of sets"]
    rates = "Learning rates: ASAM 0.1; PGD tuning 0.003."
    assert (
        table.loc[("A2a", "drive"), "note"] == f"{rates} How far PGD's images fool SAM is not measured."
        and table.loc[("A1", "drive"), "note"] == ""
    )
    papers = load_paper_numbers()
    effects = {claim.id: paper_effect(claim, papers) for claim in CLAIMS}
    assert effects["A1"] == pytest.approx(0.0136, abs=1e-4)  # +1.36 points, as in the sheet
    assert effects["A2a"] > 0.2 and effects["A2d"] > 0.2 and effects["A3"] > 0.1
    points = {"P1a": 42.2, "P1b": 3.9, "P6a": 15.8}  # of Dice on the five polyp sets, as in the sheet
    assert {claim: round(100 * effects[claim], 1) for claim in points} == points
    others = {claim for claim in effects if claim.startswith("P")} - points.keys()
    assert all(effects[claim] is None for claim in others)  # what the paper does not compare, or not in numbers
    assert effects["S1a"] is None and effects["A6a"] is None and effects["A5"] is None


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ((0.0041, -0.0032, 0.0101), "+0.004 [-0.003, +0.010]"),
        ((0.0031, 0.00005, 0.0068), "+0.0031 [+0.0001, +0.0068]"),
        ((0.001, -0.0003, 0.001), "+0.0010 [-0.0003, +0.0010]"),
        ((0.0, 0.0, 0.0), "+0.000 [+0.000, +0.000]"),
        ((float("nan"),) * 3, ""),
    ],
)
def test_an_effect_shows_on_which_side_of_zero_its_interval_lies(row, text):
    assert effect_text(dict(zip(("effect", "low", "high"), row, strict=True))) == text


def test_committed_claims_can_be_checked(tmp_path):
    cells = fake_cells(("spt_main",), ("neu-seg",), ("lora", "spt"))
    write_tables({"claims": claims_of(tmp_path, cells)}, tmp_path / "tables")
    assert check_claims(tmp_path, "cpu", "nano") == []
    path = tmp_path / "tables" / "claims.csv"
    path.write_text(path.read_text().replace("not run", "reproduced", 1))
    assert len(check_claims(tmp_path, "cpu", "nano")) == 1
    assert isinstance(pd.read_csv(path), pd.DataFrame)


@pytest.mark.parametrize(("profile", "backbone"), [("cpu", "nano"), ("gpu", "vit_b")])
def test_committed_claims_equal_a_rebuild(profile, backbone):
    folder = repository_root() / "results" / profile
    records = list((folder / "records").glob("*.json.gz"))
    assert not records or check_claims(folder, profile, backbone) == []


def test_a_margin_is_apart_from_the_effect_and_counts_and_records_are_named(tmp_path):
    cells = fake_cells(("spt_main",), ("magnetic-tile", "neu-seg"), ("lora", "spt"))
    below = Claim("S9", "", "iou", ((1.0, Side("spt_main", "lora", "box")), (-1.0, Side("spt_main", "spt", "box"))), "",
                  "own", margin=0.1)  # fmt: skip
    table = claims_of(tmp_path, cells, claims=[below]).set_index("dataset")
    mean = table.loc["mean of sets"]
    assert (
        mean["effect"] == pytest.approx(-0.05, abs=0.01) and mean["margin"] == 0.1 and mean["verdict"] == "reproduced"
    )
    assert mean[["kind", "prompt", "sets", "images", "units", "seeds"]].tolist() == ["own", "box", 2, 24, 24, 3]
    of_set = {cell.key() for cell in cells if cell.dataset == "neu-seg" and cell.method != "zero_shot"}
    assert set(table.loc["neu-seg", "records"].split()) == of_set
    assert set(mean["records"].split()) == {cell.key() for cell in cells if cell.method != "zero_shot"}


def test_transfer_is_shown_beside_no_tuning_at_all(tmp_path):
    sets = ("magnetic-tile", "neu-seg")
    place = {"tables": ("spt_ablation:transfer",)}
    cells = [EvaluationCell("zero_shot", "nano", tested, **place) for tested in sets]
    for method in ("lora", "spt"):
        cells += [TrainingCell(method, (one,), "nano", prompt="box,point10").evaluation(two, **place)
                  for one, two in (sets, sets[::-1])]  # fmt: skip

    def worse(cell, folder):
        result = fake_execute(cell, folder)
        lost = result.objects is not None and cell.method != "zero_shot"
        return Result(objects=result.objects.assign(iou=result.objects["iou"] - 0.3)) if lost else result

    def note(folder, execute):
        table = claims_of(tmp_path / folder, cells, execute)
        said = claims_markdown(table, ["S6"])
        last = table.query("id == 'S6'").iloc[-1]["note"]
        assert said.splitlines()[-1] == f"S6, mean of sets: {last}"
        return last

    lost = note("worse", worse)
    assert re.match(r"Beside zero-shot SAM \(0\.49\d\): SPT 0\.3[45]\d \(-0\.1.*LoRA 0\.[23]\d\d \(-0\.2", lost), lost
    assert lost.endswith("both are below zero-shot SAM.")
    assert note("better", fake_execute).endswith("neither is demonstrably below zero-shot SAM.")


def test_claims_to_read_say_what_they_claim():
    blank = dict.fromkeys(COLUMNS, "") | dict.fromkeys(("margin", "images", "units", "seeds"), 0)
    rows = [
        {"id": "S1a", "dataset": "drive", "effect": 0.125, "low": -0.01, "high": 0.26, "verdict": "inconclusive",
         "images": 78, "units": 13, "seeds": 3},
        {"id": "S1b", "dataset": "drive", "effect": 0.2, "low": 0.1, "high": 0.3, "verdict": "reproduced",
         "images": 78, "units": 78, "seeds": 3},
        {"id": "P2c", "effect": -0.004, "low": -0.008, "high": 0.001, "verdict": "reproduced", "margin": 0.01},
        {"id": "P1b", "effect": np.nan, "verdict": "not run"},
    ]  # fmt: skip
    table = pd.DataFrame([blank | row for row in rows], columns=COLUMNS)
    text = claims_markdown(table, ["S1"])
    paper, sanity = text.split("**Sanity checks**")
    assert paper.startswith("**The papers' claims**") and "allowed" not in text and "in the paper" not in text
    assert "\n- S1a: SPT above LoRA alone, box prompts, IoU\n" in paper
    assert "| S1a | drive | 78 (13 independent), 3 | +0.125 [-0.010, +0.260] | inconclusive |" in paper
    assert "- S1b: LoRA above zero-shot SAM" in sanity and "| 78, 3 | +0.200" in sanity
    text = claims_markdown(table, ["P"])
    assert "| -0.004 [-0.008, +0.001] | -0.010 | reproduced |" in text  # effect, what is allowed, no paper's number
    assert "|  | +0.039 | not run |" in text and text.count("in the paper") == 1
