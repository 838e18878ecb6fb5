"""SAM as Hugging Face's transformers hold it (`SamModel`): other names, the same weights."""

import re
from collections.abc import Mapping

from torch import Tensor

HUB_PATCHES = "vision_encoder.patch_embed.projection.weight"  # the first layer
_POSITIONS = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
# Patterns of transformers' names and SAM's own, applied in this order.
_RENAMED = (
    (r"^vision_encoder\.layers\.", "image_encoder.blocks."),
    (r"^vision_encoder\.", "image_encoder."),
    (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
    (r"\.neck\.conv1\.", ".neck.0."),
    (r"\.neck\.layer_norm1\.", ".neck.1."),
    (r"\.neck\.conv2\.", ".neck.2."),
    (r"\.neck\.layer_norm2\.", ".neck.3."),
    (r"\.mask_embed\.conv1\.", ".mask_downscaling.0."),
    (r"\.mask_embed\.layer_norm1\.", ".mask_downscaling.1."),
    (r"\.mask_embed\.conv2\.", ".mask_downscaling.3."),
    (r"\.mask_embed\.layer_norm2\.", ".mask_downscaling.4."),
    (r"\.mask_embed\.conv3\.", ".mask_downscaling.6."),
    (r"\.point_embed\.", ".point_embeddings."),
    (
        r"^(shared_image_embedding|prompt_encoder\.shared_embedding)\.positional_embedding$",
        _POSITIONS,
    ),  # the same twice
    (r"\.layer_norm(\d|_final_attn)\.", r".norm\1."),
    (r"\.upscale_conv1\.", ".output_upscaling.0."),
    (r"\.upscale_layer_norm\.", ".output_upscaling.1."),
    (r"\.upscale_conv2\.", ".output_upscaling.3."),
    (r"(_head|_mlps\.\d)\.layers\.0\.", r"\1.layers.1."),
    (r"\.proj_in\.", ".layers.0."),
    (r"\.proj_out\.", ".layers.2."),
)


def from_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of transformers' `SamModel` under SAM's own names; q, k and v are joined in both."""
    renamed = {}
    for name, value in state.items():
        for theirs, ours in _RENAMED:
            name = re.sub(theirs, ours, name)
        renamed[name] = value
    return renamed
