"""Captions of pictures: their own or their classes', from a file, or written by BLIP-2 as in ASAM."""

import csv
import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from PIL import Image

from samtune.common.errors import InputError
from samtune.common.paths import checkpoint_root, resolve
from samtune.data.sample import Sample
from samtune.diffusion.conditions import caption

BLIP2 = "Salesforce/blip2-flan-t5-xl"  # ASAM's: with a T5


def captions_of(samples: Sequence[Sample], source: str = "classes", device: str = "cpu") -> list[str]:
    """One caption a sample. `source`: "classes", "blip2", or a file, see `read_captions`.

    Raises `InputError` where the file has none of a sample, or BLIP-2 is not there.
    """
    if source == "classes":
        return [caption(sample) for sample in samples]
    if source == "blip2":
        return blip2_captions(samples, device)
    known = read_captions(resolve(source))
    for sample in samples:
        if sample.id not in known:
            raise InputError(f"{source} has no caption of {sample.id} ({sample.dataset}); it has {len(known)}")
    return [known[sample.id] for sample in samples]


@cache
def read_captions(path: Path) -> dict[str, str]:
    """Captions by sample id, from JSON (an object) or CSV (columns id, caption). Raises `InputError` on all else."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            found = json.loads(text)
        else:
            found = {row["id"]: row["caption"] for row in csv.DictReader(text.splitlines())}
        return {str(id): str(words) for id, words in found.items()}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        wanted = "JSON {id: caption}, or CSV with the columns id and caption"
        raise InputError(f"cannot read captions from {path} ({error!r}); it should be {wanted}") from error


@torch.no_grad()
def blip2_captions(samples: Sequence[Sample], device: str = "cpu", source: str = BLIP2) -> list[str]:
    """What BLIP-2 says of each picture, greedily. Raises `InputError` when its files are not there."""
    processor, model = _blip2(source, device)
    inputs = processor(images=[Image.fromarray(sample.image) for sample in samples], return_tensors="pt")
    words = model.generate(**inputs.to(device, model.dtype), max_new_tokens=30, do_sample=False)
    return [text.strip() for text in processor.batch_decode(words, skip_special_tokens=True)]


@cache
def _blip2(source: str, device: str) -> tuple:
    from transformers import Blip2ForConditionalGeneration, Blip2Processor

    folder = checkpoint_root() / source.rpartition("/")[2]
    place = folder if folder.is_dir() else source
    options = {"local_files_only": folder.is_dir() or bool(os.environ.get("SAMTUNE_OFFLINE"))}
    half = torch.float16 if device.startswith("cuda") else torch.float32
    try:
        processor = Blip2Processor.from_pretrained(place, **options)
        model = Blip2ForConditionalGeneration.from_pretrained(place, dtype=half, **options)
    except (OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise InputError(
            f"no BLIP-2 in {place} ({first}): fetch {source} and put it at {folder}, or name a file of captions"
        ) from error
    return processor, model.to(device).eval()
