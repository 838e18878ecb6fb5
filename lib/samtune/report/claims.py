"""The claims table: what our records say of each claim of `samtune.report.claim_list`.

Verdict: the interval above 0, or above what the claim's margin allows: reproduced; below: not reproduced; else
inconclusive; no record: not run.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from samtune.common.paths import results_root
from samtune.report.claim_list import CLAIMS, KINDS, Claim
from samtune.report.contrasts import Contrast, Place, above, contrasts, interval, interval_text, measures
from samtune.report.labels import label, prompt_label
from samtune.report.paper_numbers import PaperNumbers, load_paper_numbers
from samtune.report.readable_tables import MEAN, NOT_RUN
from samtune.report.sides import side_label
from samtune.report.statistics import FEWEST_UNITS
from samtune.report.tables import differences, read_table
from samtune.study import asam
from samtune.study.records import Record, read_records

COLUMNS = [
    "id", "dataset", "effect", "low", "high", "verdict", "command", "kind", "margin", "metric", "prompt", "sets",
    "images", "units", "seeds", "note", "records",
]  # fmt: skip
REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, NO_REFERENCE = "reproduced", "not reproduced", "inconclusive", "no reference"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, NOT_RUN, NO_REFERENCE)
NOTEBOOKS = {
    "baselines": "00_start_here", "spt_main": "10_spt", "spt_ablation": "11_spt_ablations", "sam_sp_main": "20_sam_sp",
    "sam_sp_ablation": "21_sam_sp_ablations", "asam_main": "30_asam", "asam_inversion": "30_asam",
    "asam_ablation": "31_asam_ablations",
}  # fmt: skip
IN_PAPER = "in the paper, on its own sets"  # head of a column: a mean over sets of which the kit may have none
ABSENT = "not in this version"  # in place of the command, where no notebook measures the claim yet


def build_claims(
    records: Iterable[Record], profile: str, backbone: str, claims: Sequence[Claim] = CLAIMS
) -> pd.DataFrame:
    """The claims table: one row a claim and data set, and one for the mean of sets where several were measured.

    `backbone`: the profile's, which claims that name none are tested on. A claim without records: one row, "not run".
    `effect, low, high` are without the `margin` that the claim allows. `units` are independent images or groups of
    images, `records` the keys of the records that the row rests on.
    """
    measured = [record for record in records if measures(record)]
    rows = [row for claim in claims for row in _claim_rows(claim, measured, profile, backbone)]
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.astype({"effect": float, "low": float, "high": float, "margin": float})


def claims_markdown(table: pd.DataFrame, ids: Sequence[str]) -> str:
    """The rows of the claims table whose id begins with one of `ids`, as markdown: by kind, the claims in words, then
    what was measured with effect, allowed margin, the paper's effect (the mean over its own sets) in a claim's last
    row, and verdict; notes below."""
    papers = load_paper_numbers()
    claims = {claim.id: claim for claim in CLAIMS}
    chosen = [row for row in table.to_dict("records") if row["id"].startswith(tuple(ids))]
    reported = {row["id"]: paper_effect(claims[row["id"]], papers) for row in chosen}
    lines: list[str] = []
    for kind, (words, _) in KINDS.items():
        rows = [row for row in chosen if claims[row["id"]].kind == kind]
        columns = ["claim", "data", "pictures, seeds", "effect [95% interval]"]
        columns += ["allowed"] if any(row["margin"] for row in rows) else []
        columns += [IN_PAPER] if any(reported[row["id"]] is not None for row in rows) else []
        columns += ["verdict"]
        said = [f"- {id}: {claims[id].statement}" for id in dict.fromkeys(row["id"] for row in rows)]
        head = ["", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        lines += ["", f"**{words}**", "", *said, *head] if rows else []
        last = {row["id"]: row for row in rows}  # of each claim the mean of sets, or the only set
        for row in rows:
            cells = [row["id"], row["dataset"], counts_text(row), effect_text(row)]
            if "allowed" in columns:
                cells.append(f"-{row['margin']:.3f}" if row["margin"] else "")
            if IN_PAPER in columns:
                effect = reported[row["id"]] if row is last[row["id"]] else None
                cells.append("" if effect is None else f"{effect:+z.3f}")
            lines.append(f"| {' | '.join([*cells, row['verdict']])} |")
        lines += [f"\n{row['id']}, {row['dataset']}: {row['note']}" for row in last.values() if row["note"]]
    return "\n".join(lines[1:])


def effect_text(row: Mapping) -> str:
    """Effect and interval of a row of the claims table; "" where it was not run."""
    return "" if pd.isna(row["effect"]) else interval_text(row["effect"], row["low"], row["high"])


def counts_text(row: Mapping) -> str:
    """ "100, 3": pictures (and independent groups of them, where they are fewer) and seeds; "" where it was not run."""
    if not row["images"]:
        return ""
    groups = f" ({row['units']:.0f} independent)" if row["units"] < row["images"] else ""
    return f"{row['images']:.0f}{groups}, {row['seeds']:.0f}"


def paper_effect(claim: Claim, papers: Mapping[str, PaperNumbers]) -> float | None:
    """The same contrast of the paper's own numbers, averaged over the sets that all terms have
    (of ViT-B, or of the backbone that the paper does not name); None: not at hand.
    """
    values = papers[claim.paper].values if claim.paper in papers else pd.DataFrame()
    if values.empty or claim.margin or claim.backbone:
        return None
    total = None
    for weight, side in claim.terms:
        wanted = {"table": side.table, "method": side.method, "prompt": side.prompt, "output": side.output}
        wanted["metric"] = claim.metric
        chosen = values[np.logical_and.reduce([values[column] == value for column, value in wanted.items()])]
        chosen = chosen[chosen["backbone"].isin(["vit_b", "not named"])]
        if side.options or chosen.empty:
            return None
        term = weight * chosen.set_index("dataset")["mean"]
        total = term if total is None else (total + term).dropna()
    return float(total.mean()) if len(total) else None


def check_claims(results: str | Path, profile: str, backbone: str) -> list[str]:
    """Does the claims table of a profile equal a rebuild from its records? What differs, one line each."""
    folder = results if isinstance(results, Path) else results_root(results)
    path = folder / "tables" / "claims.csv"
    if not path.is_file():
        return ["claims: missing"]
    rebuilt = build_claims(read_records(folder / "records"), profile, backbone)
    return [f"claims: {line}" for line in differences(read_table(path), rebuilt)]


def judged(at: Mapping[Place, Contrast], margin: float = 0.0) -> dict:
    """Effect, interval, verdict and counts of a contrast at one place, or of the mean over several."""
    found = list(at.values())
    effect, low, high = interval(found)
    verdict = REPRODUCED if low + margin > 0 else NOT_REPRODUCED if high + margin < 0 else INCONCLUSIVE
    tested = {dataset: one for (_, dataset), one in at.items()}.values()  # each set once
    units = sum(one.units for one in tested)
    return {
        "effect": effect, "low": low, "high": high, "verdict": verdict if units >= FEWEST_UNITS else INCONCLUSIVE,
        "sets": len(tested), "images": sum(len(one.groups) for one in tested), "units": units,
        "seeds": min(len(one.effects) for one in found),
        "records": " ".join(dict.fromkeys(key for one in found for key in one.keys)),
    }  # fmt: skip


def _claim_rows(claim: Claim, records: Sequence[Record], profile: str, backbone: str) -> list[dict]:
    elsewhere = claim.backbone not in ("", asam.SECOND_VICTIM)  # a backbone of other profiles
    if claim.backbone:
        backbone = claim.backbone if elsewhere else asam.SECOND_VICTIMS.get(backbone, "")
    found = contrasts(claim.terms, records, claim.metric, backbone, claim.transfer)
    used = frozenset[str]().union(*(contrast.tables for contrast in found.values()))
    prompts = dict.fromkeys(prompt_label(side.prompt) for _, side in claim.terms)
    shared = {
        "id": claim.id, "command": _command(claim, used, "paper" if elsewhere else profile), "kind": claim.kind,
        "margin": claim.margin, "metric": claim.metric, "prompt": " / ".join(prompts), "note": "",
    }  # fmt: skip
    if not found:
        nothing = dict.fromkeys(("sets", "images", "units", "seeds"), 0) | {"dataset": "", "records": ""}
        return [shared | nothing | dict.fromkeys(("effect", "low", "high"), np.nan) | {"verdict": NOT_RUN}]
    several = len({trained_on for trained_on, _ in found}) > 1 and claim.transfer
    places = {f"{'+'.join(trained_on)} > {dataset}" if several else dataset: [(trained_on, dataset)]
              for trained_on, dataset in found}  # fmt: skip
    if len(found) > 1:
        places[MEAN] = list(found)
    notes = _beside(claim, records, backbone) if claim.beside else {}
    rows = []
    for words, chosen in places.items():
        row = shared | {"dataset": words} | judged({place: found[place] for place in chosen}, claim.margin)
        said = [_note(claim, [notes[p] for p in chosen])] if claim.beside and all(p in notes for p in chosen) else []
        said += [_rates(claim, row["records"].split(), records)] if claim.rates else []
        row["note"] = " ".join(filter(None, [*said, claim.caution]))
        rows.append(row if claim.reference else row | {"verdict": NO_REFERENCE})
    return rows


def _beside(claim: Claim, records: Sequence[Record], backbone: str) -> dict[Place, tuple[Contrast, Contrast]]:
    """The first two terms, each minus what stands beside them."""
    one, two = (
        contrasts(above(side, claim.beside), records, claim.metric, backbone, claim.transfer)
        for _, side in claim.terms[:2]
    )
    return {place: (one[place], two[place]) for place in one if place in two}


def _note(claim: Claim, pairs: Sequence[tuple[Contrast, Contrast]]) -> str:
    """What the measurement beside says of the first two terms, by rule."""
    names = [side_label(side) for _, side in claim.terms[:2]]
    other = label(claim.beside.method)
    found = [interval(side) for side in zip(*pairs, strict=True)]
    level = np.mean([pair[0].values[1].mean() for pair in pairs])
    said = [f"{name} {level + one.mean:.3f} ({interval_text(*one)})" for name, one in zip(names, found, strict=True)]
    both = all(high < 0 for _, _, high in found)
    one = [name for name, (_, _, high) in zip(names, found, strict=True) if high < 0]
    below = f"below {other}"
    verdict = f"both are {below}" if both else f"{one[0]} is {below}" if one else f"neither is demonstrably {below}"
    return f"Beside {other} ({level:.3f}): {' and '.join(said)}; {verdict}."


def _rates(claim: Claim, keys: Collection[str], records: Sequence[Record]) -> str:
    """The learning rates of the first two terms, where they are trained and differ; by rule."""
    found: dict[str, set[float]] = {}
    for record in records:
        hyper = (record.cell.get("training") or {}).get("hyper", {})
        if record.key in keys and "learning_rate" in hyper:
            found.setdefault(record.method, set()).add(float(hyper["learning_rate"]))
    rates = {side.method: found.get(side.method, set()) for _, side in claim.terms[:2]}
    if not all(rates.values()) or len(set(map(frozenset, rates.values()))) == 1:
        return ""
    said = [f"{label(name)} {', '.join(f'{one:g}' for one in sorted(every))}" for name, every in rates.items()]
    return f"Learning rates: {'; '.join(said)}."


def _command(claim: Claim, used: frozenset[str], profile: str) -> str:
    """What measures the claim: the notebooks of its own tables, or of those that stood in for them."""
    tables = [
        side.fallback if side.table not in used and side.fallback in used else side.table for _, side in claim.terms
    ]
    if not set(tables) <= set(NOTEBOOKS):
        return ABSENT
    notebooks = sorted({NOTEBOOKS[table] for table in tables})
    return " && ".join(f"papermill notebooks/{one}.ipynb out.ipynb -p profile {profile}" for one in notebooks)
