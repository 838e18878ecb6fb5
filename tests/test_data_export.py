"""A data set written out as folders reads back as it was."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from samtune.commands.cli import app
from samtune.common.errors import InputError
from samtune.data.export import export
from samtune.data.folder import FolderDataset
from samtune.data.registry import open_dataset

NAME = "synthetic-medical"


def test_pictures_and_objects_are_read_back(tmp_path: Path) -> None:
    count = export(NAME, tmp_path, ("val",))
    dataset = open_dataset(NAME)
    again = FolderDataset(tmp_path / "images", tmp_path / "masks", split="test")
    assert len(again.ids("test")) == count == len(dataset.ids("val"))
    for id in dataset.ids("val"):
        one, other = dataset.load(id), again.load(id)
        assert np.array_equal(one.image, other.image) and np.array_equal(np.stack(list(one.masks)), other.masks)
    (tmp_path / "images" / "other.png").write_bytes(b"")
    with pytest.raises(InputError, match=rf"images has pictures that are not of {NAME} \(other\): give another folder"):
        export(NAME, tmp_path)


def test_the_command_says_where(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["data", "export", NAME, str(tmp_path), "--split", "test"])
    count = len(open_dataset(NAME).ids("test"))
    assert found.exit_code == 0 and f"{count} pictures: {tmp_path / 'images'}, with masks in " in found.stdout
    found = CliRunner().invoke(app, ["data", "export", NAME, str(tmp_path), "--split", "tset"])
    assert found.exit_code == 2 and "unknown split 'tset'; known: test, train, val" in found.output
