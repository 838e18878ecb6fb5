"""Under which circumstances records were made: how many, by which seeds, machines, commits, and on what data."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from samtune.study.cells import NO_BACKBONE
from samtune.study.records import Record

# Kinds of records, as the head of the page counts them.
COUNTED = {
    "training": "trainings",
    "evaluation": "measurements",
    "generation": "sets of generated pictures",
    "timing": "timings",
}


def facts(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Short facts for the head of the page."""
    if not records:
        return [("records", "none yet")]
    kinds = Counter(record.kind for record in records)
    measured = [record for record in records if record.kind == "evaluation"]
    hours = sum(record.seconds for record in records) / 3600
    dates = sorted(record.date[:10] for record in records if record.date)
    made_with = commits(records)
    seeds = sorted({record.seed for record in measured})
    return [
        ("records", ", ".join(f"{kinds[kind]} {words}" for kind, words in COUNTED.items() if kinds[kind])),
        ("seeds", ", ".join(map(str, seeds)) or "none"),
        ("backbone", ", ".join(sorted({record.backbone for record in records} - {NO_BACKBONE})) or "none"),
        (
            "precision",
            ", ".join(sorted({record.precision for record in records if record.precision})) or "not recorded",
        ),
        ("time spent", f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.0f} min"),
        ("made", " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "not recorded"),
        (
            "commit",
            ", ".join(f"{name} ({count})" if len(made_with) > 1 else name for name, count in made_with[:4])
            + (f" and {len(made_with) - 4} more" if len(made_with) > 4 else ""),
        ),
    ]


def commits(records: Sequence[Record]) -> list[tuple[str, int]]:
    """Commits that the records were made with, the most frequent first, and of how many records."""
    return Counter(f"{record.commit[:9]}{' + changes' if record.dirty else ''}" for record in records).most_common()


def machines(records: Sequence[Record]) -> list[dict[str, Any]]:
    """What ran where: cells, hours and the largest peak of memory by machine."""
    ran_on: dict[str, list[Record]] = {}
    for record in records:
        ran_on.setdefault(record.hardware or "not recorded", []).append(record)
    return [
        {
            "hardware": name,
            "cells": len(ran),
            "hours": sum(record.seconds for record in ran) / 3600,
            "memory": max(record.peak_memory_mb for record in ran) / 1024,
            "card": max((record.peak_gpu_memory_mb or 0 for record in ran), default=0) / 1024,
        }
        for name, ran in sorted(ran_on.items())
    ]


def sets(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Data sets measured: part (pictures without an object and large objects alone apart), images, and what was
    dropped, by reason."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for record in records:
        if record.kind == "evaluation":
            part, least = record.cell["split"], dict(record.cell["options"]).get("min_side")
            part += ", without an object" if record.cell["target"] == "nothing" else ""
            part += f", objects of {least} px at least" if least else ""
            row = found.setdefault((record.dataset, part), {"images": 0, "dropped": {}})
            row["images"] = max(row["images"], record.images)
            for reason, count in record.extras.get("dropped", {}).items():
                row["dropped"][reason] = max(row["dropped"].get(reason, 0), count)
    return [{"dataset": name, "split": split, **row} for (name, split), row in sorted(found.items())]
