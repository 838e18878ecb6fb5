"""SAM's prompt encoder in full precision, and its mask decoder for prompts of several images at once."""

from collections.abc import Callable

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder
from torch import Tensor

from samtune.prompts import Prompts

PROMPTS_A_PASS = 64  # decoded at once: limits memory on images with many objects


class BatchedMaskDecoder(MaskDecoder):
    """`MaskDecoder` that takes one embedding for each prompt, `(P, C, h, w)`: prompts of several images in one pass.

    segment_anything's own takes one image a call.
    """

    def predict_masks(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        **adapter: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """All four masks of P prompts, logits `(P, 4, 4h, 4w)`, and the decoder's estimate of their IoU `(P, 4)`.

        Args:
            image_embeddings: `(1, C, h, w)`, or one for each prompt, `(P, C, h, w)`.
            image_pe: positional encoding `(1, C, h, w)`.
            sparse_prompt_embeddings: `(P, T, C)`.
            dense_prompt_embeddings: `(P, C, h, w)`.
            adapter: further arguments of an adapted transformer (SPT's relation, and the image of each prompt).
        """
        prompts = len(sparse_prompt_embeddings)
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([output_tokens.expand(prompts, -1, -1), sparse_prompt_embeddings], dim=1)
        source = image_embeddings.expand(prompts, -1, -1, -1) + dense_prompt_embeddings
        position = image_pe.expand(prompts, -1, -1, -1)
        batch, channels, height, width = source.shape

        tokens, source = self.transformer(source, position, tokens, **adapter)
        mask_tokens = tokens[:, 1 : 1 + self.num_mask_tokens]
        source = source.transpose(1, 2).reshape(batch, channels, height, width)
        upscaled = self.output_upscaling(source)
        hyper = [mlp(mask_tokens[:, i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)]
        masks = torch.stack(hyper, dim=1) @ upscaled.flatten(2)
        return masks.view(batch, -1, *upscaled.shape[-2:]), self.iou_prediction_head(tokens[:, 0])


class FullPrecisionPromptEncoder(PromptEncoder):
    """`PromptEncoder` that autocast does not change: in bfloat16, neighbouring pixels would get the
    same coordinates.
    """

    def forward(
        self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As segment_anything's: points with labels, boxes, masks -> sparse and dense embeddings, float32."""
        with torch.autocast(self._get_device().type, enabled=False):
            return super().forward(points, boxes, None if masks is None else masks.float())

    def get_dense_pe(self) -> Tensor:
        """The positional encoding of the image's grid, float32 `(1, C, h, w)`."""
        with torch.autocast(self._get_device().type, enabled=False):
            return super().get_dense_pe()


def encode_prompts(sam: torch.nn.Module, prompts: Prompts) -> tuple[Tensor, Tensor]:
    """P prompts in model pixels -> sparse embeddings `(P, T, C)`, dense `(P, C, h, w)`; T is 0 without box or point."""
    points = None if prompts.points is None else (prompts.points, prompts.labels)
    sparse, dense = sam.prompt_encoder(points=points, boxes=prompts.boxes, masks=prompts.masks)
    if len(sparse) == 1:  # without boxes and points segment_anything cannot know P
        sparse, dense = (t.expand(len(prompts), *t.shape[1:]) for t in (sparse, dense))
    return sparse, dense


def decode_masks(
    sam: torch.nn.Module, embedding: Tensor, prompts: Prompts, multimask: bool = False
) -> tuple[Tensor, Tensor]:
    """Logits `(P, M, 4h, 4w)` and the decoder's estimate of their IoU `(P, M)`.

    Args:
        sam: with the prompt encoder and the decoder.
        embedding: of B images, `(B, C, h, w)`.
        prompts: P prompts in model pixels.
        multimask: M is 3, SAM's masks for ambiguous prompts; else M is 1, mask token 0.
    """
    sparse, dense = encode_prompts(sam, prompts)
    return sam.mask_decoder(
        image_embeddings=embedding[prompts.image_index],
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask,
    )


def decode_in_parts(decode: Callable[[Prompts], dict[str, Tensor]], prompts: Prompts) -> dict[str, Tensor]:
    """The results of `decode` for P prompts, by name, `(P, ...)` each; at most `PROMPTS_A_PASS` prompts are decoded at
    once.

    Only prompts with the same number of clicks go together, without padding clicks. SAM attends to padding, so that a
    mask would depend on how many clicks the other objects have.
    """
    whole: dict[str, Tensor] = {}
    for positions, group in prompts.by_clicks():
        for few in torch.arange(len(group)).split(PROMPTS_A_PASS):
            for name, part in decode(group[few]).items():
                if name not in whole:
                    whole[name] = part.new_empty(len(prompts), *part.shape[1:])
                whole[name][positions[few]] = part
    return whole
