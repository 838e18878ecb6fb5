"""`SamPredictor`'s interface for any method of the kit, with the preprocessing that the method was tuned with."""

from collections.abc import Iterator

import numpy as np
import torch
from segment_anything import SamPredictor
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import resize, to_pil_image

from samtune.common.errors import InputError
from samtune.methods.method import Method
from samtune.methods.spt import SPT
from samtune.prompts import Prompts
from samtune.sam.decode import decode_in_parts
from samtune.sam.preprocess import Preprocess, bilinear


class SamPadding(Preprocess):
    """`Preprocess` in mode "pad" that resizes exactly as `SamPredictor` does, so that masks are equal to its own.

    `Preprocess` differs in two details: it shrinks images by area averaging, and it resizes logits in one step, not in
    two.
    """

    def resized(self, image: np.ndarray) -> np.ndarray:
        """uint8 `(H, W, 3)` -> uint8 at `inner_size`, bilinear by Pillow."""
        return np.array(resize(to_pil_image(image), self.inner_size(*image.shape[:2])))

    def _along(self, low: int, inner: int, original: int) -> Tensor:
        """Resized to the square, cropped, resized to the original size."""
        return bilinear(inner, original, inner) @ bilinear(low, self.size, low)[:inner]


class _Transform(ResizeLongestSide):
    """`SamPredictor.transform` for any `Preprocess`: coordinates as numpy arrays or tensors."""

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__(preprocess.size)
        self.apply_image = preprocess.resized
        self.get_preprocess_shape = lambda height, width, _: preprocess.inner_size(height, width)

    def apply_image_torch(self, image: Tensor) -> Tensor:
        """`(B, 3, H, W)` -> `(B, 3, h, w)` at the model's size (segment_anything's own reads B and 3 as height and
        width).
        """
        size = self.get_preprocess_shape(*image.shape[-2:], self.target_length)
        return F.interpolate(image.float(), size, mode="bilinear", align_corners=False, antialias=True)


class MethodPredictor(SamPredictor):
    """`segment_anything.SamPredictor` for a tuned method: `set_image`, then `predict` or `predict_torch`.

    It gives one mask a prompt (mask token 0), whatever `multimask_output` says, because methods are tuned on that one.
    Clicks with label -1 are padding and left out.

    Args:
        method: set to eval mode.
        preprocess: as in tuning: "stretch" (SPT, ASAM), or "pad" (`SamPredictor`'s own).
    """

    def __init__(self, method: Method, preprocess: str = "stretch") -> None:
        """`preprocess`: "stretch" (SPT, ASAM) or "pad" (`SamPredictor`'s own), as in tuning."""
        super().__init__(method.sam)
        self.method = method.eval()
        self.preprocess = (SamPadding if preprocess == "pad" else Preprocess)(method.image_size, preprocess)
        self.transform = _Transform(self.preprocess)

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        """Encode one image uint8 `(H, W, 3)`. Raises `InputError` for any other array, and `ValueError` for a format
        other than "RGB" or "BGR"."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            found = f"{image.dtype} {image.shape}"
            raise InputError(f"a picture is uint8 (H, W, 3), not {found}: samtune.data.pixels.read_image gives such")
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"image_format {image_format!r}; known: RGB, BGR")
        super().set_image(np.ascontiguousarray(image), image_format)

    @torch.no_grad()
    def set_torch_image(self, transformed_image: Tensor, original_image_size: tuple[int, ...]) -> None:
        """Encode one image that `transform` has resized.

        Args:
            transformed_image: `(1, 3, h, w)`, values 0 to 255.
            original_image_size: (H, W) before resizing.

        Raises `ValueError` when the shape is not what `transform` makes of that size.
        """
        inner = self.preprocess.inner_size(*original_image_size)
        if transformed_image.shape != (1, 3, *inner):
            raise ValueError(f"picture has shape {tuple(transformed_image.shape)}, expected {(1, 3, *inner)}")
        self.reset_image()
        self.original_size, self.input_size = tuple(original_image_size), inner
        self.features = self.method.encode(self.model.preprocess(transformed_image))
        self.is_image_set = True

    def predict_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `SamPredictor.predict_torch`, for P prompts; an argument that is None is absent.

        Args:
            point_coords: in model pixels, `(P, K, 2)`.
            point_labels: `(P, K)`: 1 foreground, 0 background, -1 padding.
            boxes: xyxy in model pixels, `(P, 4)`.
            mask_input: low-resolution logits `(P, 1, h, w)`.
            multimask_output: ignored.
            return_logits: give masks as logits instead of bool.

        Returns:
            Masks `(P, 1, H, W)`, the decoder's estimate of their IoU `(P, 1)`, low-resolution logits `(P, 1, h, w)`.

        Raises `RuntimeError` before `set_image`, `InputError` for a prompt to a method that takes none, and for P = 0.
        """
        given = [value for value in (point_coords, boxes, mask_input) if value is not None]
        if given and not self.method.takes_prompts:
            raise InputError(f"{self.method.title} takes no prompt: leave points, boxes and masks out")
        if given and not len(given[0]):
            raise InputError("no prompt to segment: points, boxes or masks are given, but none in number")
        index = torch.zeros(len(given[0]) if given else 1, dtype=torch.int64, device=self.device)
        labels = None if point_labels is None else point_labels.long()
        prompts = Prompts(index, None if boxes is None else boxes.reshape(-1, 4), point_coords, labels, mask_input)
        return self.predict_prompts(prompts, return_logits)

    def predict_prompts(self, prompts: Prompts, return_logits: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """As `predict_torch`, for P `Prompts` in model pixels. Raises `InputError` on an image index other than 0."""
        low, quality = self._decode(prompts, -1)
        return self.preprocess.enlarged(low, self.original_size, not return_logits), quality, low

    def each_mask(self, prompts: Prompts) -> Iterator[np.ndarray]:
        """Yield the mask, bool `(H, W)`, of each of P prompts in model pixels: saves memory on large images with many
        prompts.
        """
        for low in self._decode(prompts, -1)[0].split(1):
            yield self.preprocess.enlarged(low, self.original_size)[0, 0].cpu().numpy()

    @torch.no_grad()
    def _decode(self, prompts: Prompts, number: int) -> tuple[Tensor, Tensor]:
        """Low-resolution logits `(P, 1, h, w)` and their estimated IoU `(P, 1)` of the method's pass `number`."""
        if not self.is_image_set:
            raise RuntimeError("An image must be set with .set_image(...) before mask prediction.")
        if prompts.image_index.any():
            index = int(prompts.image_index[prompts.image_index != 0][0])
            raise InputError(f"a prompt has image index {index}, but there is one picture, with index 0")

        def decode(few: Prompts) -> dict[str, Tensor]:
            low, quality = self.method.passes(self.features, few)[number]
            return {"low": low.float(), "quality": quality.float()}

        found = decode_in_parts(decode, prompts)
        return found["low"], found["quality"]


class SPTPredictor(MethodPredictor):
    """`SamPredictor`'s interface for SPT, which cannot be exported to SAM's own format."""

    def __init__(self, spt: SPT, preprocess: str = "stretch") -> None:
        super().__init__(spt, preprocess)

    def predict_draft(self, prompts: Prompts, return_logits: bool = False) -> Tensor:
        """The drafts `(P, 1, H, W)` of P prompts in model pixels: bool, or logits with `return_logits`.

        Raises `InputError` for an SPT without a draft.
        """
        if len(self.method.decoders()) == 1:
            raise InputError("this SPT has no draft: it was tuned with the option draft False")
        low, _ = self._decode(prompts, 0)
        return self.preprocess.enlarged(low, self.original_size, not return_logits)
