"""The encoder's attention: every form against segment_anything's own module, outputs and gradients; state dicts."""

import copy

import pytest
import torch
from segment_anything.modeling.image_encoder import Attention
from torch import Tensor, nn

from samtune.sam import attention
from samtune.sam.attention import PARTS, SplitAttention, merge_qkv, set_attention_form, split_qkv
from small_sam import official_twin, randomise_zeros, small_sam

FORMS = ("explicit", "bias", "folded", "auto")


def pair(form: str, relative: bool, table: tuple[int, int]) -> tuple[Attention, SplitAttention]:
    """segment_anything's attention with random weights, and ours with the same."""
    torch.manual_seed(0)
    official = Attention(24, num_heads=3, use_rel_pos=relative, input_size=table)
    randomise_zeros(official, 1)
    ours = SplitAttention(copy.deepcopy(official))
    ours.form = form
    return official, ours


def gradients(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Gradient of a random weighting of the output: of the input ("x") and of every parameter, q, k and v joined."""
    x = x.clone().requires_grad_()
    out = module(x)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)).sum().backward()
    found = {f"block.attn.{name}": parameter.grad for name, parameter in module.named_parameters()}
    for kind in ("weight", "bias"):
        if f"block.attn.q_proj.{kind}" in found:
            pieces = [found.pop(f"block.attn.{part}.{kind}") for part in PARTS]
            found[f"block.attn.qkv.{kind}"] = torch.cat(pieces)
    return {"x": x.grad, **found}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("grid", "relative", "table"),
    [((5, 7), True, (5, 7)), ((4, 4), True, (9, 6)), ((6, 5), False, (6, 5))],
    ids=["own table", "resampled table", "no positions"],
)
def test_every_form_equals_segment_anything(form: str, grid: tuple[int, int], relative: bool, table: tuple) -> None:
    official, ours = pair(form, relative, table)
    x = torch.randn(2, *grid, 24)
    expected, found = official(x), ours(x)
    if form == "explicit":
        assert torch.equal(found, expected)
    assert (found - expected).abs().max() < 1e-5
    # Gradients in double precision: there only a wrong formula can differ.
    expected, found = gradients(official.double(), x.double()), gradients(ours.double(), x.double())
    assert found.keys() == expected.keys()
    for name in expected:
        assert (found[name] - expected[name]).abs().max() < 1e-10, name


def test_auto_takes_the_folded_form_for_a_large_grid_in_training_and_where_the_bias_is_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    official = Attention(8, num_heads=1, use_rel_pos=True, input_size=(33, 33))
    randomise_zeros(official, 1)
    forms = {}
    for form in FORMS:
        forms[form] = SplitAttention(official)
        forms[form].form = form
    x = torch.randn(1, 33, 33, 8)
    training = {form: module(x) for form, module in forms.items()}
    with torch.no_grad():
        inference = {form: module(x) for form, module in forms.items()}
    assert torch.equal(training["auto"], training["folded"])
    assert torch.equal(inference["auto"], inference["bias"])
    monkeypatch.setattr(attention, "MOST_BYTES", 33**4 * 4 - 1)
    with torch.no_grad():
        assert torch.equal(forms["auto"](x), inference["folded"])
    assert not torch.equal(training["folded"], training["bias"])
    assert all((out - training["explicit"]).abs().max() < 1e-5 for out in (*training.values(), *inference.values()))


@pytest.mark.parametrize("form", FORMS)
def test_encoder_of_padded_windows_and_global_blocks_equals_segment_anything(form: str) -> None:
    ours = small_sam()
    official = official_twin(ours).image_encoder
    set_attention_form(ours.image_encoder, form)
    images = torch.randn(2, 3, 64, 64)
    expected, found = official(images), ours.image_encoder(images)
    if form == "explicit":
        assert torch.equal(found, expected)
    assert (found - expected).abs().max() < 1e-5
    expected = gradients(official.double(), images.double())
    assert expected["block.attn.blocks.0.attn.rel_pos_h"].any() and expected["block.attn.blocks.1.attn.rel_pos_w"].any()
    found = gradients(ours.image_encoder.double(), images.double())
    found = {name.removeprefix("block.attn."): value for name, value in found.items()}
    merged = merge_qkv({f"image_encoder.{name}": value for name, value in found.items()})
    for name, value in expected.items():
        name = name.removeprefix("block.attn.")
        assert (merged[f"image_encoder.{name}"] - value).abs().max() < 1e-9, name


def test_replaced_projection_takes_part() -> None:
    """LoRA swaps q_proj and v_proj for modules of its own: those must be called."""
    official, ours = pair("bias", True, (4, 4))
    doubled = copy.deepcopy(official)
    with torch.no_grad():
        doubled.qkv.weight[:24] *= 2
        doubled.qkv.bias[:24] *= 2

    class Twice(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base = base

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.base(x)

    ours.q_proj = Twice(ours.q_proj)
    x = torch.randn(1, 4, 4, 24)
    assert (ours(x) - doubled(x)).abs().max() < 1e-5
    assert (ours(x) - official(x)).abs().max() > 1e-3


def test_unknown_form_names_the_known_ones() -> None:
    _, ours = pair("fused", True, (4, 4))
    with pytest.raises(ValueError, match="'fused'.*explicit, bias, folded"):
        ours(torch.zeros(1, 4, 4, 24))


def test_official_to_split_to_official_is_bit_identical() -> None:
    official = official_twin(small_sam(3)).state_dict()
    split = split_qkv(official)
    assert split.keys() == small_sam().state_dict().keys()
    assert torch.equal(split["image_encoder.blocks.1.attn.k_proj.weight"],
                       official["image_encoder.blocks.1.attn.qkv.weight"][32:64])  # fmt: skip
    back = merge_qkv(split)
    assert list(back) == list(official)
    assert all(torch.equal(back[name], value) for name, value in official.items())
    again = split_qkv(back)
    assert all(torch.equal(again[name], value) for name, value in split.items())
