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

    `frozen_encoder` is true when nothing inside `encode` trains: only then may embeddings be cached.
    """

    name = "zero_shot"
    frozen_encoder = True
    learning_rate = 1e-4  # where the search in a grid begins, or without a grid
    prompts: tuple[str, ...] = ("box", "point10")  # drawn in training, evenly: SPT's
    takes_prompts = True  # False: whatever prompt a caller gives is ignored
    # What a training cell's key says of the constructor's options: those `named_options`, whatever their values, and
    # any other that differs from `options_before`, its value before it could be chosen (where absent: its default).
    # So an option added later leaves older keys as they are. Never add to `named_options`.
    named_options: tuple[str, ...] = ()
    options_before: Mapping[str, object] = MappingProxyType({})
    metrics: tuple[str, ...] = ()  # beyond the profile's: what else of its outputs is worth a number

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()  # what is worth a line in the record, by what it is
        self.sam = sam
        self.sam.requires_grad_(False)

    def encode(self, images: Tensor) -> Tensor:
        """Normalised images float32 `(B, 3, S, S)` -> embeddings `(B, C, h, w)`."""
        return self.sam.image_encoder(images)

    def passes(self, embedding: Tensor, prompts: Prompts) -> list[tuple[Tensor, Tensor]]:
        """Embeddings and P prompts in model pixels -> of each pass through a decoder, the last one final: logits
        `(P, 1, 4h, 4w)` and the decoder's own estimate of their IoU `(P, 1)`."""
        return [decode_masks(self.sam, embedding, prompts)]

    def decode(self, embedding: Tensor, prompts: Prompts) -> dict[str, Tensor]:
        """Embeddings and P prompts in model pixels -> {"logits": `(P, 1, 4h, 4w)`}, further outputs by their names."""
        return {"logits": self.passes(embedding, prompts)[-1][0]}

    def forward(self, images: Tensor, prompts: Prompts) -> dict[str, Tensor]:
        """`encode`, then `decode`."""
        return self.decode(self.encode(images), prompts)

    def loss(self, prediction: dict[str, Tensor], masks: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Mean over prompts of BCE + Dice on uncertainty-sampled points; `masks` float or bool `(P, 1, H, W)`."""
        return point_sampled_loss(prediction["logits"], masks, generator=generator).mean()

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
