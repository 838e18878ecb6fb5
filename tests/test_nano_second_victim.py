"""The second victim: shapes as the nano SAM's, training that goes on where it stopped, weights that load_sam takes."""

from pathlib import Path

import pytest
import torch

from samtune.common.errors import InputError
from samtune.methods import build_method
from samtune.nano.scenes import picture_bank
from samtune.nano.second_victim import CHECKPOINT, WEIGHTS, distil
from samtune.sam import checkpoints
from samtune.sam.checkpoints import load_sam


def test_killed_and_resumed_it_ends_the_same_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samtune.nano.second_victim.BATCH", 2)
    bank = picture_bank(("synthetic-natural",), 2)
    whole = distil(bank, tmp_path / "a", 3, progress=False)

    saves = []
    real = torch.save

    def killed(state: dict, file: object) -> None:
        real(state, file)
        saves.append(state["step"])
        if len(saves) == 2:  # after the second checkpoint's file is written, before it is moved
            raise KeyboardInterrupt

    monkeypatch.setattr("samtune.nano.second_victim.CHECKPOINT_EVERY", 1)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(torch, "save", killed)
        distil(bank, tmp_path / "b", 3, progress=False)
    assert torch.load(tmp_path / "b" / CHECKPOINT, weights_only=True)["step"] == 1
    resumed = distil(bank, tmp_path / "b", 3, progress=False)
    for name, value in whole.state_dict().items():
        assert torch.allclose(value.float(), resumed.state_dict()[name].float(), atol=1e-6), name

    teacher = load_sam("nano")
    assert torch.equal(resumed.mask_decoder.mask_tokens.weight, teacher.mask_decoder.mask_tokens.weight)
    monkeypatch.setitem(checkpoints.SHIPPED, "nano_mobile", str(tmp_path / "b" / WEIGHTS))
    sam = load_sam("nano_mobile")
    images = torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        embedding, expected = sam.image_encoder(images), resumed.image_encoder(images)
        assert embedding.shape == teacher.image_encoder(images).shape
    assert (embedding - expected).abs().max() < 0.05 * expected.abs().max()  # kept as float16
    assert build_method("asam", sam).count_trainable() == build_method("asam", teacher).count_trainable()


def test_without_weights_it_says_how_to_make_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(checkpoints.SHIPPED, "nano_mobile", "assets/none.safetensors")
    with pytest.raises(InputError, match="make them by python -m samtune.nano.second_victim"):
        load_sam("nano_mobile")
