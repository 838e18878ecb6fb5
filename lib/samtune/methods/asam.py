"""ASAM's tuning: the output tokens of SAM's mask decoder alone (CVPR 2024, arXiv 2405.00256).

What makes it ASAM is what it is tuned on: natural adversarial pictures, with the masks of the originals.
"""

from samtune.methods.method import Method
from samtune.sam.build import Sam


class ASAM(Method):
    """The 4 mask tokens and the IoU token train: 1,280 parameters in ViT-B, L and H, about 0.001% of ViT-B.

    Trained with a box, ten points or a noisy mask as the prompt; the loss is that of SPT and HQ-SAM. It reaches the IoU
    token only through the tokens' self-attention. The tuned tokens are SAM's own, so that `merged` is an ordinary SAM.
    """

    name = "asam"
    title = "ASAM"
    colour = "#CC79A7"
    frozen_encoder = True
    prompts = ("box", "point10", "mask")
    epochs = 20
    learning_rate = 2e-3

    def __init__(self, sam: Sam) -> None:
        super().__init__(sam)
        self.sam.mask_decoder.mask_tokens.requires_grad_(True)
        self.sam.mask_decoder.iou_token.requires_grad_(True)
