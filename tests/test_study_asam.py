"""ASAM's study: every rival has the same pictures, steps and parameters; what is planned; which rows claims read."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from samtune.common.errors import InputError
from samtune.data.generated import chosen_pictures
from samtune.data.registry import open_dataset
from samtune.diffusion.attack import AttackConfig
from samtune.report.claim_list import CLAIMS
from samtune.report.claims import build_claims
from samtune.report.tables import build_tables
from samtune.study import asam, execute
from samtune.study import plan as study_plan
from samtune.study.asam import ABLATION, FORGETTING, MAIN, SEEN, run_ablations, run_main
from samtune.study.cells import Cell, EvaluationCell, GenerationCell, plain_cell
from samtune.study.execute import cell_method, executor
from samtune.study.profile import Generation, Profile
from samtune.study.records import Record
from samtune.study.runner import needed_cells, only_planned, run_cell
from samtune.training import TrainingSamples
from tiny_diffusion import save_tiny_diffusion

SETS = ("synthetic-natural", "synthetic-industrial")
UNSEEN = "synthetic-medical"
pytestmark = pytest.mark.usefixtures("small_backbone")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_diffusion(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def asam_profile(profile: Profile, model: str) -> Profile:
    asked = Generation(sets=SETS, pictures=3, ablation_pictures=2, steps=2, attack_steps=1)
    return profile.model_copy(update={"diffusion": model, "controlnet": model, "generation": asked})


def planned(run: object, *arguments: object) -> list[EvaluationCell]:
    """The cells that a study asks for, none of them run; generation cells left out."""
    with only_planned() as cells:
        run(*arguments)
    return [cell for cell in cells if isinstance(cell, EvaluationCell)]


def tables_of(cells: Sequence[Cell], table: str) -> dict[str, list[EvaluationCell]]:
    """By variant."""
    found: dict[str, list[EvaluationCell]] = {}
    for cell in cells:
        for place in cell.tables:
            name, _, variant = place.partition(":")
            if name == table:
                found.setdefault(variant, []).append(cell)
    return found


def test_every_rival_has_the_same_pictures_steps_and_parameters(asam_profile: Profile) -> None:
    shown = tables_of(planned(run_main, asam_profile, [UNSEEN, SETS[0]], [0, 1]), MAIN)
    methods = {"zero_shot", *asam.ON_CLEAN, *asam.ON_GENERATED}
    for variant, dataset in (("", UNSEEN), (SEEN, SETS[0])):
        rows = {(cell.method, cell.seed, cell.prompt, cell.dataset) for cell in shown[variant]}
        assert rows == {(method, seed, prompt, dataset) for method in methods for seed in (0, 1)
                        for prompt in asam_profile.evaluation.prompts}  # fmt: skip
    trainings = {cell.training.method: cell.training for cell in shown[""] if cell.training and cell.seed == 0}
    alike = {(one.images, one.prompt, one.target, one.preprocess, one.backbone) for one in trainings.values()}
    assert len(alike) == 1 and len(trainings) == len(methods) - 1
    batches = {dict(one.hyper)["batch_size"] for one in trainings.values()}
    schedules = {dict(one.hyper)["schedule"] for one in trainings.values()}
    assert (batches, schedules) == ({2}, {"slow_start"})
    made_from = {
        (one.generated.dataset, one.generated.split, one.generated.pictures)
        if one.generated
        else ("+".join(one.train_datasets), "train", one.pictures)
        for one in trainings.values()
    }
    assert made_from == {("+".join(SETS), "train", 3)}
    assert len({cell_method(one).count_trainable() for one in trainings.values()}) == 1


def test_clean_and_adversarial_pictures_are_seen_in_the_same_order_with_the_same_prompts(
    asam_profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAMTUNE_RESULTS", str(tmp_path))
    folder = tmp_path / asam_profile.name
    seen: dict[str, list[dict]] = {}

    def spy(method: object, sources: list, config: object, *rest: object) -> object:
        samples = TrainingSamples(sources, method.image_size, config, True, method.mask_size)
        seen[method.name] = [samples[place] for place in range(4)]
        raise InterruptedError

    monkeypatch.setattr(execute, "train", spy)
    cells = planned(run_main, asam_profile, [UNSEEN], [0])
    run = executor(asam_profile)
    for cell in {cell.training.method: cell.training for cell in cells if cell.training}.values():
        if cell.method in ("clean_tuning", "asam", "pgd"):
            for need in needed_cells(cell, folder):
                run_cell(need, folder, run)
            with pytest.raises(InterruptedError):
                run(cell, folder)
    chosen = {f"{dataset.name}/{id}" for dataset, id in chosen_pictures("+".join(SETS), "train", 3, open_dataset)}
    assert {sample["id"] for sample in seen["clean_tuning"][:3]} == chosen and len(chosen) == 3
    for other in ("asam", "pgd"):
        for one, two in zip(seen["clean_tuning"], seen[other], strict=True):
            assert (one["id"], one["copy"]) == (two["id"], two["copy"])
            assert np.array_equal(one["masks"], two["masks"])
            for name in ("boxes", "points", "masks"):
                a, b = getattr(one["prompts"], name), getattr(two["prompts"], name)
                assert (a is None) == (b is None) and (a is None or np.array_equal(a, b))
            assert not np.array_equal(one["image"], two["image"])


def test_ablations_leave_out_what_was_tuned_on_and_use_few_seeds(asam_profile: Profile) -> None:
    few = asam_profile.model_copy(update={"ablation_seeds": (5,), "learning_rates": (1e-4, 1e-3, 1e-2)})
    cells = planned(run_ablations, few, [UNSEEN, SETS[0]], [0, 1])
    shown = tables_of(cells, ABLATION)
    on = {variant: {cell.dataset for cell in found} for variant, found in shown.items()}
    pretrained = set(few.pretraining.sets)
    assert on[FORGETTING] == pretrained and {cell.split for cell in shown[FORGETTING]} == {"train"}
    assert {cell.method for cell in shown[FORGETTING]} == {"zero_shot", *asam.ON_CLEAN, *asam.ON_GENERATED}
    fooled = list(asam.MADE_FOR)
    for variant in fooled:
        assert {cell.backbone for cell in shown[variant]} == {"nano", "nano_mobile"}
        assert {cell.split for cell in shown[variant]} == {"train"} and len(on[variant]) == 1
    seeds = {variant: {cell.seed for cell in found} for variant, found in shown.items()}
    # Clean tuning is of the second victim; PGD, as in the main table, stands beside its options.
    claimed = {"SAM", "ASAM", "clean tuning", "PGD tuning", asam.WHOLE_DECODER}
    assert {variant for variant in seeds if seeds[variant] == {0, 1, 5}} == claimed
    others = seeds.keys() - claimed
    assert all(seeds[variant] == {5} for variant in others)
    assert all(on[variant] == {UNSEEN} for variant in seeds.keys() - {FORGETTING, *fooled})
    rows = {variant for group in (*asam.GROUPS.values(), *asam.PICTURES.values()) for variant in group}
    rows |= {asam.CHANGE, asam.MIXED, asam.BOXES}
    assert rows <= others | claimed
    # Where a row changes more than the pictures, learning rates of its own are tried on validation.
    own = {*asam.GROUPS["tokens"], asam.BOXES}
    tried: dict[tuple[str, str, str], set[float]] = {}
    for name, found in tables_of(cells, "learning_rates").items():
        for cell in found:
            assert cell.split == "val" and cell.dataset in SETS
            tried.setdefault((name.partition(", ")[2], cell.method, cell.backbone), set()).add(
                dict(cell.training.hyper)["learning_rate"]
            )
    assert all(len(rates) == 3 for rates in tried.values())
    tuned = {(variant if variant in own else "", cell.method, cell.backbone)
             for variant, found in shown.items() for cell in found if cell.training}  # fmt: skip
    assert tuned == tried.keys()


def test_pictures_made_otherwise_differ_in_what_the_row_says_alone(asam_profile: Profile) -> None:
    asked = asam_profile.generation.model_copy(update={"attack_steps": 10})
    usual = asam_profile.model_copy(update={"generation": asked})
    arms = {arm.variant: arm.made for arm in asam.picture_arms(usual, list(asam.PICTURES))}
    usual = arms.pop(asam.FEW)
    assert usual.pictures == 2
    made, attacked = dict(usual.inversion.options), dict(usual.options) | {"prompt": usual.prompt}
    found = {}
    for variant, cell in arms.items():
        changed = dict(cell.inversion.options).items() - made.items()
        found[variant] = dict(changed), dict((dict(cell.options) | {"prompt": cell.prompt}).items() - attacked.items())
        assert cell.pictures == usual.pictures
        shown = found[variant][0] | {f"attack_{name}": value for name, value in found[variant][1].items()}
        assert asam.ALONG[variant] == shown or variant == "direct", variant  # the profile's own recipe
    assert found == {
        "without ControlNet": ({"controlnet": False}, {}),
        "DDIM": ({"recipe": "ddim"}, {}),
        "null-text": ({"recipe": "null_text"}, {}),
        "negative-prompt": ({"recipe": "negative_prompt"}, {}),
        "direct": ({}, {}),
        "1 attack steps": ({}, {"steps": 1}),
        "3 attack steps": ({}, {"steps": 3}),
        "20 attack steps": ({}, {"steps": 20}),
        "eps 0.05": ({}, {"eps": 0.05}),
        "eps 0.1": ({}, {"eps": 0.1}),
        "eps 0.4, updates of 0.04": ({}, {"eps": 0.4, "step_size": 0.04}),
        "guidance 1": ({"guidance": 1}, {}),
        "guidance 3": ({"guidance": 3}, {}),
        "embedding loss 0.5": ({}, {"embedding": 0.5}),
        "beta 0.5": ({}, {"distance": 0.5}),
        "beta 0": ({}, {"distance": 0.0}),
        "through the last 1 steps": ({}, {"last_steps": 2}),
        "through the last 3 steps": ({}, {"last_steps": 4}),
        asam.LARGER: ({}, asam.LARGER_UPDATES),
        f"through all steps, {asam.LARGER}": ({}, {"last_steps": asam.ALL_STEPS, **asam.LARGER_UPDATES}),
        "attacked with ten clicks": ({}, {"prompt": "point10"}),
    }
    for _, changed in asam.PICTURES["eps"].values():
        attack = AttackConfig(**changed)
        assert attack.eps <= attack.steps * attack.step_size, "no update reaches the bound"


def test_an_inversion_without_guidance_has_no_rows_of_guidance(asam_profile: Profile, capsys) -> None:
    asked = asam_profile.generation.model_copy(update={"recipe": "negative_prompt"})
    arms = asam.picture_arms(asam_profile.model_copy(update={"generation": asked}), ["guidance", "eps"])
    assert [arm.variant for arm in arms] == [asam.FEW, *asam.PICTURES["eps"]]
    assert "not run: guidance: " in capsys.readouterr().out


def test_a_search_that_must_train_starts_on_sets_with_validation_pictures_alone(
    asam_profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAMTUNE_RESULTS", str(tmp_path))
    searched = asam_profile.model_copy(update={"learning_rates": (1e-4, 1e-3)})
    trained: list[Cell] = []

    def spy(cells: Sequence[Cell], *rest: object) -> None:
        trained.extend(cells)
        raise InterruptedError

    monkeypatch.setattr(study_plan, "run_cells", spy)
    with pytest.raises(InterruptedError):
        asam.tuning(searched, [])[0].choose_rates([asam.Arm("asam"), asam.Arm("clean_tuning")])
    assert {cell.method for cell in trained} == {"asam", "clean_tuning"}
    without = SimpleNamespace(ids=lambda split: [] if split == "val" else ["one"])
    monkeypatch.setattr(study_plan, "open_dataset", lambda name: without)
    with pytest.raises(InputError, match="has no val pictures"):
        asam.tuning(searched, [])[0].choose_rates([asam.Arm("clean_tuning")])


def test_rates_that_the_main_table_has_are_chosen_with_all_seeds(asam_profile: Profile, monkeypatch) -> None:
    """A rate that fails with another seed there must not come back in the ablations, whatever groups are asked for."""
    asked, choose = {}, asam.Tuning.choose_rates

    def noted(plan, arms, seeds=()):
        for arm in arms:
            asked.setdefault((arm.method, arm.variant if arm.own_rate else ""), list(seeds))
        return choose(plan, arms, seeds)

    monkeypatch.setattr(asam.Tuning, "choose_rates", noted)
    seeds = asam_profile.model_copy(update={"seeds": (0, 1, 2)})
    planned(run_ablations, seeds, [UNSEEN], [0], ["rivals", "remedies"])
    for method in ("asam", "pgd", "clean_tuning"):
        assert asked[method, ""] == [0, 1, 2]


def test_remedies_have_clean_and_adversarial_pictures_or_boxes_alone(
    asam_profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAMTUNE_RESULTS", str(tmp_path))
    seen: list[set[str]] = []

    def spy(method: object, sources: list, config: object, *rest: object) -> object:
        seen.append({f"{dataset.name}/{id}" for dataset, split in sources for id in dataset.ids(split)})
        raise InterruptedError

    monkeypatch.setattr(execute, "train", spy)
    plan = asam.tuning(asam_profile, [])[0]
    arms = {(arm.variant, arm.method): arm for arm in asam.remedy_arms(asam_profile)}
    mixed = plan.training(arms[asam.MIXED, "asam"], 0, 1e-3)
    folder, run = tmp_path / asam_profile.name, executor(asam_profile)
    for need in needed_cells(mixed, folder):
        run_cell(need, folder, run)
    with pytest.raises(InterruptedError):
        run(mixed, folder)
    clean = {f"{dataset.name}/{id}" for dataset, id in chosen_pictures("+".join(SETS), "train", 3, open_dataset)}
    assert seen == [clean | {f"{mixed.generated.name}/{id}" for id in clean}] and len(seen[0]) == 6
    for method in ("asam", "clean_tuning"):
        boxes = plan.training(arms[asam.BOXES, method], 0, 1e-3)
        usual = plan.training(asam.Arm(method), 0, 1e-3)
        assert boxes.prompt == "box" and replace(boxes, prompt=usual.prompt, hyper=usual.hyper) == usual
        assert set(usual.hyper) - set(boxes.hyper) == {("prompt_for_each", "image")}  # with one kind nothing is drawn
    plan.rates = {("", "asam", ()): 0.02, (asam.BOXES, "asam", ()): 0.5}
    rates = {arm.variant: dict(plan.training(arm, 0).hyper)["learning_rate"] for arm in arms.values()
             if arm.method == "asam"}  # fmt: skip
    assert rates == {asam.CHANGE: 0.02, asam.MIXED: 0.02, asam.BOXES: 0.5}
    choices = tables_of(planned(run_ablations, asam_profile, [UNSEEN], [0], ["remedies"]), asam.CHOICES)
    assert {cell.method for cell in choices[""]} == {"zero_shot", "asam", "clean_tuning"}
    assert choices.keys() == {"", asam.CHANGE, asam.MIXED, asam.BOXES}
    assert {cell.split for found in choices.values() for cell in found} == {"val"}


def test_without_a_diffusion_model_clean_tuning_is_varied(asam_profile: Profile, tmp_path: Path, capsys) -> None:
    nothing = asam_profile.model_copy(update={"diffusion": str(tmp_path / "none")})
    cells = planned(run_ablations, nothing, [UNSEEN], [0])
    assert "not run: asam, controlnet" in capsys.readouterr().out
    trained = {cell.training.method for cell in cells if cell.training}
    assert trained == set(asam.ON_CLEAN) and all(cell.generated is None for cell in cells)
    assert asam.WHOLE_DECODER in tables_of(cells, ABLATION)
    assert {cell.method for cell in planned(run_main, nothing, [UNSEEN], [0])} == {"zero_shot", *asam.ON_CLEAN}


def test_adversarial_pictures_are_made_and_measured(
    asam_profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is made up here: A4a and A4b are the differences of the table's rows."""
    monkeypatch.setenv("SAMTUNE_RESULTS", str(tmp_path))
    one = asam_profile.model_copy(update={"images": 2})
    records = run_ablations(one, [UNSEEN, SETS[1]], [0], ["controlnet"])
    final = build_tables(records)[ABLATION].query("output == 'final' and (prompt == 'box')")
    made = final.query("method == 'attack' and metric == 'ssim'").set_index("variant")
    assert set(made.index) == {asam.FEW, asam.WITHOUT} and set(made["images"]) == {2}
    iou = final.query("metric == 'iou' and method != 'attack'").set_index("variant")
    assert set(iou.loc[list(asam.MADE_FOR), "images"]) == {3}
    assert set(iou.loc[["SAM", "ASAM", asam.FEW], "dataset"]) == {UNSEEN}
    assert iou.loc["ASAM", "train_dataset"] == "+".join(SETS)
    claims = build_claims(records, "smoke", "nano").set_index("id")
    drop = iou.loc[asam.RECONSTRUCTED, "mean"] - iou.loc[asam.ADVERSARIAL, "mean"]
    assert claims.loc["A4a", "effect"] == pytest.approx(drop, abs=1e-5)
    ssim = made["mean"]
    assert claims.loc["A4b", "effect"] == pytest.approx(ssim[asam.FEW] - ssim[asam.WITHOUT], abs=1e-5)


def test_every_claim_reads_its_rows_on_unseen_sets_alone(asam_profile: Profile) -> None:
    """From made-up records: with boxes the nano SAM has the IoU of `levels` on unseen sets, and 0 on those tuned on."""
    both = asam_profile.evaluation.model_copy(update={"prompts": ("box", "point10")})
    asam_profile = asam_profile.model_copy(update={"evaluation": both})
    levels = {"zero_shot": 0.5, "clean_tuning": 0.55, "classical_augmentation": 0.56, "pgd": 0.3, "dat": 0.2,
              "generated": 0.4, "reconstructed": 0.52, "asam": 0.6}  # fmt: skip
    parts = {"decoder": 0.75, "mask_tokens": 0.1, "iou_token": 0.15}

    def level(cell: EvaluationCell) -> float:
        if cell.generated:
            return 0.3 if cell.generated.method == "attack" else 0.45
        if cell.dataset != UNSEEN:
            return 0.0
        if cell.prompt == "point10":
            return levels[cell.method] / 4
        if cell.backbone == "nano_mobile":
            return levels[cell.method] / 2
        hyper = dict(cell.training.hyper) if cell.training else {}
        few = cell.training is not None and cell.training.generated and cell.training.generated.pictures == 2
        return parts.get(hyper.get("tuned"), 0.05 if few else levels[cell.method])

    def made_up(cell: Cell) -> Record:
        values = {"iou": level(cell)} if isinstance(cell, EvaluationCell) else {"ssim": 0.9}
        if isinstance(cell, GenerationCell) and not dict(cell.inversion.options).get("controlnet", True):
            values = {"ssim": 0.7}
        objects = pd.DataFrame([{"image": f"{n:02d}", "output": "final"} | values for n in range(12)])
        return Record(cell.key(), cell.kind, plain_cell(cell), cell.tables, objects)

    with only_planned() as cells:
        run_main(asam_profile, [UNSEEN, SETS[0]], [0])
        run_ablations(asam_profile, [UNSEEN, SETS[0]], [0])
    records = [made_up(cell) for cell in cells]
    ours = [claim for claim in CLAIMS if claim.paper == "asam"]
    claims = build_claims(records, "smoke", "nano", ours).set_index("id")
    effects = {"A1": 0.1, "A2a": 0.3, "A2b": 0.4, "A2c": 0.2, "A2d": 0.3, "A3": 0.2, "A4a": 0.15, "A4b": 0.2,
               "A5": -0.15, "A6a": 0.05, "A6b": 0.15, "A7a": 0.05, "A7b": 0.08,
               "A8a": 0.025, "A8b": 0.0125}  # fmt: skip
    assert claims["effect"].round(6).to_dict() == effects  # one row each: one unseen set
    assert set(claims["dataset"]) == {UNSEEN, "+".join(SETS)}
    assert claims.loc["A5", "verdict"] == "not reproduced" and claims.loc["A6b", "verdict"] == "reproduced"
    assert not claims.loc["A6a", "command"].endswith("-p profile paper")
    main = build_tables(one for one in records if one.variants(MAIN))[MAIN]
    assert set(zip(main["variant"], main["dataset"], strict=True)) == {("", UNSEEN), (SEEN, SETS[0])}
