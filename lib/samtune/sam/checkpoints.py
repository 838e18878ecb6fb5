"""SAM checkpoints: read official ones by name or path and the shipped nano weights; write SAM's own format."""

import hashlib
import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm.auto import tqdm

from samtune.common.atomic import PARTIAL, disk_full, is_disk_full, lock, write_atomically
from samtune.common.errors import InputError, first_line, unknown
from samtune.common.paths import asset, checkpoint_root, is_offline, names_a_file, resolve
from samtune.sam.attention import merge_qkv, split_qkv
from samtune.sam.build import BACKBONES, Sam, new_sam
from samtune.sam.hugging_face import HUB_PATCHES, from_hugging_face
from samtune.sam.mobile import MOBILE_PATCHES, from_mobile_sam

# The suffix of an official name is the beginning of the file's MD5. The SHA-256 were listed by third parties.
OFFICIAL = {
    "vit_b": ("sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
    "vit_l": ("sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
    "vit_h": ("sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
}
SOURCE = "https://dl.fbaipublicfiles.com/segment_anything/"
NANO = "assets/nano_sam.safetensors"
SHIPPED = {"nano": NANO, "nano_mobile": "assets/nano_mobile.safetensors"}
MOBILE = "mobile_sam.pt"  # as its authors call it; looked for beside the official checkpoints
BY_HAND = {
    "nano_mobile": "make them by python -m samtune.nano.second_victim --out DIR, and copy DIR/nano_mobile.safetensors "
    "there",
    "mobile_sam": "fetch them from its authors' repository, ChaoningZhang/MobileSAM, and put them there",
}
NESTED = ("state_dict", "model_state_dict", "model")  # where training scripts put the weights
PATCHES = "image_encoder.patch_embed.proj.weight"  # the first layer: which SAM a state dict is
FIRST_LAYERS = (PATCHES, MOBILE_PATCHES, HUB_PATCHES)
MOST_LETTERS = 200  # of what torch says about a broken file: some of it goes on for pages


def load_sam(backbone: str, checkpoint: str | Path | None = None) -> Sam:
    """A SAM with weights, in eval mode, float32.

    Args:
        backbone: "nano" (shipped), "vit_b", "vit_l", "vit_h" (downloaded once, see `official_checkpoint`), "mobile_sam"
            (put there by hand), or the path of a checkpoint of any of them.
        checkpoint: a file to read in place of the backbone's own, in SAM's own format or ours (`.safetensors`).

    Raises `InputError` when the file is missing, corrupt or of another backbone.
    """
    path = None if checkpoint is None else resolve(checkpoint)
    if backbone not in BACKBONES and names_a_file(backbone):
        path, backbone = resolve(backbone), ""
    elif path is None:
        if backbone not in BACKBONES:
            raise unknown("backbone", backbone, BACKBONES)
        if backbone == "mobile_sam":
            path = checkpoint_root() / MOBILE
        else:
            path = asset(SHIPPED[backbone]) if backbone in SHIPPED else official_checkpoint(backbone)
    if path.is_dir():  # as transformers writes it
        path = path / "model.safetensors"
    if backbone in BY_HAND and not path.is_file():
        raise InputError(f"no weights of {backbone} at {path}: {BY_HAND[backbone]}")
    return sam_of_state(read_state(path), path, backbone)


def sam_of_state(state: Mapping[str, Tensor], path: Path, backbone: str = "") -> Sam:
    """A SAM with the weights `state`, in eval mode.

    Args:
        state: with q, k and v joined or separate, under SAM's names or those of transformers' `SamModel`. A prefix of
            all names ("module.", "model.", "sam."), as wrappers add, is removed.
        path: where it was read, for messages.
        backbone: "": found by the width of the encoder.

    Raises `InputError` when names or shapes do not fit.
    """
    prefix = next((name[: -len(one)] for name in state for one in FIRST_LAYERS if name.endswith(one)), "")
    state = {name.removeprefix(prefix): value for name, value in state.items()}
    if HUB_PATCHES in state:
        state = from_hugging_face(state)
    if MOBILE_PATCHES in state:  # q, k and v stay joined in its encoder
        backbone, state = backbone or "mobile_sam", from_mobile_sam(state)
    else:
        state = split_qkv(state)
        backbone = backbone or guess_backbone(state, path)
    sam = new_sam(backbone)
    load_strictly(sam, state, path)
    return sam


def holds_sam(state: Mapping[str, Tensor]) -> bool:
    """Does a state dict hold a whole SAM, with the first layer of its image encoder?"""
    return any(name.endswith(FIRST_LAYERS) for name in state)


def is_safetensors(path: Path) -> bool:
    """Does the name end in .safetensors? All other files are read by `torch.load`."""
    return path.suffix.lower() == ".safetensors"


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, float32, on the CPU.

    The file is `.safetensors` or torch's own (`.pth`, `.pt`, `.ckpt` ...). It may hold the state dict under "model" or
    "state_dict", beside the optimiser and other things. Raises `InputError`, one line.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    state = read_tensors(path)
    while isinstance(state, dict) and (nested := [state[key] for key in NESTED if isinstance(state.get(key), dict)]):
        state = nested[0]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"not a state dict of tensors: {path} (sha256 {sha256(path)})")
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def read_tensors(path: Path) -> object:
    """What a `.safetensors` file or one of torch's own holds, on the CPU. Raises `InputError`, one line."""
    try:
        return load_file(path) if is_safetensors(path) else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = first_line(error)[:MOST_LETTERS]
        raise InputError(f"corrupt checkpoint {path} (sha256 {sha256(path)}): {reason}") from error
    except Exception as error:  # pickle.UnpicklingError and whatever else a broken pickle raises
        raise InputError(
            f"not a checkpoint of tensors: {path} (sha256 {sha256(path)}); of a whole model, save the state_dict alone"
        ) from error


def read_progress(path: Path, parts: Sequence[str]) -> dict:
    """A dictionary of `parts` that a training has saved to go on from; `InputError`, one line, says what to do."""
    try:
        state = read_tensors(path)
        if missing := [part for part in parts if not isinstance(state, dict) or part not in state]:
            raise InputError(f"{path} was not saved by this training: there is no {missing[0]} in it")
    except InputError as error:
        raise InputError(f"{error}; remove that file to begin anew") from error
    return state


def load_strictly(module: torch.nn.Module, state: dict[str, Tensor], path: Path | str) -> None:
    """Load `state`, or raise `InputError` with the names and shapes expected and found: nothing is skipped silently."""
    check_fits(module.state_dict(), state, path)
    module.load_state_dict(state)


def check_fits(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path | str) -> None:
    """Raise `InputError` with what is expected and found, unless `state` has the names and shapes of `wanted`."""
    expected = {name: tuple(value.shape) for name, value in wanted.items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if expected == found:
        return
    problems = []
    wrong = [name for name in expected if name in found and expected[name] != found[name]]
    if wrong:
        problems.append(f"{wrong[0]} is {found[wrong[0]]}, expected {expected[wrong[0]]} ({len(wrong)} such)")
    for verb, names in (("missing", expected.keys() - found.keys()), ("unexpected", found.keys() - expected.keys())):
        if names:
            problems.append(f"{verb} {sorted(names)[0]} ({len(names)} such)")
    raise InputError(f"checkpoint {path} does not fit this backbone: {'; '.join(problems)}")


def guess_backbone(state: dict[str, Tensor], path: Path | str) -> str:
    """The backbone of a state dict, by the width of its encoder. Raises `InputError` when no backbone
    has that width.
    """
    weight = state.get(PATCHES)
    widths = {build.keywords["width"]: name for name, build in BACKBONES.items() if hasattr(build, "keywords")}
    if weight is None or weight.shape[0] not in widths:
        found = "no image encoder" if weight is None else f"an encoder of width {weight.shape[0]}"
        hint = "; what samtune tune wrote has to be exported first" if weight is None else ""
        raise InputError(f"{path} holds {found}; expected one of SAM's widths {sorted(widths)}{hint}")
    return widths[weight.shape[0]]


def official_checkpoint(backbone: str) -> Path:
    """Path of an official checkpoint in the cache folder; it is downloaded if it is not there, with a progress bar.

    A partial download never counts as present. With `SAMTUNE_OFFLINE=1` nothing is downloaded. Raises `InputError` that
    says what to download by hand, and where to put it.
    """
    if backbone not in OFFICIAL:
        raise InputError(f"{backbone} has no official checkpoint: name the file of its weights instead")
    name, _ = OFFICIAL[backbone]
    path = checkpoint_root() / name
    by_hand = f"fetch {SOURCE}{name} by hand and put it at {path}"
    if not path.is_file() and is_offline():
        raise InputError(f"no checkpoint at {path} and SAMTUNE_OFFLINE is set: {by_hand}")
    if not path.is_file():
        with lock(path.with_name(f".{name}.lock")):  # two notebooks may want it at once
            try:
                if not path.is_file():
                    print(f"downloading {name} to {path}")
                    download(SOURCE + name, path)
            except Exception as error:
                raise InputError(f"cannot download {name} ({first_line(error)}): {by_hand}") from error
    verify_official(path)
    return path


def must_be_downloaded(backbone: str) -> bool:
    """Is `backbone` official, and its checkpoint not in the cache folder?"""
    return backbone in OFFICIAL and not (checkpoint_root() / OFFICIAL[backbone][0]).is_file()


def download(url: str, path: Path) -> None:
    """Download `url` to `path` with a progress bar; continues an earlier download that broke off.

    The file appears at `path` only when it is complete. Raises `OSError` when the connection fails or breaks off.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    done = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the partial file does not fit this download
            partial.unlink()
        raise
    with response:
        done = done if response.status == 206 else 0  # a server without ranges sends the file from its beginning
        length = response.headers.get("Content-Length")
        total = None if length is None else done + int(length)
        bar = tqdm(desc=path.name, initial=done, total=total, unit="B", unit_scale=True)
        with bar, partial.open("ab" if done else "wb") as file:
            while piece := response.read(2**20):
                file.write(piece)
                bar.update(len(piece))
    size = partial.stat().st_size
    if total not in (None, size):
        raise OSError(f"broken off at {size} of {total} bytes; the next try goes on from there")
    os.replace(partial, path)


def verify_official(path: Path) -> None:
    """Raise `InputError` when the MD5 of a file does not begin with the suffix of its official name
    ("sam_vit_b_01ec64").

    A different SHA-256 only gives a warning: those were listed by third parties.
    """
    suffix = re.search(r"_([0-9a-f]{6})\.pth$", path.name)
    if suffix is None:
        return
    md5 = _digest(path, "md5")
    if not md5.startswith(suffix.group(1)):
        raise InputError(
            f"corrupt checkpoint {path}: its MD5 begins {md5[:6]}, its name says {suffix.group(1)} "
            f"(sha256 {sha256(path)}, expected {_expected_sha256(path.name)}); remove it and download it again"
        )
    expected = _expected_sha256(path.name)
    if expected not in ("unknown", sha256(path)):
        print(f"warning: {path} has sha256 {sha256(path)}, listed is {expected}; its MD5 fits its name")


def weights_hash(module: torch.nn.Module) -> str:
    """12 hexadecimal digits: a hash of the names and values of all parameters and buffers. It is part of every cell."""
    return state_hash(module.state_dict())[:12]


def state_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and values, hexadecimal; their order and device do not matter."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_official(sam: Sam, path: Path) -> None:
    """Write `sam` in SAM's own format (`.pth`, q, k and v joined), which plain `segment_anything` loads."""
    save_torch(merge_qkv(sam.state_dict()), path)


def save_torch(value: object, path: Path) -> None:
    """Write `value` by `torch.save`, whole or not at all; makes the folder. Raises `DiskFull`, one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("wb") as file:  # given a path, torch hides from Python that the disk is full
            torch.save(value, file)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        cause = error if isinstance(error, OSError) else error.__context__  # torch puts an error of its own on top
        if is_disk_full(cause):
            raise disk_full(path, cause) from error
        raise
    os.replace(partial, path)


def save_safetensors(state: dict[str, Tensor], path: Path, dtype: torch.dtype, metadata: dict[str, str]) -> None:
    """Write a state dict as safetensors of type `dtype`, with `metadata` as text."""
    write_atomically(path, save({name: value.to(dtype).contiguous() for name, value in state.items()}, metadata))


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return _digest(path, "sha256")


def _digest(path: Path, algorithm: str) -> str:
    found = path.stat()
    return _digest_of(path, algorithm, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=16)
def _digest_of(path: Path, algorithm: str, size: int, changed: int) -> str:
    """Of ViT-H 2.5 GB are read: not again for every cell, as long as size and time of the file stay as they are."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _expected_sha256(name: str) -> str:
    return next((expected for official, expected in OFFICIAL.values() if official == name), "unknown")
