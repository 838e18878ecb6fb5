"""The image encoder's attention with separate projections for q, k and v, and three exact ways to compute it.

segment_anything holds q, k and v in one matrix, `qkv`; LoRA (SPT, SAM-SP) adapts q and v alone. `split_attention`
replaces the modules; `split_qkv` and `merge_qkv` convert state dicts from and to SAM's own format, bit for bit.

SAM adds a relative position bias that depends on the query:
`bias[q, k] = q . Rh[row(q), row(k)] + q . Rw[col(q), col(k)]`.
"""

import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention, add_decomposed_rel_pos, get_rel_pos
from torch import Tensor, nn
from torch.nn import functional as F

PARTS = ("q_proj", "k_proj", "v_proj")
MOST_BYTES = 2**31  # of a bias: two pictures in ViT-B at 1,024 pixels


class SplitAttention(nn.Module):
    """Multi-head attention with decomposed relative positions, equal to segment_anything's `Attention`.

    Args:
        attention: its weights are copied (qkv) or taken over (all others).

    Attributes:
        form: how attention is computed; all forms agree within rounding. "explicit": segment_anything's own operations
            (equal bit for bit, the reference of the tests). "bias": the bias is the mask of
            `scaled_dot_product_attention`. "folded": see `folded`, no (L, L) tensor is made. "auto": folded for
            global blocks in training, and wherever the bias would take more than `MOST_BYTES`; else bias, which is
            faster.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.scale = attention.scale
        self.use_rel_pos = attention.use_rel_pos
        dim = attention.proj.in_features
        has_bias = attention.qkv.bias is not None
        for index, part in enumerate(PARTS):
            projection = nn.Linear(dim, dim, bias=has_bias)
            projection.weight = nn.Parameter(attention.qkv.weight.detach()[index * dim : (index + 1) * dim].clone())
            if has_bias:
                projection.bias = nn.Parameter(attention.qkv.bias.detach()[index * dim : (index + 1) * dim].clone())
            setattr(self, part, projection)
        self.proj = attention.proj
        if self.use_rel_pos:
            self.rel_pos_h = attention.rel_pos_h
            self.rel_pos_w = attention.rel_pos_w
        self.form = "auto"

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens `(B, L, C)` -> q, k, v: `(B, heads, L, C / heads)` each."""
        projections = [getattr(self, part) for part in PARTS]
        if all(type(projection) is nn.Linear for projection in projections):
            # One product over the joined matrix: segment_anything's own arithmetic, and faster than three.
            weight = torch.cat([projection.weight for projection in projections])
            bias = None if projections[0].bias is None else torch.cat([projection.bias for projection in projections])
            parts = F.linear(x, weight, bias).chunk(3, dim=-1)
        else:
            parts = tuple(projection(x) for projection in projections)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        """Tokens of a grid or window, `(B, H, W, C)` -> the same shape. Raises `ValueError` on an unknown `form`."""
        batch, height, width, channels = x.shape
        q, k, v = self.project(x.reshape(batch, height * width, channels))
        form = self.form
        if form == "auto":
            is_large = height * width > 1024
            heavy = q.shape[0] * q.shape[1] * (height * width) ** 2 * q.element_size() > MOST_BYTES
            folded = is_large and (heavy or torch.is_grad_enabled()) and self.use_rel_pos
            form = "folded" if folded else "bias"
        if form == "explicit":
            q, k, v = (part.flatten(0, 1) for part in (q, k, v))
            attention = (q * self.scale) @ k.transpose(-2, -1)
            if self.use_rel_pos:
                size = (height, width)
                attention = add_decomposed_rel_pos(attention, q, self.rel_pos_h, self.rel_pos_w, size, size)
            out = attention.softmax(dim=-1) @ v
        elif form == "bias" or not self.use_rel_pos:
            bias = None
            if self.use_rel_pos:
                rows, columns = self.position_terms(q.flatten(0, 1), height, width)
                bias = (rows.unsqueeze(-1) + columns.unsqueeze(-2)).flatten(-2)
                bias = bias.view(batch, self.num_heads, height * width, height * width)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)
        elif form == "folded":
            out = self.folded(*(part.flatten(0, 1) for part in (q, k, v)), height, width)
        else:
            raise ValueError(f"attention form {form!r}; known: auto, explicit, bias, folded")
        out = out.reshape(batch, self.num_heads, height, width, -1).permute(0, 2, 3, 1, 4)
        return self.proj(out.reshape(batch, height, width, -1))

    def position_terms(self, q: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """q `(B * heads, L, d)` -> its bias for each row `(B * heads, L, H)` and each column `(B * heads, L, W)`."""
        grid = q.reshape(-1, height, width, q.shape[-1])
        row_table = get_rel_pos(height, height, self.rel_pos_h).to(q.dtype)
        column_table = get_rel_pos(width, width, self.rel_pos_w).to(q.dtype)
        rows = torch.einsum("bhwc,hkc->bhwk", grid, row_table)
        columns = torch.einsum("bhwc,wkc->bhwk", grid, column_table)
        return rows.flatten(1, 2), columns.flatten(1, 2)

    def folded(self, q: Tensor, k: Tensor, v: Tensor, height: int, width: int) -> Tensor:
        """Attention with the bias folded into longer queries and keys: q, k, v `(B * heads, L, d)` -> `(B * heads, L,
        d)`.

        The product `[scale * q, q.Rh, q.Rw] . [k, one-hot row, one-hot column]` is the logit with its bias.
        """
        rows, columns = self.position_terms(q, height, width)
        one_hot_row = torch.eye(height, dtype=q.dtype, device=q.device).repeat_interleave(width, dim=0)
        one_hot_column = torch.eye(width, dtype=q.dtype, device=q.device).repeat(height, 1)
        place = torch.cat([one_hot_row, one_hot_column], dim=-1).expand(k.shape[0], -1, -1)
        query = torch.cat([q * self.scale, rows, columns], dim=-1)
        key = torch.cat([k, place], dim=-1)
        value = F.pad(v, (0, height + width))  # fused kernels want equal head sizes
        out = F.scaled_dot_product_attention(query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0), scale=1.0)
        return out.squeeze(0)[..., : v.shape[-1]]


def split_attention(encoder: ImageEncoderViT) -> ImageEncoderViT:
    """Replace the attention of every block by a `SplitAttention` with the same weights, in place."""
    for block in encoder.blocks:
        block.attn = SplitAttention(block.attn)
    return encoder


def set_attention_form(encoder: ImageEncoderViT, form: str) -> None:
    """Set `SplitAttention.form` of every block."""
    for block in encoder.blocks:
        block.attn.form = form


def split_qkv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """SAM's own state dict -> ours: `...attn.qkv.weight (3C, C)` becomes q_proj, k_proj and v_proj, `(C, C)` each."""
    split = {}
    for name, value in state.items():
        if ".attn.qkv." in name:
            for part, piece in zip(PARTS, value.chunk(3), strict=True):
                split[name.replace("qkv", part)] = piece.clone()
        else:
            split[name] = value
    return split


def merge_qkv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict -> SAM's own: the inverse of `split_qkv`."""
    merged = {}
    for name, value in state.items():
        if ".attn.q_proj." in name and name.startswith("image_encoder."):
            merged[name.replace("q_proj", "qkv")] = torch.cat([state[name.replace("q_proj", part)] for part in PARTS])
        elif name.startswith("image_encoder.") and any(f".attn.{part}." in name for part in PARTS[1:]):
            continue
        else:
            merged[name] = value
    return merged
