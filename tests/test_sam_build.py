"""SAM's sizes against segment_anything's own registry, other image sizes, and the nano SAM's starting values."""

import copy

import pytest
import torch
from segment_anything import sam_model_registry
from torch.nn import functional as F

from samtune.common.errors import InputError
from samtune.sam.attention import merge_qkv
from samtune.sam.build import initialise_nano, new_sam, set_image_size
from small_sam import small_sam


@pytest.mark.parametrize("backbone", ["vit_b", "vit_l", "vit_h"])
def test_official_backbones_have_segment_anythings_parameters(backbone: str) -> None:
    with torch.device("meta"):
        ours, official = new_sam(backbone), sam_model_registry[backbone]()
    for part in ("image_encoder", "prompt_encoder", "mask_decoder"):
        counts = [sum(p.numel() for p in getattr(sam, part).parameters()) for sam in (ours, official)]
        assert counts[0] == counts[1], part
    assert sum(p.numel() for p in ours.mask_decoder.parameters()) == 4_058_340
    merged, expected = merge_qkv(ours.state_dict()), official.state_dict()
    assert [(k, v.shape) for k, v in merged.items()] == [(k, v.shape) for k, v in expected.items()]
    assert (ours.image_size, ours.embedding_size, ours.mask_size) == (1024, 64, 256)
    assert (ours.backbone, ours.training) == (backbone, False)


def test_nano_has_three_million_parameters_and_a_fine_grid() -> None:
    with torch.device("meta"):
        nano = new_sam("nano")
    assert 2.9e6 < sum(p.numel() for p in nano.parameters()) < 6e6
    assert (nano.image_size, nano.embedding_size, nano.mask_size) == (256, 32, 128)


def test_unknown_backbone_lists_the_nearest_first() -> None:
    with pytest.raises(InputError, match=r"unknown backbone 'vit_ll'; known: vit_l, .*nano"):
        new_sam("vit_ll")


def test_another_image_size_resamples_positions_and_everything_fits() -> None:
    sam = small_sam()
    before = sam.image_encoder.pos_embed.detach().clone()
    assert set_image_size(sam, 96) is sam
    expected = F.interpolate(before.permute(0, 3, 1, 2), (12, 12), mode="bicubic", align_corners=False)
    assert torch.equal(sam.image_encoder.pos_embed, expected.permute(0, 2, 3, 1))
    assert (sam.image_size, sam.embedding_size, sam.mask_size) == (96, 12, 48)
    with torch.no_grad():
        embedding = sam.image_encoder(torch.randn(1, 3, 96, 96))
        sparse, dense = sam.prompt_encoder(points=None, boxes=torch.tensor([[4.0, 4, 40, 40]]), masks=None)
        masks, _ = sam.mask_decoder(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, False)
        _, from_mask = sam.prompt_encoder(points=None, boxes=None, masks=masks)
    assert masks.shape == (1, 1, 48, 48) and from_mask.shape == dense.shape == (1, 32, 12, 12)


def test_same_size_changes_nothing_and_a_box_keeps_its_relative_place() -> None:
    sam = small_sam()
    state = copy.deepcopy(sam.state_dict())
    box = torch.tensor([[8.0, 8, 40, 32]])
    with torch.no_grad():
        sparse = sam.prompt_encoder(points=None, boxes=box - 0.5, masks=None)[0]
        set_image_size(sam, 64)
        assert all(torch.equal(value, state[name]) for name, value in sam.state_dict().items())
        set_image_size(sam, 128)
        again = sam.prompt_encoder(points=None, boxes=2 * box - 0.5, masks=None)[0]
    assert (sparse - again).abs().max() < 1e-5


def test_size_that_is_no_multiple_of_the_patch_names_one_that_is() -> None:
    with pytest.raises(InputError, match="100 is no multiple of the patch size 8; take 96"):
        set_image_size(small_sam(), 100)


def test_nano_starting_values() -> None:
    sams = [initialise_nano(small_sam(seed), torch.Generator().manual_seed(7)) for seed in (0, 1)]
    for sam in sams:
        frequency = sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.norm(dim=0)
        ratio = frequency[1:] / frequency[:-1]
        assert abs(frequency[0] - 0.05) < 0.001 and 3.9 < frequency[-1] < 4.0 and (ratio - ratio[0]).abs().max() < 1e-4
        weights = torch.cat([block.mlp.lin1.weight.flatten() for block in sam.image_encoder.blocks])
        assert 0.017 < weights.std() < 0.021
        position = sam.prompt_encoder.get_dense_pe()[0].permute(1, 2, 0)
        assert torch.allclose(sam.image_encoder.pos_embed[0], 0.1 * position)
    first, second = (sam.image_encoder.blocks[0].attn.q_proj.weight for sam in sams)
    assert torch.equal(first, second)  # the generator decides, not what was there before
