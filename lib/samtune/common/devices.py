"""What a run computes on: the device, its precision, and one process."""

import os

import torch

from samtune.common import provenance
from samtune.common.errors import InputError, unknown

PRECISIONS = ("auto", "fp32", "bf16")


def usable_device(setting: str = "auto") -> str:
    """ "cuda", "mps" or "cpu" for "auto"; any other setting ("cuda:1") unchanged. Raises `InputError` if it is not
    available.
    """
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = ["cuda"] * bool(cards) + ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    if setting == "auto":
        return here[0]
    known = [*here, *(f"cuda:{card}" for card in range(cards))]
    if setting not in known:
        raise InputError(f"device {setting!r} is not available here; there is: auto, {', '.join(known)}")
    return setting


def choose_precision(setting: str, device: str = "cpu", flags: frozenset[str] | None = None) -> str:
    """The precision to compute in: "fp32" or "bf16".

    Args:
        setting: "fp32", "bf16", or "auto": bf16 on a GPU or CPU with bf16 instructions (on a CPU: AVX512_BF16 or AMX;
            without them bf16 is several times SLOWER than fp32), else fp32. It reads the device's flags, and measures
            no time.
        device: "cpu", "cuda", "cuda:1", "mps".
        flags: in place of the CPU's own (tests).

    Raises `InputError` for an unknown setting.
    """
    if setting not in PRECISIONS:
        raise unknown("precision", setting, PRECISIONS)
    if setting != "auto":
        return setting
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    flags = frozenset(provenance.cpu_info("flags").split()) if flags is None else flags
    return "bf16" if device == "cpu" and flags & {"avx512_bf16", "amx_bf16"} else "fp32"


def refuse_several_processes() -> None:
    """Raise `InputError` under torchrun, mpirun or srun: each process would train by itself, on all images."""
    for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"):  # those accelerate reads
        if os.environ.get(name, "1") not in ("", "0", "1"):
            raise InputError(
                f"tuning runs in one process, but {name} is {os.environ[name]}: start it without torchrun or "
                "accelerate launch"
            )
