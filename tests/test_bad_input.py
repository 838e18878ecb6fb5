"""What users get wrong, and what happens to them: one test a row of the design's table, through the command line."""

import errno
import io
import os
import re
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fake_records import fake_cells, fake_execute
from own_pictures import QUICK, disc, run, tiny_sam, tune, use_tiny_sam, write_pictures
from samtune import training
from samtune.common.atomic import DiskFull
from samtune.data import registry
from samtune.data.registry_entry import LinkSource
from samtune.methods import Lora
from samtune.sam.checkpoints import SOURCE, save_official, weights_hash
from samtune.study.records import read_records
from samtune.study.runner import run_cells
from small_sam import SIZES

LONGER = ("--train-images", "24", "--learning-rate", "0.01")  # 12 batches of 2


@pytest.fixture(autouse=True)
def a_small_sam(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every backbone is the tiny SAM; a checkpoint every other batch."""
    use_tiny_sam(monkeypatch)
    monkeypatch.setattr("samtune.commands.tune.CHECKPOINT_EVERY", 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with images/ and masks/ of five pictures, all well."""
    write_pictures(tmp_path)
    return tmp_path


def refused(done: tuple[int, str, str]) -> str:
    """The one line that a refused command says."""
    status, _, error = done
    assert status == 2, error
    assert error.startswith("samtune: ") and error.count("\n") == 1 and "Traceback" not in error, error
    return error


def write_mask(folder: Path, name: str, values: np.ndarray) -> None:
    Image.fromarray(values.astype(np.uint8)).save(folder / "masks" / f"{name}.png")


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("missing", ["mask", "image"])
def test_image_without_mask_and_mask_without_image(folder: Path, missing: str) -> None:
    gone, there = ("masks", "images") if missing == "mask" else ("images", "masks")
    (folder / gone / "3.png").unlink()
    error = refused(tune(folder))
    assert f"{folder / there / '3.png'} has no {missing}; expected {folder / gone / '3.png'}" in error
    assert "--skip-bad leaves bad files out" in error
    status, text, error = tune(folder, "--skip-bad")
    assert status == 0 and "4 pictures: 3 to tune on, 1 held out; left out, bad: 1" in text
    assert "left out, 1 bad file:\n" in error and str(folder / there / "3.png") in error.splitlines()[-1]


@pytest.mark.parametrize("damage", ["truncated", "no picture"])
def test_unreadable_image(folder: Path, damage: str) -> None:
    for name in range(5):  # whichever is looked at first
        path = folder / "images" / f"{name}.png"
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else b"this is text")
    error = refused(tune(folder))
    assert f"cannot read image {folder / 'images'}" in error and len(error.split(": ", 2)[2]) > 10  # and the reason
    assert damage == "no picture" or "--skip-bad leaves" in error
    for name in range(3):
        Image.fromarray(np.zeros((40, 56, 3), np.uint8)).save(folder / "images" / f"{name}.png")
    status, text, error = tune(folder, "--skip-bad")
    assert status == 0 and "3 pictures" in text and "left out, 2 bad files:" in error


def test_prediction_goes_on_after_a_picture_that_cannot_be_read(folder: Path) -> None:
    assert tune(folder)[0] == 0
    path = folder / "images" / "1.png"
    path.write_bytes(path.read_bytes()[:400])
    ask = ("predict", "--checkpoint", folder / "out", "--images", folder / "images", "--box", "1,1,30,30")
    error = refused(run(*ask, "--out", folder / "found"))
    assert "1 picture could not be read, all others are done: " in error and str(path) in error
    written = sorted(path.stem for path in (folder / "found" / "predicted_masks").iterdir())
    assert written == ["0", "2", "3", "4"]


def test_sixteen_bit_pictures_are_as_bright_in_prediction_as_in_tuning(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (folder / "images").iterdir():
        grey = np.array(Image.open(path))[..., 0].astype(np.uint16) * 16
        grey[:2] = 60_000 if path.stem == "0" else 0
        Image.fromarray(grey).save(path)
    assert tune(folder)[0] == 0
    seen = []
    monkeypatch.setattr(
        "samtune.methods.predictor.MethodPredictor.set_image", lambda self, image: seen.append(image) or sys.exit(7)
    )
    alone = folder / "alone"  # hardly a value above 4,095 there
    alone.mkdir()
    (folder / "images" / "1.png").rename(alone / "1.png")
    run("predict", "--checkpoint", folder / "out", "--images", alone, "--box", "1,1,30,30", "--out", folder / "found")
    assert 5 < seen[0].max() < 16  # 210 * 16 of 65,535


def test_mask_of_other_size(folder: Path) -> None:
    write_mask(folder, "2", np.full((20, 28), 255))
    error = refused(tune(folder))
    image, mask = (folder / name / "2.png" for name in ("images", "masks"))
    assert f"image {image} is 56x40 pixels but mask {mask} is 28x20" in error
    assert "never resized" in error


def test_empty_masks_are_dropped_and_counted(folder: Path) -> None:
    write_mask(folder, "2", np.zeros((40, 56)))
    status, text, _ = tune(folder)
    assert status == 0 and "4 pictures: 3 to tune on, 1 held out; left out, empty mask: 1" in text
    for name in range(5):
        write_mask(folder, str(name), np.zeros((40, 56)))
    status, _, error = tune(folder, out="other")
    assert status == 2 and "no sample left" in error and "5 empty masks" in error


def test_masks_coded_otherwise(folder: Path) -> None:
    for name in range(5):
        write_mask(folder, str(name), disc(name))
    error = refused(tune(folder))
    assert "is coded 0/1, not 0/255 (values 0, 1)" in error and "--mask-coding binary1" in error
    assert tune(folder, "--mask-coding", "binary1")[0] == 0
    for name in range(5):
        write_mask(folder, str(name), disc(name) * 3 + disc(name)[::-1] * 2)
    error = refused(tune(folder, out="other"))
    assert "index map" in error and "(values 0, 2, 3, 5)" in error and "--mask-coding index" in error
    assert tune(folder, "--mask-coding", "index", "--target", "instances", out="other")[0] == 0


# ---------------------------------------------------------------- checkpoints


def test_checkpoint_of_another_backbone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from samtune.sam import build, checkpoints

    assert tune(folder)[0] == 0
    options = ("--images", folder / "images", "--box", "1,1,30,30", "--out", folder)
    ask = ("predict", "--checkpoint", folder / "out", *options)
    right = weights_hash(tiny_sam())
    # Another one of the same shape.
    use_tiny_sam(monkeypatch, lambda name: tiny_sam(seed=1))
    error = refused(run(*ask))
    assert f"with weights {right}, but those of nano are {weights_hash(tiny_sam(seed=1))}" in error

    use_tiny_sam(monkeypatch, checkpoints.load_sam)  # a file of another shape
    monkeypatch.setitem(build.BACKBONES, "nano", lambda: build._build(**SIZES))
    state = tiny_sam().state_dict()
    state["prompt_encoder.no_mask_embed.weight"] = torch.zeros(1, 7)
    del state["mask_decoder.iou_token.weight"]
    save_file(state, folder / "other.safetensors")
    monkeypatch.setattr(checkpoints, "guess_backbone", lambda state, path: "nano")
    error = refused(tune(folder, "--backbone", folder / "other.safetensors", out="second"))
    assert "prompt_encoder.no_mask_embed.weight is (1, 7), expected (1, 32)" in error
    assert "missing mask_decoder.iou_token.weight" in error


def test_corrupt_checkpoints(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from samtune.sam import checkpoints

    assert tune(folder)[0] == 0
    path = folder / "out" / "tuned.safetensors"
    whole = path.read_bytes()
    ask = ("predict", "--checkpoint", path, "--images", folder / "images", "--box", "1,1,30,30", "--out", folder)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # one bit
    error = refused(run(*ask))
    assert "corrupt checkpoint" in error and "its tensors have sha256 " in error and "it was written with " in error
    path.write_bytes(whole[: len(whole) // 2])
    assert f"corrupt checkpoint {path} (sha256 " in refused(run(*ask))
    save_file({"a": torch.zeros(1)}, path)
    assert "was not written by `samtune tune`" in refused(run(*ask))
    path.unlink()
    assert f"no checkpoint at {path}" in refused(run(*ask))

    use_tiny_sam(monkeypatch, checkpoints.load_sam)
    monkeypatch.setenv("SAMTUNE_CHECKPOINTS", str(folder))
    official = folder / "sam_vit_b_01ec64.pth"
    save_official(tiny_sam(), official)
    error = refused(tune(folder, "--backbone", "vit_b", out="second"))
    assert f"corrupt checkpoint {official}: its MD5 begins" in error and "its name says 01ec64" in error
    assert f"(sha256 {checkpoints.sha256(official)}, expected {checkpoints.OFFICIAL['vit_b'][1]})" in error


# ---------------------------------------------------------------- network


def test_no_network_and_partial_downloads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from samtune.sam import checkpoints

    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    nobody = "http://127.0.0.1:9/"  # the port that throws all away; nobody listens
    name = "magnetic-tile"
    described = replace(registry.DATASETS[name], source=LinkSource(f"{nobody}{name}.zip"))
    monkeypatch.setitem(registry.DATASETS, name, described)
    monkeypatch.setenv("SAMTUNE_DATA", str(folder / "data"))
    (folder / "data" / f"{name}.partial" / "MT_Free").mkdir(parents=True)  # of a download that was broken off
    assert "here: no" in run("data", "info", name)[1]
    status, _, error = run("data", "download", name)
    assert status == 2 and error.startswith(f"samtune: could not download {name} (")
    assert f"{nobody}{name}.zip" in error and f"in {folder / 'data' / name}" in error
    assert not list((folder / "data").glob("[!.]*"))

    use_tiny_sam(monkeypatch, checkpoints.load_sam)
    monkeypatch.setattr(checkpoints, "SOURCE", nobody)
    monkeypatch.setenv("SAMTUNE_CHECKPOINTS", str(folder))
    wanted = folder / "sam_vit_b_01ec64.pth"
    wanted.with_suffix(".partial").write_bytes(b"half")
    error = refused(tune(folder, "--backbone", "vit_b"))
    assert "cannot download" in error and f"fetch {nobody}{wanted.name} by hand and put it at {wanted}" in error
    monkeypatch.setattr(checkpoints, "SOURCE", SOURCE)
    monkeypatch.setenv("SAMTUNE_OFFLINE", "1")
    error = refused(tune(folder, "--backbone", "vit_b"))
    assert "SAMTUNE_OFFLINE is set" in error and f"fetch {SOURCE}{wanted.name} by hand" in error


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "loar"), "unknown method 'loar'; known: lora, lora_samed, clean_tuning, asam, decoder_tuning"),
        (("--prompt", "box,pont1"), "unknown prompt 'pont1'; known: point1, "),
        (("--option", "rnak=4"), "unknown option of lora 'rnak'; known: rank, alpha"),
        (("--option", "rank=two"), "--option rank=two: expected int"),
        (("--option", "sam=1"), "unknown option of lora 'sam'; known: rank, alpha"),
        (("--method", "spt", "--option", "draft=maybe"), "--option draft=maybe: expected bool"),
        (("--method", "sam_sp", "--prompt", "box"), "sam_sp takes no prompt: it is tuned and used with none, not box"),
        (("--method", "sam_sp", "--target", "instances"), "target instances needs box or points"),
        (("--prompt", "none", "--target", "instances"), "target instances needs box or points"),
        (("--method", "sam_sp", "--option", "self_prompt=given"), "a control of the study; of use are box"),
        (("--preprocess", "strech"), "unknown preprocessing 'strech'; known: stretch, pad"),
        (("--target", "instance"), "unknown target 'instance'; known: instances, union"),
        (("--mask-coding", "binary"), "unknown --mask-coding binary; known: binary"),
        (("--precision", "fp16"), "unknown precision 'fp16'; known: "),
        (("--device", "tpu"), "device 'tpu' is not available here; there is: auto, cpu"),
        (("--method", "zero_shot"), "zero_shot has nothing to tune; methods to tune with: asam, classical_augm"),
        (("--method", "unet"), "unet has no SAM in it: a yardstick for tables alone; methods to tune with: asam, "),
        (("--epochs", "3"), "give one of them"),
    ],
)  # fmt: skip
def test_unknown_names_list_the_known_ones_nearest_first(folder: Path, arguments: tuple, message: str) -> None:
    assert message in refused(tune(folder, *arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epochs", "inf"), "--epochs is inf: it has to be above 0 and at most 100000"),
        (("--epochs", "nan"), "--epochs is nan"),
        (("--epochs", "0"), "--epochs is 0"),
        (("--epochs", "1e300"), "--epochs is 1e+300"),
        (("--train-images", "0"), "--train-images is 0: it has to be at least 1"),
        (("--learning-rate", "0"), "--learning-rate is 0: it has to be above 0 and at most 1"),
        (("--learning-rate", "nan"), "--learning-rate is nan"),
        (("--learning-rate", "-0.1"), "--learning-rate is -0.1"),
        (("--batch-size", "0"), "--batch-size is 0"),
        (("--accumulate", "-1"), "--accumulate is -1"),
        (("--objects", "0"), "--objects is 0"),
        (("--seed", "-1"), "--seed is -1"),
        (("--seed", "99999999999"), "--seed is 1e+11"),
        (("--mask-coding", "index", "--void", "-1"), "--void is -1"),
        (("--option", "rank=0"), "rank is 0: it has to be at least 1 and at most 1024"),
        (("--option", "rank=100000000"), "rank is 1e+08"),
        (("--option", "alpha=inf"), "alpha is inf: it has to be above 0"),
        (("--method", "spt", "--option", "relation_temperature=0"), "relation_temperature is 0: it has to be above 0"),
        (("--method", "spt", "--option", "relation_threshold=nan"), "relation_threshold is nan"),
        (("--method", "spt", "--option", "relation_std=-1"), "relation_std is -1"),
        (("--method", "sam_sp", "--option", "iterations=-1"), "iterations is -1"),
        (("--method", "sam_sp", "--option", "temperature=0"), "temperature is 0: it has to be above 0"),
        (("--method", "sam_sp", "--option", "smallest_part=2"), "smallest_part is 2: it has to be at least 0"),
        (("--method", "sam_sp", "--option", "distillation_weight=nan"), "distillation_weight is nan"),
        (("--method", "sam_sp", "--option", "first_weight=-1"), "first_weight is -1"),
        (("--method", "lora_samed", "--option", "rank=-4"), "rank is -4"),
    ],
)  # fmt: skip
def test_numbers_out_of_their_range(folder: Path, arguments: tuple, message: str) -> None:
    assert message in refused(tune(folder, *arguments))
    assert not (folder / "out").exists()


@pytest.mark.parametrize("preprocess", ["pad", "stretch"])
def test_strips_of_a_line_scan_camera(tmp_path: Path, preprocess: str) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for number in range(4):  # 3 of 2000 rows become 0.1 of 64
        mask = np.zeros((3, 2000), np.uint8)
        mask[:, 300 * number : 300 * number + 500] = 255
        Image.fromarray(np.repeat(mask[..., None] // 2, 3, 2)).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{number}.png")
    status, text, error = tune(
        tmp_path, "--train-images", "4", "--prompt", "box,point3,mask", "--preprocess", preprocess
    )
    assert status == 0, error
    ask = ("--images", tmp_path / "images", "--box", "100,0,400,2", "--out", tmp_path, "--device", "cpu")
    status, _, error = run("predict", "--checkpoint", tmp_path / "out", *ask)
    assert status == 0 and Image.open(tmp_path / "predicted_masks" / "0.png").size == (2000, 3), error


def test_several_processes_are_refused_before_the_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert "tuning runs in one process, but WORLD_SIZE is 4" in refused(tune(folder))
    assert not (folder / "out").exists()


def test_unknown_data_sets_profiles_and_backbones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from samtune.sam.checkpoints import load_sam

    for command in ("info", "download", "check"):
        error = refused(run("data", command, "magnetic-tiles"))
        assert "unknown data set 'magnetic-tiles'; known: magnetic-tile, " in error
    for command in ("results", "report"):
        assert "unknown profile 'quik'; known: quick, " in refused(run(command, "--profile", "quik"))
    use_tiny_sam(monkeypatch, load_sam)
    assert "unknown backbone 'vitb'; known: vit_b, " in refused(tune(folder, "--backbone", "vitb"))
    assert f"no checkpoint at {folder / 'sam.pth'}" in refused(tune(folder, "--backbone", folder / "sam.pth"))


# ---------------------------------------------------------------- the same folder again


def test_other_masks_or_pictures_of_the_same_names_are_another_run(folder: Path) -> None:
    assert tune(folder)[0] == 0
    before = (folder / "out" / "tuned.safetensors").read_bytes()
    mask, picture = folder / "masks" / "2.png", folder / "images" / "3.png"
    pixels = np.asarray(Image.open(picture))
    Image.fromarray(pixels).save(picture, compress_level=1)  # other bytes, the same picture
    status, text, _ = tune(folder)
    assert status == 0 and "already tuned, only measured again" in text
    kept, corrected = mask.read_bytes(), np.array(Image.open(mask))
    corrected[0, 0] ^= 255
    Image.fromarray(corrected).save(mask)
    assert "holds another run, tuned.safetensors (pictures " in refused(tune(folder))
    mask.write_bytes(kept)
    changed = pixels.copy()
    changed[0, 0, 0] ^= 1
    Image.fromarray(changed).save(picture)
    assert "holds another run, tuned.safetensors (pictures " in refused(tune(folder))
    assert (folder / "out" / "tuned.safetensors").read_bytes() == before


def test_objects_that_vanish_at_the_models_size_are_counted(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    side = {0: 4, 1: 4, 2: 4, 3: 12, 4: 200}  # of 640 pixels: less than a pixel of 64, than one of 32 masks, and more
    for number in range(15):
        mask = np.zeros((640, 640), np.uint8)
        mask[100 : 100 + side[number % 5], 200 : 200 + side[number % 5]] = 255
        Image.fromarray(np.repeat(mask[..., None] // 2, 3, 2)).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{number}.png")
    status, text, error = tune(tmp_path, "--train-images", "24", "--learning-rate", "0.001")
    assert status == 0, error
    held_out = set(pd.read_csv(tmp_path / "out" / "metrics.csv")["image"])
    shown = [side[number % 5] for number in range(15) if number not in held_out]
    small, lost = sum(one <= 12 for one in shown), sum(one == 4 for one in shown)
    assert f"warning: {small} of {len(shown)} objects to tune on are smaller than a pixel" in text, text
    assert f"and {lost} vanish at its 64 pixels" in text
    dropped, views, idle, batches = map(
        int, re.search(r"(\d+) of (\d+) views .*and (\d+) of (\d+) batches", text).groups()
    )
    assert views == 24 and batches == 12 and 24 * lost // len(shown) <= dropped < 24 and idle <= dropped / 2
    write_pictures(tmp_path / "large")
    assert "smaller than a pixel" not in tune(tmp_path / "large")[1]


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        MemoryError("Unable to allocate 5.3 GiB for an array"),
    ],
    ids=["cuda", "cpu", "numpy"],
)
def test_out_of_memory_says_what_was_tried_and_what_to_set(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def no_room(self: Lora, images: torch.Tensor) -> torch.Tensor:
        raise error

    assert tune(folder)[0] == 0
    monkeypatch.setattr(Lora, "encode", no_room)
    said = refused(tune(folder, "--batch-size", "4", out="second"))
    assert "out of memory in training at --batch-size 4, 64 px, 4 prompts" in said
    assert "set --batch-size 2 and --accumulate 2" in said
    ask = ("--images", folder / "images", "--box", "1,1,30,30", "--out", folder)
    said = refused(run("predict", "--checkpoint", folder / "out", *ask))
    assert "out of memory in prediction on" in said and "56x" in said and "at 64 px: set a smaller picture" in said


def test_a_loss_that_is_no_number_names_the_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lora, "loss", lambda self, prediction, masks, generator: prediction["final"].sum() * np.nan)
    error = refused(tune(folder))
    assert "loss is nan at step 0, on samples pictures/" in error and "smaller learning rate" in error


# ---------------------------------------------------------------- interruptions


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights that a run of LONGER ends with when nothing happens to it."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    write_pictures(folder)
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_sam(patch)
        assert tune(folder, *LONGER)[0] == 0
    return load_file(folder / "out" / "tuned.safetensors")


def assert_goes_on(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """The same command goes on from the last checkpoint and ends with the same weights."""
    assert not (folder / "out" / "tuned.safetensors").exists()
    status, text, error = tune(folder, *LONGER)
    assert status == 0 and f"going on from {folder / 'out' / 'last.pt'}" in text, error
    found = load_file(folder / "out" / "tuned.safetensors")
    assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in found)


def test_ctrl_c(folder: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, torch.Tensor]) -> None:
    real, steps = training._step, []

    def stopped_at_the_eighth(*arguments: object) -> float:
        steps.append(1)
        if len(steps) == 8:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(training, "_step", stopped_at_the_eighth)
    status, _, error = tune(folder, *LONGER)
    assert status == 130
    assert error.endswith("samtune: stopped; what is written stays, the same command completes it\n")
    assert_goes_on(folder, uninterrupted)
    assert len(steps) == 8 + 12 - 6  # from the checkpoint after the sixth


def test_a_damaged_last_pt(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, steps = training._step, []

    def stopped_at_the_fifth(*arguments: object) -> dict:
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(training, "_step", stopped_at_the_fifth)
    assert tune(folder, *LONGER)[0] == 130
    last = folder / "out" / "last.pt"
    whole = last.read_bytes()
    for damaged in (whole[: len(whole) // 2], b""):
        last.write_bytes(damaged)
        error = refused(tune(folder, *LONGER))
        assert f"corrupt checkpoint {last} (sha256 " in error and "remove that file to begin anew" in error


def test_disk_full(folder: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, torch.Tensor]) -> None:
    real, saved = training.torch.save, []

    def full_at_the_third(state: object, file: object) -> None:
        saved.append(1)
        if len(saved) == 3:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file.name))
        real(state, file)

    with monkeypatch.context() as patch:
        patch.setattr(training.torch, "save", full_at_the_third)
        error = refused(tune(folder, *LONGER))
    assert "disk full while writing" in error and "free some space and run the same command again" in error
    assert_goes_on(folder, uninterrupted)


class FullDisk(io.BytesIO):
    """A file that has no room."""

    def write(self, data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_torch_passes_on_that_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(DiskFull, match="disk full while writing .*sam.pth"):
        patch.setattr(Path, "open", lambda self, mode: FullDisk())
        save_official(tiny_sam(), tmp_path / "sam.pth")
    assert not list(tmp_path.iterdir())


KILLED_WHILE_IT_SAVES = textwrap.dedent(
    """
    import os, signal, sys
    from own_pictures import tiny_sam
    from samtune import training
    from samtune.commands import cli, tune

    tune.load_sam, tune.CHECKPOINT_EVERY = tiny_sam, 2
    real, saved = training.torch.save, []

    def save(state, file):
        saved.append(1)
        if len(saved) == 3:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        real(state, file)

    training.torch.save = save
    cli.main()
    """
)


def test_kill_9_while_a_checkpoint_is_written(folder: Path, uninterrupted: dict[str, torch.Tensor]) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    folders = ("--images", folder / "images", "--masks", folder / "masks", "--out", folder / "out")
    command = [str(one) for one in (sys.executable, "-c", KILLED_WHILE_IT_SAVES, "tune", *folders, *QUICK, *LONGER)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (folder / "out" / "last.pt.partial").read_bytes() == b"half"
    assert_goes_on(folder, uninterrupted)


def test_records_stay_whole_and_only_the_rest_is_run_again(tmp_path: Path) -> None:
    cells, calls = fake_cells(datasets=("neu-seg",)), []

    def execute(cell: object, folder: Path | None) -> object:
        calls.append(cell)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return fake_execute(cell, folder)

    with pytest.raises(KeyboardInterrupt):
        run_cells(cells, tmp_path, execute, say=lambda line: None)
    assert len(read_records(tmp_path / "records")) == 4
    run_cells(cells, tmp_path, execute, say=lambda line: None)
    assert len(read_records(tmp_path / "records")) == 9 and len(calls) == 5 + 5
