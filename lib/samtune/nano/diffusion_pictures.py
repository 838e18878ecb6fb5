"""The images that train the nano diffusion pipeline, as one file for machines without the data sets.

Only sets that may be trained on are used: bsds500 train, ccp train, car-parts train and procedural scenes; for
validation bsds500 val and the held-out 5% of ccp and car-parts. Some sets must not be passed on: do not publish the
file.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from samtune.common.atomic import write_atomically
from samtune.common.errors import InputError
from samtune.data.registry import open_dataset
from samtune.data.sample import Sample
from samtune.diffusion.conditions import MOST_OBJECTS, PALETTE, caption, index_map
from samtune.nano.diffusion_models import IMAGE_SIZE

STORED_SIZE = 160  # training pictures; random views of IMAGE_SIZE pixels are cut from them
SETS = ("bsds500", "ccp", "car-parts")
CROPS = {"bsds500": 5}  # squares beside the whole picture: few pictures, but the most general ones, and large
SCENES = 500
JPEG = [cv2.IMWRITE_JPEG_QUALITY, 85, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]


@dataclass(frozen=True)
class Pictures:
    """N images with their objects.

    Fields:
        images: uint8 `(N, 3, S, S)`.
        objects: uint8 `(N, S, S)`: 1 + the index of the object at a pixel, or 0.
        captions: N texts.
        sets: the data set of each image.
    """

    images: Tensor
    objects: Tensor
    captions: list[str]
    sets: list[str]

    def __len__(self) -> int:
        return len(self.captions)

    def to(self, device: str) -> "Pictures":
        """The same on another device."""
        return Pictures(self.images.to(device), self.objects.to(device), self.captions, self.sets)


def write_pictures(path: Path, limit: int | None = None, scenes: int = SCENES) -> None:
    """Write the file (npz, under 40 MB).

    Training images are JPEG at 160 pixels, each stretched to the square. Validation images are PNG at 128, so that
    scores do not depend on JPEG.

    Args:
        path: of the file.
        limit: images of each set and split; None: all.
        scenes: number of procedural scenes.

    Raises `InputError` when a set is not there.
    """
    rows = list(tqdm(_rows(limit, scenes), desc="pictures", unit="picture", mininterval=5))
    sets, splits, captions, images, objects = zip(*rows, strict=True)
    buffer = io.BytesIO()
    columns = {"set": np.array(sets), "split": np.array(splits), "caption": np.array(captions)}
    np.savez(buffer, **columns, **_joined("image", images), **_joined("objects", objects))
    write_atomically(path, buffer.getvalue())


def _joined(name: str, files: Sequence[bytes]) -> dict[str, np.ndarray]:
    """The bytes of many files one after another, and where each ends."""
    return {name: np.frombuffer(b"".join(files), np.uint8), f"{name}_ends": np.cumsum([len(file) for file in files])}


def _rows(limit: int | None, scenes: int) -> Iterator[tuple[str, str, str, bytes, bytes]]:
    for name in SETS:
        dataset = open_dataset(name)
        for split in ("train", "val"):
            for id in dataset.ids(split)[:limit]:
                sample = dataset.load(id)
                yield _row(sample, split)
                crops = CROPS.get(name, 0) if split == "train" else 0
                rng = np.random.default_rng([*id.encode()])
                for _ in range(crops):
                    yield _row(_square_crop(sample, rng), split)
    drawn = open_dataset("synthetic-natural", counts={"train": scenes}, size=STORED_SIZE, seed=1)
    for id in drawn.ids("train"):
        yield _row(drawn.load(id), "train")


def _row(sample: Sample, split: str) -> tuple[str, str, str, bytes, bytes]:
    size, suffix, options = (STORED_SIZE, ".jpg", JPEG) if split == "train" else (IMAGE_SIZE, ".png", [])
    image = cv2.resize(sample.image, (size, size), interpolation=cv2.INTER_AREA)
    picture = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()
    objects = cv2.imencode(".png", index_map(sample.masks[:MOST_OBJECTS], size))[1].tobytes()
    return sample.dataset, split, caption(sample), picture, objects


def _square_crop(sample: Sample, rng: np.random.Generator) -> Sample:
    """A random square of 0.6 to 1 times the shorter side, with the visible parts of the objects."""
    height, width = sample.image.shape[:2]
    side = int(min(height, width) * rng.uniform(0.6, 1))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    window = (slice(top, top + side), slice(left, left + side))
    masks = sample.masks[:, *window]
    return Sample(sample.id, sample.dataset, sample.split, sample.image[window], masks[masks.any((1, 2))])


def read_pictures(path: Path) -> dict[str, Pictures]:
    """{"train": images of 160 pixels, "val": of 128 pixels}. Raises `InputError` when the file cannot be read."""
    try:
        with np.load(path) as stored:
            columns = {name: stored[name] for name in ("set", "split", "caption")}
            files = {name: np.split(stored[name], stored[f"{name}_ends"][:-1]) for name in ("image", "objects")}
    except (OSError, ValueError, KeyError) as error:  # what is no zip file counts as a pickle: a ValueError
        raise InputError(f"cannot read pictures from {path}: {error}; remove it, and it is made again") from error
    pictures = {}
    for split in np.unique(columns["split"]).tolist():
        rows = np.flatnonzero(columns["split"] == split).tolist()
        images = [cv2.imdecode(files["image"][row], cv2.IMREAD_COLOR_RGB) for row in rows]
        objects = [cv2.imdecode(files["objects"][row], cv2.IMREAD_GRAYSCALE) for row in rows]
        stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        named = [columns[name][rows].tolist() for name in ("caption", "set")]
        pictures[split] = Pictures(stacked, torch.from_numpy(np.stack(objects)), *named)
    return pictures


def random_views(pictures: Pictures, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random square of 128 to 160 stored pixels of each image in `rows` `(B,)`, mirrored half of the time.

    Returns images float32 `(B, 3, 128, 128)` in [-1, 1], for the autoencoder, and colour-coded masks float32 `(B, 3,
    128, 128)` in [0, 1], for the ControlNet, with colours in random order.
    """
    device, count = pictures.images.device, len(rows)
    stored = pictures.images.shape[-1]
    side = torch.randint(IMAGE_SIZE, stored + 1, (count,), generator=generator)
    first = (torch.rand(2, count, generator=generator) * (stored - side + 1)).floor()
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    # In affine_grid's frame the stored picture spans [-1, 1].
    scale, centre = side / stored, (2 * first + side) / stored - 1
    zero = torch.zeros(count)
    view = torch.stack([torch.stack([scale * mirror, zero, centre[0]], 1), torch.stack([zero, scale, centre[1]], 1)], 1)
    grid = F.affine_grid(view, [count, 1, IMAGE_SIZE, IMAGE_SIZE], align_corners=False).to(device)
    order = torch.stack([torch.randperm(MOST_OBJECTS, generator=generator) for _ in range(count)]) + 1
    order = torch.cat([torch.zeros(count, 1, dtype=torch.int64), order], 1).to(device)

    rows = rows.to(device)
    images = F.grid_sample(pictures.images[rows].float(), grid, align_corners=False, padding_mode="border")
    objects = F.grid_sample(pictures.objects[rows, None].float(), grid, "nearest", align_corners=False)
    return images / 127.5 - 1, coloured(objects[:, 0].long(), order)


def whole_views(pictures: Pictures) -> tuple[Tensor, Tensor]:
    """All images whole, in the same two forms, with colours in the order of the objects."""
    return pictures.images.float() / 127.5 - 1, coloured(pictures.objects.long())


def coloured(objects: Tensor, order: Tensor | None = None) -> Tensor:
    """Index maps int64 `(B, S, S)` -> colour-coded masks float32 `(B, 3, S, S)` in [0, 1].

    Args:
        objects: the maps.
        order: int64 `(B, 256)`: which of the palette's colours each object gets; None: that of its own number.
    """
    palette = torch.from_numpy(PALETTE).to(objects.device)
    if order is not None:
        objects = order.gather(1, objects.flatten(1)).view_as(objects)
    return palette[objects].permute(0, 3, 1, 2).float() / 255
