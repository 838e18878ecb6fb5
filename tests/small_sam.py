"""A SAM small enough for tests, and the same weights in segment_anything's own classes."""

from functools import partial

import numpy as np
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling import Sam as OfficialSam
from torch import nn

from samtune.data.sample import Sample
from samtune.prompts import Prompts
from samtune.sam.attention import merge_qkv, split_attention
from samtune.sam.build import PIXEL_MEAN, PIXEL_STD, Sam, _build

# A grid of 8 x 8 in windows of 3 pads the windowed first block; the second one is global.
SIZES = {
    "image_size": 64, "patch_size": 8, "width": 32, "depth": 2, "heads": 2, "global_blocks": (1,), "window_size": 3,
    "prompt_width": 32, "decoder_mlp_width": 64, "decoder_heads": 4, "iou_head_width": 32,
}  # fmt: skip


def randomise_zeros(module: nn.Module, seed: int) -> None:
    """Give every parameter that starts as zeros (positions, biases) random values, so that none goes untested."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.3, generator=generator)


def small_sam(seed: int = 0, **sizes: object) -> Sam:
    """A `Sam` of `SIZES` with random weights that depend on `seed` alone, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sam = _build(**(SIZES | sizes))
    randomise_zeros(sam, seed)
    sam.backbone = "small"
    split_attention(sam.image_encoder)
    return sam.eval()


def official_twin(sam: Sam) -> OfficialSam:
    """`sam` (of `SIZES`) in segment_anything's own classes, loaded strictly from its merged state dict."""
    grid, width = SIZES["image_size"] // SIZES["patch_size"], SIZES["prompt_width"]
    twin = OfficialSam(
        ImageEncoderViT(
            img_size=SIZES["image_size"], patch_size=SIZES["patch_size"], embed_dim=SIZES["width"],
            depth=SIZES["depth"], num_heads=SIZES["heads"], out_chans=width, use_rel_pos=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6), window_size=SIZES["window_size"],
            global_attn_indexes=SIZES["global_blocks"],
        ),
        PromptEncoder(width, (grid, grid), (SIZES["image_size"],) * 2, mask_in_chans=16),
        MaskDecoder(
            transformer_dim=width,
            transformer=TwoWayTransformer(2, width, SIZES["decoder_heads"], SIZES["decoder_mlp_width"]),
            iou_head_hidden_dim=SIZES["iou_head_width"],
        ),
        PIXEL_MEAN,
        PIXEL_STD,
    )  # fmt: skip
    twin.load_state_dict(merge_qkv(sam.state_dict()))
    return twin.eval()


def some_prompts(kind: str, image_index: list[int], sam: Sam, seed: int = 0) -> Prompts:
    """Random prompts in model pixels for those images: parts box, point (the last click padding), mask, none."""
    generator = torch.Generator().manual_seed(seed)
    count, size = len(image_index), sam.image_size
    prompts = Prompts(torch.tensor(image_index))
    parts = kind.split("+")
    if "box" in parts:
        first = torch.rand(count, 2, generator=generator) * size / 2
        last = first + 2 + torch.rand(count, 2, generator=generator) * size / 2
        prompts = Prompts(prompts.image_index, boxes=torch.cat([first, last], 1))
    if "point" in parts:
        labels = torch.tensor([[1, 0, -1]]).repeat(count, 1)
        prompts = prompts.with_points(torch.rand(count, 3, 2, generator=generator) * size, labels)
    if "mask" in parts:
        prompts = prompts.with_masks(4 * torch.randn(count, 1, sam.mask_size, sam.mask_size, generator=generator))
    return prompts


class ListedSamples:
    """A data set of given samples; every split has all of them."""

    def __init__(self, samples: list[Sample], name: str = "listed") -> None:
        self.name, self.samples = name, {sample.id: sample for sample in samples}
        self.dropped: dict[str, int] = {}

    def ids(self, split: str) -> list[str]:
        return list(self.samples)

    def load(self, id: str) -> Sample:
        return self.samples[id]


def disc_sample(number: int, height: int = 48, width: int = 64, name: str = "listed") -> Sample:
    """A noisy picture with a bright disc, its mask; place and size depend on `number`."""
    rng = np.random.default_rng(number)
    radius = rng.uniform(8, min(height, width) / 3)
    y, x = np.mgrid[:height, :width]
    centre = rng.uniform(radius, height - radius), rng.uniform(radius, width - radius)
    mask = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2
    image = rng.integers(40, 90, (height, width, 3)) + 120 * mask[..., None]
    return Sample(f"{number:03d}", name, "train", image.astype(np.uint8), mask[None], object_class=("disc",))
