"""SAM from transformers' checkpoints: the same names as SAM's own of every size, and the same masks as `SamModel`."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import SamConfig, SamModel

from samtune.sam.attention import split_qkv
from samtune.sam.build import new_sam
from samtune.sam.checkpoints import holds_sam, load_strictly, sam_of_state
from samtune.sam.decode import decode_masks
from samtune.sam.hugging_face import from_hugging_face
from small_sam import SIZES, randomise_zeros, small_sam, some_prompts

SMALL = {
    "vision_config": {
        "hidden_size": SIZES["width"], "num_hidden_layers": SIZES["depth"], "num_attention_heads": SIZES["heads"],
        "image_size": SIZES["image_size"], "patch_size": SIZES["patch_size"], "mlp_dim": 4 * SIZES["width"],
        "window_size": SIZES["window_size"], "global_attn_indexes": list(SIZES["global_blocks"]),
        "output_channels": SIZES["prompt_width"], "num_pos_feats": SIZES["prompt_width"] // 2,
    },
    "prompt_encoder_config": {
        "hidden_size": SIZES["prompt_width"], "image_size": SIZES["image_size"], "patch_size": SIZES["patch_size"],
    },
    "mask_decoder_config": {
        "hidden_size": SIZES["prompt_width"], "mlp_dim": SIZES["decoder_mlp_width"],
        "num_attention_heads": SIZES["decoder_heads"], "iou_head_hidden_dim": SIZES["iou_head_width"],
    },
}  # fmt: skip


def test_it_gives_the_masks_of_samodel(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = SamModel(SamConfig(**SMALL)).eval()
    randomise_zeros(theirs, 0)
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    assert holds_sam(state)
    ours = small_sam(seed=1)
    load_strictly(ours, split_qkv(from_hugging_face(state)), tmp_path)
    images = torch.randn(1, 3, ours.image_size, ours.image_size)
    with torch.no_grad():
        embedding = ours.image_encoder(images)
        assert torch.allclose(embedding, theirs.get_image_embeddings(images), atol=1e-4)
        for kind in ("box", "point"):
            prompts = some_prompts(kind, [0, 0], ours)
            given = {"input_boxes": prompts.boxes[None]} if kind == "box" else {}
            if kind == "point":
                given = {"input_points": prompts.points[None], "input_labels": prompts.labels[None]}
            for multimask in (False, True):
                masks, quality = decode_masks(ours, embedding, prompts, multimask)
                wanted = theirs(image_embeddings=embedding, multimask_output=multimask, **given)
                assert torch.allclose(masks, wanted.pred_masks[0], atol=1e-3)
                assert torch.allclose(quality, wanted.iou_scores[0], atol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "vision"),
    [
        ("vit_b", {}),
        ("vit_l", {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
                   "global_attn_indexes": [5, 11, 17, 23]}),
        ("vit_h", {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16,
                   "global_attn_indexes": [7, 15, 23, 31]}),
    ],
)  # fmt: skip
def test_every_weight_of_the_real_sizes_has_its_place(backbone: str, vision: dict) -> None:
    mlp = {"mlp_dim": 4 * vision["hidden_size"]} if vision else {}
    with torch.device("meta"):
        theirs = SamModel(SamConfig(vision_config=vision | mlp)).state_dict()
        ours = new_sam(backbone).state_dict()
    found = split_qkv(from_hugging_face(theirs))
    assert {name: value.shape for name, value in found.items()} == {name: value.shape for name, value in ours.items()}


def test_a_checkpoint_of_the_hub_is_recognised_by_its_first_layer(tmp_path: Path) -> None:
    config = SamConfig(vision_config={"num_hidden_layers": 1})  # of ViT-B's width
    with torch.device("meta"):
        state = {f"module.{name}": value for name, value in SamModel(config).state_dict().items()}
    assert holds_sam(state)
    with pytest.raises(Exception, match=r"does not fit this backbone: missing image_encoder.blocks.1\."):
        sam_of_state(state, tmp_path / "model.safetensors")
