"""What a method is: a module on a SAM that encodes pictures, decodes prompts and knows its loss."""

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from samtune.losses import point_sampled_loss
from samtune.prompts import Prompts
from samtune.sam.build import Sam
from samtune.sam.checkpoints import check_fits
from samtune.sam.decode import decode_masks


class Method(nn.Module):
    """Base of all methods; as it stands, SAM itself.

    What is known of a method stands on its class; a method says what differs from the values here.

    Attributes:
        name: as on the command line and in records.
        title: what people read in tables and figures.
        colour: of its lines and bars in figures, hex.
        needs_sam: False: built without a SAM.
        takes_prompts: False: whatever prompt a caller gives is ignored.
        frozen_encoder: nothing inside `encode` trains: only then may embeddings be cached.
        prompts: drawn in training, evenly.
        epochs: over the training pictures, in its paper.
        learning_rate: where the search in a grid begins, or without a grid.
        recipe: what its paper sets otherwise in training, options of `TrainingConfig` by name.
        makes_pictures: trained on pictures that the study makes first; not for `samtune tune`.
        metrics: beyond the profile's: what else of its outputs is worth a number.
        named_options, options_before: what a training cell's key says of the constructor's options: those
            `named_options`, whatever their values, and any other that differs from `options_before`, its value before
            it could be chosen (where absent: its default). So an option added later leaves older keys as they are.
            Never add to `named_options`.
        image_size: of an object: side of the square pictures that `encode` takes, pixels.
        mask_size: of an object: side of the logits that `decode` gives.
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
    recipe: Mapping[str, object] = MappingProxyType({})
    makes_pictures = False
    metrics: tuple[str, ...] = ()
    named_options: tuple[str, ...] = ()
    options_before: Mapping[str, object] = MappingProxyType({})

    def __init__(self, sam: Sam | None) -> None:
        """On `sam`, which is changed in place; None: the method has no `sam` and says its sizes itself."""
        super().__init__()
        self.counts: Counter[str] = Counter()  # what is worth a line in the record, by what it is
        if sam is not None:
            self.sam = sam.requires_grad_(False)
            self.image_size, self.mask_size = sam.image_size, sam.mask_size

    def encode(self, images: Tensor) -> Tensor:
        """Normalised images float32 `(B, 3, S, S)` -> embeddings `(B, C, h, w)`."""
        return self.sam.image_encoder(images)

    def passes(self, embedding: Tensor, prompts: Prompts) -> list[tuple[Tensor, Tensor]]:
        """Embeddings and P prompts in model pixels -> of each pass through a decoder, the last one final: logits
        `(P, 1, 4h, 4w)` and the decoder's own estimate of their IoU `(P, 1)`."""
        return [decode_masks(self.sam, embedding, prompts)]

    def decode(self, embedding: Tensor, prompts: Prompts) -> dict[str, Tensor]:
        """Embeddings and P prompts in model pixels -> {"final": logits `(P, 1, 4h, 4w)`}, further outputs' by name."""
        return {"final": self.passes(embedding, prompts)[-1][0]}

    def forward(self, images: Tensor, prompts: Prompts) -> dict[str, Tensor]:
        """`encode`, then `decode`."""
        return self.decode(self.encode(images), prompts)

    def loss(self, prediction: dict[str, Tensor], masks: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Mean over prompts of BCE + Dice on uncertainty-sampled points; `masks` float or bool `(P, 1, H, W)`."""
        return point_sampled_loss(prediction["final"], masks, generator=generator).mean()

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def trainable_state(self) -> dict[str, Tensor]:
        """Values of the trainable parameters: all that a tuned checkpoint has to hold."""
        return {name: parameter.detach().cpu().clone() for name, parameter in self.trainable().items()}

    def load_trainable_state(self, state: dict[str, Tensor], source: str = "checkpoint") -> None:
        """Put back what `trainable_state` gave. Raises `InputError` when names or shapes differ."""
        parameters = self.trainable()
        check_fits(parameters, state, source)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state[name])

    def merged(self) -> Sam | None:
        """An ordinary SAM that predicts the same, or None where the method has more to it than SAM's own weights."""
        return self.sam

    def count_trainable(self) -> int:
        """Number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.trainable().values())
