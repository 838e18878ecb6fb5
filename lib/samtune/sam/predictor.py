"""`SamPredictor`'s interface for every method of the kit, and several images a batch."""

from collections.abc import Sequence

import numpy as np
import torch
from segment_anything import SamPredictor
from torch import Tensor

from samtune.prompts import Prompts
from samtune.sam.build import Sam
from samtune.sam.decode import decode_masks


class Predictor(SamPredictor):
    """`segment_anything.SamPredictor`, plus `set_images` and `predict_batch` for several images at once.

    The single-image interface (`set_image`, `predict`, `predict_torch`, `get_image_embedding`) is inherited.
    """

    def __init__(self, sam: Sam) -> None:
        super().__init__(sam)
        self._batch: tuple[Tensor, list[tuple[int, int]], list[tuple[int, int]]] | None = None

    @torch.no_grad()
    def set_images(self, images: Sequence[np.ndarray]) -> None:
        """Encode images uint8 `(H, W, 3)` RGB, of any sizes, in one pass."""
        inputs, input_sizes = [], []
        for image in images:
            resized = torch.as_tensor(self.transform.apply_image(image), device=self.device)
            inputs.append(self.model.preprocess(resized.permute(2, 0, 1).float()))
            input_sizes.append(tuple(resized.shape[:2]))
        embedding = self.model.image_encoder(torch.stack(inputs))
        self._batch = (embedding, input_sizes, [image.shape[:2] for image in images])

    @torch.no_grad()
    def predict_batch(
        self, prompts: Prompts, multimask_output: bool = False, return_logits: bool = False
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Masks for P prompts, in pixels of their own images, over the images of `set_images`.

        One triple a prompt, as `SamPredictor.predict` gives: masks `(M, H, W)` bool (or logits), predicted IoU
        `(M,)`, low-resolution logits `(M, 4h, 4w)`. Raises `RuntimeError` before `set_images`.
        """
        if self._batch is None:
            raise RuntimeError("call set_images before predict_batch")
        embedding, input_sizes, original_sizes = self._batch
        parts = []
        for index, (inner, outer) in enumerate(zip(input_sizes, original_sizes, strict=True)):
            own = prompts[prompts.image_index == index]
            parts.append(own.scaled(inner[1] / outer[1], inner[0] / outer[0]))
        order = torch.cat([torch.nonzero(prompts.image_index == index)[:, 0] for index in range(len(original_sizes))])
        moved = Prompts.concatenate([part for part in parts if len(part)]).to(self.device)
        logits, quality = decode_masks(self.model, embedding, moved, multimask_output)
        answers: list = [None] * len(prompts)
        for place, position in enumerate(order.tolist()):
            image = int(moved.image_index[place])
            masks = self.model.postprocess_masks(logits[place : place + 1], input_sizes[image], original_sizes[image])[
                0
            ]
            masks = masks if return_logits else masks > self.model.mask_threshold
            answers[position] = (masks.cpu().numpy(), quality[place].cpu().numpy(), logits[place].cpu().numpy())
        return answers
