"""SAM-SP: SAM prompts itself with its own last prediction (arXiv 2408.12364).

E the image encoder, P the prompt encoder, M the mask decoder, SP(y) the box around a predicted mask, y the true mask:

    y0 = M(E(x), P(none))                  (1) first pass, without a prompt
    y1 = M(E(x), P(SP(y0)))                (2) second pass, prompted by the first: the answer
    L  = Dice(y1, y) + alpha KL(y0, y1)    (3) the truth y teaches the second pass, which teaches the first

Below in the paper's order: self-prompting, LoRA, the loss with its self-distillation. We know the three equations from
a public reading note. The paper leaves open alpha, the temperature, whether the teacher is detached and which Dice loss
it is: they are options here. The KL's direction is open too: here it is KL(y1 || y0), the teacher first, as is usual.
"""

import zlib
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes

from samtune.common.errors import InputError, check_range, unknown
from samtune.losses import at_size, distillation_loss, distillation_squared_error
from samtune.methods.lora import LoraSamed
from samtune.prompts import BACKGROUND, FOREGROUND, PADDING, Prompts, large_parts
from samtune.sam.build import Sam
from samtune.sam.decode import decode_masks

SELF_PROMPTS = ("box", "mask", "points")
CONTROLS = ("random_box", "given")  # controls (ours): a random box, and the caller's prompts (the true box)
DISTILLATIONS = {
    "kl": distillation_loss,
    "mse": lambda student, teacher, _: distillation_squared_error(student, teacher),
}


def self_prompts(logits: Tensor, kind: str, image_size: int, smallest_part: float = 0.0) -> tuple[Prompts, Tensor]:
    """SP of Eq. (2): prompts in model pixels made from predictions, and which predictions are empty, bool `(P,)`.

    Args:
        logits: low-resolution predictions `(P, 1, h, w)`; foreground is above 0. They are detached.
        kind: "box" (the paper's: from the first to the last foreground column and row), "mask" (the logits themselves),
            "points" (the surest foreground pixel, and the surest background pixel inside the box), or several joined by
            "+".
        image_size: side of the model's square, pixels.
        smallest_part: connected parts below this share of the foreground are left out, unless all parts are.

    An empty prediction gets the box of the whole picture; the caller must not use what comes of it.
    """
    logits = logits.detach().float()
    foreground = logits[:, 0] > 0
    if smallest_part:
        kept = [large_parts(mask, smallest_part) for mask in foreground.cpu().numpy()]
        large = torch.from_numpy(np.stack(kept)).to(logits.device)
        foreground = torch.where(large.flatten(1).any(1)[:, None, None], large, foreground)
    empty = ~foreground.flatten(1).any(1)
    inside = foreground | empty[:, None, None]
    height, width = inside.shape[1:]
    boxes = masks_to_boxes(inside)  # xyxy, maxima inclusive
    stride = image_size / width
    prompts = Prompts(torch.zeros(len(logits), dtype=torch.int64, device=logits.device))
    parts = kind.split("+")
    if "points" in parts:
        y, x = torch.arange(height, device=logits.device)[:, None], torch.arange(width, device=logits.device)
        left, top, right, bottom = boxes[:, :, None, None].unbind(1)
        in_box = (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
        surest = logits[:, 0].masked_fill(~inside, -torch.inf).flatten(1).argmax(1)
        outside = in_box & ~foreground
        least = logits[:, 0].masked_fill(~outside, torch.inf).flatten(1).argmin(1)
        index = torch.stack([surest, least], 1)
        points = (torch.stack([index % width, index // width], -1) + 0.5) * stride - 0.5
        labels = torch.tensor([[FOREGROUND, BACKGROUND]], device=logits.device).repeat(len(logits), 1)
        labels[:, 1] = torch.where(outside.flatten(1).any(1), labels[:, 1], PADDING)  # where the box is full
        prompts = prompts.with_points(points, labels)
    if "mask" in parts:
        prompts = prompts.with_masks(logits)
    if "box" in parts:
        prompts = replace(prompts, boxes=torch.cat([boxes[:, :2] * stride, (boxes[:, 2:] + 1) * stride - 1], 1))
    return prompts, empty


def random_boxes(logits: Tensor, image_size: int) -> Tensor:
    """A random box in model pixels for each prediction `(P, 1, h, w)`: float32 `(P, 4)`; sides from 0.1 to 1 of the
    picture's.

    The random numbers are seeded by the thresholded prediction: the same prediction gets the same box in any order or
    batch.
    """
    boxes = []
    for one in (logits > 0).cpu():
        generator = torch.Generator().manual_seed(zlib.crc32(one.numpy().tobytes()))
        sides = (0.1 + 0.9 * torch.rand(2, generator=generator)) * image_size
        first = torch.rand(2, generator=generator) * (image_size - sides)
        boxes.append(torch.cat([first, first + sides - 1]))
    return torch.stack(boxes).float().to(logits.device)


class SamSP(LoraSamed):
    """LoRA, self-prompting and self-distillation, with one prompt encoder and one mask decoder for all passes.

    Prompts that the caller gives are ignored. Where a pass predicts an empty mask there is no box, and the first pass's
    result is the next one's too (counted in `counts`).

    Args:
        sam: changed in place.
        rank: of LoRA on the encoder's q and v.
        alpha: LoRA's scale is alpha / rank; None: alpha = rank (ours, after SAMed).
        iterations: self-prompted passes after the first one.
        self_prompt: what a prediction becomes, `kind` of `self_prompts`; or one of the controls `CONTROLS`.
        smallest_part: connected parts below this share of the foreground do not count for the prompt (ours).
        distillation: "kl", or "mse" (ours).
        distillation_weight: the paper's alpha in Eq. (3), which it does not tell; ours was chosen on validation from
            {0.1, 1, 10}. 0: no distillation.
        temperature: of the distillation "kl". The paper names none, which means 1.
        reverse: the earlier pass teaches the later one (ours).
        first_weight: weight of the truth's loss on every pass before the last one. 0: the paper's; 1: truth on both
            passes.
        mask_loss: a name of `MASK_LOSSES`: "squared_dice", with squared sums, or "dice" (the paper does not say which
            Dice loss it means); or "samed", with cross-entropy.
        detach_teacher: the distillation sends no gradient into the teaching pass (the paper does not say).

    Raises `InputError` on an unknown `self_prompt`, `distillation` or `mask_loss`, or a number out of range.
    """

    name = "sam_sp"
    title = "SAM-SP"
    colour = "#009E73"
    takes_prompts = False
    metrics = ("box_iou",)  # of pass 0: how good the boxes are that it prompts itself with
    named_options = (
        "rank", "iterations", "self_prompt", "smallest_part", "distillation", "distillation_weight", "temperature",
        "reverse", "first_weight",
    )  # fmt: skip

    def __init__(
        self,
        sam: Sam,
        rank: int = 4,
        alpha: float | None = None,
        iterations: int = 1,
        self_prompt: str = "box",
        smallest_part: float = 0.0,
        distillation: str = "kl",
        distillation_weight: float = 0.1,
        temperature: float = 1.0,
        reverse: bool = False,
        first_weight: float = 0.0,
        mask_loss: str = "squared_dice",
        detach_teacher: bool = True,
    ) -> None:
        super().__init__(sam, rank, alpha, mask_loss)
        strange = set(self_prompt.split("+")) - set(SELF_PROMPTS)
        if strange and self_prompt not in CONTROLS:
            known = f"{', '.join(SELF_PROMPTS)}; or one of {', '.join(CONTROLS)}"
            raise InputError(f"unknown self-made prompt {min(strange)!r}; known, joined by +: {known}")
        if distillation not in DISTILLATIONS:
            raise unknown("distillation", distillation, DISTILLATIONS)
        check_range("iterations", iterations, 0, 100)
        check_range("smallest_part", smallest_part, 0, 1)
        check_range("distillation_weight", distillation_weight, 0, 1e6)
        check_range("temperature", temperature, 0, 1e6, above=True)
        check_range("first_weight", first_weight, 0, 1e6)
        self.iterations, self.self_prompt, self.smallest_part = iterations, self_prompt, smallest_part
        self.distill, self.distillation_weight = DISTILLATIONS[distillation], distillation_weight
        self.temperature, self.reverse, self.first_weight = temperature, reverse, first_weight
        self.detach_teacher = detach_teacher

    def passes(self, embedding: Tensor, prompts: Prompts) -> list[tuple[Tensor, Tensor]]:
        """Eq. (1), then Eq. (2) `iterations` times, each pass prompted by the one before; see `Method.passes`."""
        nothing = Prompts(prompts.image_index)
        first = decode_masks(self.sam, embedding, nothing)  # Eq. (1)
        full = (first[0] > 0).flatten(1).all(1)
        results = [first]
        for _ in range(self.iterations):
            own, empty = self.next_prompts(results[-1][0], prompts)
            if len(results) == 1:
                self.counts["first predictions"] += len(empty)
                self.counts["empty first predictions"] += int(empty.sum())
                self.counts["full first predictions"] += int(full.sum())
            logits, quality = decode_masks(self.sam, embedding, own)  # Eq. (2)
            # Without a prompt the decoder repeats the first pass, so take that where the prediction was empty.
            results.append(
                (
                    torch.where(empty[:, None, None, None], first[0], logits),
                    torch.where(empty[:, None], first[1], quality),
                )
            )
        return results

    def next_prompts(self, logits: Tensor, given: Prompts) -> tuple[Prompts, Tensor]:
        """Prompts for the pass after `logits` `(P, 1, h, w)`, and bool `(P,)`: which of them have nothing to prompt
        with.

        Args:
            logits: the last pass's.
            given: the caller's prompts: they tell the image of each prompt, and are used themselves by the control
                "given".
        """
        kind = "box" if self.self_prompt in CONTROLS else self.self_prompt
        own, empty = self_prompts(logits, kind, self.sam.image_size, self.smallest_part)
        if self.self_prompt == "given":
            return given, torch.zeros_like(empty)
        if self.self_prompt == "random_box":
            return Prompts(given.image_index, random_boxes(logits, self.sam.image_size)), torch.zeros_like(empty)
        return replace(own, image_index=given.image_index), empty

    def decode(self, embedding: Tensor, prompts: Prompts) -> dict[str, Tensor]:
        """{"final": the last pass, "pass0", "pass1" ...: every pass}, logits `(P, 1, 4h, 4w)` each."""
        every = [logits for logits, _ in self.passes(embedding, prompts)]
        return {"final": every[-1]} | {f"pass{number}": logits for number, logits in enumerate(every)}

    def loss(self, prediction: dict[str, Tensor], masks: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Eq. (3), mean over prompts: the last pass learns from the truth, each other pass from the one after it."""
        every = [prediction[f"pass{number}"] for number in range(len(prediction) - 1)]
        *earlier, last = every
        target = at_size(masks, last)
        loss = self.mask_loss(last, target)  # Eq. (3), first term
        if self.first_weight:
            loss = loss + self.first_weight * sum(self.mask_loss(logits, target) for logits in earlier)
        if self.distillation_weight:
            for first, second in pairwise(every):
                student, teacher = (second, first) if self.reverse else (first, second)
                teacher = teacher.detach() if self.detach_teacher else teacher  # Eq. (3), second term
                loss = loss + self.distillation_weight * self.distill(student, teacher, self.temperature)
        return loss.mean()
