"""What ASAM's pictures cost on this machine: network evaluations a second of an inversion and of an attack.

As in the bench random weights cost what real ones do: where Stable Diffusion 1.5 is not here, a model of its sizes is
timed in its place.
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from samtune.common import provenance
from samtune.common.devices import usable_device
from samtune.common.errors import is_out_of_memory
from samtune.common.paths import results_root
from samtune.diffusion.attack import AttackConfig, attack
from samtune.diffusion.inversion import Denoising, invert
from samtune.diffusion.pipeline import STABLE_DIFFUSION, LatentDiffusion, find_source, load_diffusion, new_diffusion
from samtune.methods import build_method
from samtune.prompts import Prompts
from samtune.sam.build import new_sam
from samtune.study.bench import EVALUATE, SHARES, run_step
from samtune.study.cells import Cell, TimingCell
from samtune.study.profile import Profile
from samtune.study.records import Record
from samtune.study.runner import Result, missing_cells, run_cells

CAPTION = 77  # tokens
CALLS, NULL_TEXT_CALLS = 3, 20  # at most about so many guided network calls a step of denoising


def run_generation_bench(
    profile: Profile, minutes: float, device: str = "auto", say: Callable[[str], None] = print
) -> list[Record]:
    """Time the profile's inversion and one update of its attack on `generation.batch` random pictures, in fp32.

    `images_per_second` of these records are network evaluations, each of one picture. What has a record is read; what
    would not end in `minutes` has none, nor where the profile's diffusion model is not here or its backbone is a file.
    """
    device, asked, folder = usable_device(device), profile.generation, results_root(profile.name)
    if profile.backbone not in SHARES:
        return []
    end = time.perf_counter() + 60 * minutes
    name, diffusion = provenance.device_name(device), profile.diffusion
    cells = [
        TimingCell(what, profile.backbone, EVALUATE, asked.batch, "fp32", False, name, ("speed",), diffusion)
        for what in ("inversion", "attack")
    ]
    steps: dict[str, Callable[[], object]] = {}
    if missing := missing_cells(cells, folder):
        model = _model(profile)
        if model is None:
            say(f"ASAM's pictures are not timed: {diffusion} is not here")
            return []
        steps = _steps(model.to(device), profile, device)
        seconds = min(run_step(steps["guided call"], device)[0] for _ in range(2))
        for cell in missing:
            null_text = cell.method == "inversion" and asked.recipe == "null_text"
            expected = seconds * asked.steps * (NULL_TEXT_CALLS if null_text else CALLS)
            if time.perf_counter() + expected > end:
                say(f"{cell.describe()}: not timed, it would take {expected:.0f} s")
                cells.remove(cell)

    def execute(cell: Cell, _: Path) -> Result:
        before = model.evaluations
        try:
            taken, memory = run_step(steps[cell.method], device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return Result(precision="fp32", seconds=0.0, extras=_extras(0.0, None))
        return Result(precision="fp32", seconds=taken, extras=_extras((model.evaluations - before) / taken, memory))

    return run_cells(cells, folder, execute, say=lambda line: None)


def _extras(speed: float, memory: float | None) -> dict[str, float | None]:
    return {"images_per_second": speed, "peak_memory_mb": memory, "trainable_parameters": 0}


def _model(profile: Profile) -> LatentDiffusion | None:
    """The profile's diffusion model if it is here, else one of Stable Diffusion's sizes where it names that."""
    places = [find_source(name) for name in (profile.diffusion, profile.controlnet)]
    if all(isinstance(place, Path) for place in places):
        return load_diffusion(profile.diffusion, None if places[0] == places[1] else profile.controlnet)
    return new_diffusion() if profile.diffusion == STABLE_DIFFUSION else None


def _steps(model: LatentDiffusion, profile: Profile, device: str) -> dict[str, Callable[[], object]]:
    """One guided network call, one inversion, one update of an attack: of random pictures with a box each."""
    asked, side = profile.generation, model.unet.config.sample_size
    torch.manual_seed(0)
    images = torch.rand(asked.batch, 3, model.image_size, model.image_size, device=device)
    latents = torch.randn(asked.batch, model.unet.config.in_channels, side, side, device=device)
    text = torch.randn(asked.batch, CAPTION, model.unet.config.cross_attention_dim, device=device)
    plan = Denoising(text, images, text.expand(asked.steps, -1, -1, -1), steps=asked.steps)
    victim = build_method("zero_shot", new_sam(profile.backbone)).to(device).eval()
    size = victim.image_size
    boxes = torch.tensor([[0.2, 0.2, 0.7, 0.7]]).repeat(asked.batch, 1) * size
    prompts = Prompts(torch.arange(asked.batch), boxes).to(device)
    masks = torch.zeros(asked.batch, 1, size, size, device=device)
    masks[:, :, size // 5 : size * 7 // 10, size // 5 : size * 7 // 10] = 1

    def guided_call() -> object:
        with torch.no_grad():
            twice = [torch.cat([one, one]) for one in (latents, text, images)]
            return model.noise(twice[0], torch.tensor(500), *twice[1:])

    return {
        "guided call": guided_call,
        "inversion": lambda: invert(model, latents, text, text, images, asked.recipe, steps=asked.steps),
        "attack": lambda: attack(model, victim, latents, plan, images, prompts, masks, AttackConfig(steps=1)),
    }
