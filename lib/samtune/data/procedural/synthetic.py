"""Procedural data sets, made on the fly from a seed: nothing to download, nothing on disk.

- `synthetic-industrial`: surfaces with defects.
- `synthetic-medical`: polyps and lesions.
- `synthetic-gpr`: radar sections with hyperbolas and bands.
- `synthetic-natural`: scenes with many overlapping objects.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from samtune.common.errors import InputError, unknown
from samtune.data.procedural.gpr import b_scan
from samtune.data.procedural.industrial import inspect
from samtune.data.procedural.medical import endoscopy
from samtune.data.procedural.natural import draw_scene, natural_scene
from samtune.data.registry_entry import Description, Domain
from samtune.data.sample import Sample

__all__ = ["COUNTS", "DATASETS", "KINDS", "SyntheticDataset", "natural_scene"]

COUNTS = {"train": 400, "val": 60, "test": 100}
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six")

Drawn = tuple[np.ndarray, np.ndarray, tuple[str, ...], str]  # image, masks, class per mask, caption


def _industrial(rng: np.random.Generator, size: int, defect_free: float) -> Drawn:
    good = rng.random() < defect_free
    part = inspect(rng, size, defects=() if good else None)
    material = part.surface.replace("_", " ")
    return part.image, part.masks, part.kinds, f"{material} with {_counted(part.kinds) or 'no defect'}"


def _medical(rng: np.random.Generator, size: int, defect_free: float) -> Drawn:
    image, masks, kinds = endoscopy(rng, size)
    return image, masks, kinds, f"endoscopy of the bowel with {_counted(kinds)}"


def _gpr(rng: np.random.Generator, size: int, defect_free: float) -> Drawn:
    image, masks, kinds = b_scan(rng, size)
    return image, masks, kinds, f"ground penetrating radar section with {_counted(kinds)}"


def _natural(rng: np.random.Generator, size: int, defect_free: float) -> Drawn:
    scene = draw_scene(rng, size)
    return scene.image, scene.masks, scene.kinds, f"a scene of {scene.kinds.count('object')} objects"


KINDS: dict[str, Callable[[np.random.Generator, int, float], Drawn]] = {
    "synthetic-industrial": _industrial,
    "synthetic-medical": _medical,
    "synthetic-gpr": _gpr,
    "synthetic-natural": _natural,
}


def _counted(kinds: tuple[str, ...]) -> str:
    """("crack", "stain", "stain") -> "one crack and two stains"."""
    names = []
    for kind, count in Counter(kinds).items():
        number = _NUMBERS[count] if count < len(_NUMBERS) else str(count)
        plural = kind if count == 1 else f"{kind}es" if kind.endswith("ch") else f"{kind}s"
        names.append(f"{number} {plural}")
    return " and ".join(names)


class SyntheticDataset:
    """A procedural data set (the `Dataset` protocol of `sample.py`).

    Each sample depends only on kind, seed, split, index and size, not on the order of loading or the number of samples.
    Ids are `<kind>-seed<seed>-<split>-<index>`. Every sample has at least one mask; with `defect_free` > 0
    (synthetic-industrial alone), that share of the images has no defect and no mask. `object_class` is the kind of
    defect; "polyp" or "lesion"; "hyperbola" or "band"; "object", "part" or "region".

    Raises `InputError` for an unknown kind, split or id, and for impossible counts or sizes.
    """

    def __init__(
        self,
        kind: str,
        counts: Mapping[str, int] | None = None,
        size: int = 256,
        seed: int = 0,
        defect_free: float = 0.0,
    ):
        if kind not in KINDS:
            raise unknown("synthetic data set", kind, KINDS)
        chosen = dict(COUNTS if counts is None else counts)
        for split, count in chosen.items():
            if split not in COUNTS:
                raise unknown("split", split, COUNTS)
            if count < 0:
                raise InputError(f"{kind}: {count} images for split {split!r}; give 0 or more")
        if size < 64:
            raise InputError(f"{kind}: size {size} is too small to draw on; give 64 or more")
        if not 0 <= defect_free <= 1 or (defect_free and kind != "synthetic-industrial"):
            raise InputError(f"{kind}: defect_free={defect_free}; a share from 0 to 1, for synthetic-industrial only")
        self.name = kind
        self.counts = chosen
        self.size = size
        self.seed = seed
        self.defect_free = defect_free
        self.dropped: dict[str, int] = {}

    def ids(self, split: str) -> list[str]:
        """Sorted sample ids of "train", "val" or "test"."""
        if split not in COUNTS:
            raise unknown("split", split, COUNTS)
        return [f"{self.name}-seed{self.seed}-{split}-{index:06d}" for index in range(self.counts.get(split, 0))]

    def load(self, id: str) -> Sample:
        """Draw one sample. The index may also be beyond the counts."""
        found = re.fullmatch(rf"{self.name}-seed{self.seed}-(train|val|test)-(\d{{6,}})", id)
        if not found:
            raise InputError(f"{self.name}: no sample {id!r}; ids look like {self.name}-seed{self.seed}-train-000000")
        split, index = found[1], int(found[2])
        digest = hashlib.sha256(f"{self.name}/{self.seed}/{split}/{index}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest, "big"))
        image, masks, kinds, caption = KINDS[self.name](rng, self.size, self.defect_free)
        return Sample(id, self.name, split, image, masks, object_class=kinds, caption=caption)


def _opener(kind: str) -> Callable[..., SyntheticDataset]:
    def open_it(folder: Path, **options: Any) -> SyntheticDataset:
        """The registry's factory: nothing is read from `folder`."""
        return SyntheticDataset(kind, **options)

    return open_it


_TITLES: dict[str, tuple[str, Domain]] = {
    "synthetic-industrial": ("Made-up metal, fabric, wood and tiles: scratches, cracks, dents, stains", "industrial"),
    "synthetic-medical": ("Made-up endoscopy: polyps and flat lesions on mucosa", "medical"),
    "synthetic-gpr": (
        "Made-up ground penetrating radar sections: hyperbolas of buried targets, bands of disturbed ground",
        "industrial",
    ),
    "synthetic-natural": ("Made-up scenes of many overlapping textured objects, their parts and regions", "natural"),
}

DATASETS: dict[str, Description] = {
    kind: Description(
        name=kind,
        factory=_opener(kind),
        title=title,
        domain=domain,
        licence="that of this kit",
        citation="none: drawn by samtune.data.procedural.synthetic",
        how_to_get="nothing to get: drawn when asked for",
        splits=", ".join(f"{count} {split}" for split, count in COUNTS.items()) + "; any others by the option `counts`",
        committed_pictures=True,
        pretraining="scenes of this kind, other seeds" if kind == "synthetic-natural" else "none: held out",
    )
    for kind, (title, domain) in _TITLES.items()
}
