"""Records: they come back as written, outlive versions of the kit, and their keys are their cells'."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fake_records import fake_cells, fake_execute, fake_objects
from samtune import __version__
from samtune.common.errors import InputError
from samtune.common.paths import repository_root
from samtune.study.cells import TrainingCell
from samtune.study.records import Record, cell_of, read_record, read_records, write_record
from samtune.study.runner import run_cells


def test_a_record_comes_back_as_it_was_written(tmp_path):
    objects = fake_objects(TrainingCell("lora", ("magnetic-tile",), "nano").evaluation("neu-seg"))
    objects.loc[3, "iou"] = np.nan
    objects["dice"] = 2 * objects["iou"] / (1 + objects["iou"])
    objects.loc[4, "hd95_strict"] = 123456.789
    record = Record("k", "evaluation", {"method": "lora", "eps": 1 / 3}, ("a", "b:c"), objects, seconds=1 / 3,
                    extras={"dropped": np.int64(2), "loss": float("nan")})  # fmt: skip
    path = write_record(tmp_path, record)
    first = path.read_bytes()
    back = read_record(path)
    pd.testing.assert_frame_equal(back.objects, objects, rtol=1e-3, check_dtype=False)
    assert back.objects.loc[4, "hd95_strict"] == 123500  # four significant digits
    assert np.isnan(back.objects.loc[3, "iou"]) and back.objects["area"].dtype == np.int64
    assert back.cell == {"method": "lora", "eps": 1 / 3}  # exact: its hash is the key
    assert (back.seconds, back.tables, back.extras) == (0.3333, ("a", "b:c"), {"dropped": 2, "loss": None})
    write_record(tmp_path, back)
    assert path.read_bytes() == first  # the same record, the same bytes: no noise in git


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "no json"])
def test_a_damaged_record_is_named_set_aside_and_run_again(tmp_path, damage):
    cells = fake_cells(datasets=("magnetic-tile",), seeds=(0,))
    run_cells(cells, tmp_path, fake_execute, say=lambda line: None)
    path = tmp_path / "records" / f"{cells[0].key()}.json.gz"
    whole = path.read_bytes()
    path.write_bytes({
        "truncated": whole[: len(whole) // 2], "empty": b"", "text": b"hello", "no json": gzip.compress(b"{"),
    }[damage])  # fmt: skip
    calls = []

    def execute(cell, results):
        calls.append(cell)
        return fake_execute(cell, results)

    with pytest.warns(UserWarning, match=str(path)):
        records = run_cells(cells, tmp_path, execute, say=lambda line: None)
    assert calls == [cells[0]] and records[0].key == cells[0].key()
    assert path.with_name(path.name + ".corrupt").exists()
    assert len(read_records(tmp_path / "records")) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 99}, f"written by SAMtune 7.0; this is SAMtune {__version__}, which reads formats to 3 and does "
                         "not know its format 99"),
        ({"temperature": 1}, "does not know its field 'temperature'"),
        ({"kind": "imagined"}, "does not know its kind 'imagined'"),
        ({"key": "x"}, "holds the record x"),
    ],
)  # fmt: skip
def test_a_record_of_another_version_is_told_and_left_alone(tmp_path, change, said):
    """Else an old checkout would set aside all that a newer one wrote, and run it again."""
    run_cells(fake_cells(datasets=("magnetic-tile",), seeds=(0,)), tmp_path, fake_execute, say=lambda line: None)
    path = sorted((tmp_path / "records").iterdir())[0]
    data = json.loads(gzip.decompress(path.read_bytes()))
    data["packages"]["samtune"] = "7.0"
    path.write_bytes(gzip.compress(json.dumps(data | change).encode()))
    with pytest.raises(InputError, match=said) as caught:
        read_records(tmp_path / "records")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert path.is_file() and not list(path.parent.glob("*.corrupt"))
    path.write_bytes(gzip.compress(b"[1]"))
    with pytest.raises(InputError, match="no record of SAMtune"):
        read_record(path)


def test_a_record_without_fields_that_came_later_is_read(tmp_path):
    path = write_record(tmp_path, Record("k", "training", {"method": "lora"}, curve=({"loss": 1},)))
    data = json.loads(gzip.decompress(path.read_bytes()))
    old = {name: data[name] for name in ("format", "key", "kind", "cell", "curve")} | {"status": "done"}
    path.write_bytes(gzip.compress(json.dumps(old).encode()))
    assert read_record(path) == Record("k", "training", {"method": "lora"}, curve=({"loss": 1},))


def test_what_describes_the_objects_is_stored_once_and_named_when_it_is_gone(tmp_path):
    cells = fake_cells(datasets=("neu-seg",), methods=("lora", "spt"))
    records = run_cells(cells, tmp_path, fake_execute, say=lambda line: None)
    files = sorted((tmp_path / "records" / "objects").iterdir())
    assert len(files) == 2  # SPT has an output more
    for cell, record in zip(cells, records, strict=True):
        pd.testing.assert_frame_equal(record.objects, fake_objects(cell), rtol=1e-3, check_dtype=False)
    elsewhere = tmp_path / "elsewhere" / f"{records[0].key}.json.gz"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes((tmp_path / "records" / elsewhere.name).read_bytes())
    with pytest.raises(InputError, match="needs .*objects.*, which is missing: copy it from where"):
        read_record(elsewhere)
    for file in files:
        (elsewhere.parent / "objects").mkdir(exist_ok=True)
        (elsewhere.parent / "objects" / file.name).write_bytes(file.read_bytes()[:40])
    with pytest.raises(InputError, match="needs .*objects.*, which is damaged"):
        read_record(elsewhere)
    assert elsewhere.is_file()  # the record itself is whole


def test_dice_is_stored_only_where_the_iou_does_not_give_it(tmp_path):
    both = pd.DataFrame({"dice": [0.0, 2 / 3, 1.0], "iou": [0.0, 0.5, 1.0], "area": [1, 2, 3]})
    record = Record("k", "evaluation", {"method": "lora", "seed": 0}, objects=both)
    path = write_record(tmp_path, record)
    data = json.loads(gzip.decompress(path.read_bytes()))
    assert sorted(data["objects"]["columns"]) == ["iou"]
    pd.testing.assert_frame_equal(read_record(path).objects, both)  # in its place again, to rounding
    # As format 1 stored them: read as they are.
    data["objects"]["columns"] |= {"dice": {"values": [0.0, 0.6, 1.0]}, "area": {"values": [1, 2, 3]}}
    del data["objects"]["described"]
    path.write_bytes(gzip.compress(json.dumps(data | {"format": 1}).encode()))
    assert read_record(path).objects["dice"].tolist() == [0.0, 0.6, 1.0]
    write_record(tmp_path, replace(record, objects=both[["dice"]]))
    assert read_record(path).objects["dice"].tolist() == [0.0, 0.6667, 1.0]


def test_every_committed_record_has_the_key_of_its_cell():
    for folder in sorted((repository_root() / "results").glob("*/records")):
        records = read_records(folder)
        assert records and [record.key for record in records if cell_of(record).key() != record.key] == []
