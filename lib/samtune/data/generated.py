"""Sets of generated pictures: made by a generation cell from pictures of real sets, with those pictures' masks.

A set lies in `results/<profile>/generated/<key>` and opens as `generated:<key>`: of each picture `<name>.png`, a
square, and `<name>.json` with what is known of it, written last; `finished.json` when all are there.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np
from tqdm.auto import tqdm

from samtune.common.paths import results_root
from samtune.data.listed import ListedDataset
from samtune.data.pixels import read_image
from samtune.data.registry_entry import Description
from samtune.data.sample import Dataset, Sample
from samtune.data.splits import by_split

PREFIX = "generated:"
FINISHED = "finished.json"
BEFORE = ".before.png"  # beside an attack's picture: what it started from


def chosen_pictures(
    names: str, split: str, count: int, open_set: Callable[[str], Dataset]
) -> list[tuple[Dataset, str]]:
    """`count` pictures (data set, id) of sets joined by "+", from each as many, drawn once and for all.

    The choice of fewer pictures is a part of the choice of more.
    """
    datasets = [open_set(name) for name in names.split("+")]
    orders = [np.random.default_rng(0).permutation(dataset.ids(split)).tolist() for dataset in datasets]
    longest = max(map(len, orders))
    chosen = [
        (dataset, order[place])
        for place in range(longest)
        for dataset, order in zip(datasets, orders, strict=True)
        if place < len(order)
    ]
    return chosen[:count]


class ChosenPictures(ListedDataset):
    """Some pictures of one part of a set."""

    def __init__(self, dataset: Dataset, split: str, ids: Sequence[str]) -> None:
        super().__init__(dataset.name, {split: ids}, dataset.dropped)
        self._dataset = dataset

    def load(self, id: str) -> Sample:
        return self._dataset.load(id)


def chosen_sets(names: str, split: str, count: int, open_set: Callable[[str], Dataset]) -> list[Dataset]:
    """`chosen_pictures` as sets that hold nothing else, in the order in which a `GeneratedDataset` lists them.

    Those without an object are left out, as from the generated set: so trainings on both see the same ones in turn.
    """
    chosen: dict[str, tuple[Dataset, list[str]]] = {}
    pictures = chosen_pictures(names, split, count, open_set)
    for dataset, id in tqdm(pictures, "look for pictures without an object", mininterval=2, leave=False):
        if not dataset.load(id).masks.any():
            continue
        chosen.setdefault(f"{dataset.name}/", (dataset, []))[1].append(id)
    return [ChosenPictures(dataset, split, ids) for _, (dataset, ids) in sorted(chosen.items())]


def sample_key(dataset: str, id: str) -> str:
    """What augmentation and prompts of a sample are drawn from: "<set>/<id>". A generated picture has its original's,
    whose set its id names.
    """
    return id if dataset.startswith(PREFIX) else f"{dataset}/{id}"


def picture_name(dataset: str, id: str) -> str:
    """The name of a picture's files, without suffix: readable, and fit for any disk."""
    name = quote(f"{dataset}-{id}", safe="")
    return name if len(name) < 100 else f"{name[:80]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def read_facts(folder: Path) -> list[dict]:
    """What is known of every picture in the folder of a set, in the order of their names."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json")) if path.name != FINISHED]


class GeneratedDataset(ListedDataset):
    """The pictures at the size of the originals, with the originals' masks, classes and groups, and the caption used.

    Ids are `<data set>/<id>`; splits are the originals'.
    """

    def __init__(self, name: str, open_set: Callable[[str], Dataset], folder: Path) -> None:
        self._folder = folder
        facts = read_facts(folder)
        self._facts = {f"{one['dataset']}/{one['id']}": one for one in facts}
        self._sources = {source: open_set(source) for source in {one["dataset"] for one in facts}}
        super().__init__(name, by_split({id: one["split"] for id, one in self._facts.items()}))

    def load(self, id: str) -> Sample:
        return self._sample(id, ".png")

    def before(self, id: str) -> Sample:
        """What the attack that made a picture started from. Raises `InputError` where no attack made it."""
        return self._sample(id, BEFORE)

    def _sample(self, id: str, suffix: str) -> Sample:
        split, facts = self.split_of(id), self._facts[id]
        original = self._sources[facts["dataset"]].load(facts["id"])
        made = read_image(self._folder / f"{picture_name(facts['dataset'], facts['id'])}{suffix}")
        height, width = original.image.shape[:2]
        shrinks = height * width < made.shape[0] * made.shape[1]
        image = cv2.resize(made, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        return replace(original, id=id, dataset=self.name, split=split, image=image, caption=facts["caption"])


def describe_generated(
    name: str, describe: Callable[[str], Description], open_set: Callable[[str], Dataset]
) -> Description:
    """The description of a generated set: its originals' licences, wherever among the results it lies, or nowhere."""
    key = name.removeprefix(PREFIX)
    places = sorted(results_root("").glob(f"*/generated/{key}/{FINISHED}"))
    folder = places[0].parent if places else results_root("generated") / key
    made = json.loads(places[0].read_text()) if places else {"dataset": "other sets", "method": "generation"}
    names = made["dataset"].split("+") if places else []
    sources = [describe(one) for one in names]
    return Description(
        name,
        partial(GeneratedDataset, name, open_set),
        f"pictures made by {made['method']} from {', '.join(names) or 'other sets'}",
        sources[0].domain if sources else "natural",
        "; ".join(f"{one.name}: {one.licence}" for one in sources),
        "; ".join(one.citation for one in sources),
        "it is made by a generation cell: run the notebook that asks for it (30_asam), in any profile that has it",
        "the originals'",
        folder=str(folder),
        layout=(FINISHED,),
        committed_pictures=bool(sources) and all(one.committed_pictures for one in sources),
        pretraining="as its originals",
    )
