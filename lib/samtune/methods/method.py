"""What a method is: a module on a SAM that encodes images, decodes prompts into masks, and computes its own loss."""

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Self

import torch
from torch import Tensor, nn

from samtune.losses import point_sampled_loss
from samtune.prompts import Prompts
from samtune.sam.build import Sam
from samtune.sam.checkpoints import check_fits
from samtune.sam.decode import decode_masks


class Method(nn.Module):
    """Base class of all methods; itself it is zero-shot SAM.

    All that the kit knows of a method stands on its class. A subclass sets what differs from the values below.

    Attributes:
        name: as on the command line and in records.
        title: what people read in tables and figures.
        colour: of its lines and bars in figures, as hexadecimal RGB.
        needs_sam: False: it is built without a SAM.
        takes_prompts: False: it ignores the prompts that a caller gives.
        frozen_encoder: nothing in `encode` is trained. Only then may embeddings be cached.
        prompts: kinds of prompts in training, all equally likely.
        epochs: over the training images, in its paper.
        learning_rate: where the search over the grid begins; the rate itself where there is no search.
        least_batch: images that a batch of a study's training has at least.
        recipe: what its paper sets otherwise in training, options of `TrainingConfig` by name.
        makes_pictures: trained on images that the study makes first; not for `samtune tune`.
        metrics: measured for this method in addition to the profile's metrics.
        named_options: constructor options that are always in a training cell's key. Never add to them: all other
            options are in the key only where they differ from their default, so that a new option leaves old keys as
            they are.
        options_before: for an option whose default changed later, the value that it had before; it takes the default's
            place in the rule above.
        image_size: of an instance: side of the square images that `encode` takes, pixels.
        mask_size: of an instance: side of the logits that `decode` gives, pixels.
        counts: of an instance: events of its passes that the record keeps, by name ("empty first predictions").
    """

    name = "zero_shot"
    title = "zero-shot SAM"
    colour = "#4a5160"
    needs_sam = True
    takes_prompts = True
    frozen_encoder = True
    prompts: tuple[str, ...] = ("box", "point10")  # SPT's
    epochs = 16  # SPT's
    learning_rate = 1e-4
    least_batch = 1
    recipe: Mapping[str, object] = MappingProxyType({})
    makes_pictures = False
    metrics: tuple[str, ...] = ()
    named_options: tuple[str, ...] = ()
    options_before: Mapping[str, object] = MappingProxyType({})

    def __init__(self, sam: Sam | None) -> None:
        """`sam` is changed in place. None: the subclass has no SAM, and sets `image_size` and `mask_size` itself."""
        super().__init__()
        self.counts: Counter[str] = Counter()  # events that the record keeps, by name
        if sam is not None:
            self.sam = sam.requires_grad_(False)
            self.image_size, self.mask_size = sam.image_size, sam.mask_size

    def train(self, mode: bool = True) -> Self:
        """As in any module, but SAM's image encoder stays in eval mode.

        MobileSAM's has batch norm and stochastic depth: in train mode an image's embedding would depend on the others
        of its batch, and running statistics would change that no checkpoint holds. SAM's own has neither.
        """
        super().train(mode)
        if self.needs_sam:
            self.sam.image_encoder.eval()
        return self

    def encode(self, images: Tensor) -> Tensor:
        """Normalised images float32 `(B, 3, S, S)` -> embeddings `(B, C, h, w)`."""
        return self.sam.image_encoder(images)

    def passes(self, embedding: Tensor, prompts: Prompts) -> list[tuple[Tensor, Tensor]]:
        """Every pass through a decoder, in order; the last one is the answer.

        Args:
            embedding: of B images, `(B, C, h, w)`.
            prompts: P prompts in model pixels.

        Returns:
            For each pass, logits `(P, 1, 4h, 4w)` and the decoder's own estimate of their IoU `(P, 1)`.
        """
        return [decode_masks(self.sam, embedding, prompts)]

    def decode(self, embedding: Tensor, prompts: Prompts) -> dict[str, Tensor]:
        """Embeddings `(B, C, h, w)` and P prompts in model pixels -> logits `(P, 1, 4h, 4w)` by name.

        "final" is the answer; a method may add outputs of its own ("draft", "pass0").
        """
        return {"final": self.passes(embedding, prompts)[-1][0]}

    def forward(self, images: Tensor, prompts: Prompts) -> dict[str, Tensor]:
        """`encode`, then `decode`."""
        return self.decode(self.encode(images), prompts)

    def loss(self, prediction: dict[str, Tensor], masks: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """BCE + Dice on points where the mask is uncertain, mean over prompts: a scalar.

        Args:
            prediction: what `decode` gave.
            masks: true masks `(P, 1, H, W)` of any size, bool or float in [0, 1].
            generator: draws the points; on the logits' device.
        """
        return point_sampled_loss(prediction["final"], masks, generator=generator).mean()

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def trainable_state(self) -> dict[str, Tensor]:
        """A copy of the trainable parameters on the CPU: all that a tuned checkpoint has to hold."""
        return {name: parameter.detach().cpu().clone() for name, parameter in self.trainable().items()}

    def load_trainable_state(self, state: dict[str, Tensor], source: str = "checkpoint") -> None:
        """Load what `trainable_state` gave; `source`: for messages. Raises `InputError` when names or shapes differ."""
        parameters = self.trainable()
        check_fits(parameters, state, source)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state[name])

    def merged(self) -> Sam | None:
        """An ordinary SAM that predicts the same, or None where the method needs more than SAM's own weights."""
        return self.sam

    def count_trainable(self) -> int:
        """Number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.trainable().values())
