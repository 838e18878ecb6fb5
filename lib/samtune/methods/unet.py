"""U-Net: a task-specific network without SAM and without prompts (Ronneberger et al. 2015), the yardstick of claim P6.

segmentation_models_pytorch builds it; from scratch it sees as many images as the methods that it stands beside.
"""

import segmentation_models_pytorch
import torch
from torch import Tensor

from samtune.losses import at_size, samed_loss
from samtune.methods.method import Method
from samtune.prompts import Prompts
from samtune.sam.build import Sam
from samtune.sam.checkpoints import check_fits


class UNet(Method):
    """All of a U-Net trains. The decoder has half the library's widths: a step costs what the other methods' does.

    Args:
        sam: not used.
        image_size: side of its pictures and of its masks, pixels.
        encoder: a name of segmentation_models_pytorch's.
        encoder_weights: None (from scratch) or "imagenet", which it downloads.
    """

    name = "unet"
    title = "U-Net"
    colour = "#a98600"
    needs_sam = False
    takes_prompts = False
    frozen_encoder = False
    prompts = ("none",)
    epochs = 160  # as many as the methods without a prompt that it stands beside
    learning_rate = 1e-3

    def __init__(
        self, sam: Sam | None, image_size: int = 256, encoder: str = "resnet18", encoder_weights: str | None = None
    ) -> None:
        super().__init__(None)
        self.image_size = self.mask_size = image_size
        self.network = segmentation_models_pytorch.Unet(
            encoder, encoder_weights=encoder_weights, decoder_channels=(128, 64, 32, 16, 8), classes=1
        )

    def encode(self, images: Tensor) -> Tensor:
        """The logits `(B, 1, S, S)` already: there are no prompts to wait for."""
        return self.network(images)

    def passes(self, embedding: Tensor, prompts: Prompts) -> list[tuple[Tensor, Tensor]]:
        """Each prompt's picture's logits `(P, 1, S, S)`; with 1 as the estimate of their IoU, as it makes none."""
        logits = embedding[prompts.image_index]
        return [(logits, torch.ones_like(logits[:, :, 0, 0]))]

    def loss(self, prediction: dict[str, Tensor], masks: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """SAMed's loss, as `lora_samed` and `sam_sp` have it."""
        return samed_loss(prediction["final"], at_size(masks, prediction["final"])).mean()

    def trainable_state(self) -> dict[str, Tensor]:
        """All values, the running means of its batch norms among them."""
        return {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}

    def load_trainable_state(self, state: dict[str, Tensor], source: str = "checkpoint") -> None:
        """Put back what `trainable_state` gave. Raises `InputError` when names or shapes differ."""
        check_fits(self.network.state_dict(), state, source)
        self.network.load_state_dict(state)

    def merged(self) -> None:
        """None: there is no SAM in it."""
        return None
