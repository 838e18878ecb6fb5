"""Small image encoders in the place of SAM's ViT: the second victim's, and MobileSAM's own (Zhang et al. 2023)."""

import re
from collections.abc import Mapping

import torch
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

NETWORK = "mobilenetv3_small_100"
LEVELS = (2, 3, 4)  # strides 8, 16 and 32


class MobileEncoder(nn.Module):
    """Images float32 `(B, 3, S, S)` -> embeddings `(B, C, S / 8, S / 8)`; timm's network, from scratch.

    The network's maps of strides 8, 16 and 32, each brought to C channels, enlarged and added; then SAM's neck.
    """

    def __init__(self, image_size: int, channels: int) -> None:
        super().__init__()
        import timm  # not above: it takes a second, and only this encoder needs it

        self.img_size = image_size
        self.network = timm.create_model(NETWORK, pretrained=False, features_only=True, out_indices=LEVELS)
        self.lateral = nn.ModuleList(nn.Conv2d(n, channels, 1) for n in self.network.feature_info.channels())
        self.neck = nn.Sequential(
            LayerNorm2d(channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.GELU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            LayerNorm2d(channels),
        )

    def forward(self, images: Tensor) -> Tensor:
        maps = [lateral(level) for lateral, level in zip(self.lateral, self.network(images), strict=True)]
        size = maps[0].shape[-2:]
        larger = [F.interpolate(one, size, mode="bilinear", align_corners=False) for one in maps[1:]]
        return self.neck(torch.stack([maps[0], *larger]).sum(0))


class TinyVitEncoder(nn.Module):
    """MobileSAM's: images float32 `(B, 3, S, S)` -> embeddings `(B, C, S / 16, S / 16)`.

    timm's TinyViT of 5 million parameters, of which the last stage keeps the grid of the one before; then SAM's neck.
    """

    def __init__(self, image_size: int, channels: int) -> None:
        super().__init__()
        from timm.models.tiny_vit import TinyVit

        self.img_size = image_size
        # The class, not timm's name of it, which the package mobile_sam gives to its own where it is imported.
        self.network = TinyVit(
            num_classes=0, embed_dims=(64, 128, 160, 320), num_heads=(2, 4, 5, 10), drop_path_rate=0.0
        )
        self.network.stages[3].downsample.conv2.conv.stride = (1, 1)
        self.network.head = nn.Identity()
        self.neck = nn.Sequential(
            nn.Conv2d(self.network.num_features, channels, 1, bias=False),
            LayerNorm2d(channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            LayerNorm2d(channels),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.neck(self.network(images))


MOBILE_PATCHES = "image_encoder.patch_embed.seq.0.c.weight"  # the first layer, as MobileSAM's checkpoint names it
UNUSED = re.compile(r"image_encoder\.(norm_head|head)\.|\.attention_bias_idxs$")  # a classifier, and what is computed


def from_mobile_sam(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of MobileSAM's own checkpoint with timm's names: there a stage begins with its downsampling, in
    MobileSAM the one before ends with it."""
    renamed = {}
    for name, value in state.items():
        if UNUSED.search(name):
            continue
        name = re.sub(r"patch_embed\.seq\.([02])", lambda place: f"patch_embed.conv{int(place[1]) // 2 + 1}", name)
        name = re.sub(r"layers\.(\d)\.downsample", lambda stage: f"stages.{int(stage[1]) + 1}.downsample", name)
        name = re.sub(r"^(image_encoder\.)layers", r"\1stages", name)
        name = re.sub(r"\.c\.weight$", ".conv.weight", name)
        renamed[re.sub(r"^image_encoder\.(?=patch_embed|stages)", "image_encoder.network.", name)] = value
    return renamed
