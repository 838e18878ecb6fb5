"""tests/gpu/run.sh on the CPU with tiny settings: its parts run, and what they make comes back."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from samtune.common.paths import repository_root
from samtune.study.records import read_records
from samtune.study.runner import run_cells

GPU = repository_root() / "tests" / "gpu"
sys.path.insert(0, str(GPU))
import bring_back as bringing  # noqa: E402
import pack as packing  # noqa: E402
from bring_back import bring_back  # noqa: E402
from pack import pack  # noqa: E402

from fake_records import fake_cells, fake_execute  # noqa: E402
from tiny_diffusion import save_tiny_diffusion  # noqa: E402


def run(out: Path, *parts: str, script: str = "run.sh", **settings: str) -> tuple[int, str]:
    environment = os.environ | {"DEVICE": "cpu", "PYTHON": sys.executable, "EVERY": "1"} | settings
    done = subprocess.run([GPU / script, out, *parts], env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def small_profile(path: Path, **changes: object) -> Path:
    """The smoke profile with notebook 90 alone: five measurements, no training."""
    smoke = yaml.safe_load((repository_root() / "lib/samtune/profiles/smoke.yaml").read_text())
    smoke["notebooks"] = {"90_train_nano_models": smoke["notebooks"]["90_train_nano_models"]}
    path.write_text(yaml.safe_dump(smoke | {"name": "smoke-queue"} | changes))
    return path


def test_queue_leaves_records_that_come_back(tmp_path: Path) -> None:
    results = repository_root() / "results" / "smoke-queue"
    shutil.rmtree(results, ignore_errors=True)
    profile = small_profile(tmp_path / "small.yaml")
    try:
        code, said = run(tmp_path / "out", "queue", QUEUE=str(profile), PROCESSES="2")
        assert code == 0 and "failed: none" in said, said
        records = read_records(results / "records")
        assert len(records) == 5
        shutil.rmtree(results)
        elsewhere = tmp_path / "checkout"
        placed, refused = bring_back(tmp_path / "out", elsewhere)
        assert refused == [] and placed >= 5
        back = read_records(elsewhere / "results" / "smoke-queue" / "records")
        assert [record.key for record in back] == [record.key for record in records]
        kept = len(list(elsewhere.rglob("*.json.gz")))  # records that are there, and what describes their objects, stay
        assert kept > 5 and bring_back(tmp_path / "out", elsewhere)[0] == placed - kept
    finally:
        shutil.rmtree(results, ignore_errors=True)


def test_adversarial_pictures_are_made_and_come_back_without_their_latents(tmp_path: Path) -> None:
    results = repository_root() / "results" / "smoke-pictures"
    shutil.rmtree(results, ignore_errors=True)
    model = str(save_tiny_diffusion(tmp_path / "tiny"))
    generation = {"sets": ["synthetic-natural"], "pictures": 3, "steps": 1, "attack_steps": 1}
    profile = small_profile(
        tmp_path / "small.yaml", name=results.name, diffusion=model, controlnet=model, generation=generation
    )
    script = {"script": "train_diffusion.sh", "PROFILE": str(profile), "WORK": str(tmp_path / "work"), "AT_ONCE": "2"}
    try:
        code, said = run(tmp_path / "out", "pictures", **script)
        assert code == 0, said
        made = sorted(path.name for path in results.glob("generated/*/*.png"))
        # Six cells: inverted, attacked and before the attack; the first two in the autoencoder alone; from noise. With
        # the two attacks lies what they start from.
        assert len(made) == 3 * (6 + 2)
        placed, refused = bring_back(tmp_path / "out", tmp_path / "checkout")
        back = tmp_path / "checkout" / "results" / results.name
        assert refused == [] and sorted(path.name for path in back.glob("generated/*/*.png")) == made
        described = len(list(back.glob("records/objects/*")))
        assert placed == 6 + described + len(made) + 3 * 6 + 6  # records, pictures, facts, and that all are there
        before = {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file()}
        again, said = run(tmp_path / "out", "pictures", **script)
        assert again == 0, said
        assert {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file()} == before
    finally:
        shutil.rmtree(results, ignore_errors=True)


def test_rehearsal_runs_a_notebook_on_the_cpu(tmp_path: Path) -> None:
    code, said = run(
        tmp_path / "out", "rehearsal", REHEARSED="--backbone nano --dataset synthetic-industrial 00_start_here"
    )
    assert code == 0 and "00_start_here: done" in said, said


def test_a_failing_part_does_not_stop_the_others(tmp_path: Path) -> None:
    code, said = run(tmp_path / "out", "rehearsal", "queue", REHEARSED="no_such_notebook", QUEUE="no-such-profile")
    assert code == 1 and "failed: rehearsal queue" in said, said


def test_a_record_comes_back_to_where_its_objects_are_described_already(tmp_path: Path) -> None:
    there, here, out = (tmp_path / name for name in ("there", "here", "out"))
    record = run_cells(fake_cells(datasets=("neu-seg",), seeds=(0,)), there / "results" / "cpu", fake_execute)[0]
    shutil.copytree(there / "results" / "cpu" / "records" / "objects", here / "results" / "cpu" / "records" / "objects")
    shutil.rmtree(there / "results" / "cpu" / "records" / "objects")  # older than the run, so not packed
    out.mkdir()
    with tarfile.open(out / "results-0.tar.gz", "w:gz") as packed:
        packed.add(there / "results" / "cpu" / "records", "results/cpu/records")
    assert bring_back(out, here)[1] == []
    back = {one.key: one for one in read_records(here / "results" / "cpu" / "records")}
    assert back[record.key].objects.equals(record.objects)


def test_records_are_packed_first_and_damaged_ones_refused(tmp_path: Path) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    out.mkdir()
    (out / "started").touch()
    weights, record = "results/cpu/checkpoints/a/trainable.safetensors", "results/cpu/records/b.json.gz"
    left_out = ("results/cpu/checkpoints/a/last.pt", "results/cpu/records/.b.partial", "results/rehearsal/x.json")
    for name in (weights, record, *left_out):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"damaged")
    assert pack(out, root) == 2  # the trained weights, and the record
    with pytest.warns(UserWarning, match="damaged record"):
        placed, refused = bring_back(out, tmp_path / "back")
    assert placed == 1 and refused == ["b.json.gz: damaged, or not the key of its cell"]


def started_with(root: Path, sizes: dict[str, int]) -> Path:
    """OUT of a run that wrote the files of these names and sizes."""
    out = root / "out"
    out.mkdir()
    (out / "started").touch()
    for name, size in sizes.items():
        path = root / "results/cpu" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    return out


def packed_names(out: Path) -> list[list[str]]:
    """Of each archive the files in it, as they lie there."""
    names = []
    for place in range(len(list(out.glob("results-*.tar.gz")))):
        with tarfile.open(out / f"results-{place}.tar.gz") as archive:
            names.append([name.removeprefix("results/cpu/") for name in archive.getnames()])
    return names


def test_the_cut_parts_no_picture_from_its_json_and_leaves_no_set_finished_that_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [[f"generated/{key}/{name}" for name in ("x.png", "x.json", "z.png", "z.json")] for key in ("a", "b")]
    sizes = {name: 150 if name.endswith("png") else 50 for name in (*sets[0], *sets[1])}
    out = started_with(tmp_path, sizes | {f"generated/{key}/finished.json": 10 for key in ("a", "b")})
    monkeypatch.setattr(packing, "ARCHIVES", 2)
    monkeypatch.setattr(packing, "BYTES", 405)
    assert pack(out, tmp_path) == 7
    assert packed_names(out) == [sets[0], ["generated/a/finished.json", *sets[1][:2]]]
    monkeypatch.setattr(packing, "BYTES", 300)  # a picture an archive
    assert pack(out, tmp_path) == 5
    assert packed_names(out) == [sets[0][:2], [*sets[0][2:], "generated/a/finished.json"]]


def test_what_is_too_large_takes_its_json_files_along(tmp_path: Path) -> None:
    large = {"generated/a/x.png": packing.LARGEST + 1, "checkpoints/t/trainable.safetensors": packing.LARGEST + 1}
    said = {name: 1 for name in ("generated/a/x.json", "generated/a/finished.json", "checkpoints/t/finished.json")}
    small = {"generated/a/y.png": 1, "generated/a/y.json": 1, "generated/a/x.safetensors": 1}
    out = started_with(tmp_path, large | said | small)
    assert pack(out, tmp_path) == 2
    assert packed_names(out) == [["generated/a/y.png", "generated/a/y.json"]]


def test_packing_or_bringing_back_broken_off_leaves_no_set_finished_that_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "BYTES", 300)
    names = ("x.png", "x.json", "y.png", "y.json", "finished.json")
    out = started_with(tmp_path, {f"generated/b/{name}": 150 if name.endswith("png") else 50 for name in names})
    pack(out, tmp_path)
    (tmp_path / "results/cpu/generated/a").mkdir()
    (tmp_path / "results/cpu/generated/a/x.png").write_bytes(bytes(250))  # moves all of b by an archive
    write, left = packing.write_atomically, 1

    def broken_off(path: Path, data: bytes) -> None:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        write(path, data)

    monkeypatch.setattr(packing, "write_atomically", broken_off)
    with pytest.raises(KeyboardInterrupt):
        pack(out, tmp_path)
    monkeypatch.setattr(bringing, "write_atomically", broken_off)
    for left in range(5):
        back, before = tmp_path / f"back{left}", left
        with pytest.raises(KeyboardInterrupt):
            bring_back(out, back)
        assert {path.name for path in back.rglob("*.*")} == set(names[:before])
    monkeypatch.setattr(bringing, "write_atomically", write)
    assert bring_back(out, tmp_path / "whole")[0] == 5
