"""Pictures made from pictures, each a file: what inversion, attack and sampling leave, and what it cost.

Options, by what is made:
    inversion: `recipe`, `guidance`, `steps` and `rounds` of `inversion.invert`, `controlnet` (False: off), `captions`
        (see `captions.captions_of`). The recipe "autoencoder" goes through the autoencoder alone: an attack that
        starts from it perturbs z_0 itself, without diffusion (as DAT does).
    attack: the fields of `AttackConfig`.
    before, change: none.
    random: none; every latent value moves by +eps or -eps at random, once. It is not like the attack, which keeps the
        worst of its images and moves most values less than eps.
    sample: as inversion, without `recipe` and `rounds`; `guided_masks` of `Denoising`.
"""

import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from samtune.common.atomic import write_atomically
from samtune.common.errors import InputError, unknown
from samtune.data.generated import BEFORE, picture_name
from samtune.data.pixels import read_image
from samtune.data.sample import Sample
from samtune.diffusion.attack import AttackConfig, Victim, attack, normalised, per_picture
from samtune.diffusion.captions import captions_of
from samtune.diffusion.conditions import MOST_MASKS, MOST_OBJECTS
from samtune.diffusion.inversion import GUIDANCE, STEPS, Denoising, denoise, invert
from samtune.diffusion.pipeline import LatentDiffusion
from samtune.losses import at_size, low_resolution_iou
from samtune.metrics import psnr, ssim
from samtune.prompts import Prompts, make_prompts, object_generator
from samtune.sam.checkpoints import save_safetensors
from samtune.sam.preprocess import Preprocess

AUTOENCODER = "autoencoder"
# `captions_hash` is of a file of captions: other captions are another cell.
OPTIONS: dict[str, tuple[str, ...]] = {
    "inversion": ("recipe", "guidance", "steps", "rounds", "controlnet", "captions", "captions_hash"),
    "attack": tuple(field.name for field in fields(AttackConfig)),
    "random": (),
    "before": (),
    "change": (),
    "sample": ("guidance", "steps", "guided_masks", "controlnet", "captions", "captions_hash"),
}


@dataclass(frozen=True)
class Made:
    """One picture: uint8 `(S, S, 3)`, what else is kept of it, and numbers by output ("final", "before" ...); of an
    attack also `before`, the picture that it starts from."""

    image: np.ndarray
    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Mapping[str, float]]
    before: np.ndarray | None = None


@dataclass(frozen=True)
class Scene:
    """B samples as the models take them: `images` float32 `(B, 3, S, S)` in [0, 1], mask images `condition`
    `(B, 3, S, S)` or None, the captions, and these embedded, `text` `(B, T, C)`; T is 0 where nothing is denoised."""

    samples: Sequence[Sample]
    images: Tensor
    text: Tensor
    condition: Tensor | None
    captions: Sequence[str]


def check_options(method: str, options: Mapping[str, object]) -> None:
    """Raises `InputError` for a method or option that there is not."""
    if method not in OPTIONS:
        raise unknown("way to generate", method, OPTIONS)
    for name in options:
        if name not in OPTIONS[method]:
            raise unknown(f"option of {method}", name, OPTIONS[method])


def scene(
    model: LatentDiffusion,
    samples: Sequence[Sample],
    options: Mapping[str, object],
    device: str,
    captions: Sequence[str] | None = None,
    denoised: bool = True,
) -> Scene:
    """Pictures stretched to the model's square, captions and mask images; `options` of the inversion or sample.

    `captions`: those of the inversion that is started from, see `stored_captions`; None: as the options say. They are
    embedded, and mask images drawn, where the pictures will be `denoised`, which the recipe "autoencoder" never does.
    Raises `InputError` when the options then ask for a ControlNet and the model has none.
    """
    size = model.image_size
    pictures = [Preprocess(size, "stretch").resized(sample.image) for sample in samples]
    if captions is None:
        captions = captions_of(samples, str(options.get("captions", "classes")), device)
    denoised = denoised and options.get("recipe") != AUTOENCODER
    text = model.embed(captions) if denoised else torch.empty(len(samples), 0, 0)
    condition = None
    if denoised and options.get("controlnet", True):
        if model.controlnet is None:
            raise InputError("the diffusion model has no mask ControlNet: name one, or set controlnet=False")
        condition = _float([model.mask_image(sample.masks[:MOST_OBJECTS], size) for sample in samples]).to(device)
    return Scene(samples, _float(pictures).to(device), text, condition, captions)


def inverted(model: LatentDiffusion, given: Scene, options: Mapping[str, object]) -> list[Made]:
    """The reconstruction of each picture, and what an attack starts from: noise latents, embeddings or offsets."""
    cost = Cost(model, len(given.samples))
    chosen = {name: options[name] for name in ("recipe", "guidance", "steps", "rounds") if name in options}
    start = model.encode(given.images)
    with torch.no_grad():
        yardstick = model.decode(start)
        if chosen.get("recipe") == AUTOENCODER:
            latents, plan = start, Denoising(given.text, steps=0)
        else:
            empty = model.embed([""] * len(given.samples))
            with torch.enable_grad():
                latents, plan = invert(model, start, given.text, empty, given.condition, **chosen)
        inversion = cost.so_far()
        decoded = model.decode(denoise(model, latents, plan))
    made = []
    for number, image in enumerate(_bytes(decoded)):
        tensors = {"latents": latents[number]}
        if options.get("recipe", "null_text") == "null_text":
            tensors["unconditional"] = plan.unconditional[:, number]
        if plan.offsets is not None:
            tensors["offsets"] = plan.offsets[:, number]
        original = _bytes(given.images[number : number + 1])[0]
        numbers = {
            AUTOENCODER: alike(_bytes(yardstick[number : number + 1])[0], original),
            "final": alike(image, original) | inversion,
        }
        made.append(Made(image, tensors, numbers))
    return made


def attacked(
    model: LatentDiffusion,
    victim: Victim,
    given: Scene,
    stored: Sequence[tuple[Mapping[str, Tensor], Mapping[str, Mapping[str, float]]]],
    inversion: Mapping[str, object],
    method: str,
    options: Mapping[str, object],
    prompt: str,
    seed: int,
) -> list[Made]:
    """The adversarial picture of each, by "attack"; or one of random noise in the latents, by "random".

    `stored`: tensors and numbers of each picture's inversion, whose `inversion` options were those. Output "before" is
    the reconstruction, "final" what was made; what "final" cost holds the inversion's cost too. Raises `InputError`
    where a picture's loss is not finite.
    """
    device = given.images.device
    cost = Cost(model, len(given.samples))
    latents = torch.stack([tensors["latents"] for tensors, _ in stored]).to(device)
    plan = _plan(model, given, [tensors for tensors, _ in stored], inversion)
    prompts, masks = _prompts(victim, given, prompt, seed)
    if method == "attack":
        try:
            result = attack(model, victim, latents, plan, given.images, prompts, masks, AttackConfig(**options))
        except FloatingPointError as error:  # as it is, a search would take it for too large a learning rate
            raise InputError(f"{error} ({', '.join(sample.id for sample in given.samples)}): leave it out") from error
        first, worst, found = result.first, result.worst, result.latents
        before, after = result.iou[0], result.iou.amin(0)
    else:
        noise = _drawn(given.samples, latents, seed).sign() * AttackConfig.eps
        found = latents + noise
        with torch.no_grad():
            first, worst = (model.decode(denoise(model, z, plan)).clamp(0, 1) for z in (latents, found))
            before, after = (victim_iou(victim, images, prompts, masks) for images in (first, worst))
    spent = cost.so_far()
    made = []
    for number, (image, reconstruction) in enumerate(zip(_bytes(worst), _bytes(first), strict=True)):
        original = _bytes(given.images[number : number + 1])[0]
        low, high = float(after[number]), float(before[number])
        earlier = stored[number][1]["final"]
        numbers = {
            "before": alike(reconstruction, original) | {"iou": high},
            "final": alike(image, original)
            | {"iou": low, "iou_drop": high - low}
            | {name: spent[name] + earlier[name] for name in spent},
        }
        made.append(Made(image, {"latents": found[number]}, numbers, reconstruction))
    return made


def before_attack(given: Scene, adversarial: Path) -> list[Made]:
    """The pictures from which the attack in the folder `adversarial` started, as it decoded them: nothing is computed.

    They are the inversion's own reconstructions where both have one ControlNet. Raises `InputError` where one is not
    there.
    """
    free = {"evaluations": 0.0, "seconds": 0.0}
    return [
        Made(_read(adversarial, sample, BEFORE), {}, {"final": _numbers(adversarial, sample)["before"] | free})
        for sample in given.samples
    ]


def changed(victim: Victim, given: Scene, adversarial: Path, prompt: str, seed: int) -> list[Made]:
    """What an attack changed in each picture, added to the original at its own size: without the autoencoder's losses.

    `adversarial`: the attack's folder, with the pictures before and after it, squares uint8 `(S, S, 3)`. Output
    "before" is the original; "final" what was made, uint8 `(H, W, 3)` as the original, at the attack's cost. Raises
    `InputError` where a picture is not there.
    """
    prompts, masks = _prompts(victim, given, prompt, seed)
    images = []
    for sample in given.samples:
        before, after = (_read(adversarial, sample, suffix) for suffix in (BEFORE, ".png"))
        height, width = sample.image.shape[:2]
        change = cv2.resize(after.astype(np.float32) - before, (width, height), interpolation=cv2.INTER_LINEAR)
        images.append((sample.image + change).clip(0, 255).round().astype(np.uint8))

    def iou(pictures: Sequence[np.ndarray]) -> Tensor:
        square = Preprocess(victim.image_size, "stretch")
        squares = _float([square.resized(picture) for picture in pictures])
        return victim_iou(victim, squares.to(given.images.device), prompts, masks)

    highs, lows = iou([sample.image for sample in given.samples]), iou(images)
    made = []
    for sample, image, high, low in zip(given.samples, images, highs.tolist(), lows.tolist(), strict=True):
        spent = _numbers(adversarial, sample)["final"]
        final = alike(image, sample.image) | {"iou": low, "iou_drop": high - low}
        final |= {name: spent[name] for name in ("evaluations", "seconds")}
        made.append(Made(image, {}, {"before": {"iou": high}, "final": final}))
    return made


def sampled(model: LatentDiffusion, given: Scene, options: Mapping[str, object], seed: int) -> list[Made]:
    """Pictures from noise with the captions and mask images of the samples."""
    cost = Cost(model, len(given.samples))
    side = model.unet.config.sample_size
    like = torch.zeros(len(given.samples), model.unet.config.in_channels, side, side, device=given.images.device)
    latents = _drawn(given.samples, like, seed)
    steps, guidance = int(options.get("steps", STEPS)), float(options.get("guidance", GUIDANCE))
    empty = model.embed([""] * len(given.samples)).expand(steps, -1, -1, -1)
    guided_masks = bool(options.get("guided_masks", False))
    plan = Denoising(given.text, given.condition, empty, guidance, steps=steps, guided_masks=guided_masks)
    with torch.no_grad():
        images = _bytes(model.decode(denoise(model, latents, plan)))
    spent = cost.so_far()
    return [Made(image, {}, {"final": spent}) for image in images]


def write_picture(folder: Path, sample: Sample, caption: str, made: Made) -> None:
    """Its files in the folder of a generated set; the JSON, written last, says that all are there."""
    name = _name(sample)
    if made.tensors:
        save_safetensors(dict(made.tensors), folder / f"{name}.safetensors", torch.float32, {"id": sample.id})
    for suffix, image in ((BEFORE, made.before), (".png", made.image)):
        if image is not None:
            png = io.BytesIO()
            Image.fromarray(image).save(png, "png")
            write_atomically(folder / f"{name}{suffix}", png.getvalue())
    facts = {
        "dataset": sample.dataset, "id": sample.id, "split": sample.split, "group": sample.group, "caption": caption,
        "numbers": {output: dict(values) for output, values in made.numbers.items()},
    }  # fmt: skip
    write_atomically(folder / f"{name}.json", json.dumps(facts, sort_keys=True).encode())


def read_inversion(folder: Path, sample: Sample) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
    """Tensors and numbers that the inversion of a picture left in `folder`. Raises `InputError` without the tensors:
    they are too large to come back from a graphics card."""
    latents = folder / f"{_name(sample)}.safetensors"
    if not latents.is_file():
        raise InputError(
            f"{latents} is missing, though its picture is there: remove {folder} and its record, and the inversion is "
            "run again"
        )
    return load_file(latents), _numbers(folder, sample)


class Cost:
    """Network evaluations (U-Net, with the ControlNet where it is on) and seconds, a picture, since it was made.

    A backward pass does not count, but what it computes a second time does (`AttackConfig.last_steps`)."""

    def __init__(self, model: LatentDiffusion, pictures: int) -> None:
        self.model, self.pictures = model, pictures
        self.evaluations, self.started = model.evaluations, time.perf_counter()

    def so_far(self) -> dict[str, float]:
        """{"evaluations", "seconds"}."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds, evaluations = time.perf_counter() - self.started, self.model.evaluations - self.evaluations
        return {"evaluations": evaluations / self.pictures, "seconds": seconds / self.pictures}


def alike(image: np.ndarray, original: np.ndarray) -> dict[str, float]:
    """PSNR in dB and SSIM of a picture, uint8 `(S, S, 3)`, with the original at that size."""
    return {"psnr": psnr(image, original), "ssim": ssim(image, original)}


@torch.no_grad()
def victim_iou(victim: Victim, images: Tensor, prompts: Prompts, masks: Tensor) -> Tensor:
    """Mean IoU, `(B,)`, of the victim's masks on images `(B, 3, S, S)` in [0, 1], as `attack` measures it."""
    logits = victim.decode(victim.encode(normalised(images, victim.image_size)), prompts)["final"]
    return per_picture(low_resolution_iou(logits, at_size(masks, logits))[:, 0], prompts.image_index, len(images))


def _name(sample: Sample) -> str:
    """The name of a picture's files, without suffix."""
    return picture_name(sample.dataset, sample.id)


def _read(folder: Path, sample: Sample, suffix: str) -> np.ndarray:
    """A picture of a generated set, uint8 `(S, S, 3)`. Raises `InputError` where it is not there."""
    return read_image(folder / f"{_name(sample)}{suffix}")


def _numbers(folder: Path, sample: Sample) -> dict[str, dict[str, float]]:
    """What was kept with a picture: numbers by output."""
    return json.loads((folder / f"{_name(sample)}.json").read_text())["numbers"]


def _plan(
    model: LatentDiffusion, given: Scene, stored: Sequence[Mapping[str, Tensor]], inversion: Mapping[str, object]
) -> Denoising:
    """The denoising that leads back from stored noise latents."""
    recipe = inversion.get("recipe", "null_text")
    steps, guidance = int(inversion.get("steps", STEPS)), float(inversion.get("guidance", GUIDANCE))
    if recipe == AUTOENCODER:
        return Denoising(given.text, steps=0)
    plan = Denoising(given.text, given.condition, None, guidance, steps=steps)
    device = given.images.device

    def stacked(name: str) -> Tensor:
        return torch.stack([tensors[name] for tensors in stored], 1).to(device)

    if recipe == "null_text":
        return replace(plan, unconditional=stacked("unconditional"))
    if recipe != "negative_prompt":
        plan = replace(plan, unconditional=model.embed([""] * len(stored)).expand(steps, -1, -1, -1))
    return replace(plan, offsets=stacked("offsets")) if recipe == "direct" else plan


def _prompts(victim: Victim, given: Scene, kind: str, seed: int) -> tuple[Prompts, Tensor]:
    """A prompt for each mask in the victim's pixels, and the masks stretched to its square, `(P, 1, V, V)`."""
    size, prompts, masks = victim.image_size, [], []
    for number, sample in enumerate(given.samples):
        kept = sample.masks[:MOST_MASKS]
        made = make_prompts(kind, kept, f"{sample.dataset}/{sample.id}", seed)
        height, width = kept.shape[1:]
        prompts.append(made.scaled(size / width, size / height).at_image(number))
        whole = torch.from_numpy(kept[:, None].astype(np.float32))
        masks.append(F.interpolate(whole, (size, size), mode="area"))
    device = given.images.device
    return Prompts.concatenate(prompts).to(device), torch.cat(masks).to(device)


def _drawn(samples: Sequence[Sample], like: Tensor, seed: int) -> Tensor:
    """Normal noise of each sample's own, whatever batch it is in."""
    drawn = [
        object_generator(seed, f"{sample.dataset}/{sample.id}", "noise", 0).standard_normal(like.shape[1:])
        for sample in samples
    ]
    return torch.from_numpy(np.stack(drawn)).to(like)


def _float(pictures: Sequence[np.ndarray]) -> Tensor:
    """uint8 `(S, S, 3)` each -> float32 `(B, 3, S, S)` in [0, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def _bytes(images: Tensor) -> list[np.ndarray]:
    """Images `(B, 3, S, S)` around [0, 1] -> uint8 `(S, S, 3)` each."""
    whole = (images.detach().clamp(0, 1) * 255).round().byte()
    return list(whole.permute(0, 2, 3, 1).cpu().numpy())
