"""Downloads, from a repository and a server on this machine: whole or not at all, and by-hand advice when not."""

import io
import subprocess
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import scipy.io
from PIL import Image

from samtune.common.errors import InputError
from samtune.data import registry
from samtune.data.download import check, download
from samtune.data.registry_entry import GitSource, LinkSource


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch, tmp_path):
    """Neither proxies nor the user's git settings have a say here."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")


def use_source(monkeypatch, name, source):
    monkeypatch.setitem(registry.DATASETS, name, replace(registry.DATASETS[name], source=source))


@pytest.fixture
def repository(tmp_path):
    """A repository in CrackForest's layout: (folder, commit to pin, later commit)."""
    folder = tmp_path / "origin"
    (folder / "image").mkdir(parents=True)
    (folder / "groundTruth").mkdir()

    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        command = ["git", *identity, *arguments]
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()

    for number in range(1, 6):
        image = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / "image" / f"00{number}.jpg")
        labels = np.ones((20, 30), dtype=np.uint8)
        labels[number] = 2
        truth = {"groundTruth": {"Segmentation": labels, "Boundaries": labels}}
        scipy.io.savemat(folder / "groundTruth" / f"00{number}.mat", truth)
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "data")
    pinned = git("rev-parse", "HEAD")
    (folder / "image" / "001.jpg").unlink()
    git("commit", "--quiet", "-a", "-m", "something is gone")
    return folder, pinned


def test_a_repository_is_cloned_at_the_pinned_commit(monkeypatch, tmp_path, repository):
    folder, pinned = repository
    use_source(monkeypatch, "crackforest", GitSource(folder.as_uri(), pinned))
    said = []
    (tmp_path / "data" / "crackforest.partial").mkdir(parents=True)  # a killed download left this
    assert download("crackforest", tmp_path / "data", said.append) == tmp_path / "data" / "crackforest"
    assert "licence: non-commercial research only" in said[0] and "cite: Shi" in said[0]
    assert not (tmp_path / "data" / "crackforest.partial").exists()
    report = check("crackforest", tmp_path / "data")
    assert report.ok and sum(report.images.values()) == 5  # 001.jpg is there: the pinned commit, not the newest
    assert "the full download has 118" in report.text() and "every sample opens" in report.text()
    assert download("crackforest", tmp_path / "data", said.append) and "already in" in said[-1]


@pytest.mark.parametrize("commit", ["0" * 40, None])
def test_a_failed_clone_leaves_nothing_and_says_what_to_do(monkeypatch, tmp_path, repository, commit):
    url = repository[0].as_uri() if commit else (tmp_path / "gone").as_uri()
    use_source(monkeypatch, "crackforest", GitSource(url, commit or repository[1]))
    with pytest.raises(InputError) as caught:
        download("crackforest", tmp_path / "data")
    assert f"git clone {url} '{tmp_path / 'data' / 'crackforest'}'" in str(caught.value)
    assert list((tmp_path / "data").glob("[!.]*")) == []
    with pytest.raises(InputError, match="not found"):
        registry.open_dataset("crackforest", tmp_path / "data")


def coco_zip() -> bytes:
    buffer, picture = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(picture, "JPEG")
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("coco128-seg/images/train2017/000000000009.jpg", picture.getvalue())
        archive.writestr("coco128-seg/labels/train2017/000000000009.txt", "0 0.1 0.1 0.9 0.1 0.9 0.9\n")
    return buffer.getvalue()


@pytest.fixture
def server():
    """A server on this machine: /whole.zip; /cut.zip breaks off half-way; /broken.zip is no zip; else 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            content = {"/whole.zip": coco_zip(), "/cut.zip": coco_zip(), "/broken.zip": coco_zip()[:300]}.get(self.path)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if self.path == "/cut.zip" else content)

        def log_message(self, *arguments):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


def test_an_archive_is_unpacked(monkeypatch, tmp_path, server):
    use_source(monkeypatch, "coco128-seg", LinkSource(f"{server}/whole.zip"))
    folder = download("coco128-seg", tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["coco128-seg"]
    dataset = registry.open_dataset("coco128-seg", tmp_path)
    assert dataset.load("000000000009").object_class == ("person",)


def test_two_who_want_it_at_once_fetch_it_once(monkeypatch, tmp_path, server):
    use_source(monkeypatch, "coco128-seg", LinkSource(f"{server}/whole.zip"))
    said = []
    with ThreadPoolExecutor(2) as both:
        folders = list(both.map(lambda name: download(name, tmp_path, said.append), ["coco128-seg"] * 2))
    assert folders[0] == folders[1] and registry.open_dataset("coco128-seg", tmp_path).load("000000000009")
    assert sum(line.startswith("fetching") for line in said) == 1 and any("is already in" in line for line in said)


@pytest.mark.parametrize("path", ["cut.zip", "broken.zip", "absent.zip"])
def test_a_broken_archive_never_counts_as_present(monkeypatch, tmp_path, server, path):
    use_source(monkeypatch, "coco128-seg", LinkSource(f"{server}/{path}"))
    with pytest.raises(InputError) as caught:
        download("coco128-seg", tmp_path / "data")
    assert f"fetch {server}/{path} and unpack it in {tmp_path / 'data' / 'coco128-seg'}" in str(caught.value)
    assert list((tmp_path / "data").glob("[!.]*")) == []


def test_another_checksum_is_refused(monkeypatch, tmp_path, server):
    use_source(monkeypatch, "coco128-seg", LinkSource(f"{server}/whole.zip", "0" * 64))
    with pytest.raises(InputError, match="could not download coco128-seg"):
        download("coco128-seg", tmp_path)


def test_without_a_network_it_says_what_to_fetch_by_hand(monkeypatch, tmp_path):
    url = "http://127.0.0.1:9/coco128-seg.zip"  # the discard port: nobody listens
    use_source(monkeypatch, "coco128-seg", LinkSource(url))
    with pytest.raises(
        InputError, match=f"(?s)could not download coco128-seg .*fetch {url} and unpack it in {tmp_path}"
    ):
        download("coco128-seg", tmp_path)


def test_forms_procedural_sets_and_half_filled_folders(tmp_path):
    with pytest.raises(InputError, match="To get drive by hand: register at https://drive.grand-challenge.org"):
        download("drive", tmp_path)
    with pytest.raises(InputError, match="made on the fly"):
        download("synthetic-industrial", tmp_path)
    with pytest.raises(InputError, match="unknown data set 'drve'; known: drive"):
        download("drve", tmp_path)
    (tmp_path / "ccp" / "photos").mkdir(parents=True)
    with pytest.raises(InputError, match=r"ccp exists but nothing there matches photos/\*.jpg; move it away"):
        download("ccp", tmp_path)
    assert (tmp_path / "ccp" / "photos").is_dir()


def test_an_archive_with_something_else_in_it(monkeypatch, tmp_path, repository):
    use_source(monkeypatch, "ccp", GitSource(repository[0].as_uri(), repository[1]))
    with pytest.raises(InputError, match=r"has nothing that matches photos/\*.jpg"):
        download("ccp", tmp_path)
    assert not (tmp_path / "ccp").exists()


def test_check_reports_problems_and_look_alikes(monkeypatch, tmp_path, repository):
    folder, pinned = repository
    use_source(monkeypatch, "crackforest", GitSource(folder.as_uri(), pinned))
    place = download("crackforest", tmp_path / "data")
    dataset = registry.open_dataset("crackforest", tmp_path / "data")
    train, test = dataset.ids("train")[0], dataset.ids("test")[0]
    (place / "image" / f"{test}.jpg").write_bytes((place / "image" / f"{train}.jpg").read_bytes())
    bad = dataset.ids("val")[0]
    (place / "image" / f"{bad}.jpg").write_bytes(b"broken")
    report = check("crackforest", tmp_path / "data")
    assert not report.ok and len(report.problems) == 1 and f"{bad}.jpg" in report.problems[0]
    assert [{pair.first, pair.second} for pair in report.duplicates] == [{train, test}]
    assert "near-duplicates across splits: 1" in report.text()
