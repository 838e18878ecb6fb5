"""Stand-in of the module that is to answer each paper's question: the same interface, the least that a page needs."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from samtune.report.claims import CLAIMS, INCONCLUSIVE, NOT_REPRODUCED, NOT_RUN, REPRODUCED, build_claims
from samtune.study.cells import NO_BACKBONE
from samtune.study.records import Record

ASKED = {
    "spt": ("S1a", "Does SPT beat LoRA?", "SPT over LoRA at equal training", "IoU", "spt_forest"),
    "sam_sp": ("P1b", "Does self-prompting beat LoRA?", "SAM-SP over LoRA at equal training", "Dice", "sam_sp_forest"),
    "asam": ("A1", "Does ASAM beat SAM on unseen sets?", "ASAM over SAM", "IoU", "asam_forest"),
}
WORDS = {REPRODUCED: "gain", INCONCLUSIVE: "no demonstrated gain", NOT_REPRODUCED: "loss", NOT_RUN: "not run"}


@dataclass(frozen=True)
class Answer:
    """The answer to a paper's question."""

    paper: str
    question: str
    sentence: str
    verdict: str
    measured_on: str
    figure: str
    table: pd.DataFrame


def answers(records: Sequence[Record]) -> list[Answer]:
    """One answer a paper."""
    backbone = next((record.backbone for record in records if record.backbone != NO_BACKBONE), "nano")
    found = []
    for paper, (claim, question, words, metric, figure) in ASKED.items():
        table = build_claims(records, "", backbone, [one for one in CLAIMS if one.id == claim])
        last, sets = table.iloc[-1], table[table["verdict"] != NOT_RUN]
        points = f"{words}: {100 * last['effect']:+.1f} points of {metric} [{100 * last['low']:+.1f}, "
        sentence = "Not run yet." if sets.empty else f"{points}{100 * last['high']:+.1f}]."
        rows = [[row["dataset"], f"{100 * row['effect']:+.1f}", row["verdict"]] for row in sets.to_dict("records")]
        shown = pd.DataFrame(rows, columns=["data set", f"{metric}, points", "verdict"]).tail(5)
        on = ", ".join(name for name in sets["dataset"] if name != "mean of sets")
        found.append(Answer(paper, question, sentence, WORDS[last["verdict"]], on, figure, shown))
    return found
