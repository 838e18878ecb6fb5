"""Which pictures a profile generates: ASAM's adversarial ones, inversions side by side, samples from noise."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from math import ceil

import pandas as pd

from samtune.common.errors import InputError, first_line
from samtune.common.paths import resolve
from samtune.diffusion.attack import AttackConfig
from samtune.diffusion.generation import AUTOENCODER
from samtune.diffusion.pipeline import load_diffusion
from samtune.sam.checkpoints import sha256, weights_hash
from samtune.study.cells import GenerationCell
from samtune.study.execute import executor
from samtune.study.plan import backbone_hash
from samtune.study.profile import Profile
from samtune.study.records import Record
from samtune.study.runner import run_cells

TABLE = "asam_inversion"
# The authors' recipe: null-text optimisation at guidance 7.5, 10 x 50 guided steps, the worst picture rendered again.
# Here the eleventh rendering is of one more update, so that it costs the same.
AUTHORS = "null-text"
INVERSIONS: dict[str, dict[str, object]] = {
    "DDIM": {"recipe": "ddim"},
    AUTHORS: {"recipe": "null_text"},
    "direct": {"recipe": "direct"},
    "negative-prompt": {"recipe": "negative_prompt"},
    "fixed-point, negative-prompt": {"recipe": "negative_prompt", "rounds": 3},
    "without diffusion": {"recipe": AUTOENCODER},  # the attack is then DAT's
}
HELD_OUT = "held out"  # pictures on which neither the nano diffusion model nor the nano SAM was trained
LEAN = "lean"  # no guidance, two fifths of the denoising steps
LEAN_SHARE = 0.4
# To compare costs at equal IoU drop: updates of twice the size within the same eps; 30% more of them; and less weight
# beta on the distance to the original, or none. Found on nine other pictures.
TUNED_ON = "the pictures tuned on"
LONGER, MORE = f"{LEAN}, longer updates", f"{LEAN}, more and longer updates"
LESS_BETA, NO_BETA = f"{MORE}, beta 0.25", f"{LONGER}, beta 0"


class GenerationPlan:
    """The generation cells of a profile. Making one reads the weights of both models, for their hashes.

    Raises `InputError` where the diffusion model, its ControlNet, the backbone or a file of captions is not here.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        attacks_with = profile.attack_controlnet or profile.controlnet
        self.models, self.attack_models = (
            _models(profile.diffusion, "" if one == profile.diffusion else one)
            for one in (profile.controlnet, attacks_with)
        )
        self.autoencoder = _models(profile.diffusion, "", AUTOENCODER)
        self.victim = {"backbone": profile.backbone, "weights_hash": backbone_hash(profile.backbone)}
        self.dataset = "+".join(profile.generation.sets)
        captions = profile.generation.captions
        self.captions = {} if captions == "classes" else {"captions": captions}
        if captions not in ("classes", "blip2"):
            if not resolve(captions).is_file():
                raise InputError(f"no file of captions at {resolve(captions)}")
            self.captions["captions_hash"] = sha256(resolve(captions))[:12]

    def inversion(self, pictures: int = 0, tables: Sequence[str] = (), **options: object) -> GenerationCell:
        """The profile's inversion, `options` changed, of so many pictures (0: all)."""
        asked = self.profile.generation
        options = {"recipe": asked.recipe, "steps": asked.steps} | self.captions | options
        models = self.models
        if options["recipe"] == AUTOENCODER:
            models, options = self.autoencoder, {"recipe": AUTOENCODER}
        return GenerationCell(
            "inversion", self.dataset, pictures or asked.pictures, **models, options=options, tables=tuple(tables)
        )

    def attack(
        self,
        inversion: GenerationCell,
        tables: Sequence[str] = (),
        prompt: str = "box",
        method: str = "attack",
        **options: object,
    ) -> GenerationCell:
        """The profile's attack from stored inversions; "random": noise at its bound."""
        if method == "attack":
            options = {"steps": self.profile.generation.attack_steps} | options
        models = self.autoencoder if ("recipe", AUTOENCODER) in inversion.options else self.attack_models
        return GenerationCell(
            method, self.dataset, inversion.pictures, **models, **self.victim, prompt=prompt,
            options=options, inversion=inversion, tables=tuple(tables),
        )  # fmt: skip

    def change(self, attack: GenerationCell) -> GenerationCell:
        """What the attack changed, added to the originals: without what the autoencoder loses."""
        return replace(attack, method="change", options={}, inversion=attack)

    def sample(self) -> GenerationCell:
        """Pictures from noise with the same masks and captions."""
        asked = self.profile.generation
        options = {"steps": asked.steps} | ({"guided_masks": True} if asked.guided_masks else {}) | self.captions
        return GenerationCell("sample", self.dataset, asked.pictures, **self.attack_models, options=options)


@cache
def _models(diffusion: str, controlnet: str, part: str = "") -> dict[str, str]:
    """The fields of a generation cell that name the diffusion model; `controlnet` "": its own; `part`: `AUTOENCODER`,
    where nothing else is used.
    """
    model = load_diffusion(diffusion, controlnet or None)
    if model.controlnet is None and not part:
        raise InputError(f"{diffusion} has no mask ControlNet: name one as the profile's controlnet")
    hashed = weights_hash(model.vae if part else model)
    if diffusion != "nano":  # whose weights tell all; in another's folder the schedule, say, may have been changed
        parts = [model.vae] if part else [model.vae, model.unet, model.scheduler, *filter(None, [model.controlnet])]
        settings = [{name: one.config[name] for name in one.config if not name.startswith("_")} for one in parts]
        hashed += hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]
    return {"diffusion": diffusion, "diffusion_hash": hashed, "controlnet": controlnet}


def adversarial_cells(profile: Profile) -> dict[str, GenerationCell]:
    """What tuning is done on, by name: "asam", "reconstructed", "generated" (from noise), "dat" (without diffusion)."""
    made, tables = GenerationPlan(profile), (f"{TABLE}:{TUNED_ON}",)
    attack = made.attack(made.inversion(tables=tables), tables=tables)
    return {
        "asam": attack,
        "reconstructed": attack.before(),
        "generated": made.sample(),
        "dat": made.attack(made.inversion(recipe=AUTOENCODER), tables=(f"{TABLE}:DAT, {TUNED_ON}",)),
    }


def inversion_cells(profile: Profile) -> list[GenerationCell]:
    """Table `asam_inversion`: by inversion, the reconstruction and the attack from it; random noise too. Three
    inversions also of validation pictures.
    """
    made, asked = GenerationPlan(profile), profile.generation
    steps, few = asked.compared_steps or asked.steps, asked.compared_pictures or asked.ablation_pictures
    lean = {"recipe": "negative_prompt", "steps": max(1, round(LEAN_SHARE * steps))}
    cells = []
    for name, options in (INVERSIONS | {LEAN: lean}).items():
        tables = (f"{TABLE}:{name}",)
        inversion = made.inversion(few, tables, **{"steps": steps} | options)
        cells += [inversion, made.attack(inversion, tables)]
        if name in ("DDIM", AUTHORS, "direct"):
            cells.append(replace(inversion, split="val", tables=(f"{TABLE}:{name}, {HELD_OUT}",)))
        if name == AUTHORS:
            cells.append(made.attack(inversion, tables, method="random"))
        if name == LEAN:
            longer = {"step_size": 2 * AttackConfig.step_size}
            more = longer | {"steps": ceil(1.3 * asked.attack_steps)}
            rows = {LONGER: longer, MORE: more, LESS_BETA: more | {"distance": 0.25}, NO_BETA: longer | {"distance": 0}}
            cells += [made.attack(inversion, (f"{TABLE}:{name}",), **options) for name, options in rows.items()]
    return cells


def run_generated(profile: Profile) -> list[Record]:
    """The records of `adversarial_cells` and `inversion_cells`; what has none is run. None where nothing can be
    generated here."""
    try:
        adversarial = adversarial_cells(profile)
        cells = [adversarial["asam"].inversion, *adversarial.values(), *inversion_cells(profile)]
    except InputError as error:
        print(f"not run: pictures of a diffusion model: {first_line(error)}")
        return []
    return run_cells(cells, profile.name, executor(profile))


def costs(table: pd.DataFrame) -> pd.DataFrame:
    """Of the long table `asam_inversion`: what an adversarial picture costs by way of inversion, against `AUTHORS`.

    A row a variant: psnr, iou_drop, evaluations, seconds (inversion and attack together), and how many times fewer
    evaluations and less time than the authors' way.
    """
    chosen = table[(table["method"] == "attack") & (table["output"] == "final")]
    chosen = chosen[~chosen["variant"].str.endswith(TUNED_ON)]  # other pictures
    wide = chosen.pivot_table(index="variant", columns="metric", values="mean", sort=False)
    wide = wide[["psnr", "iou_drop", "evaluations", "seconds"]]
    if AUTHORS in wide.index:
        for name in ("evaluations", "seconds"):
            wide[f"times fewer {name}"] = wide.loc[AUTHORS, name] / wide[name].where(wide[name] > 0)
    return wide
