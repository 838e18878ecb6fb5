"""Captions of pictures: their own or their classes', from a file, or written by BLIP-2 as in ASAM.

A file of captions, UTF-8, is JSON `{key: caption}` (suffix .json), CSV with the columns id (the key) and caption, or
ASAM's authors' kind of JSON, a line `{"img": file, "prompt": caption}` a picture, with the file's stem as key. A
picture's key is "<data set>/<id>", or the id alone: that is looked up second, and means every set's picture of this id.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError

from samtune.common.errors import InputError, first_line
from samtune.common.paths import checkpoint_root, is_offline, resolve
from samtune.data.generated import picture_name, sample_key
from samtune.data.sample import Dataset, Sample
from samtune.diffusion.conditions import caption

BLIP2 = "Salesforce/blip2-flan-t5-xl"  # ASAM's: with a T5


def captions_of(samples: Sequence[Sample], source: str = "classes", device: str = "cpu") -> list[str]:
    """One caption a sample. `source`: "classes", "blip2", or a file, as said above.

    Raises `InputError` where the file has none of a sample, or BLIP-2 is not there.
    """
    if source == "classes":
        return [caption(sample) for sample in samples]
    if source == "blip2":
        return blip2_captions(samples, device)
    known = read_captions(resolve(source))
    found = [_known(known, sample.dataset, sample.id) for sample in samples]
    for sample, words in zip(samples, found, strict=True):
        if words is None:
            raise _no_caption(source, sample.dataset, sample.id, known)
    return found


def check_captions(source: str, pictures: Sequence[tuple[Dataset, str]]) -> None:
    """Raises `InputError` unless the file `source` has a caption of each picture (data set, id) that shows an object;
    so that one is not missed after hours of work. Of "classes" and "blip2" nothing is checked.
    """
    if source in ("classes", "blip2") or not pictures:
        return
    read_captions.cache_clear()  # it may have been mended since it was refused
    known = read_captions(resolve(source))
    for dataset, id in pictures:
        # A picture without an object is left out later; only those without a caption are read here.
        if _known(known, dataset.name, id) is None and dataset.load(id).masks.any():
            raise _no_caption(source, dataset.name, id, known)


def stored_captions(folder: Path, samples: Sequence[Sample]) -> list[str]:
    """The caption that each picture in the `folder` of a generated set was made with. Raises `InputError` where a
    picture's facts are not there."""
    captions = []
    for sample in samples:
        facts = folder / f"{picture_name(sample.dataset, sample.id)}.json"
        if not facts.is_file():
            raise InputError(f"no caption at {facts}: remove {folder} and its record to invert anew")
        captions.append(json.loads(facts.read_text())["caption"])
    return captions


@cache
def read_captions(path: Path) -> dict[str, str]:
    """Captions by key, see above. Raises `InputError` for a file that is none of captions, or an empty caption."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # Excel puts a byte order mark first
        if path.suffix == ".json":
            try:
                found = json.loads(text)
                if isinstance(found, dict) and found.keys() == {"img", "prompt"}:  # the authors' kind, of one picture
                    found = {Path(found["img"]).stem: found["prompt"]}
            except json.JSONDecodeError:
                lines = [json.loads(line) for line in text.splitlines() if line.strip()]
                found = {Path(line["img"]).stem: line["prompt"] for line in lines}
            if not isinstance(found, dict):
                raise ValueError("no JSON object")
        else:
            # Lines are left to the reader: a line break within quotes is the caption's.
            rows = csv.DictReader(io.StringIO(text, newline=""))
            if not {"id", "caption"} <= set(rows.fieldnames or ()):
                raise ValueError(f"its columns: {', '.join(rows.fieldnames or ()) or 'none'}")
            found = {row["id"]: row["caption"] for row in rows}
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        wanted = "JSON {id: caption}, or CSV with the columns id and caption"
        raise InputError(f"cannot read captions from {path} ({error}); it should be {wanted}") from error
    for key, words in found.items():
        if not isinstance(words, str) or not words.strip():
            raise InputError(f"{path}: the caption of {key} is {words!r}: write one, or leave {key} out")
    return found


def _known(known: Mapping[str, str], dataset: str, id: str) -> str | None:
    """A picture's caption among those of a file: by set and id, or else by id."""
    return known.get(sample_key(dataset, id), known.get(id))


def _no_caption(source: str, dataset: str, id: str, known: Mapping[str, str]) -> InputError:
    key = sample_key(dataset, id)
    return InputError(f"{source} has no caption of {id} ({dataset}), but {len(known)} others: add one with id {key}")


@torch.no_grad()
def blip2_captions(samples: Sequence[Sample], device: str = "cpu") -> list[str]:
    """What BLIP-2 says of each picture, greedily. Raises `InputError` when its files are not there."""
    processor, model = _blip2(torch.float16 if device.startswith("cuda") else torch.float32)
    model.to(device)
    inputs = processor(images=[Image.fromarray(sample.image) for sample in samples], return_tensors="pt")
    words = model.generate(**inputs.to(device, model.dtype), max_new_tokens=30, do_sample=False)
    model.to("cpu")  # the diffusion model and its victim need the card's memory
    return [text.strip() for text in processor.batch_decode(words, skip_special_tokens=True)]


@cache
def _blip2(dtype: torch.dtype) -> tuple:
    from transformers import Blip2ForConditionalGeneration, Blip2Processor

    folder = checkpoint_root() / BLIP2.rpartition("/")[2]
    place = folder if folder.is_dir() else BLIP2
    options = {"local_files_only": folder.is_dir() or is_offline()}
    try:
        processor = Blip2Processor.from_pretrained(place, **options)
        model = Blip2ForConditionalGeneration.from_pretrained(place, dtype=dtype, **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"no BLIP-2 in {place} ({first_line(error)}): fetch {BLIP2} and put it at {folder}, or name a file of "
            "captions"
        ) from error
    return processor, model.eval()
