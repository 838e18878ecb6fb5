"""What a user has: pictures, masks and the command line; and a SAM so small that tuning it takes a second."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from samtune.commands import cli
from samtune.sam.build import Sam
from small_sam import small_sam

HEIGHT, WIDTH = 40, 56
QUICK = ("--train-images", "16", "--batch-size", "2", "--device", "cpu", "--precision", "fp32")


def tiny_sam(backbone: str = "nano", checkpoint: object = None, seed: int = 0) -> Sam:
    """The small SAM of the tests under the name of the nano one; stands in for `load_sam`."""
    sam = small_sam(seed)
    sam.backbone = "nano"
    return sam


def use_tiny_sam(patch: pytest.MonkeyPatch, load: Callable[..., Sam] = tiny_sam) -> None:
    """Tuning and loading what was tuned take every backbone from `load`."""
    for module in ("tune", "tuned"):
        patch.setattr(f"samtune.commands.{module}.load_sam", load)


def disc(seed: int) -> np.ndarray:
    """A disc somewhere, bool (40, 56)."""
    x, y, radius = np.random.default_rng(seed).uniform([14, 14, 8], [42, 26, 12])
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def write_pictures(folder: Path, count: int = 5) -> tuple[Path, Path]:
    """`count` pictures of a bright disc on dark noise, and their masks (0/255): the two folders."""
    images, masks = folder / "images", folder / "masks"
    for path in (images, masks):
        path.mkdir(parents=True)
    for seed in range(count):
        noise = np.random.default_rng(seed).integers(0, 60, (HEIGHT, WIDTH, 3))
        picture = noise + 150 * disc(seed)[..., None]
        Image.fromarray(picture.astype(np.uint8)).save(images / f"{seed}.png")
        Image.fromarray(disc(seed).astype(np.uint8) * 255).save(masks / f"{seed}.png")
    return images, masks


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `samtune ARGUMENTS`."""
    done = CliRunner().invoke(cli.app, [str(one) for one in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, re.sub(r"(?s).*\r", "", done.stderr)  # progress bars end in \r


def tune(folder: Path, *options: object, out: str = "out") -> tuple[int, str, str]:
    """`samtune tune` on the pictures in `folder`."""
    folders = ("--images", folder / "images", "--masks", folder / "masks", "--out", folder / out)
    return run("tune", *folders, *QUICK, *options)
