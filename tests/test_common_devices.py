"""What a run computes on."""

import pytest
import torch

from samtune.common.devices import choose_precision, refuse_several_processes, usable_device
from samtune.common.errors import InputError


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two cards, as far as it is asked."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_a_card_that_is_here_is_taken(two_cards: None) -> None:
    assert usable_device() == usable_device("cuda") == "cuda"
    assert [usable_device(device) for device in ("cuda:0", "cuda:1", "cpu")] == ["cuda:0", "cuda:1", "cpu"]


@pytest.mark.parametrize("device", ["cuda:7", "cuda:2", "cuda:-1", "cuda:x", "gpu", "cuda:"])
def test_a_card_that_is_not_here_is_refused(two_cards: None, device: str) -> None:
    with pytest.raises(InputError, match=f"'{device}' is not available here; there is: auto, cuda, .*cuda:0, cuda:1$"):
        usable_device(device)


def test_precision_is_read_from_the_flags() -> None:
    assert choose_precision("auto", "cpu", frozenset({"avx512f", "avx512_vnni"})) == "fp32"
    assert choose_precision("auto", "cpu", frozenset({"avx512_bf16"})) == "bf16"
    assert choose_precision("auto", "cpu", frozenset({"amx_bf16"})) == "bf16"
    assert choose_precision("auto", "mps", frozenset({"amx_bf16"})) == "fp32"
    assert choose_precision("bf16", "cpu", frozenset()) == "bf16"
    with pytest.raises(InputError, match="unknown precision 'fp23'; known: fp32"):
        choose_precision("fp23")


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_several_processes_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "2")
    with pytest.raises(InputError, match=f"in one process, but {name} is 2: start it without torchrun"):
        refuse_several_processes()
    monkeypatch.setenv(name, "1")
    refuse_several_processes()
