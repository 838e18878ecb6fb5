"""Self-Perception Tuning (SPT): SAM drafts a mask, then refines it with its own draft as a prompt (AAAI 2025, arXiv
2411.17217).

E the image encoder with LoRA, P the user's prompt, x_i the i-th of N image tokens of E(x), K the image tokens in a
decoder:

    S_ij  = softmax_j(cos(x_i, x_j)), j != i       (1) relation between visual tokens: `relation_matrix`
    K    <- K + (S K) * gamma                       (2) VRA-Adapter, at the end of a block: `RelationAwareTransformer`
    M1    = decoder1(E(x), P; S)                    (3) the draft                     } self-draft tuning (SDT):
    M2    = decoder2(E(x), P, detach(M1); S)        (4) the refined mask, the answer  } `SPT.passes`
    L     = l(M2, y) + l(M1, y), l = BCE + Dice     (5) on points where the mask is uncertain: `SPT.loss`

The numbers are this file's: the formulas were read in the authors' code, which can only predict. What it does not show
(all of training) follows HQ-SAM's public script or is our choice, and is marked so where it stands.
"""

import copy

import torch
from torch import Tensor, nn

from samtune.common.errors import InputError, check_range, unknown
from samtune.losses import point_sampled_loss
from samtune.methods.lora import add_lora
from samtune.methods.method import Method
from samtune.prompts import Prompts
from samtune.sam.build import Sam
from samtune.sam.decode import BatchedMaskDecoder, encode_prompts

HANDOFFS = {
    "logits": lambda draft: draft,  # as released
    "sigmoid": torch.sigmoid,
    "threshold": lambda draft: (draft > 0).float(),
}


def relation_matrix(embedding: Tensor, threshold: float = 0.0, temperature: float = 1.0) -> Tensor:
    """Eq. (1): S, how similar each visual token is to each other one: `(B, C, h, w)` -> `(B, N, N)`, N = h w.

    A row is the softmax of a token's cosine similarities to all others: it sums to 1, and the token itself has
    weight 0.

    Args:
        embedding: what the image encoder gives, before any prompt or positional encoding.
        threshold: the paper's alpha. Entries of at most threshold / N become 0, and the row is divided by its new sum;
            a row without any entry left stays 0. The authors' code divides by the sums of columns, which we take for a
            slip.
        temperature: the similarities are divided by it (SPT: 1). Infinity averages all other tokens uniformly (a
            control).
    """
    tokens = embedding.flatten(2).transpose(1, 2)
    tokens = tokens / (tokens.norm(dim=-1, keepdim=True) + 1e-16)
    similarity = (tokens / temperature) @ tokens.transpose(1, 2)
    itself = torch.eye(similarity.shape[-1], dtype=torch.bool, device=similarity.device)
    relation = similarity.masked_fill_(itself, -1e16).softmax(dim=-1)  # Eq. (1)
    if threshold:
        relation = relation * (relation > threshold / relation.shape[-1])
        total = relation.sum(dim=-1, keepdim=True)
        relation = relation / torch.where(total > 0, total, 1)
    return relation


def related(relation: Tensor, keys: Tensor, image_index: Tensor) -> Tensor:
    """S K for every prompt: image tokens K `(P, N, C)` times S of the prompt's image, from `(B, N, N)` -> `(P, N, C)`.

    Args:
        relation: S of each of B images.
        keys: K of each of P prompts.
        image_index: the image of each prompt, int64 `(P,)`.

    One product serves all prompts of an image: their tokens become its columns, so that S is not copied for each
    prompt.
    """
    if len(keys) == len(relation) and torch.equal(image_index, torch.arange(len(keys), device=keys.device)):
        return relation @ keys
    positions, products = [], []
    for image in image_index.unique().tolist():
        own = torch.nonzero(image_index == image)[:, 0]
        columns = keys[own].transpose(0, 1).flatten(1)
        products.append((relation[image] @ columns).unflatten(1, (len(own), -1)).transpose(0, 1))
        positions.append(own)
    return torch.cat(products)[torch.cat(positions).argsort()]


class RelationAwareTransformer(nn.Module):
    """SAM's two-way transformer with the VRA-Adapter, Eq. (2), at the end of its blocks.

    Args:
        transformer: SAM's own; its blocks are taken over, not copied.
        block: the one block that gets an adapter; None: every block.
        std: of the normal distribution that gamma starts from; 0: gamma starts at zero, as in the release.

    Attributes:
        relation_scales: gamma `(C,)` of each adapted block, by the block's number.

    Raises `InputError` where there is no such block.
    """

    def __init__(self, transformer: nn.Module, block: int | None = None, std: float = 0.0) -> None:
        super().__init__()
        self.layers = transformer.layers
        self.final_attn_token_to_image = transformer.final_attn_token_to_image
        self.norm_final_attn = transformer.norm_final_attn
        if block is not None and block not in range(len(self.layers)):
            raise InputError(f"relation_block {block}: the decoder's blocks are 0 to {len(self.layers) - 1}")
        chosen = range(len(self.layers)) if block is None else [block]
        width = transformer.embedding_dim
        self.relation_scales = nn.ParameterDict({str(index): std * torch.randn(width) for index in chosen})

    def forward(
        self, image_embedding: Tensor, image_pe: Tensor, tokens: Tensor, relation: Tensor, image_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """P prompts on B images -> their output tokens `(P, T, C)` and image tokens `(P, N, C)`, N = h w.

        Args:
            image_embedding: of each prompt's image, `(P, C, h, w)`.
            image_pe: its positional encoding, `(P, C, h, w)`.
            tokens: output and prompt tokens, `(P, T, C)`.
            relation: S of every image, `(B, N, N)`.
            image_index: the image of each prompt, int64 `(P,)`.
        """
        keys = image_embedding.flatten(2).transpose(1, 2)
        key_pe = image_pe.flatten(2).transpose(1, 2)
        queries = tokens
        for index, layer in enumerate(self.layers):
            queries, keys = layer(queries=queries, keys=keys, query_pe=tokens, key_pe=key_pe)
            if str(index) in self.relation_scales:
                keys = keys + related(relation, keys, image_index) * self.relation_scales[str(index)]  # Eq. (2)
        # The final token-to-image attention is SAM's own, without the adapter.
        attended = self.final_attn_token_to_image(q=queries + tokens, k=keys + key_pe, v=keys)
        return self.norm_final_attn(queries + attended), keys


class SPT(Method):
    """LoRA in the encoder and both decoders, a draft that prompts the refine decoder, the VRA-Adapter in both decoders.

    Trainable parameters: ViT-B 390,144, ViT-L 881,664, ViT-H 1,405,952.

    Args:
        sam: changed in place.
        rank: of LoRA on q and v.
        alpha: LoRA's scale is alpha / rank (released: 1 / 8).
        draft: self-draft tuning. False: one decoder, as in `lora`.
        relation: the VRA-Adapter.
        relation_threshold: `threshold` of `relation_matrix`.
        relation_temperature: `temperature` of `relation_matrix`.
        relation_block: the decoder block with the adapter, 0 or 1; None: both.
        relation_std: of gamma's first values; 0: zero.
        handoff: what the draft becomes as a mask prompt: "logits" (released), "sigmoid" or "threshold".
        detach_draft: the refined mask's loss sends no gradient into the draft (released).
        detach_relation: the draft decoder's loss sends no gradient into S.

    Raises `InputError` on an unknown `handoff` or `relation_block`, or a number out of range.
    """

    name = "spt"
    title = "SPT"
    colour = "#D55E00"
    frozen_encoder = False
    learning_rate = 1e-3
    named_options = (
        "rank", "alpha", "draft", "relation", "relation_threshold", "relation_temperature", "relation_std", "handoff",
        "detach_draft", "detach_relation",
    )  # fmt: skip

    def __init__(
        self,
        sam: Sam,
        rank: int = 8,
        alpha: float = 1.0,
        draft: bool = True,
        relation: bool = True,
        relation_threshold: float = 0.0,
        relation_temperature: float = 1.0,
        relation_block: int | None = None,
        relation_std: float = 0.0,
        handoff: str = "logits",
        detach_draft: bool = True,
        detach_relation: bool = False,
    ) -> None:
        super().__init__(sam)
        if handoff not in HANDOFFS:
            raise unknown("handoff", handoff, HANDOFFS)
        check_range("relation_threshold", relation_threshold, 0, 1e6)
        check_range("relation_temperature", relation_temperature, 0, above=True)  # infinity averages
        check_range("relation_std", relation_std, 0, 1e6)
        self.relation, self.threshold, self.temperature = relation, relation_threshold, float(relation_temperature)
        self.handoff, self.detach_draft, self.detach_relation = HANDOFFS[handoff], detach_draft, detach_relation
        if draft:  # both decoders start from the same pre-trained weights
            self.sam.draft_decoder = copy.deepcopy(self.sam.mask_decoder)
        self.sam = add_lora(self.sam, rank, alpha)
        if relation:
            for decoder in self.decoders():
                decoder.transformer = RelationAwareTransformer(decoder.transformer, relation_block, relation_std)

    def decoders(self) -> list[BatchedMaskDecoder]:
        """The draft decoder, if there is one, and the refine decoder."""
        draft = [self.sam.draft_decoder] if hasattr(self.sam, "draft_decoder") else []
        return [*draft, self.sam.mask_decoder]

    def decode(self, embedding: Tensor, prompts: Prompts) -> dict[str, Tensor]:
        """{"final": the refined mask, "draft": the draft (absent without `draft`)}, logits `(P, 1, 4h, 4w)` each."""
        *draft, (final, _) = self.passes(embedding, prompts)
        return {"final": final} | ({"draft": draft[0][0]} if draft else {})

    def passes(self, embedding: Tensor, prompts: Prompts) -> list[tuple[Tensor, Tensor]]:
        """Eq. (3), unless `draft` is False, and Eq. (4); see `Method.passes`."""
        relation = relation_matrix(embedding, self.threshold, self.temperature) if self.relation else None
        sparse, dense = encode_prompts(self.sam, prompts)
        *draft_decoder, refine_decoder = self.decoders()
        results = []
        for decoder in draft_decoder:
            seen = relation.detach() if self.relation and self.detach_relation else relation
            logits, quality = self._run(decoder, embedding, prompts, sparse, dense, seen)  # Eq. (3)
            results.append((logits, quality))
            shown = self.handoff(logits.detach() if self.detach_draft else logits)
            _, dense = encode_prompts(self.sam, prompts.with_masks(shown))
        return [*results, self._run(refine_decoder, embedding, prompts, sparse, dense, relation)]  # Eq. (4)

    def _run(
        self,
        decoder: BatchedMaskDecoder,
        embedding: Tensor,
        prompts: Prompts,
        sparse: Tensor,
        dense: Tensor,
        relation: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """One decoder's logits `(P, 1, 4h, 4w)` and estimated IoU `(P, 1)`, of mask token 0."""
        position = self.sam.prompt_encoder.get_dense_pe()
        adapter = {} if relation is None else {"relation": relation, "image_index": prompts.image_index}
        logits, quality = decoder.predict_masks(embedding[prompts.image_index], position, sparse, dense, **adapter)
        return logits[:, :1], quality[:, :1]

    def loss(self, prediction: dict[str, Tensor], masks: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Eq. (5), mean over prompts: BCE + Dice on points where the mask is uncertain, for refined mask and draft
        alike.

        The equal weights are our choice. The draft needs a loss of its own: detached, it gets no gradient from the
        refined mask.
        """
        loss = super().loss(prediction, masks, generator)
        if "draft" in prediction:  # Eq. (5)
            loss = loss + point_sampled_loss(prediction["draft"], masks, generator=generator).mean()
        return loss

    def merged(self) -> None:
        """None: SAM's own format has no place for a second decoder and the adapter."""
        return None
