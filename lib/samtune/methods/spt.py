"""Self-Perception Tuning (SPT): SAM drafts a mask, looks at its own draft and refines it (AAAI 2025, arXiv 2411.17217).

In the paper's order: the relation between visual tokens, the adapter that brings it into a decoder (VRA), self-draft
tuning (SDT), the loss. The authors published inference only; what their code does not show is said where it is chosen.
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
    """How much each visual token has to do with each other one: `(B, C, h, w)` -> `(B, N, N)`, N = h w, rows sum to 1.

    Softmax over a row's cosine similarities, without the token itself. `temperature` infinity averages uniformly (a
    control). `threshold` (the paper's alpha): entries of at most threshold / N become 0 and the row is made to sum to
    1 again; the authors' code divides by the sums of columns, which we take for a slip. A row left empty stays so.
    """
    tokens = embedding.flatten(2).transpose(1, 2)
    tokens = tokens / (tokens.norm(dim=-1, keepdim=True) + 1e-16)
    similarity = (tokens / temperature) @ tokens.transpose(1, 2)
    itself = torch.eye(similarity.shape[-1], dtype=torch.bool, device=similarity.device)
    relation = similarity.masked_fill_(itself, -1e16).softmax(dim=-1)
    if threshold:
        relation = relation * (relation > threshold / relation.shape[-1])
        total = relation.sum(dim=-1, keepdim=True)
        relation = relation / torch.where(total > 0, total, 1)
    return relation


def related(relation: Tensor, keys: Tensor, image_index: Tensor) -> Tensor:
    """S K of every prompt, `(P, N, C)`: S `(B, N, N)` of its picture times its image tokens `(P, N, C)`.

    A picture's prompts stand side by side in the columns of one product, so that no copy of S is made for each.
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
    """SAM's two-way transformer with the VRA-Adapter at the end of its blocks: K <- K + (S K) * gamma, K image tokens.

    Takes over the blocks of `transformer`. `relation_scales` holds gamma `(C,)` of the one `block` (None: of every
    block), zero at first, or normal with `std`.
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
        """Of P prompts for B pictures -> their tokens `(P, T, C)` and image tokens `(P, N, C)`, N = h w.

        Args:
            image_embedding: `(P, C, h, w)`.
            image_pe: its positions, `(P, C, h, w)`.
            tokens: of the prompts, `(P, T, C)`.
            relation: S of every picture, `(B, N, N)`.
            image_index: the picture of each prompt, int64 `(P,)`.
        """
        keys = image_embedding.flatten(2).transpose(1, 2)
        key_pe = image_pe.flatten(2).transpose(1, 2)
        queries = tokens
        for index, layer in enumerate(self.layers):
            queries, keys = layer(queries=queries, keys=keys, query_pe=tokens, key_pe=key_pe)
            if str(index) in self.relation_scales:
                keys = keys + related(relation, keys, image_index) * self.relation_scales[str(index)]
        # The last look of the tokens at the image is SAM's own, without the adapter.
        attended = self.final_attn_token_to_image(q=queries + tokens, k=keys + key_pe, v=keys)
        return self.norm_final_attn(queries + attended), keys


class SPT(Method):
    """LoRA in encoder and decoders, a draft that prompts a second decoder, the VRA-Adapter in both.

    `rank`, `alpha`: LoRA on q and v, scale alpha / rank (released: 8 and 1). `draft`: self-draft tuning; without it
    one decoder, as `lora` has. `relation`: the VRA-Adapter, with `relation_threshold`, `relation_temperature`,
    `relation_block` (0 or 1; None: both), `relation_std` of its first scales. `handoff`: what of the draft becomes the
    mask prompt, one of `HANDOFFS`; `detach_draft` stops its gradient; `detach_relation` stops the relation's in the
    draft decoder.

    Trainable: ViT-B 390,144 parameters, ViT-L 881,664, ViT-H 1,405,952. Raises `InputError` on an unknown `handoff` or
    `relation_block`.
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
        """{"final": the refined mask's, "draft": the draft's (with `draft`)}, each `(P, 1, 4h, 4w)`."""
        *draft, (final, _) = self.passes(embedding, prompts)
        return {"final": final} | ({"draft": draft[0][0]} if draft else {})

    def passes(self, embedding: Tensor, prompts: Prompts) -> list[tuple[Tensor, Tensor]]:
        """The draft (with `draft`) and the refined mask, see `Method.passes`."""
        relation = relation_matrix(embedding, self.threshold, self.temperature) if self.relation else None
        sparse, dense = encode_prompts(self.sam, prompts)
        *draft_decoder, refine_decoder = self.decoders()
        results = []
        for decoder in draft_decoder:
            seen = relation.detach() if self.relation and self.detach_relation else relation
            logits, quality = self._run(decoder, embedding, prompts, sparse, dense, seen)
            results.append((logits, quality))
            shown = self.handoff(logits.detach() if self.detach_draft else logits)
            _, dense = encode_prompts(self.sam, prompts.with_masks(shown))
        return [*results, self._run(refine_decoder, embedding, prompts, sparse, dense, relation)]

    def _run(
        self,
        decoder: BatchedMaskDecoder,
        embedding: Tensor,
        prompts: Prompts,
        sparse: Tensor,
        dense: Tensor,
        relation: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Mask token 0 of one decoder."""
        position = self.sam.prompt_encoder.get_dense_pe()
        adapter = {} if relation is None else {"relation": relation, "image_index": prompts.image_index}
        logits, quality = decoder.predict_masks(embedding[prompts.image_index], position, sparse, dense, **adapter)
        return logits[:, :1], quality[:, :1]

    def loss(self, prediction: dict[str, Tensor], masks: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """BCE + Dice on uncertainty-sampled points, of the refined mask and of the draft.

        Both are supervised (our reading: a detached draft would get no gradient otherwise), with equal weight.
        """
        loss = super().loss(prediction, masks, generator)
        if "draft" in prediction:
            loss = loss + point_sampled_loss(prediction["draft"], masks, generator=generator).mean()
        return loss

    def merged(self) -> None:
        """None: two decoders and the adapter are more than SAM's own weights can hold."""
        return None
