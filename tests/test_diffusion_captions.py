"""Captions from a file, from classes, and the line that says what BLIP-2 lacks."""

from pathlib import Path

import pytest

from samtune.common.errors import InputError
from samtune.diffusion.captions import captions_of
from small_sam import disc_sample


def test_captions_come_from_classes_or_a_file(tmp_path: Path) -> None:
    samples = [disc_sample(1), disc_sample(2)]
    assert captions_of(samples) == ["a photograph of disc"] * 2
    table, mapping = tmp_path / "captions.csv", tmp_path / "captions.json"
    table.write_text('id,caption\n002,second\n001,"a disc, bright"\n')
    mapping.write_text('{"001": "one", "002": "two"}')
    assert captions_of(samples, str(table)) == ["a disc, bright", "second"]
    assert captions_of(samples, str(mapping)) == ["one", "two"]


@pytest.mark.parametrize("text", ["name,words\n001,x\n", "id,caption\n003,x\n"])
def test_a_file_without_the_captions_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "captions.csv"
    path.write_text(text)
    with pytest.raises(InputError, match="captions.csv"):
        captions_of([disc_sample(1)], str(path))


def test_blip2_says_what_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMTUNE_CHECKPOINTS", str(tmp_path))
    monkeypatch.setenv("SAMTUNE_OFFLINE", "1")
    (tmp_path / "blip2-flan-t5-xl").mkdir()
    with pytest.raises(InputError, match="fetch Salesforce/blip2-flan-t5-xl and put it at"):
        captions_of([disc_sample(1)], "blip2")
