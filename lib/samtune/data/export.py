"""A data set written out as folders of pictures and masks, as `samtune tune` and other programs read them."""

import io
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from samtune.common.atomic import write_atomically
from samtune.common.errors import InputError
from samtune.common.paths import check_is_no_file
from samtune.data.registry import open_dataset
from samtune.data.splits import SPLITS


def export(name: str, folder: Path, splits: tuple[str, ...] = SPLITS) -> int:
    """Write `folder/images/<id>.png`, and of each object `folder/masks/<id>/<number>.png`, 0 and 255. Ids are quoted as
    in an address.

    Pictures without an object are left out; pixels that are not scored become background. Broken off, it begins anew
    and writes the same. Returns how many pictures there are. Raises `InputError` where `folder` has other pictures, or
    where there is nothing to write.
    """
    check_is_no_file(folder)
    dataset = open_dataset(name)
    ids = {quote(id, safe=""): id for split in splits for id in dataset.ids(split)}
    there = {path.stem for path in (folder / "images").glob("*")}
    if strange := sorted(there - ids.keys()):
        raise InputError(f"{folder / 'images'} has pictures that are not of {name} ({strange[0]}): give another folder")
    count = 0
    for stem, id in tqdm(ids.items(), f"export {name}", mininterval=2, leave=False):
        sample = dataset.load(id)
        masks = [mask for mask in sample.masks if mask.any()]
        for number, mask in enumerate(masks):
            _write(mask.astype(np.uint8) * 255, folder / "masks" / stem / f"{number:04d}.png")
        if masks:  # last: a picture that is there has all its masks
            _write(sample.image, folder / "images" / f"{stem}.png")
            count += 1
    if not count:
        raise InputError(f"{name} has no picture with an object in {', '.join(splits)}: nothing was written")
    return count


def _write(pixels: np.ndarray, path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    write_atomically(path, file.getvalue())
