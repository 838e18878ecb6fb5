"""Splits that do not depend on a run's seed: drawn with seed 0, stratified by class, groups kept whole."""

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

FRACTIONS = (0.6, 0.2, 0.2)
SPLITS = ("train", "val", "test")
VALIDATION_EVERY = 20


def make_split(
    ids: Iterable[str],
    classes: Mapping[str, str] | None = None,
    groups: Mapping[str, str] | None = None,
    seed: int = 0,
    fractions: tuple[float, ...] = FRACTIONS,
    names: tuple[str, ...] = SPLITS,
) -> dict[str, str]:
    """The split of every id; sizes are as near to `fractions` as whole groups allow. The order of `ids` does not
    matter.

    Groups are placed one after another, largest first, in random order among equals. Each goes where it brings the
    sizes for each class nearest to those wanted: smallest sum of (have - wanted)^2 / wanted.

    Args:
        ids: of all samples.
        classes: id -> class; each split gets the same share of every class.
        groups: id -> group, never divided; an id without a group is alone.
        seed: of the random order.
        fractions: of the splits.
        names: of the splits.
    """
    ids = sorted(set(ids))
    classes, groups = classes or {}, groups or {}
    members: dict[str, list[str]] = defaultdict(list)
    for id in ids:
        # An own group gets a name that no given one can have.
        members[f"group {groups[id]}" if groups.get(id) else f"single {id}"].append(id)
    totals = Counter(classes.get(id, "") for id in ids)
    share = dict(zip(names, fractions, strict=True))
    wanted = {(name, kind): share[name] * totals[kind] for name in names for kind in totals}
    order = sorted(members)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda group: -len(members[group]))
    chosen: dict[str, str] = {}
    have: Counter[tuple[str, str]] = Counter()
    for group in order:
        holds = Counter(classes.get(id, "") for id in members[group])
        best = min(names, key=lambda name: _added_misfit(name, holds, have, wanted))  # the first name among equals
        for id in members[group]:
            chosen[id] = best
            have[best, classes.get(id, "")] += 1
    return {id: chosen[id] for id in ids}


def _added_misfit(
    name: str, holds: Counter[str], have: Counter[tuple[str, str]], wanted: Mapping[tuple[str, str], float]
) -> float:
    """How much the sum of (have - wanted)^2 / wanted grows when a group with these counts goes to `name`."""
    return sum(
        count * (2 * (have[name, kind] - wanted[name, kind]) + count) / wanted[name, kind]
        for kind, count in holds.items()
    )


def hashed_validation(ids: Iterable[str]) -> dict[str, str]:
    """A split by name: "val" where the id's sha256, as a number, is a multiple of 20 (about 5%), else "train".

    It depends on the name alone, so that a sample stays in its split when others are added or missing.
    """
    return {
        id: "train" if int(hashlib.sha256(id.encode()).hexdigest(), 16) % VALIDATION_EVERY else "val"
        for id in sorted(set(ids))
    }


def by_split(split_of: Mapping[str, str]) -> dict[str, list[str]]:
    """id -> split, reversed: split -> sorted ids."""
    parts: dict[str, list[str]] = defaultdict(list)
    for id in sorted(split_of):
        parts[split_of[id]].append(id)
    return dict(parts)
