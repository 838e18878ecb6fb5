"""Base class of data sets that know all their ids from the beginning."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from samtune.common.errors import InputError, unknown
from samtune.data.sample import Sample
from samtune.data.splits import SPLITS


class ListedDataset(ABC):
    """A data set whose ids are known before any image is opened. Subclasses write `load`.

    A split that the set does not have is an empty list.

    Attributes:
        name: in the registry.
        dropped: how many images the listing left out, by reason.
    """

    def __init__(self, name: str, splits: Mapping[str, Sequence[str]], dropped: Mapping[str, int] | None = None):
        """`splits`: the ids of "train", "val" and "test". Raises `InputError` where an id is in two splits."""
        self.name = name
        self.dropped: dict[str, int] = {reason: count for reason, count in (dropped or {}).items() if count}
        self._ids = {split: sorted(splits.get(split, ())) for split in SPLITS}
        self._split_of = {id: split for split, ids in self._ids.items() for id in ids}
        if len(self._split_of) != sum(len(ids) for ids in self._ids.values()):
            raise InputError(f"{name}: an id is listed twice, or in two splits")

    def ids(self, split: str) -> list[str]:
        """Sorted ids of "train", "val" or "test"; [] where the set has no such split. Raises `InputError` on other
        names.
        """
        if split not in self._ids:
            raise unknown("split", split, SPLITS)
        return list(self._ids[split])

    def split_of(self, id: str) -> str:
        """The split of `id`. Raises `InputError` where the set does not list it."""
        if id not in self._split_of:
            known = sorted(self._split_of)
            raise InputError(f"{self.name} has no sample {id!r} (it has {len(known)}, e.g. {', '.join(known[:3])})")
        return self._split_of[id]

    @abstractmethod
    def load(self, id: str) -> Sample:
        """Read one sample."""
