"""U-Net: the same interface as the methods on SAM, checkpoints with the running means of its batch norms."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from samtune.common.errors import InputError
from samtune.methods import build_method
from samtune.methods.unet import UNet
from samtune.prompts import Prompts
from samtune.training import train
from samtune.training_config import TrainingConfig
from small_sam import ListedSamples, disc_sample, small_sam, some_prompts

CONFIG = TrainingConfig(images=24, batch_size=4, prompts=("none",), device="cpu", precision="fp32", checkpoint_every=2)
DISCS = ListedSamples([disc_sample(number) for number in range(6)])


def small_unet(seed: int = 0) -> UNet:
    torch.manual_seed(seed)
    return build_method("unet", None, image_size=64)


def test_prompts_do_not_matter_and_masks_have_the_pictures_size() -> None:
    method, images = small_unet().eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        box = method(images, some_prompts("box", [0, 1, 1], small_sam()))["final"]
        nothing = method(images, Prompts(torch.tensor([0, 1, 1])))["final"]
    assert box.shape == (3, 1, 64, 64) and torch.equal(box, nothing) and torch.equal(box[1], box[2])
    assert not torch.allclose(box[0], box[1]) and method.merged() is None
    assert method.count_trainable() == sum(parameter.numel() for parameter in method.parameters())


def test_it_learns_and_its_checkpoint_holds_all_of_it(tmp_path: Path) -> None:
    method = small_unet()
    config = replace(CONFIG, images=96, augmentation="none")
    curve = train(method, [(DISCS, "train")], config, None, progress=False).curve
    assert curve[-1]["loss"] < 0.8 * curve[0]["loss"]
    other = small_unet(1)
    other.load_trainable_state(method.trainable_state())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(other.eval().encode(images), method.eval().encode(images))
    with pytest.raises(InputError, match="does not fit"):
        other.load_trainable_state({"encoder.conv1.weight": torch.zeros(1)})


def test_interrupted_run_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, resumed = small_unet(), small_unet()
    train(whole, [(DISCS, "train")], CONFIG, None, progress=False)
    loss = resumed.loss

    def stop(*arguments: object) -> torch.Tensor:
        resumed.calls = getattr(resumed, "calls", 0) + 1
        if resumed.calls == 4:
            raise KeyboardInterrupt
        return loss(*arguments)

    monkeypatch.setattr(resumed, "loss", lambda prediction, masks, generator=None: stop(prediction, masks, generator))
    with pytest.raises(KeyboardInterrupt):
        train(resumed, [(DISCS, "train")], CONFIG, tmp_path, progress=False)
    again = small_unet(5)
    train(again, [(DISCS, "train")], CONFIG, tmp_path, progress=False)
    for name, value in whole.trainable_state().items():
        assert torch.equal(value, again.trainable_state()[name]), name
