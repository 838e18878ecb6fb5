"""Answers: of each paper the question that a reader comes with, and what the records say, in words made by rule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from samtune.report.contrasts import Contrast, Place, Terms, above, contrasts, in_points, interval
from samtune.report.labels import label, metric_label, prompt_label
from samtune.report.readable_tables import NOT_RUN
from samtune.report.sides import (
    FIRST_VERSION,
    SAM_SP_IN_TRUE_BOX,
    SAMED_DICE,
    SAMED_TWICE,
    asam_main,
    sam_sp_main,
    sam_sp_part,
    side_label,
    spt_main,
)
from samtune.report.statistics import FEWEST_UNITS
from samtune.study import sam_sp
from samtune.study.profile import load_profile
from samtune.study.records import Record

GAIN, NO_GAIN, LOSS, FEW = "gain", "no demonstrated gain", "loss", "too few pictures"
ROWS = 7  # of an answer's table
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Answer:
    """One paper's answer: `sentence` and `verdict` by rule, the `effect` and `where` it is ("in the mean over three
    sets"; both "" where nothing was run), what it was `measured_on`, the stem of its `figure`, a `table` of at most
    `ROWS` rows and five columns, and the comparisons `beside` it, a row each."""

    paper: str
    question: str
    sentence: str
    verdict: str
    effect: str
    where: str
    measured_on: str
    figure: str
    table: pd.DataFrame
    beside: pd.DataFrame


@dataclass(frozen=True)
class Comparison:
    """What is compared: the first two `terms`; `words` say it, `caution` what its result leaves open. `why`: what each
    verdict tells of the question's own answer."""

    words: str
    terms: Terms
    caution: str = ""
    why: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """What a reader asks of a paper. Of `comparisons` the first that was run answers; `more` stand beside it, and tell
    why."""

    paper: str
    words: str
    metric: str
    comparisons: Sequence[Comparison]
    figure: str
    more: Sequence[Comparison] = field(default_factory=tuple)
    transfer: bool = False


def _spt(prompt: str, method: str = "lora", how: str = "LoRA at equal training") -> Comparison:
    sides = (spt_main(one, prompt) for one in ("spt", method))
    return Comparison(f"SPT minus {how}, {prompt_label(prompt)}", above(*sides))


_SAMED = "LoRA by cross-entropy and Dice (SAMed's weights)"
_UNTUNED = label("zero_shot")
_ALPHA_1 = sam_sp.BESIDE[sam_sp.ALPHA_1]
QUESTIONS = (
    Question(
        "SPT", "Does SPT beat LoRA at equal training?", "iou", [_spt("box")], "spt_forest",
        [_spt("point10"), _spt("point1"), _spt("box", "zero_shot", _UNTUNED)],
    ),
    Question(
        "SAM-SP", "Does self-prompting help over LoRA alone?", "dice",
        [
            Comparison("SAM-SP's second pass minus LoRA that was taught the truth by the same Dice loss, no prompt",
                       above(sam_sp_main(), SAMED_DICE)),
            Comparison(f"SAM-SP minus {_SAMED}, no prompt", above(sam_sp_main(), sam_sp_main("lora_samed")),
                       "LoRA by the same Dice loss, the comparison that decides, was not run"),
            Comparison("The kit's first version of SAM-SP (truth on both passes) minus LoRA tuned alike, no prompt",
                       above(sam_sp_main(**FIRST_VERSION), sam_sp_main("lora_samed")),
                       "SAM-SP by the paper's own loss was not run"),
        ],
        "sam_sp_forest",
        [
            Comparison(f"SAM-SP minus {_SAMED}", above(sam_sp_main(), sam_sp_main("lora_samed"))),
            Comparison(f"SAM-SP minus {_UNTUNED}", above(sam_sp_main(), sam_sp_main("zero_shot"))),
            Comparison("SAM-SP's second pass minus its first",
                       above(sam_sp_main(output="pass1"), sam_sp_main(output="pass0")),
                       why={GAIN: "its second mask is better than its first",
                            NO_GAIN: "its second mask shows no gain over its first",
                            LOSS: "its second mask is worse than its first"}),
            Comparison("SAM-SP minus SAM-SP with a random box in place of its own, in training and test",
                       above(sam_sp_main(), sam_sp_part(self_prompt="random_box")),
                       why={GAIN: "its own box is better than a random one",
                            NO_GAIN: "its own box shows no gain over a random one: it tells the decoder little",
                            LOSS: "its own box is worse than a random one"}),
            Comparison("SAM-SP given the true box at test, minus SAM-SP with its own box",
                       above(SAM_SP_IN_TRUE_BOX, sam_sp_main()),
                       why={GAIN: "the true box in its place gains", LOSS: "the true box in its place loses",
                            NO_GAIN: "the true box in its place shows no gain either"}),
            Comparison("SAM-SP with alpha 1 (here 0.1) minus LoRA by the same Dice loss",
                       above(sam_sp_main(**_ALPHA_1), SAMED_DICE)),
            Comparison("SAM-SP with distillation, minus without",
                       above(sam_sp_main(), sam_sp_part(distillation_weight=0.0))),
            Comparison("SAM-SP with two points of its first mask as prompts, minus SAM-SP with its box (alpha 1)",
                       above(sam_sp_part(**_ALPHA_1, self_prompt="points"), sam_sp_part(**_ALPHA_1))),
            Comparison("SAM-SP with two points as prompts (alpha 1), minus LoRA by the same Dice loss",
                       above(sam_sp_part(**_ALPHA_1, self_prompt="points"), SAMED_DICE)),
            Comparison("LoRA by the same Dice loss, tested with a second pass in its first one's box, minus the same "
                       "LoRA with one pass", above(SAMED_TWICE, SAMED_DICE)),
        ],
    ),
    Question(
        "ASAM", "Does ASAM make SAM better on sets that it was not tuned on?", "iou",
        [Comparison("ASAM minus SAM as it is, on sets that it was not tuned on, box",
                    above(asam_main(), asam_main("zero_shot")),
                    "Tuning draws boxes, ten clicks and masks in turn, and its learning rate is the best in the mean "
                    "of the three; this comparison is of boxes alone. Nano ASAM has 200 pictures of 128 pixels (the "
                    "paper 11,186)")],
        "asam_forest",
        [
            Comparison("The same tuning on clean pictures minus SAM as it is",
                       above(asam_main("clean_tuning"), asam_main("zero_shot")),
                       why={GAIN: "the same tuning on clean pictures gains over SAM",
                            NO_GAIN: "the same tuning on clean pictures shows no gain over SAM either",
                            LOSS: "the same tuning on clean pictures falls below SAM too"}),
            Comparison("ASAM minus the same tuning on clean pictures", above(asam_main(), asam_main("clean_tuning")),
                       why={GAIN: "ASAM is above that", NO_GAIN: "ASAM shows no gain over that",
                            LOSS: "ASAM is below that"}),
            Comparison("ASAM minus SAM as it is, ten clicks in place of boxes",
                       above(asam_main(prompt="point10"), asam_main("zero_shot", "point10"))),
            Comparison("ASAM minus the same tuning on its pictures before the attack (reconstructions)",
                       above(asam_main(), asam_main("reconstructed")),
                       why={GAIN: "the attack adds to the reconstructions that it starts from",
                            NO_GAIN: "the attack shows no gain over the reconstructions that it starts from",
                            LOSS: "the attack takes from the reconstructions that it starts from"}),
        ],
        transfer=True,
    ),
)  # fmt: skip


def answers(records: Sequence[Record], profile_name: str = "cpu") -> list[Answer]:
    """One answer a paper, from the records of a profile (of its backbone)."""
    backbone = load_profile(profile_name).backbone
    return [_answer(question, records, backbone) for question in QUESTIONS]


def verdict_of(found: Sequence[Contrast]) -> str:
    """Gain: the interval lies above 0; loss: below; else no demonstrated gain. Fewer than `FEWEST_UNITS` independent
    pictures are too few to say."""
    if not found:
        return NOT_RUN
    _, low, high = interval(found)
    return FEW if sum(one.units for one in found) < FEWEST_UNITS else GAIN if low > 0 else LOSS if high < 0 else NO_GAIN


def effect_in_points(found: Sequence[Contrast]) -> str:
    """Effect and interval in points: "+0.4 [-0.3, +1.0]"."""
    return in_points(*interval(found))


def _answer(question: Question, records: Sequence[Record], backbone: str) -> Answer:
    def measured(comparison: Comparison) -> dict[Place, Contrast]:
        return contrasts(comparison.terms, records, question.metric, backbone, question.transfer)

    chosen, found = question.comparisons[0], {}
    for comparison in question.comparisons:
        found = measured(comparison)
        if found:
            chosen = comparison
            break
    verdict = verdict_of(list(found.values()))
    metric = metric_label(question.metric)
    if not found:
        sentence = f"{chosen.words}: not run."
        nothing = pd.DataFrame()
        return Answer(
            question.paper, question.words, sentence, verdict, "", "", NOT_RUN, question.figure, nothing, nothing
        )
    names = [place[1] if not question.transfer else _place(place, found) for place in found]
    by_name = dict(zip(names, found.values(), strict=True))
    several = len(found) > 1
    where = f"in the mean over {_number(len(found), 'set')}" if several else f"on {names[0]}"
    said = effect_in_points(list(found.values())).replace(" ", f" points of {metric} ", 1)
    parts = [f"{chosen.words}: {said} {where}: {verdict} with the {backbone} SAM"]
    judged = [name for name in by_name if verdict_of([by_name[name]]) != FEW]
    if len(judged) > 1:
        ends = [choose(judged, key=lambda name: by_name[name].effects.mean()) for choose in (max, min)]
        both = [f"{name}, {effect_in_points([by_name[name]])} ({verdict_of([by_name[name]])})" for name in ends]
        parts.append(f"best on {both[0]}, worst on {both[1]}")
    more = [(one, list(measured(one).values())) for one in question.more if one.terms != chosen.terms]
    why = [
        f"{one.why[verdict_of(every)]} ({effect_in_points(every)})"
        for one, every in more
        if verdict_of(every) in one.why
    ]
    parts += [f"why: {'; '.join(why)}"] if why else []
    parts += [chosen.caution] if chosen.caution else []
    sentence = ". ".join(f"{part[:1].upper()}{part[1:]}" for part in parts) + "."
    table = _table(chosen, by_name, metric)
    measured_on = _measured_on(chosen, by_name, backbone)
    beside = _beside(more, metric)
    return Answer(
        question.paper, question.words, sentence, verdict, said, where, measured_on, question.figure, table, beside
    )


def _beside(found: Sequence[tuple[Comparison, list[Contrast]]], metric: str) -> pd.DataFrame:
    """A row a comparison that was run: effect and interval, verdict, on how many sets."""
    rows = [
        (comparison.words, effect_in_points(every), verdict_of(every), len(every))
        for comparison, every in found
        if every
    ]
    return pd.DataFrame(rows, columns=["compared too", _difference(metric), "verdict", "sets"])


def _difference(metric: str) -> str:
    return f"difference in points of {metric} [95% interval]"


def _place(place: Place, found: dict[Place, Contrast]) -> str:
    """The set, and what was tuned on where that differs from place to place."""
    return place[1] if len({trained for trained, _ in found}) == 1 else f"{'+'.join(place[0])} > {place[1]}"


def _number(count: int, thing: str) -> str:
    return f"{NUMBERS[count] if count < len(NUMBERS) else count} {thing}{'s' if count != 1 else ''}"


def _measured_on(comparison: Comparison, by_name: dict[str, Contrast], backbone: str) -> str:
    images = sum(len(one.groups) for one in by_name.values())
    units, seeds = sum(one.units for one in by_name.values()), min(len(one.effects) for one in by_name.values())
    independent = f" ({units:,} independent)" if units < images else ""
    prompt = prompt_label(comparison.terms[0][1].prompt)
    sets = ", ".join(by_name)
    return f"{sets}; {images:,} pictures{independent}, {_number(seeds, 'seed')}; prompt: {prompt}; backbone: {backbone}"


def _table(comparison: Comparison, by_name: dict[str, Contrast], metric: str) -> pd.DataFrame:
    """The mean of sets and each set; of more sets than there is room for those of most and of least difference."""
    ours, theirs = (side_label(side) for _, side in comparison.terms[:2])
    names = sorted(by_name, key=lambda name: -by_name[name].effects.mean())
    room = ROWS - (len(names) > 1)
    names = names if len(names) <= room else [*names[: room - room // 2], *names[-(room // 2) :]]
    rows = {f"mean of {_number(len(by_name), 'set')}": list(by_name.values())} if len(by_name) > 1 else {}
    rows |= {name: [by_name[name]] for name in names}
    table = []
    for name, found in rows.items():
        first, second = (sum(one.values[side].mean() for one in found) / len(found) for side in (0, 1))
        pictures = sum(len(one.groups) for one in found)
        table.append((name, effect_in_points(found), f"{second:.3f}", f"{first:.3f}", pictures))
    # The difference before what a phone has no room for.
    return pd.DataFrame(table, columns=["set", _difference(metric), theirs, ours, "pictures"])
