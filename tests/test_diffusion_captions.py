"""Captions from a file, from classes, by BLIP-2, and those that an inversion used."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from samtune.common.errors import InputError
from samtune.data.generated import read_facts
from samtune.data.registry import open_dataset
from samtune.data.sample import Sample
from samtune.diffusion import generation
from samtune.diffusion.captions import _blip2, captions_of, check_captions, read_captions, stored_captions
from samtune.diffusion.pipeline import LatentDiffusion
from samtune.study.cells import GenerationCell
from samtune.study.execute import executor
from samtune.study.profile import load_profile
from samtune.study.runner import files_folder, run_cells
from small_sam import disc_sample
from tiny_blip2 import save_tiny_blip2
from tiny_diffusion import save_tiny_diffusion

SET = "synthetic-natural"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_diffusion(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A results folder."""
    monkeypatch.setenv("SAMTUNE_RESULTS", str(tmp_path))
    return tmp_path / "smoke"


def quiet_run(cells: Sequence[GenerationCell], folder: Path) -> None:
    run_cells(cells, folder, executor(load_profile("smoke")), say=lambda line: None)


def cells_of(model: str, **options: object) -> tuple[GenerationCell, list[GenerationCell]]:
    """An inversion with those options, and an attack, noise and a change from it."""
    inversion = GenerationCell("inversion", SET, 2, model, options=options)
    victim = {"backbone": "nano", "prompt": "box", "inversion": inversion}
    attack = GenerationCell("attack", SET, 2, model, options={"steps": 1}, **victim)
    random = GenerationCell("random", SET, 2, model, **victim)
    return inversion, [attack, random, replace(attack, method="change", options={}, inversion=attack)]


def test_captions_come_from_classes_or_a_file(tmp_path: Path) -> None:
    samples = [disc_sample(1), disc_sample(2)]
    assert captions_of(samples) == ["a photograph of disc"] * 2
    table, mapping = tmp_path / "captions.csv", tmp_path / "captions.json"
    table.write_text('id,caption\n002,second\n001,"a disc, bright"\n')
    mapping.write_text('{"001": "one", "002": "two"}')
    assert captions_of(samples, str(table)) == ["a disc, bright", "second"]
    assert captions_of(samples, str(mapping)) == ["one", "two"]


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_a_caption_is_its_sets_or_else_any_sets(tmp_path: Path, suffix: str) -> None:
    samples = [disc_sample(1, name="a"), disc_sample(1, name="b"), replace(disc_sample(1), id="b/001")]
    samples[2] = replace(samples[2], dataset="generated:0123")  # its original's
    known = {"001": "any", "b/001": "b's"}
    path = tmp_path / f"captions.{suffix}"
    path.write_text(json.dumps(known) if suffix == "json" else 'id,caption\n001,any\nb/001,"b\'s"\n')
    assert captions_of(samples, str(path)) == ["any", "b's", "b's"]


def test_the_authors_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    path.write_text('{"img": "000.jpg", "prompt": "a disc"}\n{"img": "001.jpg", "prompt": "another"}\n')
    assert captions_of([disc_sample(1)], str(path)) == ["another"]
    path.write_text('{"img": "001.jpg", "prompt": "a disc"}\n')  # one picture
    read_captions.cache_clear()
    assert captions_of([disc_sample(1)], str(path)) == ["a disc"]
    path = tmp_path / "others.json"
    path.write_text('{"img": "000.jpg"}\n{"img": "001.jpg"}\n')
    with pytest.raises(InputError, match="cannot read captions from .*others.json"):
        captions_of([disc_sample(1)], str(path))


def test_a_csv_may_be_excels_and_have_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    path.write_bytes('\ufeffid,caption\r\n001,"a dog\r\nand a cat"\r\n002,two\r\n'.encode())
    assert captions_of([disc_sample(1), disc_sample(2)], str(path)) == ["a dog\nand a cat", "two"]
    mapping = tmp_path / "captions.json"
    mapping.write_bytes('\ufeff{"001": "one"}'.encode())
    assert captions_of([disc_sample(1)], str(mapping)) == ["one"]


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.csv", "id,caption\n001\n"), ("b.csv", "id,caption\n001, \n"), ("c.json", '{"001": null}')],
)
def test_an_empty_caption_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"{name}: the caption of 001 is .*: write one"):
        captions_of([disc_sample(1)], str(tmp_path / name))


class Pictures:
    """As much of a set as is asked for its captions: the picture 003 shows no object."""

    name = "listed"

    def load(self, id: str) -> Sample:
        sample = disc_sample(int(id))
        return replace(sample, masks=sample.masks & (id != "003"))


def test_all_pictures_with_an_object_need_a_caption(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    path.write_text("id,caption\n001,one\nlisted/002,two\n")
    pictures = [(Pictures(), id) for id in ("001", "002", "003")]
    check_captions(str(path), pictures)
    with pytest.raises(InputError, match="no caption of 004 .listed., but 2 others: add one with id listed/004"):
        check_captions(str(path), [*pictures, (Pictures(), "004")])
    path.write_text("id,caption\n001,one\nlisted/002,two\nlisted/004,four\n")  # mended in the same session
    check_captions(str(path), [*pictures, (Pictures(), "004")])
    check_captions("blip2", pictures)
    check_captions(str(tmp_path / "gone.csv"), [])


def test_a_missing_caption_is_found_before_the_first_picture(model: str, folder: Path, tmp_path: Path) -> None:
    inversion, _ = cells_of(model, recipe="ddim", steps=1, captions=str(tmp_path / "captions.json"))
    quiet_run([replace(inversion, options={"recipe": "autoencoder"})], folder)
    first, last = read_facts(next(folder.glob("generated/*")))
    chosen = [first["id"], last["id"]]
    for id in chosen:  # whichever is made first
        path = tmp_path / f"{id}.json"
        path.write_text(json.dumps({id: "one"}))
        cell = replace(inversion, options={"recipe": "ddim", "steps": 1, "captions": str(path)})
        with pytest.raises(InputError, match="has no caption of"):
            quiet_run([cell], folder)
        assert not list(files_folder(folder, cell).glob("*.json"))


@pytest.mark.parametrize("recipe", ["null_text", "autoencoder"])
def test_captions_are_those_of_the_inversion(
    model: str, folder: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    told, embedded, embed = [], [], LatentDiffusion.embed

    def captions(samples: Sequence[Sample], source: str, device: str) -> list[str]:  # never the same twice
        told.extend(f"{sample.id}, caption {len(told)}" for sample in samples)
        return told[-len(samples) :]

    def embed_and_note(self: LatentDiffusion, words: Sequence[str]) -> torch.Tensor:
        embedded.extend(word for word in words if word)
        return embed(self, words)

    monkeypatch.setattr(generation, "captions_of", captions)
    monkeypatch.setattr(LatentDiffusion, "embed", embed_and_note)
    inversion, (attack, random, change) = cells_of(model, recipe=recipe, steps=1, captions="blip2")
    quiet_run([inversion], folder)
    asked = {one["id"]: one["caption"] for one in read_facts(files_folder(folder, inversion))}
    assert sorted(asked.values()) == sorted(told) and len(told) == 2
    denoised = told if recipe == "null_text" else []
    for cell, again in ((inversion, denoised), (attack, denoised), (random, denoised), (change, [])):
        if cell is not inversion:
            embedded.clear()
            quiet_run([cell], folder)
        assert embedded == again
        assert {one["id"]: one["caption"] for one in read_facts(files_folder(folder, cell))} == asked
    assert len(told) == 2


def test_an_inversion_without_its_captions_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no caption at .*listed-001.json: remove .* to invert anew"):
        stored_captions(tmp_path, [disc_sample(1)])


def test_what_follows_an_attack_does_without_the_inversions_files(model: str, folder: Path) -> None:
    inversion, (attack, _, change) = cells_of(model, recipe="ddim", steps=1)
    quiet_run([inversion, attack], folder)
    shutil.rmtree(files_folder(folder, inversion))  # the largest of all
    quiet_run([change, attack.before()], folder)
    assert len(read_facts(files_folder(folder, change))) == len(read_facts(files_folder(folder, attack))) > 0


@pytest.mark.parametrize("text", ["name,words\n001,x\n", "id,caption\n003,x\n", ""])
def test_a_file_without_the_captions_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "captions.csv"
    path.write_text(text)
    with pytest.raises(InputError, match="captions.csv"):
        captions_of([disc_sample(1)], str(path))


def test_blip2_captions_each_picture_as_it_would_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMTUNE_CHECKPOINTS", str(tmp_path))
    _blip2.cache_clear()
    processor, model = save_tiny_blip2(tmp_path / "blip2-flan-t5-xl")
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    samples = [disc_sample(1), replace(disc_sample(2), image=noise)]
    alone = []
    for sample in samples:
        inputs = processor(images=[Image.fromarray(sample.image)], return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=30, do_sample=False)[0]
        alone.append(processor.decode(ids, skip_special_tokens=True).strip())
    assert captions_of(samples, "blip2") == alone
    assert alone[0] != alone[1]


def test_a_generation_is_captioned_by_blip2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMTUNE_CHECKPOINTS", str(tmp_path))
    monkeypatch.setenv("SAMTUNE_RESULTS", str(tmp_path / "results"))
    _blip2.cache_clear()
    save_tiny_blip2(tmp_path / "blip2-flan-t5-xl")
    tiny = str(save_tiny_diffusion(tmp_path / "tiny"))
    inversion, _ = cells_of(tiny, recipe="negative_prompt", steps=1, captions="blip2")
    quiet_run([inversion], tmp_path / "results" / "smoke")
    dataset = open_dataset(inversion.dataset)
    told = {one["id"]: one["caption"] for one in read_facts(files_folder(tmp_path / "results" / "smoke", inversion))}
    assert told == {id: captions_of([dataset.load(id)], "blip2")[0] for id in told} and len(told) == 2


def test_blip2_says_what_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMTUNE_CHECKPOINTS", str(tmp_path))
    monkeypatch.setenv("SAMTUNE_OFFLINE", "1")
    _blip2.cache_clear()
    (tmp_path / "blip2-flan-t5-xl").mkdir()
    with pytest.raises(InputError, match="fetch Salesforce/blip2-flan-t5-xl and put it at"):
        captions_of([disc_sample(1)], "blip2")
