"""SAM-SP: a SAM that prompts itself with its own last prediction (arXiv 2408.12364).

E the image encoder, P the prompt encoder, M the mask decoder, SP(y) the box around a predicted mask:

    y0 = M(E(x), P(none))                  (1) first pass, without a prompt
    y1 = M(E(x), P(SP(y0)))                (2) second pass, prompted by the first: the answer
    L  = Dice(y1, y) + alpha KL(y0, y1)    (3) only the second pass sees the truth y, and it teaches the first

Below in the paper's order: self-prompting, low-rank tuning, the loss with its self-distillation. The paper leaves
alpha, the temperature and whether the teacher is detached open: they are options here.
"""

import zlib
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from samtune.common.errors import InputError, check_range, unknown
from samtune.losses import at_size, distillation_loss, distillation_squared_error
from samtune.methods.lora import LoraSamed
from samtune.prompts import BACKGROUND, FOREGROUND, Prompts, large_parts
from samtune.sam.build import Sam
from samtune.sam.decode import decode_masks

SELF_PROMPTS = ("box", "mask", "points")
CONTROLS = ("random_box", "given")  # what a critical reader asks for: any box, and the caller's prompts (the truth's)
DISTILLATIONS = {
    "kl": distillation_loss,
    "mse": lambda student, teacher, _: distillation_squared_error(student, teacher),
}


def self_prompts(logits: Tensor, kind: str, image_size: int, smallest_part: float = 0.0) -> tuple[Prompts, Tensor]:
    """Prompts made of a prediction `(P, 1, h, w)`, in model pixels, and which predictions are empty, bool `(P,)`.

    `kind`, joined by "+": "box" around all foreground (first and last row and column: no gradient passes), "mask" the
    detached logits, "points" the surest foreground pixel and the surest background pixel inside the box. Connected
    parts below `smallest_part` of the foreground are left out, unless all of them are. An empty prediction gets the
    whole picture's box; what is made of it must not be used.
    """
    logits = logits.detach().float()
    foreground = logits[:, 0] > 0
    if smallest_part:
        kept = [large_parts(mask, smallest_part) for mask in foreground.cpu().numpy()]
        large = torch.from_numpy(np.stack(kept)).to(logits.device)
        foreground = torch.where(large.flatten(1).any(1)[:, None, None], large, foreground)
    empty = ~foreground.flatten(1).any(1)
    inside = foreground | empty[:, None, None]
    columns, rows = inside.any(1).int(), inside.any(2).int()
    height, width = inside.shape[1:]
    left, top = columns.argmax(1), rows.argmax(1)
    right, bottom = width - 1 - columns.flip(1).argmax(1), height - 1 - rows.flip(1).argmax(1)
    stride = image_size / width
    prompts = Prompts(torch.zeros(len(logits), dtype=torch.int64, device=logits.device))
    parts = kind.split("+")
    if "points" in parts:
        y, x = torch.arange(height, device=logits.device)[:, None], torch.arange(width, device=logits.device)
        corners = [side[:, None, None] for side in (left, top, right, bottom)]
        in_box = (x >= corners[0]) & (y >= corners[1]) & (x <= corners[2]) & (y <= corners[3])
        surest = logits[:, 0].masked_fill(~inside, -torch.inf).flatten(1).argmax(1)
        outside = in_box & ~foreground
        least = logits[:, 0].masked_fill(~outside, torch.inf).flatten(1).argmin(1)
        index = torch.stack([surest, least], 1)
        points = (torch.stack([index % width, index // width], -1) + 0.5) * stride - 0.5
        labels = torch.tensor([[FOREGROUND, BACKGROUND]], device=logits.device).repeat(len(logits), 1)
        labels[:, 1] = torch.where(outside.flatten(1).any(1), labels[:, 1], -1)  # a padding click where the box is full
        prompts = prompts.with_points(points, labels)
    if "mask" in parts:
        prompts = prompts.with_masks(logits)
    if "box" in parts:
        boxes = torch.stack([left * stride, top * stride, (right + 1) * stride - 1, (bottom + 1) * stride - 1], 1)
        prompts = Prompts(prompts.image_index, boxes.float(), prompts.points, prompts.labels, prompts.masks)
    return prompts, empty


def random_boxes(logits: Tensor, image_size: int) -> Tensor:
    """A box anywhere, sides from a tenth of the picture's to all of it, for each of `(P, 1, h, w)`: `(P, 4)`.

    Seeded by the predicted mask: another picture has another box, and neither order nor batch changes it.
    """
    boxes = []
    for one in (logits > 0).cpu():
        generator = torch.Generator().manual_seed(zlib.crc32(one.numpy().tobytes()))
        sides = (0.1 + 0.9 * torch.rand(2, generator=generator)) * image_size
        first = torch.rand(2, generator=generator) * (image_size - sides)
        boxes.append(torch.cat([first, first + sides - 1]))
    return torch.stack(boxes).float().to(logits.device)


class SamSP(LoraSamed):
    """LoRA, self-prompting and self-distillation on one prompt encoder and one decoder, used again and again.

    Prompts that a caller gives are ignored. An empty prediction prompts nothing: its next pass is the unprompted one
    again (counted in `counts`).

    Args:
        rank, alpha: LoRA on q and v of the encoder, scale alpha / rank; alpha None: rank (ours, after SAMed).
        iterations: self-prompted passes after the first one.
        self_prompt: what a prediction becomes, see `self_prompts`; or a control, one of `CONTROLS`.
        smallest_part: connected parts below this share of the foreground do not count for the prompt (ours).
        distillation: "kl", or "mse" (ours).
        distillation_weight: the paper's alpha in Eq. (3); 0: no distillation.
        temperature: of the distillation; the paper names none, that is 1.
        reverse: the earlier pass teaches the later one (ours).
        first_weight: weight of the truth's loss on every pass before the last. 0: the paper's; 1: truth on both passes.
        mask_loss: "dice", the paper's; or "samed", see `samed_loss`.
        detach_teacher: the distillation sends no gradient into the teaching pass (the paper does not say).

    Raises `InputError` on an unknown `self_prompt`, `distillation` or `mask_loss`.
    """

    name = "sam_sp"
    title = "SAM-SP"
    colour = "#009E73"
    takes_prompts = False
    metrics = ("box_iou",)  # how good the boxes are that it prompts itself with: pass 0's
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
        distillation_weight: float = 1.0,
        temperature: float = 1.0,
        reverse: bool = False,
        first_weight: float = 0.0,
        mask_loss: str = "dice",
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
        """Pass 0 without a prompt, then `iterations` passes, each prompted by the one before; see `Method.passes`."""
        nothing = Prompts(prompts.image_index)
        first = decode_masks(self.sam, embedding, nothing)
        full = (first[0] > 0).flatten(1).all(1)
        results = [first]
        for _ in range(self.iterations):
            own, empty = self.next_prompts(results[-1][0], prompts)
            if len(results) == 1:
                self.counts["first predictions"] += len(empty)
                self.counts["empty first predictions"] += int(empty.sum())
                self.counts["full first predictions"] += int(full.sum())
            logits, quality = decode_masks(self.sam, embedding, own)
            # Without a prompt the decoder would give the first pass again, so that is taken where there is none.
            results.append(
                (
                    torch.where(empty[:, None, None, None], first[0], logits),
                    torch.where(empty[:, None], first[1], quality),
                )
            )
        return results

    def next_prompts(self, logits: Tensor, given: Prompts) -> tuple[Prompts, Tensor]:
        """What prompts the pass after `logits` `(P, 1, h, w)`, and which have nothing to be prompted by."""
        kind = "box" if self.self_prompt in CONTROLS else self.self_prompt
        own, empty = self_prompts(logits, kind, self.sam.image_size, self.smallest_part)
        if self.self_prompt == "given":
            return given, torch.zeros_like(empty)
        if self.self_prompt == "random_box":
            return Prompts(given.image_index, random_boxes(logits, self.sam.image_size)), torch.zeros_like(empty)
        return Prompts(given.image_index, own.boxes, own.points, own.labels, own.masks), empty

    def decode(self, embedding: Tensor, prompts: Prompts) -> dict[str, Tensor]:
        """{"final": the last pass, "pass0", "pass1" ...: every pass}, each `(P, 1, 4h, 4w)`."""
        every = [logits for logits, _ in self.passes(embedding, prompts)]
        return {"final": every[-1]} | {f"pass{number}": logits for number, logits in enumerate(every)}

    def loss(self, prediction: dict[str, Tensor], masks: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Eq. (3): the last pass against the truth, and each pass taught by the next one; mean over prompts."""
        every = [prediction[f"pass{number}"] for number in range(len(prediction) - 1)]
        *earlier, last = every
        target = at_size(masks, last)
        loss = self.mask_loss(last, target)
        if self.first_weight:
            loss = loss + self.first_weight * sum(self.mask_loss(logits, target) for logits in earlier)
        if self.distillation_weight:
            for first, second in pairwise(every):
                student, teacher = (second, first) if self.reverse else (first, second)
                teacher = teacher.detach() if self.detach_teacher else teacher
                loss = loss + self.distillation_weight * self.distill(student, teacher, self.temperature)
        return loss.mean()
