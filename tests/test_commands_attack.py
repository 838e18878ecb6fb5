"""`samtune attack`: adversarial pictures of one's own set, as folders to tune on."""

import shutil

import yaml

from own_pictures import run, write_pictures
from samtune.common.paths import asset
from samtune.data.folder import FolderDataset


def test_adversarial_pictures_of_a_set_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMTUNE_DATA", str(tmp_path))
    monkeypatch.setenv("SAMTUNE_RESULTS", str(tmp_path / "results"))
    write_pictures(tmp_path / "mine")
    profile = yaml.safe_load((asset("profiles") / "smoke.yaml").read_text())
    profile["name"] = "mine"
    profile["generation"] |= {"sets": ["mine"], "pictures": 2}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(profile))

    status, printed, error = run("attack", "--profile", str(path))
    assert status == 0, error
    made = next((tmp_path / "results/mine/generated").glob("*/contact_sheet.webp")).parent
    assert f"look at them: {made / 'contact_sheet.webp'}" in printed
    steps = [line.partition(": samtune ")[2].split() for line in printed.splitlines() if ": samtune " in line]
    assert [step[0] for step in steps] == ["data", "tune"]
    status, _, error = run(*steps[0][:-1], str(tmp_path / "adversarial"))
    assert status == 0, error
    pictures = FolderDataset(tmp_path / "adversarial/images", tmp_path / "adversarial/masks", split="train")
    assert len(pictures.ids("train")) == 2

    shutil.rmtree(next(one for one in made.parent.iterdir() if one != made))  # the inversion: it is needed no more
    status, printed, _ = run("attack", "--profile", str(path))
    assert status == 0 and "nothing to run" in printed and list(made.parent.iterdir()) == [made]

    shutil.rmtree(made)  # a record without its pictures
    status, printed, _ = run("attack", "--profile", str(path))
    assert status == 0 and "attack of 2 pictures" in printed and len(list(made.glob("*.before.png"))) == 2

    for part in ("images", "masks"):
        (tmp_path / f"mine/{part}/0.png").unlink()
    status, _, error = run("attack", "--profile", str(path))
    assert status == 2 and "mine has changed (names or sizes of its files) since 2 records were made of it" in error
    shutil.rmtree(tmp_path / "results/mine/records")
    assert run("attack", "--profile", str(path))[0] == 0


def test_a_set_that_is_not_here_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMTUNE_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("SAMTUNE_DATA", str(tmp_path))
    profile = yaml.safe_load((asset("profiles") / "smoke.yaml").read_text())
    profile["generation"]["sets"] = ["mine"]
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(profile | {"name": "other"}))
    status, _, error = run("attack", "--profile", str(tmp_path / "other.yaml"))
    assert status == 2 and "unknown data set 'mine'" in error and "a set of your own is a folder" in error
