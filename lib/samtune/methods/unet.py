"""U-Net (Ronneberger et al. 2015): a network for one task, without SAM and without prompts.

Claims P6a and P6b compare with it. segmentation_models_pytorch builds it. It trains from scratch, on as many
images as the methods it is compared with.
"""

import segmentation_models_pytorch
import torch
from torch import Tensor

from samtune.losses import at_size, samed_loss
from samtune.methods.method import Method
from samtune.prompts import Prompts
from samtune.sam.build import Sam
from samtune.sam.checkpoints import check_fits

ENCODER = "resnet18"  # a name of segmentation_models_pytorch's


class UNet(Method):
    """All of a U-Net trains. Its decoder has half the library's widths, so that a step costs as much as the other
    methods'.

    Args:
        sam: not used.
        image_size: side of its images and of its masks, pixels.
    """

    name = "unet"
    title = "U-Net"
    colour = "#000000"
    least_batch = 8  # its batch normalisation learns nothing that holds from one image at a time
    needs_sam = False
    takes_prompts = False
    frozen_encoder = False
    prompts = ("none",)
    epochs = 160  # as many as the methods without prompts that it is compared with
    learning_rate = 1e-3
    named_options = ("image_size",)  # the backbone's, whose name is not in a U-Net's key

    def __init__(self, sam: Sam | None, image_size: int = 256) -> None:
        super().__init__(None)
        self.image_size = self.mask_size = image_size
        self.network = segmentation_models_pytorch.Unet(
            ENCODER, encoder_weights=None, decoder_channels=(128, 64, 32, 16, 8), classes=1
        )

    def encode(self, images: Tensor) -> Tensor:
        """Normalised images float32 `(B, 3, S, S)` -> the logits `(B, 1, S, S)` already: there are no prompts to wait
        for.
        """
        return self.network(images)

    def passes(self, embedding: Tensor, prompts: Prompts) -> list[tuple[Tensor, Tensor]]:
        """One pass: the logits of each prompt's image `(P, 1, S, S)`, and 1 as their estimated IoU, as U-Net estimates
        none.
        """
        logits = embedding[prompts.image_index]
        return [(logits, torch.ones_like(logits[:, :, 0, 0]))]

    def loss(self, prediction: dict[str, Tensor], masks: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """SAMed's loss, as in `lora_samed`, mean over prompts."""
        return samed_loss(prediction["final"], at_size(masks, prediction["final"])).mean()

    def trainable_state(self) -> dict[str, Tensor]:
        """A copy of all values, the running means of its batch norms included."""
        return {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}

    def load_trainable_state(self, state: dict[str, Tensor], source: str = "checkpoint") -> None:
        """Load what `trainable_state` gave; `source`: for messages. Raises `InputError` when names or shapes differ."""
        check_fits(self.network.state_dict(), state, source)
        self.network.load_state_dict(state)

    def merged(self) -> None:
        """None: it has no SAM."""
        return None
