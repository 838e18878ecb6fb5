"""Contrasts: the same images and seeds under several measurements, compared; what claims and answers rest on.

The effect is taken image by image and seed by seed; its interval is the 95% paired bootstrap over images and seeds,
images of one group (tile, patient, slide) together.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from samtune.data.polyps import training_set
from samtune.report.statistics import Interval, independent_units, paired_bootstrap
from samtune.report.tables import image_values, seeds_by_images
from samtune.study.cells import NO_BACKBONE
from samtune.study.own_row import OWN
from samtune.study.records import Record
from samtune.study.varied import option_and_value, unusual, varied


@dataclass(frozen=True)
class Side:
    """One measurement: records of `method` that `table` shows, with `prompt`, at `output`.

    `options`: what the row varies, as `study.varied` says it; none: the method as it is. `fallback` is a second table
    to look in.
    """

    table: str
    method: str
    prompt: str
    options: Mapping[str, object] = field(default_factory=dict)
    output: str = "final"
    fallback: str = ""


Terms = tuple[tuple[float, Side], ...]  # weighted measurements, whose sum is the effect
Place = tuple[tuple[str, ...], str]  # trained on, tested on


def above(better: Side, worse: Side) -> Terms:
    """The contrast that is above 0 where `better` is."""
    return (1.0, better), (-1.0, worse)


@dataclass(frozen=True)
class Contrast:
    """A contrast at one `place`: `values (terms, seeds, images)` unweighted, `effects (seeds, images)`, the images'
    `groups`, and the `keys` and `tables` of the records that they are from."""

    place: Place
    values: np.ndarray
    effects: np.ndarray
    groups: list[str]
    keys: tuple[str, ...]
    tables: frozenset[str]

    @property
    def units(self) -> int:
        """Independent images, or groups of images."""
        return int(independent_units(self.groups).max()) + 1


def interval(contrasts: Sequence[Contrast]) -> Interval:
    """Effect and interval of one place, or the unweighted mean over several."""
    # Nothing trained: the seeds drew each set's prompts alone.
    places = [(tuple(map(training_set, one.place[0])) or one.place, one.place[1]) for one in contrasts]
    return paired_bootstrap([one.effects for one in contrasts], [one.groups for one in contrasts], places)


def interval_text(effect: float, low: float, high: float, digits: int = 3) -> str:
    """ "+0.012 [-0.003, +0.027]"; with more digits where a bound would round to 0, so that its sign can be seen."""
    digits = next((more for more in range(digits, 6) if all(not one or round(one, more) for one in (low, high))), 6)
    return f"{effect:+z.{digits}f} [{low:+z.{digits}f}, {high:+z.{digits}f}]"


def in_points(effect: float, low: float, high: float) -> str:
    """The same in points: "+1.2 [-0.3, +2.7]"."""
    return interval_text(100 * effect, 100 * low, 100 * high, 1)


def contrasts(
    terms: Terms, records: Iterable[Record], metric: str, backbone: str, transfer: bool = False
) -> dict[Place, Contrast]:
    """The contrast of `terms` wherever all of them were measured, over the seeds and images that all have.

    `transfer` compares only where the set was NOT trained on, else only where it was. An untrained side stands beside
    any training; with a single seed (which draws prompts only) beside every seed of the others.
    """
    records = [record for record in records if measures(record)]
    sides = [_measurements(side, records, metric, backbone) for _, side in terms]
    weights = [weight for weight, _ in terms]
    found = {
        place: _contrast(place, weights, [_at(side, place) for side in sides]) for place in _places(sides, transfer)
    }
    return {place: contrast for place, contrast in found.items() if contrast is not None}


def measures(record: Record) -> bool:
    """Can a claim rest on it? A measurement of test pictures, or of generated ones; and what these are when made."""
    if record.objects is None or record.kind not in ("evaluation", "generation"):
        return False
    return record.kind == "generation" or record.cell["split"] == "test" or bool(record.cell.get("generated"))


@dataclass(frozen=True)
class _Measured:
    """A side's records at one place: by seed the images' values and the record's key; the table they are from."""

    table: str
    values: dict[int, pd.Series] = field(default_factory=dict)
    keys: dict[int, str] = field(default_factory=dict)


def _measurements(side: Side, records: Sequence[Record], metric: str, backbone: str) -> dict[Place, _Measured]:
    found: dict[Place, _Measured] = {}
    for table in filter(None, (side.table, side.fallback)):
        asked = option_and_value(unusual(side.options, side.method, table))
        here: dict[Place, _Measured] = {}
        for record in records:
            if (
                record.method == side.method
                and record.backbone in (backbone, NO_BACKBONE)
                and record.cell["prompt"] == side.prompt
                and any(
                    option_and_value(varied(record, table, name)) == asked
                    for name in record.variants(table)
                    if not name.startswith(OWN)
                )
            ):
                values = image_values(record, metric, side.output)
                if len(values):
                    place = (record.train_datasets, record.dataset)
                    measured = here.setdefault(place, _Measured(table))
                    measured.values[record.seed], measured.keys[record.seed] = values, record.key
        found = here | found  # the claim's own table comes first
    return found


def _places(sides: Sequence[Mapping[Place, _Measured]], transfer: bool) -> list[Place]:
    """Where to compare: the trained sides decide; a side that was never trained stands beside any training."""
    trained = {place for side in sides for place in side if place[0]}
    if not trained:
        return sorted({place for side in sides for place in side})
    if transfer:
        return sorted(place for place in trained if place[1] not in place[0])
    single = {place for place in trained if place[0] == (place[1],)}  # one model a set; else one for the union
    sets = {test for _, test in single}
    return sorted(single | {place for place in trained if place[1] in place[0] and place[1] not in sets})


def _at(side: Mapping[Place, _Measured], place: Place) -> tuple[_Measured, bool] | None:
    """A side's values at `place`, and whether it was trained there; None where it was not run."""
    untrained = ((), place[1])
    key = place if place in side else untrained
    return (side[key], key != untrained) if key in side else None


def _contrast(
    place: Place, weights: Sequence[float], sides: Sequence[tuple[_Measured, bool] | None]
) -> Contrast | None:
    """The contrast over the seeds and images that all sides have; None: no such."""
    if any(side is None for side in sides):
        return None
    anywhere = [not trained and len(side.values) == 1 for side, trained in sides]
    fixed = [set(side.values) for (side, _), free in zip(sides, anywhere, strict=True) if not free]
    seeds = sorted(set.intersection(*fixed)) if fixed else list(sides[0][0].values)
    rows, keys = [], []
    for (side, _), free in zip(sides, anywhere, strict=True):
        chosen = list(side.values) * len(seeds) if free else seeds
        rows += [side.values[seed] for seed in chosen]
        keys += [side.keys[seed] for seed in chosen]
    if not rows:
        return None
    values, groups = seeds_by_images(rows)
    if not groups:
        return None
    values = values.reshape(len(sides), len(seeds), len(groups))
    tables = frozenset(side.table for side, _ in sides)
    return Contrast(place, values, np.tensordot(weights, values, 1), groups, tuple(dict.fromkeys(keys)), tables)
