"""A small convolutional image encoder in the place of SAM's ViT, as MobileSAM has: the second victim's."""

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
