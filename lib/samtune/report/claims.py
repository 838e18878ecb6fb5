"""Claims: what each paper says, as data, and what our records say of it.

A claim is a contrast of measurements, written so that the claim holds when the effect is above 0. The effect is taken
image by image and seed by seed; its interval is the 95% paired bootstrap over images and seeds, images of one group
(tile, patient, slide) together. Verdict: the interval above 0: reproduced; below 0: not reproduced; else inconclusive;
no record: not run.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from samtune.common.paths import results_root
from samtune.report.readable_tables import MEAN, NOT_AVAILABLE, PaperNumbers, load_paper_numbers
from samtune.report.statistics import independent_units, paired_bootstrap
from samtune.report.tables import differences, image_values, read_table, seeds_by_images
from samtune.study import sam_sp
from samtune.study.cells import NO_BACKBONE
from samtune.study.records import Record, read_records
from samtune.study.varied import option_and_value, unusual, varied

COLUMNS = ["id", "dataset", "effect", "low", "high", "verdict", "command"]
REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, NOT_RUN, NO_REFERENCE = (
    "reproduced", "not reproduced", "inconclusive", "not run", "no reference",
)  # fmt: skip
VERDICTS = (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, NOT_RUN, NO_REFERENCE)
FEWEST_UNITS = 10  # with fewer independent images or groups an interval means little: "inconclusive"
NOTEBOOKS = {
    "baselines": "00_start_here", "spt_main": "10_spt", "spt_ablation": "11_spt_ablations", "sam_sp_main": "20_sam_sp",
    "sam_sp_ablation": "21_sam_sp_ablations",
}  # fmt: skip
ABSENT = "not in this version"  # in place of the command, where no notebook measures the claim yet


@dataclass(frozen=True)
class Side:
    """One measurement: records of `method` that `table` shows, with `prompt`, at `output`.

    `options`: what the row varies, as `study.varied` says it; none: the method as it is. `dataset_suffix` picks the set
    of that name (as "bsds500" + "-adversarial") and compares it under the plain name. `fallback` is a second table to
    look in.
    """

    table: str
    method: str
    prompt: str
    options: Mapping[str, object] = field(default_factory=dict)
    output: str = "final"
    dataset_suffix: str = ""
    fallback: str = ""


@dataclass(frozen=True)
class Claim:
    """One claim.

    `id` as in the papers' sheets (a chain is split: S1a, S1b); `statement` for people; `metric`; `terms` weighted
    measurements whose sum is the effect, `margin` added to it (a claim of "within 2 points" allows 0.02); `transfer`
    measures only where the set was NOT trained on, else only where it was; `backbone` "" is the profile's own;
    `source` where the claim comes from; `reference` False where the paper's direction is not known.
    """

    id: str
    statement: str
    metric: str
    terms: tuple[tuple[float, Side], ...]
    source: str
    margin: float = 0.0
    transfer: bool = False
    backbone: str = ""
    reference: bool = True

    @property
    def paper(self) -> str:
        """Name of the paper's numbers: "spt", "sam_sp" or "asam"."""
        return {"S": "spt", "P": "sam_sp", "A": "asam"}[self.id[0]]


def _above(better: Side, worse: Side) -> tuple[tuple[float, Side], ...]:
    return (1.0, better), (-1.0, worse)


def _spt_claims() -> list[Claim]:
    def main(method: str, prompt: str, output: str = "final") -> Side:
        return Side("spt_main", method, prompt, output=output, fallback="baselines")

    def part(**options: object) -> Side:
        return Side("spt_ablation", "spt", "box", options)

    source, ours = "SPT, main tables (values not at hand)", "OURS, not in the paper"
    claims = []
    for number, prompt in ((1, "box"), (2, "point10")):
        words = {"box": "box", "point10": "point"}[prompt]
        spt, lora, plain = (main(method, prompt) for method in ("spt", "lora", "zero_shot"))
        claims += [
            Claim(f"S{number}a", f"SPT above LoRA alone, {words} prompts, IoU", "iou", _above(spt, lora), source),
            Claim(f"S{number}b", f"LoRA above zero-shot SAM, {words} prompts, IoU", "iou", _above(lora, plain), source),
            Claim(
                f"S{number}c", f"SPT above LoRA alone, {words} prompts, boundary IoU", "boundary_iou",
                _above(spt, lora), source,
            ),
            Claim(
                f"S{number}d", f"LoRA above zero-shot SAM, {words} prompts, boundary IoU", "boundary_iou",
                _above(lora, plain), source,
            ),
        ]  # fmt: skip
    # Without both parts SPT is LoRA to the bit, so LoRA's cells stand for it.
    sdt, vra, both = part(relation=False), part(draft=False), part()
    neither = Side("spt_ablation", "lora", "box")
    source = "SPT, ablation (values not at hand)"
    claims += [
        Claim("S3a", "Self-draft tuning helps alone", "iou", _above(sdt, neither), source),
        Claim("S3b", "The visual-relation-aware adapter helps alone", "iou", _above(vra, neither), source),
        Claim("S3c", "Both are above self-draft tuning alone", "iou", _above(both, sdt), source),
        Claim("S3d", "Both are above the adapter alone", "iou", _above(both, vra), source),
        Claim(
            "S4", "The refined mask is above its own draft", "iou",
            _above(main("spt", "box"), main("spt", "box", "draft")), source,
        ),
    ]  # fmt: skip
    for letter, backbone in (("a", "vit_b"), ("b", "vit_l"), ("c", "vit_h")):
        claims.append(
            Claim(
                f"S5{letter}", f"The gain over LoRA holds for {backbone}", "iou",
                _above(main("spt", "box"), main("lora", "box")), "SPT, main tables (values not at hand)",
                backbone=backbone,
            )
        )  # fmt: skip
    across = _above(both, neither)
    claims.append(Claim("S6", "Tuned on one set and tested on another, SPT is above LoRA", "iou", across, ours,
                        transfer=True))  # fmt: skip
    return claims


def _sam_sp_claims() -> list[Claim]:
    def main(method: str, prompt: str = "none", output: str = "final", **options: object) -> Side:
        return Side("sam_sp_main", method, prompt, options, output)

    def ablated(method: str, **options: object) -> Side:
        return Side("sam_sp_ablation", method, "none", options)

    def passed(number: int) -> Side:
        return replace(ablated("sam_sp", test_iterations=sam_sp.MOST_ITERATIONS), output=f"pass{number}")

    table, ours = "SAM-SP, polyp table", "OURS, not in the paper"
    figure = "SAM-SP, figure 4 (values not at hand)"
    whole = main("sam_sp")
    return [
        Claim("P1a", "SAM-SP without prompts is above zero-shot SAM without prompts", "dice",
              _above(whole, main("zero_shot")), table),
        Claim("P1b", "SAM-SP is above LoRA without self-prompting", "dice", _above(whole, main("lora_samed")), table),
        Claim("P1c", "SAM-SP is above SAM's everything mode, its mask picked by predicted IoU", "dice",
              _above(whole, main("zero_shot", everything=sam_sp.GRID)), "SAM-SP, abstract"),
        Claim("P2a", "The self-prompted pass is above the first", "dice",
              _above(main("sam_sp", output="pass1"), main("sam_sp", output="pass0")),
              "SAM-SP, figure 3 (pictures alone)"),
        Claim("P2b", "More iterations saturate: the first gains more than the next two together", "dice",
              ((2.0, passed(1)), (-1.0, passed(0)), (-1.0, passed(3))), figure),
        Claim("P2c", "More iterations do no harm: the third pass is at most 1 point below the first (1 point added)",
              "dice", _above(passed(3), passed(1)), f"{figure}; the margin is OURS", margin=0.01),
        # The first pass of SAM-SP never sees the truth, so that P2a alone says little of self-prompting.
        Claim("P2d", "The self-prompted pass is above the only pass of LoRA that was taught the truth by the same Dice "
              "loss, in as many images", "dice",
              _above(whole, ablated("lora_samed", mask_loss="dice")), ours),
        Claim("P3", "Self-distillation adds to self-prompting", "dice",
              _above(whole, ablated("sam_sp", distillation_weight=0.0)), "SAM-SP, abstract"),
        Claim("P4", "SAM-SP without prompts is at most 2 points below SAM given true boxes (2 points added)", "dice",
              _above(whole, main("zero_shot", "box", per_object=True)), ours, margin=0.02),
        Claim("P5", "Training strategies ranked: truth on both passes below truth on the last alone", "dice",
              _above(whole, main("sam_sp", **sam_sp.TRUTH_ON_BOTH)),
              "SAM-SP, figure 5 (the paper's ranking is not known)", reference=False),
        Claim("P6", "SAM-SP is above a U-Net of equal training budget", "dice", _above(whole, main("unet")),
              f"{table} (its U-Net: PraNet's protocol)"),
    ]  # fmt: skip


def _asam_claims() -> list[Claim]:
    def main(method: str) -> Side:
        return Side("asam_main", method, "box")

    def ablated(method: str = "asam", suffix: str = "", **options: object) -> Side:
        return Side("asam_ablation", method, "box", options, dataset_suffix=suffix)

    table = "ASAM, performance tables (14 unseen sets, ViT-B, box prompt)"
    asam, plain, pgd, dat = main("asam"), main("zero_shot"), main("pgd"), main("dat")
    unseen = {"transfer": True}
    return [
        Claim("A1", "ASAM is above SAM on sets that it was not tuned on", "iou", _above(asam, plain), table, **unseen),
        Claim("A2a", "ASAM is above tuning on pixel-attacked (PGD) images", "iou", _above(asam, pgd), table, **unseen),
        Claim("A2b", "ASAM is above DAT tuning", "iou", _above(asam, dat), table, **unseen),
        Claim("A2c", "PGD tuning falls below SAM", "iou", _above(plain, pgd), table, **unseen),
        Claim("A2d", "DAT tuning falls below SAM", "iou", _above(plain, dat), table, **unseen),
        Claim("A3", "ASAM is above tuning on plain generated images", "iou", _above(asam, main("generated")), table,
              **unseen),
        Claim("A4a", "Latent adversarial images lower SAM's IoU on themselves", "iou",
              _above(ablated("zero_shot"), ablated("zero_shot", "-adversarial")),
              "ASAM, method", **unseen),
        Claim("A4b", "With the mask ControlNet adversarial images stay nearer to the originals", "ssim",
              _above(ablated("zero_shot", controlnet=True), ablated("zero_shot", controlnet=False)),
              "ASAM, method", **unseen),
        Claim("A5", "1,280 parameters suffice: at most 1 point below tuning the whole decoder (1 point added)", "iou",
              _above(ablated(), ablated(tuned="decoder")), "ASAM, method; the margin is OURS", margin=0.01,
              **unseen),
        Claim("A6", "The gain carries over to EfficientSAM", "iou", _above(asam, plain),
              "ASAM, transfer (values not at hand)", backbone="efficient_sam", **unseen),
    ]  # fmt: skip


CLAIMS: tuple[Claim, ...] = (*_spt_claims(), *_sam_sp_claims(), *_asam_claims())


def build_claims(
    records: Iterable[Record], profile: str, backbone: str, claims: Sequence[Claim] = CLAIMS
) -> pd.DataFrame:
    """The claims table: one row a claim and data set, and one for the mean of sets where several were measured.

    `backbone`: the profile's, which claims that name none are tested on. A claim without records: one row, "not run".
    """
    evaluations = [record for record in records if record.kind == "evaluation" and record.objects is not None]
    rows = [row for claim in claims for row in _claim_rows(claim, evaluations, profile, backbone)]
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.astype({"effect": float, "low": float, "high": float})


def claims_markdown(table: pd.DataFrame, ids: Sequence[str]) -> str:
    """The rows of the claims table whose id begins with one of `ids`, with their statements and the papers' effects, as
    a markdown table."""
    papers = load_paper_numbers()
    said = {claim.id: (claim.statement, paper_effect(claim, papers)) for claim in CLAIMS}
    lines = ["| claim | | data | effect [95% interval] | paper | verdict |", "|---|---|---|---:|---:|---|"]
    for row in table.to_dict("records"):
        if row["id"].startswith(tuple(ids)):
            statement, reported = said[row["id"]]
            paper = NOT_AVAILABLE if reported is None else f"{reported:+.3f}"
            shown = (row["id"], statement, row["dataset"], effect_text(row), paper, f"**{row['verdict']}**")
            lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


def self_prompting(table: pd.DataFrame) -> str:
    """Does self-prompting help over LoRA alone, and by how much? One sentence, by the verdict on P1b, then P2a's."""
    rows = {name: rows.iloc[-1] for name, rows in table.groupby("id")}  # the mean of sets, or the only one
    over_lora, over_first = rows["P1b"], rows["P2a"]
    if over_lora["verdict"] == NOT_RUN:
        return "Whether self-prompting helps over LoRA alone: not run."

    def points(row: pd.Series, than: str) -> str:
        side = "above" if row["effect"] >= 0 else "below"
        low, high = 100 * row["low"], 100 * row["high"]
        return f"{abs(100 * row['effect']):.1f} points of Dice {side} {than} [{low:+.1f}, {high:+.1f}]"

    answer = {
        REPRODUCED: "Self-prompting helps over LoRA alone",
        NOT_REPRODUCED: "Self-prompting does not help over LoRA alone",
        INCONCLUSIVE: "These records do not show whether self-prompting helps over LoRA alone",
    }[over_lora["verdict"]]
    reported = paper_effect(next(claim for claim in CLAIMS if claim.id == "P1b"), load_paper_numbers())
    return (
        f"{answer}: without a prompt SAM-SP is {points(over_lora, 'it')} ({over_lora['dataset']}; in the paper "
        f"{100 * reported:+.1f} on polyps), and its second pass is {points(over_first, 'its first')}."
    )


def effect_text(row: Mapping) -> str:
    """Effect and interval of a row of the claims table; "" where it was not run."""
    return "" if pd.isna(row["effect"]) else f"{row['effect']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


def paper_effect(claim: Claim, papers: Mapping[str, PaperNumbers]) -> float | None:
    """The same contrast of the paper's own numbers, averaged over the sets that all terms have; None: not at hand."""
    values = papers[claim.paper].values if claim.paper in papers else pd.DataFrame()
    if values.empty or claim.margin or claim.backbone:
        return None
    total = None
    for weight, side in claim.terms:
        wanted = {"table": side.table, "method": side.method, "prompt": side.prompt, "output": side.output}
        wanted["metric"] = claim.metric
        chosen = values[np.logical_and.reduce([values[column] == value for column, value in wanted.items()])]
        if side.options or side.dataset_suffix or chosen.empty:
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


def _claim_rows(claim: Claim, records: Sequence[Record], profile: str, backbone: str) -> list[dict]:
    sides = [_measurements(side, records, claim.metric, claim.backbone or backbone) for _, side in claim.terms]
    places = _places(claim, sides)
    contrasts = {place: _contrast(claim, [_at(side, place) for side in sides]) for place in places}
    contrasts = {place: contrast for place, contrast in contrasts.items() if contrast is not None}
    used = {table for side in sides for _, table in side.values()} if contrasts else set()
    shared = {
        "id": claim.id,
        "command": _command(claim, used, profile if claim.backbone in ("", backbone) else "paper"),
    }
    if not contrasts:
        return [shared | {"dataset": "", "effect": np.nan, "low": np.nan, "high": np.nan, "verdict": NOT_RUN}]
    several = len({trained_on for trained_on, _ in contrasts}) > 1 and claim.transfer
    rows = []
    for (trained_on, dataset), contrast in contrasts.items():
        label = f"{'+'.join(trained_on)} > {dataset}" if several else dataset
        rows.append(shared | {"dataset": label} | _judged(claim, [contrast]))
    if len(contrasts) > 1:
        rows.append(shared | {"dataset": MEAN} | _judged(claim, list(contrasts.values())))
    return rows


def _command(claim: Claim, used: set[str], profile: str) -> str:
    """What measures the claim: the notebooks of its own tables, or of those that stood in for them."""
    tables = [
        side.fallback if side.table not in used and side.fallback in used else side.table for _, side in claim.terms
    ]
    if not set(tables) <= set(NOTEBOOKS):
        return ABSENT
    notebooks = sorted({NOTEBOOKS[table] for table in tables})
    return " && ".join(f"papermill notebooks/{one}.ipynb out.ipynb -p profile {profile}" for one in notebooks)


def _judged(claim: Claim, contrasts: list[tuple[np.ndarray, list[str]]]) -> dict:
    """Effect, interval and verdict of one set's `_contrast`, or of several sets' by their unweighted mean."""
    effects, groups = zip(*contrasts, strict=True)
    effect, low, high = paired_bootstrap(effects, groups)
    verdict = REPRODUCED if low > 0 else NOT_REPRODUCED if high < 0 else INCONCLUSIVE
    if sum(independent_units(one).max() + 1 for one in groups) < FEWEST_UNITS:
        verdict = INCONCLUSIVE
    return {"effect": effect, "low": low, "high": high, "verdict": verdict if claim.reference else NO_REFERENCE}


# Where a measurement stands: (trained on, tested on), and there: the values of each seed, and the table they are from.
Place = tuple[tuple[str, ...], str]
Found = dict[Place, tuple[dict[int, pd.Series], str]]


def _measurements(side: Side, records: Sequence[Record], metric: str, backbone: str) -> Found:
    found: Found = {}
    for table in filter(None, (side.table, side.fallback)):
        asked = option_and_value(unusual(side.options, side.method, table))
        here: Found = {}
        for record in records:
            if (
                record.method == side.method
                and record.backbone in (backbone, NO_BACKBONE)
                and record.cell["prompt"] == side.prompt
                and record.cell["split"] == "test"
                and any(option_and_value(varied(record, table, name)) == asked for name in record.variants(table))
                and record.dataset.endswith(side.dataset_suffix)
            ):
                values = image_values(record, metric, side.output)
                if len(values):
                    place = (record.train_datasets, record.dataset.removesuffix(side.dataset_suffix))
                    here.setdefault(place, ({}, table))[0][record.seed] = values
        found = here | found  # the claim's own table comes first
    return found


def _places(claim: Claim, sides: Sequence[Found]) -> list[Place]:
    """Where to compare: the trained sides decide; a side that was never trained stands beside any training."""
    trained = {place for side in sides for place in side if place[0]}
    if not trained:
        return sorted({place for side in sides for place in side})
    if claim.transfer:
        return sorted(place for place in trained if place[1] not in place[0])
    single = {place for place in trained if place[0] == (place[1],)}  # one model a set; else one for the union
    sets = {test for _, test in single}
    return sorted(single | {place for place in trained if place[1] in place[0] and place[1] not in sets})


def _at(side: Found, place: Place) -> tuple[dict[int, pd.Series], bool] | None:
    """A side's values at `place` by seed, and whether it was trained there; None where it was not run."""
    untrained = ((), place[1])
    key = place if place in side else untrained
    return (side[key][0], key != untrained) if key in side else None


def _contrast(
    claim: Claim, sides: Sequence[tuple[dict[int, pd.Series], bool] | None]
) -> tuple[np.ndarray, list[str]] | None:
    """Effects `(seeds, images)` over the seeds and images that all sides have, and the images' groups; None: no such.

    An untrained side with a single seed (which draws prompts only) stands beside every seed of the others.
    """
    if any(side is None for side in sides):
        return None
    anywhere = [not trained and len(values) == 1 for values, trained in sides]
    fixed = [set(values) for (values, _), free in zip(sides, anywhere, strict=True) if not free]
    seeds = sorted(set.intersection(*fixed)) if fixed else list(sides[0][0])
    rows = []
    for (weight, _), (values, _), free in zip(claim.terms, sides, anywhere, strict=True):
        rows += [weight * (next(iter(values.values())) if free else values[seed]) for seed in seeds]
    if not rows:
        return None
    effects, groups = seeds_by_images(rows)
    if not groups:
        return None
    return effects.reshape(len(sides), len(seeds), len(groups)).sum(axis=0) + claim.margin, groups
