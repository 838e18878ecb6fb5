"""Where a number comes from: machine, package versions, commit, memory."""

import datetime
import functools
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

from samtune.common.errors import counted
from samtune.common.paths import repository_root

PACKAGES = (
    "samtune",
    "torch",
    "torchvision",
    "segment-anything",
    "numpy",
    "scipy",
    "opencv-python-headless",
    "peft",
    "accelerate",
    "diffusers",
    "transformers",
)


def hardware() -> str:
    """One line: processor, cores that this process may use, memory, and the graphics card, if any."""
    processor = cpu_info("model name") or platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    text = f"{' '.join(processor.split())}, {counted(cores, 'core')}, {memory:.0f} GiB"
    torch = sys.modules.get("torch")  # a process that has not imported torch has used no card
    if torch is not None and torch.cuda.is_available():
        text += f", {torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return text


def device_name(device: str) -> str:
    """The name of what computes on `device` ("cpu", "cuda", "cuda:1", "mps"): graphics card, or processor and cores."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return ", ".join(hardware().split(", ")[:2])


@functools.cache
def package_versions() -> dict[str, str]:
    """Version of Python and of each of `PACKAGES` that is installed."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@functools.cache
def git_state() -> tuple[str, bool]:
    """The commit of the checkout, and whether tracked code differs from it.

    Outside a checkout (a copy on another machine) the commit is that of the environment variable `SAMTUNE_COMMIT`, else
    "unknown".
    """
    root = repository_root()
    commit = _git(root, "rev-parse", "HEAD") or os.environ.get("SAMTUNE_COMMIT")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", "lib", "notebooks", "constraints.txt")
    return commit or "unknown", bool(commit and changes)


def now() -> str:
    """The time in UTC, to the second, in ISO form."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def reset_peak_memory() -> None:
    """Start a new peak, where the system can (Linux, CUDA); elsewhere the peak is that of the whole process."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb() -> tuple[float, float | None]:
    """Peaks since `reset_peak_memory`, in MiB: resident memory; that of the fullest graphics card, None without one."""
    torch = sys.modules.get("torch")
    card = None
    if torch is not None and torch.cuda.is_available():
        card = max(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count()))) / 2**20
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024, card
    except (OSError, IndexError):
        unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, others KiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, card


def cpu_info(field: str) -> str:
    """A field of the first processor, as Linux names it ("model name", "flags"); "" where it cannot be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == field), "")


def _git(root: Path, *arguments: str) -> str:
    """What a git command that only reads prints, or "" when it fails. It takes no lock, so that the user's git is not
    disturbed.
    """
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
