"""Tables: numbers against plain numpy, columns as promised, nothing invented, committed tables equal to a rebuild."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest

from fake_records import fake_cells, fake_execute, fake_objects
from samtune.common.errors import InputError
from samtune.common.paths import repository_root
from samtune.report import table_records
from samtune.report.labels import rate_label
from samtune.report.paper_numbers import load_paper_numbers, paper_of
from samtune.report.readable_tables import (
    markdown,
    pivots,
    reported_elsewhere,
    table_page,
    write_pages,
)
from samtune.report.tables import (
    COLUMNS,
    TABLES,
    WHOLE,
    build_tables,
    check_tables,
    differences,
    paired_differences,
    passes_by_box,
    read_table,
    write_tables,
)
from samtune.study import sam_sp
from samtune.study.cells import EvaluationCell, TrainingCell
from samtune.study.records import Record, read_records
from samtune.study.runner import Result, run_cells


def records_of(tmp_path, cells, execute=fake_execute):
    run_cells(cells, tmp_path, execute, say=lambda line: None)
    return read_records(tmp_path / "records")


def row(table: pd.DataFrame, **values) -> pd.Series:
    chosen = table[np.logical_and.reduce([table[column] == value for column, value in values.items()])]
    assert len(chosen) == 1, chosen
    return chosen.iloc[0]


def test_numbers_are_those_of_plain_numpy(tmp_path):
    cells = fake_cells()
    table = build_tables(records_of(tmp_path, cells))["baselines"]
    assert list(table.columns) == [*COLUMNS, *WHOLE]
    found = row(table, method="lora", dataset="neu-seg", metric="iou")
    # objects (2 a image) -> images (12) -> seeds (3), written out
    seeds = [fake_objects(cell)["iou"].to_numpy().reshape(12, 2).mean(axis=1)
             for cell in cells if cell.method == "lora" and cell.dataset == "neu-seg"]  # fmt: skip
    values = np.array(seeds)
    assert found["mean"] == pytest.approx(values.mean(axis=1).mean(), abs=1e-6)
    assert found["std"] == pytest.approx(np.sqrt(((values.mean(axis=1) - values.mean()) ** 2).sum() / 2), abs=1e-6)
    assert (found["seeds"], found["images"]) == (3, 12)
    described = ["prompt", "output", "backbone", "train_dataset", "split", "variant"]
    assert found[described].tolist() == ["box", "final", "nano", "neu-seg", "test", ""]
    # The interval: a second bootstrap, drawn plainly, agrees up to resampling noise.
    draw = np.random.default_rng(1)
    means = [values[draw.integers(0, 3, 3)][:, draw.integers(0, 12, 12)].mean() for _ in range(4000)]
    np.testing.assert_allclose([found["low"], found["high"]], np.percentile(means, [2.5, 97.5]), atol=0.003)
    assert row(table, method="zero_shot", dataset="neu-seg", metric="iou")["train_dataset"] == ""


def test_means_of_sets_bold_and_records_are_in_the_tables(tmp_path):
    cells = fake_cells(("spt_main",), methods=("lora", "spt"))
    records = records_of(tmp_path, cells)
    table = build_tables(records)["spt_main"].query("metric == 'iou' and output == 'final'")
    mean = row(table, dataset="mean of sets", method="spt")
    single = table[(table["method"] == "spt") & (table["mean_of"] == "")]
    assert mean["mean"] == pytest.approx(single["mean"].mean()) and mean["mean_of"] == "magnetic-tile+neu-seg"
    assert mean["low"] < mean["mean"] < mean["high"] and (mean["images"], mean["seeds"]) == (24, 3)
    keys = {cell.key() for cell in cells if cell.method == "spt"}
    assert set(mean["records"].split()) == keys and {len(keys.split()) for keys in single["records"]} == {3}
    assert set(table[table["best"] == "yes"]["method"]) == {"spt"} and (table["best"] == "yes").sum() == 3
    # The same numbers for another method: nobody is best.
    twin = [dataclasses.replace(one, cell={**one.cell, "method": "asam"}, key=one.key[::-1]) for one in records
            if one.objects is not None and one.method == "spt"]  # fmt: skip
    assert not (build_tables([*records, *twin])["spt_main"].query("metric == 'iou'")["best"] == "yes").any()


def test_images_count_alike_whatever_their_number_of_objects(tmp_path):
    def execute(cell, folder):
        objects = {"image": ["a", "a", "a", "b"], "object": [0, 1, 2, 0], "object_class": ["x"] * 4,
                   "area": [1023, 1024, 9216, 1], "box_w": 1, "box_h": 1, "output": "final",
                   "iou": [0.2, 0.4, 0.6, 1.0], "dice": [0.5, np.nan, 0.7, np.nan]}  # fmt: skip
        return Result(objects=pd.DataFrame(objects))

    cell = EvaluationCell("zero_shot", "nano", "bbbc038", tables=("nano_sam",))
    tables = build_tables(records_of(tmp_path, [cell], execute))
    iou = row(tables["nano_sam"], metric="iou")
    assert iou["mean"] == pytest.approx((0.4 + 1.0) / 2) and np.isnan(iou["std"]) and iou["seeds"] == 1
    dice = row(tables["nano_sam"], metric="dice")
    assert dice["mean"] == pytest.approx(0.6) and dice["images"] == 1  # undefined values are left out, and counted
    by_size = tables["nano_sam_by_size"]
    assert list(by_size.columns) == [*COLUMNS, "size"]
    sizes = {size: row(by_size, metric="iou", size=size)["mean"] for size in ("small", "medium", "large")}
    assert sizes == pytest.approx({"small": (0.2 + 1.0) / 2, "medium": 0.4, "large": 0.6})
    assert row(tables["nano_sam_by_class"], metric="iou", object_class="x")["mean"] == pytest.approx(0.7)


def test_paired_differences_take_the_same_images_and_seeds(tmp_path):
    cells = fake_cells(methods=("lora", "spt"), datasets=("neu-seg",))
    cells = [cell for cell in cells if not (cell.method == "lora" and cell.seed == 2)]
    found = paired_differences(records_of(tmp_path, cells), "baselines", "spt", ["lora", "zero_shot", "asam"])
    assert found["against"].tolist() == ["lora", "zero_shot"] and set(found["images"]) == {12}
    by_method = {}
    for cell in cells:
        objects = fake_objects(cell).query("output == 'final'")
        by_method[cell.method, cell.seed] = objects.groupby("image")["iou"].mean()
    both = [by_method["spt", seed] - by_method["lora", seed] for seed in (0, 1)]
    first = row(found, against="lora")
    assert first["difference"] == pytest.approx(np.mean(both), abs=1e-4)  # a record holds four digits
    # images are hard alike for both methods: the paired interval is far narrower than their spread
    assert first["low"] < first["difference"] < first["high"] < first["low"] + 0.02
    both = [  # one model for two sets, which stands beside none
        dataclasses.replace(cell, training=dataclasses.replace(cell.training, train_datasets=("drive", "neu-seg")))
        for cell in cells
        if cell.training
    ]
    assert paired_differences(records_of(tmp_path, cells + both), "baselines", "spt", ["lora"]).equals(found[:1])
    assert paired_differences([], "baselines", "spt", ["lora"]).empty
    assert paired_differences(records_of(tmp_path, cells), "baselines", "spt", ["lora"], "ssim").empty  # not measured


def test_nothing_is_invented_where_nothing_was_run(tmp_path):
    tables = build_tables([])
    assert list(tables) == list(TABLES)
    assert all(table.empty for table in tables.values())
    assert all(
        list(table.columns) == [*COLUMNS, *WHOLE] for name, table in tables.items() if name != "speed"
    )  # has its own
    write_tables(tables, tmp_path)
    write_pages(tables, tmp_path)
    assert (tmp_path / "spt_main.csv").read_text().strip() == ",".join([*COLUMNS, *WHOLE])
    assert "**Not run**" in (tmp_path / "spt_main.md").read_text()
    assert differences(read_table(tmp_path / "spt_main.csv"), tables["spt_main"]) == []
    # What the paper reports stands there all the same, beside "not run".
    page = (tmp_path / "asam_main.md").read_text()
    header, hrsod = (next(line for line in page.splitlines() if line.startswith(f"| {start} |")).split(" | ")
                     for start in ("set | measure", "hrsod-te"))  # fmt: skip
    shown = dict(zip((name.strip("| ") for name in header), (value.strip("| ") for value in hrsod), strict=True))
    reported = {"zero-shot SAM": "0.889", "DAT tuning": "0.550", "PGD tuning": "0.634"}
    reported |= {"generated pictures": "0.454", "ASAM": "0.913"}
    assert shown == {"set": "hrsod-te", "measure": "IoU · box"} | reported and "performance.png" in page


def test_outputs_and_variants(tmp_path):
    cells = fake_cells(("spt_main", "spt_ablation:SDT + VRA"), ("magnetic-tile",), ("lora", "spt"))
    tables = build_tables(records_of(tmp_path, cells))
    spt = tables["spt_main"].query("method == 'spt' and metric == 'iou'")
    assert spt["output"].tolist() == ["draft", "final"] and spt["mean"].is_monotonic_increasing
    assert set(tables["spt_ablation"]["variant"]) == {"SDT + VRA"}


def test_rows_are_in_the_order_of_the_numbers_in_their_names(tmp_path):
    names = ["0.001", "3e-05", "0.0001", "100% of the pictures", "25% of the pictures", "rank 16", "rank 2"]
    cells = [
        dataclasses.replace(cell, options={"number": number}, tables=(f"spt_ablation:{name}",))
        for number, name in enumerate(names)
        for cell in fake_cells(datasets=("neu-seg",), methods=(), seeds=(0,))
    ]
    table = build_tables(records_of(tmp_path, cells))["spt_ablation"]
    assert list(table["variant"].unique()) == [
        "3e-05", "0.0001", "0.001", "25% of the pictures", "100% of the pictures", "rank 2", "rank 16",
    ]  # fmt: skip


def test_two_cells_never_share_a_row(tmp_path):
    one = TrainingCell("lora", ("neu-seg",), "nano", hyper={"rank": 4})
    two = dataclasses.replace(one, hyper={"rank": 8})
    same = [cell.evaluation(name, tables=("spt_ablation",)) for name in ("drive", "neu-seg") for cell in (one, two)]
    with pytest.raises(InputError, match=r"'rank': 4.*'rank': 8.*delete.*'table:<variant>'.*older ones.*: ") as caught:
        build_tables(records_of(tmp_path / "same", same))
    files = {f"{cell.key()}.json.gz" for cell in same}
    assert len({name for name in files if name in str(caught.value)}) == 2  # one of each row, all at once
    apart = [cell.evaluation("neu-seg", tables=(f"spt_ablation:{name}",)) for cell, name in ((one, "4"), (two, "8"))]
    assert set(build_tables(records_of(tmp_path / "apart", apart))["spt_ablation"]["variant"]) == {"4", "8"}


def test_pivot_sets_ours_beside_the_papers_and_never_mixes_them(tmp_path):
    papers = load_paper_numbers()
    training = TrainingCell("asam", ("bsds500",), "nano")
    cells = [EvaluationCell("zero_shot", "nano", "bbbc038", tables=("asam_main",)),
             training.evaluation("bbbc038", tables=("asam_main",)),
             EvaluationCell("zero_shot", "nano", "coco128-seg", tables=("asam_main",))]  # fmt: skip
    table = build_tables(records_of(tmp_path, cells))["asam_main"]
    shown = pivots("asam_main", table, paper_of("asam_main", papers))[0]
    assert paper_of("sam_sp_choices", papers) is None  # ours alone
    assert shown.header == [
        "method",
        "bbbc038",
        "bbbc038, paper",
        "coco128-seg",
        "mean of sets",
    ]  # no column of what the paper has not
    rows = {line[0]: line[1:4] for line in shown.rows}
    iou = table[table["metric"] == "iou"].set_index(["method", "dataset"])["mean"]
    ours = [f"{iou['zero_shot', name]:.3f}" for name in ("bbbc038", "coco128-seg")]
    assert rows["zero-shot SAM"] == [ours[0], "0.848", ours[1]]
    # What all are tuned on stands in the caption, not in the rows.
    assert rows["ASAM"] == [f"{iou['asam', 'bbbc038']:.3f}", "0.850", "not run"]
    assert rows["PGD tuning"] == ["–", "0.658", "–"] and "tuned on bsds500" in shown.caption
    other = TrainingCell("asam", ("ccp",), "nano").evaluation("coco128-seg", tables=("asam_main",))
    table = build_tables(records_of(tmp_path, [*cells, other]))["asam_main"]
    assert {"ASAM, tuned on bsds500", "ASAM, tuned on ccp"} < {line[0] for line in pivots("asam_main", table)[0].rows}
    elsewhere = reported_elsewhere("asam_main", table, papers["asam"])
    assert len(elsewhere.rows) == 13 and "bbbc038" not in {line[0] for line in elsewhere.rows}
    assert pivots("spt_main", table, papers["spt"])[0].header == [
        "method", "bbbc038", "coco128-seg", "mean of sets"
    ]  # fmt: skip
    assert paper_of("nano_sam", papers) is None


def test_pivot_marks_the_best_and_gives_the_mean_of_sets(tmp_path):
    table = build_tables(records_of(tmp_path, fake_cells()))["baselines"]
    text = markdown(next(part for part in pivots("baselines", table) if part.title == "IoU, box"))
    lora = row(table, method="lora", dataset="neu-seg", metric="iou")
    assert f"**{lora['mean']:.3f} ± {lora['std']:.3f}**" in text
    distances = markdown(next(part for part in pivots("baselines", table) if part.title.startswith("HD95 (strict)")))
    worst = row(table, method="zero_shot", dataset="neu-seg", metric="hd95_strict")
    assert f"{worst['mean']:.1f} ± {worst['std']:.1f}" in distances
    assert f"**{worst['mean']:.1f}" not in distances  # fewer pixels are better
    mean = table.query("method == 'lora' and metric == 'iou' and dataset != 'mean of sets'")["mean"].mean()
    assert re.search(rf"\| LoRA \|.*\*\*{mean:.3f} ± [0-9.]+\*\* \|$", text, re.MULTILINE)
    page = table_page("baselines", table, load_paper_numbers())
    assert (
        "backbone nano" in page.lower()
        and "3 seeds" in page
        and "paper" not in page.lower().replace("not in the paper", "")
    )
    truth = table.assign(output="at_mask_size")
    assert not any(part.best for part in pivots("baselines", truth.assign(best="")))


def test_a_readable_table_has_one_metric_and_prompt_sets_across_and_controls_apart(tmp_path):
    cells = fake_cells(("spt_main",), methods=("lora", "spt"))
    cells += [dataclasses.replace(cell, prompt="point10") for cell in cells if cell.method != "spt"]
    table = build_tables(records_of(tmp_path, cells))["spt_main"]
    parts = pivots("spt_main", table)
    first = parts[0]
    assert (first.title, first.folded) == ("IoU, box", False) and all(part.folded for part in parts[1:])
    assert first.header == ["method", "magnetic-tile", "neu-seg", "mean of sets"]
    assert [line[0] for line in first.rows] == ["zero-shot SAM", "LoRA", "SPT"]
    assert first.best == {(2, 1), (2, 2), (2, 3)}  # as the column `best` says
    assert [line[0] for line in parts[1].rows] == ["SPT, draft"] and max(len(part.header) for part in parts) <= 8
    assert "IoU, ten clicks" in {part.title for part in parts}


def test_backbones_have_tables_of_their_own_and_are_no_rivals(tmp_path):
    cells = fake_cells(("spt_main",), methods=("lora", "spt"))
    records = [one for one in records_of(tmp_path, cells) if one.objects is not None]

    def on_vit_h(one):
        objects = one.objects.assign(iou=one.objects["iou"] / 2)
        return dataclasses.replace(one, cell={**one.cell, "backbone": "vit_h"}, key=one.key[::-1], objects=objects)

    table = build_tables([*records, *map(on_vit_h, records)])["spt_main"]
    parts = {part.title: part for part in pivots("spt_main", table)}
    nano, vit_h = parts["IoU, box, nano"], parts["IoU, box, vit_h"]
    assert vit_h.caption.startswith("Backbone vit_h") and "IoU, box" not in parts
    found = [[float(line[1].split()[0]) for line in part.rows] for part in (nano, vit_h)]
    np.testing.assert_allclose(np.array(found[0]) / 2, found[1], atol=0.001)
    assert nano.best == vit_h.best == {(2, 1), (2, 2), (2, 3)}


def test_a_grid_too_coarse_for_the_truth_is_named(tmp_path):
    table = build_tables(records_of(tmp_path, fake_cells()))["baselines"]
    truth = table[(table["method"] == "zero_shot") & (table["metric"] == "iou")].assign(
        method="truth", output="at_mask_size"
    )
    for iou, said in ((0.6, True), (0.95, False)):
        rows = truth.assign(mean=iou)
        parts = pivots("sam_sp_main", pd.concat([table, rows]))
        caption = next(part.caption for part in parts if part.title.startswith("IoU, box: further"))
        assert caption.count("On neu-seg the truth itself") == said and ("IoU 0.600" in caption) is said


def test_a_metric_that_some_seeds_lack_is_shown_of_the_others(tmp_path):
    cells = [EvaluationCell("zero_shot", "nano", "drive", seed=seed, tables=("baselines",)) for seed in (0, 1)]
    first, second = records_of(tmp_path, cells)
    for lacking in ([first, without(second)], [without(first), second]):
        table = build_tables(lacking)["baselines"].set_index("metric")["seeds"]
        assert table["iou"] == 2 and table["hd95_strict"] == 1


def without(record, metric="hd95_strict"):
    return dataclasses.replace(record, objects=record.objects.drop(columns=metric))


def test_methods_without_a_backbone_need_no_column_for_it(tmp_path):
    cells = [EvaluationCell("ellipse", "none", "drive", tables=("nano_sam",))]
    cells.append(EvaluationCell("zero_shot", "nano", "drive", tables=("nano_sam",)))
    shown = pivots("nano_sam", build_tables(records_of(tmp_path, cells))["nano_sam"])[0]
    assert shown.caption.startswith("Backbone nano")


def test_the_last_pass_is_shown_once_as_the_final_output():
    rows = [("unet", "a", "final", 0.5)]
    for name, passes in (("a", 2), ("b", 4)):
        outputs = [f"pass{number}" for number in range(passes)] + ["final"]
        rows += [("sam_sp", name, output, 0.1 * min(place, passes - 1)) for place, output in enumerate(outputs)]
    table = pd.DataFrame(rows, columns=["method", "dataset", "output", "mean"]).assign(
        prompt="none", metric="iou", variant="", backbone="nano", train_dataset="", split="test", std=np.nan, seeds=1
    )
    final, passes = pivots("sam_sp_main", table)
    assert final.rows == [["U-Net", "0.500", "not run"], ["SAM-SP", "0.100", "0.300"]]
    assert passes.rows == [
        ["SAM-SP, first pass", "0.000", "0.000"],
        ["SAM-SP, second pass (its own prompt)", "not run", "0.100"],
        ["SAM-SP, third pass", "not run", "0.200"],
    ]


def test_controls_stand_first_in_a_part_of_their_own():
    rows = [("lora_samed", "Dice loss"), ("sam_sp", "rank 8"), ("sam_sp", "truth on the first pass alone")]
    rows += [("sam_sp", "truth on both passes, rank 8")]
    table = pd.DataFrame(rows, columns=["method", "variant"]).assign(
        dataset="a", output="final", mean=0.5, prompt="none", metric="dice", backbone="nano", train_dataset="",
        split="test", std=np.nan, seeds=1,
    )  # fmt: skip
    parts = pivots("sam_sp_ablation", table)
    assert [part.title.partition(": ")[2] for part in parts] == ["controls", "one change at a time", "further rows"]
    controls = [row[0] for row in parts[0].rows]
    assert controls == ["LoRA (as SAMed), Dice loss", "LoRA (as SAMed), Dice loss, tested with two passes"]
    choices = pivots("sam_sp_choices", table)
    assert [len(part.rows) for part in choices] == [3, 1] and choices[1].title.endswith("further rows")


def test_paper_numbers_are_those_of_the_sheet():
    values = load_paper_numbers()["asam"].values.pivot(index="dataset", columns="method", values="mean")
    assert values.shape == (14, 5) and not values.isna().any(axis=None)
    first = ["doors", "lvis", "zerowaste-f", "ndispark", "egohos", "plittersdorf", "bbbc038"]
    averages = {"zero_shot": (76.7, 75.8), "dat": (47.6, 51.1), "pgd": (53.9, 56.2), "generated": (65.0, 44.0),
                "asam": (77.6, 77.5)}  # the paper's own averages  # fmt: skip
    for method, (one, two) in averages.items():
        assert values.loc[first, method].mean() * 100 == pytest.approx(one, abs=0.06)
        assert values.drop(first)[method].mean() * 100 == pytest.approx(two, abs=0.06)
    assert (values["asam"] - values["zero_shot"]).mean() == pytest.approx(0.0136, abs=1e-4)


def test_the_papers_other_methods_stand_as_reported():
    """SAM-SP's polyp table: means of the sheet; a method that the kit has not beside those that it has."""
    paper = load_paper_numbers()["sam_sp"]
    dice = paper.values.query("metric == 'dice'").pivot(index="dataset", columns="method", values="mean")
    assert dice.shape == (5, 11) and not dice.isna().any(axis=None)
    means = {"zero_shot": 38.8, "lora_samed": 77.1, "SAM-Med2D": 77.3, "Med-SA": 78.0, "sam_sp": 81.0, "PolypPVT": 86.5}
    assert {name: round(100 * dice[name].mean(), 1) for name in means} == means
    iou = paper.values.query("metric == 'iou'").pivot(index="dataset", columns="method", values="mean")
    assert iou.shape == dice.shape
    # IoU is below Dice everywhere but in the slip that the note names.
    assert list((iou >= dice).stack().loc[lambda above: above].index) == [("polyps-cvc-colondb", "zero_shot")]
    elsewhere = reported_elsewhere("sam_sp_main", pd.DataFrame(columns=COLUMNS), paper)
    known = ["zero-shot SAM", "LoRA (as SAMed)", "U-Net", "SAM-SP"]
    assert elsewhere.header[2:] == [*known, "UNet++", "PraNet", "UACANet-L", "SSFormerPVT", "PolypPVT", "SAM-Med2D",
                                    "Med-SA"]  # fmt: skip
    assert len(elsewhere.rows) == 2 * 5  # Dice and IoU
    run = pd.DataFrame([dict.fromkeys(COLUMNS, "") | {"dataset": "polyps-kvasir", "method": "sam_sp", "metric": "dice",
                        "prompt": "none", "output": "final", "split": "test", "backbone": "nano", "mean": 0.5,
                        "std": np.nan, "seeds": 1}])  # fmt: skip
    shown = pivots("sam_sp_main", run, paper)[0]
    rows = {line[0]: line[1:] for line in shown.rows}
    assert rows["SAM-SP"] == ["0.500", "0.906"] and rows["PraNet"] == ["–", "0.898"]


def test_a_papers_numbers_are_of_one_backbone():
    values = load_paper_numbers()["sam_sp"].values
    larger = values.assign(backbone="vit_h", mean=0.999)
    paper = dataclasses.replace(
        load_paper_numbers()["sam_sp"], values=pd.concat([values.assign(backbone="vit_b"), larger])
    )
    run = pd.DataFrame([dict.fromkeys(COLUMNS, "") | {"dataset": "polyps-kvasir", "method": "sam_sp", "metric": "dice",
                        "prompt": "none", "output": "final", "split": "test", "mean": 0.5, "std": np.nan,
                        "seeds": 1}])  # fmt: skip
    for backbone, number in (("vit_b", "0.906"), ("vit_h", "0.999"), ("nano", "0.906")):
        shown = pivots("sam_sp_main", run.assign(backbone=backbone), paper)[0]
        assert {line[0]: line[2] for line in shown.rows}["SAM-SP"] == number
    elsewhere = reported_elsewhere("sam_sp_main", pd.DataFrame(columns=COLUMNS), paper)
    assert len(elsewhere.rows) == 2 * 2 * 5 and ["polyps-kvasir", "Dice · no prompt · vit_b", "0.615"] in [
        row[:3] for row in elsewhere.rows
    ]


def test_learning_rates_name_what_was_varied_as_elsewhere(tmp_path):
    training = TrainingCell("spt", ("drive",), "nano", hyper={"learning_rate": 0.001, "relation": False})
    cells = [training.evaluation("drive", split="val", tables=("learning_rates:0.001, relation False",))]
    records = records_of(tmp_path, cells)
    chosen, tried = pivots("learning_rates", build_tables(records)["learning_rates"])
    assert chosen.rows[0][:3] == tried.rows[0][:3] == ["SPT, SDT", "drive", "0.001"]
    assert table_records.records_of("learning_rates", records)["row"].tolist() == ["SPT, 0.001, SDT"]
    rates = {"box": 0.3, "point10": 0.5, "none": 0.9}  # trained with box and clicks, and in another study without
    cells = [
        TrainingCell("decoder_tuning", ("drive",), "nano", prompt=trained, hyper={"learning_rate": rate}).evaluation(
            "drive", prompt=prompt, split="val", tables=(f"learning_rates:{rate:g}",)
        )
        for prompt in rates
        for trained in ("none" if prompt == "none" else "box,point10",)
        for rate in (0.001, 0.01)
    ]

    def execute(cell, folder):
        result = fake_execute(cell, folder)
        if result.objects is None:
            return result
        best = 0.001 if cell.prompt == "none" else 0.01
        score = rates[cell.prompt] * (dict(cell.training.hyper)["learning_rate"] == best)
        return Result(objects=result.objects.assign(iou=score))

    run_cells(cells, tmp_path / "both", execute, say=lambda line: None)
    chosen, _ = pivots("learning_rates", build_tables(read_records(tmp_path / "both" / "records"))["learning_rates"])
    assert sorted(row[:4] for row in chosen.rows) == [
        ["decoder tuning", "drive", "0.01 (largest tried)", "0.400"],
        ["decoder tuning, no prompt", "drive", "0.001 (smallest tried)", "0.900"],
    ]
    both = sorted((sam_sp.SAMED | sam_sp.TRUTH_ON_BOTH | {"image_size": 256}).items())
    assert rate_label("0.01" + "".join(f", {name} {value}" for name, value in both)) == "0.01, truth on both passes"
    assert rate_label("0.01, rank 12") == "0.01, rank 12"


def test_damaged_paper_numbers_name_their_file(tmp_path):
    (tmp_path / "x.yaml").write_text("paper: X\nsource: ''\nnote: ''\ntables: {x_main: [{prompt: box}]}")
    with pytest.raises(InputError, match=r"x\.yaml.*unit"):
        load_paper_numbers(tmp_path)


def test_check_says_what_differs(tmp_path):
    write_tables(build_tables(records_of(tmp_path, fake_cells())), tmp_path / "tables")
    assert check_tables(tmp_path) == []
    path = tmp_path / "tables" / "baselines.csv"
    table = read_table(path)
    table.loc[2, "mean"] += 0.001
    table.to_csv(path, index=False)
    (tmp_path / "tables" / "speed.csv").unlink()
    found = check_tables(tmp_path)
    assert len(found) == 2 and found[0].startswith("baselines: row 3, mean: ") and found[1] == "speed: missing"


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_committed_tables_equal_a_rebuild_from_the_committed_records(profile):
    folder = repository_root() / "results" / profile
    records = list((folder / "records").rglob("*.json.gz"))
    assert sum(path.stat().st_size for path in records) < 20e6
    assert not records or check_tables(folder) == []


def test_passes_by_box_says_where_the_second_pass_helps() -> None:
    scores = {"a": (0.1, 0.3, 0.5), "b": (0.2, 0.5, 0.5), "c": (0.9, 0.8, 0.6)}  # box IoU, Dice of both passes
    rows = [
        {"image": image, "object": "1", "output": output, "dice": dice, "box_iou": box if output == "pass0" else None}
        for image, (box, *both) in scores.items()
        for output, dice in zip(("pass0", "pass1"), both, strict=True)
    ]
    record = Record("key", "evaluation", {"dataset": "neu-seg", "seed": 0}, objects=pd.DataFrame(rows))
    table = passes_by_box([record, record]).loc["neu-seg"]
    assert list(table.index) == ["to 0.25", "to 1"] and list(table["images"]) == [4, 2]
    assert table["over_pass0"].round(6).to_list() == [0.1, -0.2] and table["over_direct"].isna().all()
    final = [{"image": image, "object": "1", "output": "final", "dice": 0.1} for image in (*scores, "d")]
    direct = Record("key", "evaluation", {"dataset": "neu-seg", "seed": 0}, objects=pd.DataFrame(final))
    table = passes_by_box([record], [direct]).loc["neu-seg"]
    assert table["over_direct"].round(6).to_list() == [0.4, 0.5] and list(table["images"]) == [2, 1]
