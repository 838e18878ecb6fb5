"""MobileSAM's own checkpoint, read with timm's classes."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from samtune.common.errors import InputError
from samtune.methods import build_method, trainable_parameters
from samtune.sam.build import new_sam
from samtune.sam.checkpoints import holds_sam, load_sam
from samtune.sam.mobile import MOBILE_PATCHES


def mobile_sam_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names -> those of MobileSAM's file, with the classifier that it still holds."""
    written = {"image_encoder.norm_head.weight": torch.ones(320), "image_encoder.head.bias": torch.zeros(1000)}
    for name, value in state.items():
        name = name.replace("network.", "").replace("stages", "layers").replace(".conv.weight", ".c.weight")
        name = name.replace("patch_embed.conv1", "patch_embed.seq.0").replace("patch_embed.conv2", "patch_embed.seq.2")
        moved = re.match(r"(image_encoder.layers.)(\d)(.downsample.*)", name)
        written[f"{moved[1]}{int(moved[2]) - 1}{moved[3]}" if moved else name] = value
    return written


def test_its_checkpoint_loads_by_name_and_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    sam = new_sam("mobile_sam")
    for name, buffer in sam.image_encoder.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
    state = mobile_sam_layout(sam.state_dict())
    assert MOBILE_PATCHES in state and "image_encoder.layers.2.downsample.conv3.bn.running_var" in state
    assert "image_encoder.layers.3.blocks.1.local_conv.c.weight" in state and holds_sam(state)
    torch.save(state, tmp_path / "mobile_sam.pt")
    images = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        expected = sam.image_encoder(images)
        assert expected.shape == (1, 256, 8, 8)  # a token for 16 pixels, as SAM has
        for read in (load_sam(str(tmp_path / "mobile_sam.pt")), load_sam("mobile_sam", tmp_path / "mobile_sam.pt")):
            assert read.backbone == "mobile_sam" and torch.equal(read.image_encoder(images), expected)
    assert read.image_size == 1024 and read.mask_size == 256
    assert build_method("asam", read).count_trainable() == 1280
    assert trainable_parameters("asam", str(tmp_path / "mobile_sam.pt")) == 1280  # a file as a study's backbone
    monkeypatch.setenv("SAMTUNE_CHECKPOINTS", str(tmp_path))
    assert torch.equal(load_sam("mobile_sam").image_encoder(images), expected)
    monkeypatch.setenv("SAMTUNE_CHECKPOINTS", str(tmp_path / "elsewhere"))
    with pytest.raises(InputError, match=r"no weights of mobile_sam at .*elsewhere/mobile_sam.pt: fetch them from"):
        load_sam("mobile_sam")
    del state["image_encoder.layers.1.blocks.0.attn.attention_biases"]
    torch.save(state, tmp_path / "cut.pt")
    with pytest.raises(InputError, match="cut.pt does not fit.*missing image_encoder.network.stages.1.*attention_bias"):
        load_sam(str(tmp_path / "cut.pt"))


@pytest.mark.parametrize("method", ["lora", "spt", "lora_samed", "sam_sp"])
def test_lora_needs_sams_own_encoder(method: str) -> None:
    with pytest.raises(InputError, match="LoRA is for SAM's ViT encoder, and this backbone .MobileSAM"):
        build_method(method, new_sam("nano_mobile"))


@pytest.mark.parametrize("method", ["asam", "decoder_tuning"])
def test_in_training_its_encoder_stays_as_it_is(method: str) -> None:
    tuned = build_method(method, new_sam("nano_mobile")).train()
    encoder, images = tuned.sam.image_encoder, torch.randn(2, 3, 256, 256)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    with torch.no_grad():
        alone, both = tuned.encode(images[:1]), tuned.encode(images)
    assert torch.allclose(alone, both[:1], atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert tuned.sam.mask_decoder.training and not tuned.eval().sam.mask_decoder.training
