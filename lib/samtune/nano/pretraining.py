"""Pre-training of the nano SAM from scratch on a CPU: without classes, with every kind of prompt, as SAM was trained.

1. `warm_up_prompts`: prompt encoder and mask decoder alone learn what a prompt means, on noise instead of images.
2. `pretrain`: the whole model, first on small images, then on the nano SAM's 256 pixels.

All random numbers depend only on (seed, step), so that a run that is killed and resumed ends with the same weights.
"""

import copy
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, distributed, nn
from tqdm.auto import tqdm

from samtune.common.errors import InputError
from samtune.data.registry import open_dataset
from samtune.evaluation import EvaluationConfig, evaluate, predict_with
from samtune.methods.zero_shot import ZeroShot
from samtune.nano.losses import picture_loss, warm_up_prompts
from samtune.nano.optimisers import average_gradients, optimisers, rank_and_processes
from samtune.nano.scenes import Picture, picture_bank, training_scene
from samtune.prompts import jitter_boxes, tight_boxes
from samtune.sam.build import Sam, initialise_nano, new_sam, set_image_size
from samtune.sam.checkpoints import read_progress, save_torch
from samtune.study.profile import Profile, Stage

PARTS = ("image_size", "sam", "average", "optimisers", "state")  # of checkpoint.pt


@dataclass(frozen=True)
class Recipe:
    """The whole recipe.

    Fields:
        stages: one after another.
        warm_up_steps: of the prompt encoder and mask decoder alone.
        sets: data sets to train on.
        pictures: the first ones of each set; 0: all.
        seed: of all random numbers.
        objects: the most taken from an image.
        weight_decay: of the transformers' matrices.
        average: decay of the averaged weights.
        checkpoint_every: steps between two checkpoints.
        validate_every: steps between two validations.
    """

    stages: tuple[Stage, ...]
    warm_up_steps: int = 1200
    sets: tuple[str, ...] = ("bsds500", "ccp", "car-parts")
    pictures: int = 0
    seed: int = 0
    objects: int = 8
    weight_decay: float = 0.05
    average: float = 0.998
    checkpoint_every: int = 200
    validate_every: int = 1500

    def plain(self) -> dict:
        """The recipe as plain data."""
        return vars(self) | {"stages": [stage.model_dump() for stage in self.stages]}


class Scenes:
    """The training images of a stage, by index. Each depends only on (seed, stage, index)."""

    def __init__(self, bank: Sequence[Picture], size: int, objects: int, seed: tuple[int, ...]) -> None:
        self.bank, self.size, self.objects, self.seed = bank, size, objects, seed

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """{"image" uint8 `(3, S, S)`, "masks" bool `(K, S, S)`, "boxes" `(K, 4)`, "clicks" `(K, 1, 2)`, "main" bool `(0
        or 1, S, S)`}.
        """
        cv2.setNumThreads(1)
        rng = np.random.default_rng([*self.seed, index])
        image, masks, main = training_scene(self.bank, self.size, rng)
        masks = masks[rng.permutation(len(masks))[: self.objects]]
        boxes = tight_boxes(masks)
        jittered = jitter_boxes(boxes, masks.shape[1:], 0.15, [rng] * len(boxes))
        boxes = np.where(rng.random((len(boxes), 1)) < 0.25, jittered, boxes).astype(np.float32)
        clicks = np.stack([rng.permutation(np.argwhere(mask))[0, ::-1] for mask in masks]).astype(np.float32)
        main_masks = np.zeros((0, self.size, self.size), bool) if main is None else main[None]
        return {
            "image": torch.from_numpy(image).permute(2, 0, 1),
            "masks": torch.from_numpy(masks),
            "boxes": torch.from_numpy(boxes),
            "clicks": torch.from_numpy(clicks)[:, None],
            "main": torch.from_numpy(main_masks),
        }


def pretrain(config: Recipe, bank: Sequence[Picture], folder: Path, validate=None, progress: bool = True) -> dict:
    """Train a nano SAM.

    Under `torchrun` each process takes a share of every batch, and gradients are averaged. On a CPU, one process for
    each core is almost twice as fast as one process with two threads.

    Args:
        config: the recipe.
        bank: the images to train on.
        folder: training resumes from its `checkpoint.pt`, if there is one.
        validate: (sam) -> dict; called every `validate_every` steps with the averaged weights.
        progress: show progress bars.

    Returns {"sam", "average", "curve", "validation", "seconds", ...}. Raises `FloatingPointError` when the loss is
    infinite or not a number.
    """
    rank, processes = rank_and_processes()
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    torch.manual_seed(config.seed)
    sam = initialise_nano(new_sam("nano"), torch.Generator().manual_seed(config.seed)).train()
    state = {"stage": 0, "step": 0, "curve": [], "validation": [], "seconds": 0.0, "pictures": 0}
    optimiser_states = None
    if checkpoint.is_file():
        saved = read_progress(checkpoint, PARTS)
        state, optimiser_states = saved["state"], saved["optimisers"]
        set_image_size(sam, saved["image_size"])
        average = copy.deepcopy(sam)
        sam.load_state_dict(saved["sam"])
        average.load_state_dict(saved["average"])
    else:
        set_image_size(sam, config.stages[0].image_size)
        started = time.time()
        state["warm_up"] = warm_up_prompts(sam, config.warm_up_steps, config.seed, progress=progress and rank == 0)
        state["seconds"] = time.time() - started
        average = copy.deepcopy(sam)
        if rank == 0:
            save_checkpoint(checkpoint, sam, average, [], state)

    while state["stage"] < len(config.stages):
        number, stage = state["stage"], config.stages[state["stage"]]
        if sam.image_size != stage.image_size:
            optimiser_states = None  # positions change shape, and with them their moments
            for model in (sam, average):
                set_image_size(model, stage.image_size)
        optimiser_list = optimisers(sam, config.weight_decay)
        for optimiser, saved_state in zip(optimiser_list, optimiser_states or [], strict=False):
            optimiser.load_state_dict(saved_state)
        parameters = list(sam.parameters())
        share = stage.batch // processes
        scenes = Scenes(bank, stage.image_size, config.objects, (config.seed, number))
        bar = tqdm(
            range(state["step"], stage.steps),
            desc=f"stage {number + 1} at {stage.image_size} px",
            initial=state["step"],
            total=stage.steps,
            disable=not progress or rank > 0,
            mininterval=5,
        )
        for step in bar:
            started = time.time()
            rate = stage.learning_rate * min(1.0, (step + 1) / 200) * (1 - step / stage.steps if stage.decay else 1.0)
            for group in itertools.chain.from_iterable(optimiser.param_groups for optimiser in optimiser_list):
                group["lr"] = rate * group["scale"]
            first = step * stage.batch + rank * share
            batch = [scenes[index] for index in range(first, first + share)]
            generator = torch.Generator().manual_seed(((config.seed * 16 + number) * 10**7 + step) * 8 + rank)
            loss, scores = picture_loss(sam, batch, generator)
            for parameter in parameters:
                parameter.grad = None
            loss.backward()
            if processes > 1:
                average_gradients(parameters, processes)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"loss is {loss.item()} at step {step} of stage {number + 1}")
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimiser in optimiser_list:
                optimiser.step()
            decay = min(config.average, (10 + step) / (100 + step)) if number == 0 else config.average
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), parameters, 1 - decay)

            state["step"] = step + 1
            state["pictures"] += stage.batch
            state["seconds"] += time.time() - started
            state["curve"].append({"stage": number, "step": step, "loss": round(loss.item(), 4), **scores})
            recent = [row["box"] for row in state["curve"][-50:] if "box" in row]
            bar.set_postfix(loss=f"{loss.item():.3f}", box=f"{np.mean(recent or [0]):.3f}")
            if rank == 0 and validate and (step + 1) % config.validate_every == 0:
                state["validation"].append({"pictures": state["pictures"], **validate(copy.deepcopy(average).eval())})
                (folder / "validation.json").write_text(json.dumps(state["validation"], indent=1))
            if rank == 0 and (step + 1) % config.checkpoint_every == 0:
                save_checkpoint(checkpoint, sam, average, optimiser_list, state)
        state["stage"], state["step"] = number + 1, 0
        optimiser_states = [optimiser.state_dict() for optimiser in optimiser_list]
        if rank == 0:
            save_checkpoint(checkpoint, sam, average, optimiser_list, state)
    return {"sam": sam, "average": average.eval(), "config": config.plain(), **state}


def save_checkpoint(path: Path, sam: Sam, average: Sam, optimiser_list: list, state: dict) -> None:
    """Write all that a run needs to resume."""
    everything = {
        "image_size": sam.image_size,
        "sam": sam.state_dict(),
        "average": average.state_dict(),
        "optimisers": [optimiser.state_dict() for optimiser in optimiser_list],
        "state": state,
    }
    save_torch(everything, path)


def box_and_click_iou(sam: Sam, limit: int = 40) -> dict[str, float]:
    """Validation: mean IoU at original resolution, over objects of at least 16 x 16 pixels, for each set. Freezes
    `sam`.

    It measures `limit` images each of bsds500 val, ccp val and car-parts val, padded as `SamPredictor` does: with the
    true box, and with one click and the best of three masks.
    """
    asked = EvaluationConfig(
        "val", "instances", preprocess="pad", metrics=("iou",), max_images=limit, min_side=16, mask_size=sam.mask_size
    )
    scores = {}
    for name in ("bsds500", "ccp", "car-parts"):
        known: dict[str, Tensor] = {}  # both kinds of prompt need a picture's embedding
        for kind, output in (("box", "final"), ("point1", "best_of_3")):
            config = replace(asked, prompt=kind, multimask=output == "best_of_3")
            ask = predict_with(ZeroShot(sam), config, known=known)
            rows, _ = evaluate(ask, open_dataset(name), config, progress=False)
            scores[f"{name} {kind}"] = float(rows[rows["output"] == output]["iou"].mean())
    return scores


def plan(profile: Profile) -> Recipe:
    """A profile's recipe."""
    chosen = profile.pretraining
    return Recipe(chosen.stages, chosen.warm_up_steps, chosen.sets, chosen.pictures)


def run_processes(config: Recipe, folder: Path, processes: int) -> dict:
    """`pretrain` in separate processes (`torchrun`) with one thread each; returns what `folder/checkpoint.pt` then
    holds.

    The notebook's own process stays free. A killed run resumes when it is called again. Raises `InputError` when a
    process fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "pretraining.json"
    recipe.write_text(json.dumps(config.plain(), indent=1))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command += ["-m", "samtune.nano.pretraining", str(recipe), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if subprocess.run(command, env=environment).returncode != 0:
        raise InputError(f"pre-training failed, see the messages above; run again to go on from {folder}")
    return read_progress(folder / "checkpoint.pt", PARTS)


def main() -> None:
    """`torchrun --nproc-per-node 2 -m samtune.nano.pretraining CONFIG.json FOLDER`: what notebook 90 starts."""
    values = json.loads(Path(sys.argv[1]).read_text())
    config = Recipe(**values | {"stages": tuple(Stage(**stage) for stage in values["stages"])})
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    pretrain(config, picture_bank(config.sets, config.pictures or None), Path(sys.argv[2]), box_and_click_iou)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
