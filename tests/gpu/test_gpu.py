"""Methods on a card against the CPU. Where there is no card the same tests run on the CPU, to keep them in order.

`SAMTUNE_TEST_DEVICE` names the device; tests/gpu/run.sh runs these on the card.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from samtune.common.devices import usable_device
from samtune.common.errors import InputError
from samtune.evaluation import EvaluationConfig, evaluate, predict_with
from samtune.methods import METHODS, build_method
from samtune.prompts import Prompts
from samtune.training import train
from samtune.training_config import TrainingConfig
from small_sam import ListedSamples, disc_sample, small_sam

DEVICE = os.environ.get("SAMTUNE_TEST_DEVICE", "cuda" if torch.cuda.is_available() else "cpu")
TUNED = [name for name in METHODS if name != "zero_shot"]
pytestmark = pytest.mark.gpu


def one_step(name: str, device: str, precision: str) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss of a step and the trained parameters' gradients, on the CPU, for the same weights and pictures."""
    torch.manual_seed(0)
    method = build_method(name, small_sam() if METHODS[name].needs_sam else None,
                          **({} if METHODS[name].needs_sam else {"image_size": 64}))  # fmt: skip
    method = method.to(device).eval()  # without dropout and batch statistics
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).to(device)
    prompts = Prompts(torch.arange(2), torch.tensor([[8.0, 8.0, 40.0, 40.0]]).repeat(2, 1)).to(device)
    masks = torch.zeros(2, 1, 64, 64, device=device)
    masks[:, :, 8:40, 8:40] = 1
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
        outputs = method(images, prompts)
    # Losses that draw points draw others on another device: a plain one tells as much.
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        outputs["final"].float(), torch.nn.functional.interpolate(masks, outputs["final"].shape[-2:])
    )
    loss.backward()
    grads = {key: value.grad.float().cpu() for key, value in method.trainable().items() if value.grad is not None}
    return loss.item(), grads


@pytest.mark.parametrize("name", TUNED)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-3), ("bf16", 0.1)])
def test_a_step_equals_the_cpus(name: str, precision: str, tolerance: float) -> None:
    expected, wanted = one_step(name, "cpu", "fp32")
    found, grads = one_step(name, DEVICE, precision)
    assert found == pytest.approx(expected, rel=tolerance)
    assert grads.keys() == wanted.keys() and wanted
    whole = torch.cat([value.flatten() for value in wanted.values()])
    ours = torch.cat([grads[key].flatten() for key in wanted])
    assert torch.cosine_similarity(whole, ours, dim=0) > 1 - tolerance
    assert (whole - ours).norm() < 2.5 * tolerance**0.5 * whole.norm()


@pytest.mark.parametrize("order", [(DEVICE, "cpu"), ("cpu", DEVICE)])
def test_a_training_goes_on_on_another_device(order: tuple[str, str], tmp_path: Path) -> None:
    data = ListedSamples([disc_sample(number) for number in range(4)])
    for device, images in zip(order, (4, 8), strict=True):
        method = build_method("lora", small_sam())
        config = TrainingConfig(
            8, 2, prompts=("box",), device=device, precision="fp32", checkpoint_every=1, augmentation="none"
        )
        if images == 4:  # broken off half way
            with pytest.raises(KeyboardInterrupt):
                train(method, [(_Interrupting(data, after=5), "train")], config, tmp_path, progress=False)
            assert (tmp_path / "last.pt").is_file()
        else:
            result = train(method, [(data, "train")], config, tmp_path, progress=False)
    assert [row["images"] for row in result.curve] == [2, 4, 6, 8]


class _Interrupting:
    """A data set that stops the training at the `after`-th picture, as Ctrl-C would."""

    def __init__(self, data: ListedSamples, after: int) -> None:
        self.data, self.after, self.name = data, after, data.name

    def ids(self, split: str) -> list[str]:
        return self.data.ids(split)

    def load(self, id: str):
        self.after -= 1
        if self.after < 0:
            raise KeyboardInterrupt
        return self.data.load(id)


def test_processes_that_load_pictures_change_nothing() -> None:
    data = ListedSamples([disc_sample(number) for number in range(4)])
    curves = []
    for workers in (0, 2):
        torch.manual_seed(0)
        config = TrainingConfig(4, 2, prompts=("box", "mask"), device=DEVICE, precision="fp32", workers=workers)
        curves.append(train(build_method("lora", small_sam()), [(data, "train")], config, progress=False).curve)
    assert [row["loss"] for row in curves[0]] == pytest.approx([row["loss"] for row in curves[1]], rel=1e-4)


def test_an_evaluation_equals_the_cpus() -> None:
    data = ListedSamples([disc_sample(number) for number in range(4)])
    tables = []
    for device, workers in (("cpu", 0), (DEVICE, 2)):
        config = EvaluationConfig(prompt="point3", batch_size=2, device=device, workers=workers)
        method = build_method("zero_shot", small_sam())
        tables.append(evaluate(predict_with(method, config), data, config, progress=False)[0])
    assert np.allclose(tables[0]["iou"], tables[1]["iou"], atol=5e-3)


def test_too_little_memory_is_one_line_that_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    method = build_method("lora", small_sam())
    if DEVICE.startswith("cuda"):
        hungry = lambda *given: torch.empty(2**42, device=DEVICE)  # noqa: E731
    else:

        def hungry(*given):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(method, "encode", hungry)
    config = TrainingConfig(4, 2, prompts=("box",), device=DEVICE, precision="fp32")
    with pytest.raises(InputError, match="out of memory in training at batch_size 2.*set batch_size 1"):
        train(method, [(ListedSamples([disc_sample(0)]), "train")], config, progress=False)


def test_a_card_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="not available here"):
        usable_device(f"cuda:{torch.cuda.device_count()}")
