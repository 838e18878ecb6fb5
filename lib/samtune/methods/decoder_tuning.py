"""Decoder tuning: only SAM's mask decoder is trained."""

from samtune.methods.method import Method
from samtune.sam.build import Sam


class DecoderTuning(Method):
    """All parameters of the mask decoder train (4,058,340 for ViT-B, L and H). Embeddings may be cached."""

    name = "decoder_tuning"
    title = "decoder tuning"
    colour = "#E69F00"
    frozen_encoder = True

    def __init__(self, sam: Sam) -> None:
        super().__init__(sam)
        self.sam.mask_decoder.requires_grad_(True)
