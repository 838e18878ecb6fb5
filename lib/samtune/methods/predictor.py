"""`SamPredictor`'s interface on any method of the kit, with the preprocessing that it was tuned with."""

import numpy as np
import torch
from segment_anything import SamPredictor
from torch import Tensor

from samtune.methods.method import Method
from samtune.methods.spt import SPT
from samtune.prompts import Prompts
from samtune.sam.decode import decode_in_parts
from samtune.sam.preprocess import Preprocess


class _Frame:
    """From pixels of the picture to the model's: what `SamPredictor.predict` asks of its `transform`."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess

    def apply_coords(self, coords: np.ndarray, original_size: tuple[int, int]) -> np.ndarray:
        height, width = self.preprocess.inner_size(*original_size)
        return coords * np.array([width / original_size[1], height / original_size[0]])

    def apply_boxes(self, boxes: np.ndarray, original_size: tuple[int, int]) -> np.ndarray:
        return self.apply_coords(boxes.reshape(-1, 2, 2), original_size).reshape(-1, 4)


class MethodPredictor(SamPredictor):
    """`segment_anything.SamPredictor` for a tuned method: `set_image`, then `predict` or `predict_torch`.

    One mask a prompt (token 0), whatever `multimask_output` says: that is what methods are tuned on.
    """

    def __init__(self, method: Method, preprocess: str = "stretch") -> None:
        """`preprocess`: "stretch" (SPT, ASAM) or "pad" (`SamPredictor`'s own), as in tuning."""
        super().__init__(method.sam)
        self.method = method.eval()
        self.preprocess = Preprocess(method.image_size, preprocess)
        self.transform = _Frame(self.preprocess)

    @torch.no_grad()
    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        """Encode one picture uint8 `(H, W, 3)`. Raises `ValueError` for a format other than RGB or BGR."""
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"image_format {image_format!r}; known: RGB, BGR")
        self.reset_image()
        pixels = np.ascontiguousarray(image[..., ::-1]) if image_format != self.model.image_format else image
        self.original_size = image.shape[:2]
        self.input_size = self.preprocess.inner_size(*self.original_size)
        self.features = self.method.encode(self.preprocess.image(pixels)[None].to(self.device))
        self.is_image_set = True

    def set_torch_image(self, transformed_image: Tensor, original_image_size: tuple[int, ...]) -> None:
        """Not offered: how a picture is preprocessed belongs to what was tuned. Raises `TypeError`."""
        raise TypeError("a tuned method preprocesses pictures itself: call set_image")

    @torch.no_grad()
    def predict_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `SamPredictor.predict_torch`, in model pixels: points `(P, K, 2)`, labels `(P, K)`, boxes `(P, 4)`, masks
        `(P, 1, h, w)` -> masks `(P, 1, H, W)`, the decoder's estimate of their IoU `(P, 1)`, low-resolution logits.

        Raises `RuntimeError` before `set_image`.
        """
        if not self.is_image_set:
            raise RuntimeError("An image must be set with .set_image(...) before mask prediction.")
        given = [value for value in (point_coords, boxes, mask_input) if value is not None]
        index = torch.zeros(len(given[0]) if given else 1, dtype=torch.int64, device=self.device)
        labels = None if point_labels is None else point_labels.long()
        prompts = Prompts(index, None if boxes is None else boxes.reshape(-1, 4), point_coords, labels, mask_input)
        return self.predict_prompts(prompts, return_logits)

    @torch.no_grad()
    def predict_prompts(self, prompts: Prompts, return_logits: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """The same for P prompts in model pixels."""

        def decode(few: Prompts) -> dict[str, Tensor]:
            *_, (low, quality) = self.method.passes(self.features, few)
            return {"low": low.float(), "quality": quality.float()}

        found = decode_in_parts(decode, prompts)
        masks = self.preprocess.logits(found["low"], self.original_size)
        return masks if return_logits else masks > self.model.mask_threshold, found["quality"], found["low"]


class SPTPredictor(MethodPredictor):
    """`SamPredictor`'s interface for SPT, which no file in SAM's own format can hold."""

    def __init__(self, spt: SPT, preprocess: str = "stretch") -> None:
        super().__init__(spt, preprocess)

    @torch.no_grad()
    def predict_draft(self, prompts: Prompts, return_logits: bool = False) -> Tensor:
        """The drafts `(P, 1, H, W)` that the masks of P prompts (model pixels) were refined from."""
        (low, _), _ = self.method.passes(self.features, prompts)
        masks = self.preprocess.logits(low.float(), self.original_size)
        return masks if return_logits else masks > self.model.mask_threshold
