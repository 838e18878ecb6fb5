"""ASAM's tuning: 1,280 parameters, what they reach, and the way back into plain segment_anything."""

import copy
from pathlib import Path

import pytest
import torch

from samtune.methods import build_method
from samtune.sam.build import new_sam
from samtune.sam.checkpoints import read_state, save_official
from small_sam import official_twin, small_sam, some_prompts


@pytest.mark.parametrize("backbone", ["vit_b", "vit_l", "vit_h"])
def test_1280_parameters_whatever_the_backbone(backbone: str) -> None:
    with torch.device("meta"):
        method = build_method("asam", new_sam(backbone))
    shapes = {name: tuple(parameter.shape) for name, parameter in method.trainable().items()}
    assert shapes == {
        "sam.mask_decoder.iou_token.weight": (1, 256),
        "sam.mask_decoder.mask_tokens.weight": (4, 256),
    }
    assert method.count_trainable() == 1280 and method.frozen_encoder
    assert method.prompts == ("box", "point10", "mask")


@pytest.mark.parametrize("kind", ["box", "point", "mask"])
def test_the_loss_moves_both_tokens_and_the_result_is_a_plain_sam(kind: str, tmp_path: Path) -> None:
    method = build_method("asam", small_sam()).train()
    before = copy.deepcopy(method.sam.state_dict())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 64, 64, generator=generator)
    masks = (torch.rand(2, 1, 64, 64, generator=generator) > 0.5).float()
    prompts = some_prompts(kind, [0, 1], method.sam)
    optimiser = torch.optim.Adam(method.trainable().values(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        method.loss(method(images, prompts), masks, generator).backward()
        optimiser.step()
    changed = {name for name, value in method.sam.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"mask_decoder.iou_token.weight", "mask_decoder.mask_tokens.weight"}

    method.eval()
    save_official(method.merged(), tmp_path / "asam.pth")
    official = official_twin(small_sam(9))
    official.load_state_dict(read_state(tmp_path / "asam.pth"))
    with torch.no_grad():
        expected = method(images, prompts)["final"]
        embedding = official.image_encoder(images)
        for place in (0, 1):
            own = prompts[place : place + 1]
            points = None if own.points is None else (own.points, own.labels)
            sparse, dense = official.prompt_encoder(points=points, boxes=own.boxes, masks=own.masks)
            position = official.prompt_encoder.get_dense_pe()
            logits, _ = official.mask_decoder(embedding[place : place + 1], position, sparse, dense, False)
            assert (logits[0] - expected[place]).abs().max() < 1e-5
