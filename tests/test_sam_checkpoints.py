"""Checkpoints: official format in and out bit for bit, bad files told in one line, downloads that break off."""

import errno
import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from samtune.common.atomic import DiskFull
from samtune.common.errors import InputError
from samtune.common.paths import is_offline
from samtune.sam import checkpoints
from samtune.sam.build import BACKBONES, _build, new_sam
from samtune.sam.checkpoints import (
    download,
    load_sam,
    load_strictly,
    official_checkpoint,
    read_state,
    save_official,
    save_safetensors,
    weights_hash,
)
from small_sam import SIZES, official_twin, small_sam


@pytest.fixture(autouse=True)
def small_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "small", partial(_build, **SIZES))


@pytest.fixture
def official_file(tmp_path: Path) -> Path:
    """A small SAM as segment_anything saves it."""
    path = tmp_path / "sam_small.pth"
    torch.save(official_twin(small_sam()).state_dict(), path)
    return path


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def test_official_to_ours_to_official_is_bit_identical(official_file: Path, tmp_path: Path) -> None:
    sam = load_sam("small", official_file)
    assert (sam.backbone, sam.training) == ("small", False)
    assert same(sam.state_dict(), small_sam().state_dict())
    save_official(sam, tmp_path / "again.pth")
    before, after = torch.load(official_file), torch.load(tmp_path / "again.pth")
    assert same(before, after) and list(before) == list(after)
    assert not list(tmp_path.glob("*.partial"))
    official_twin(small_sam(1)).load_state_dict(after)  # strictly, by segment_anything's own classes
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert (sam.image_encoder(images) - official_twin(sam).image_encoder(images)).abs().max() < 1e-5


def test_a_path_alone_says_which_backbone_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    nano = new_sam("nano")
    save_official(nano, tmp_path / "nano.pth")
    loaded = load_sam(str(tmp_path / "nano.pth"))
    assert loaded.backbone == "nano" and same(loaded.state_dict(), nano.state_dict())
    assert weights_hash(loaded) == weights_hash(nano)
    save_safetensors(nano.state_dict(), tmp_path / "nano.safetensors", torch.float16, {"steps": "0"})
    halved = load_sam("nano", tmp_path / "nano.safetensors").state_dict()
    assert same(halved, {name: value.half().float() for name, value in nano.state_dict().items()})
    assert weights_hash(load_sam(str(tmp_path / "nano.safetensors"))) != weights_hash(nano)


def test_relative_checkpoint_is_taken_from_the_repository_root(
    official_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "resolve", lambda path: official_file.parent / path)
    assert load_sam("small", "sam_small.pth").backbone == "small"


def test_missing_unexpected_and_misshapen_keys_are_named(official_file: Path) -> None:
    state = torch.load(official_file)
    name = "mask_decoder.iou_token.weight"
    cases = [
        ({k: v for k, v in state.items() if k != name}, rf"missing {name} \(1 such\)"),
        (state | {"extra.bias": torch.zeros(1)}, r"unexpected extra\.bias \(1 such\)"),
        (state | {name: torch.zeros(1, 7)}, rf"{name} is \(1, 7\), expected \(1, 32\) \(1 such\)"),
    ]
    for changed, message in cases:
        torch.save(changed, official_file)
        with pytest.raises(InputError, match=message) as error:
            load_sam("small", official_file)
        assert str(official_file) in str(error.value) and "\n" not in str(error.value)


def test_a_line_in_backbones_is_all_that_a_new_one_needs(official_file: Path) -> None:
    assert same(load_sam(str(official_file)).state_dict(), small_sam().state_dict())  # known by its width
    with pytest.raises(InputError, match="small has no official checkpoint: name the file"):
        load_sam("small")


def test_checkpoint_of_another_backbone(official_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"does not fit this backbone: .* is .*32.*, expected .*160"):
        load_sam("nano", official_file)
    monkeypatch.delitem(BACKBONES, "small")
    with pytest.raises(InputError, match=r"an encoder of width 32; expected one of SAM's widths \[160, 768, 1024"):
        load_sam(str(official_file))
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="other.pth holds no image encoder"):
        load_sam(str(tmp_path / "other.pth"))


def test_nothing_is_loaded_when_something_does_not_fit() -> None:
    module = torch.nn.Linear(2, 2)
    before = module.weight.detach().clone()
    with pytest.raises(InputError, match="missing bias"):
        load_strictly(module, {"weight": torch.zeros(2, 2)}, "here")
    assert torch.equal(module.weight, before)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_corrupt_file_is_told_with_its_sha256(suffix: str, tmp_path: Path) -> None:
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    if suffix == ".pth":
        save_official(small_sam(), whole)
    else:
        save_safetensors(small_sam().state_dict(), whole, torch.float32, {})
    contents = whole.read_bytes()
    for damaged in (contents[: len(contents) // 2], b"not a checkpoint at all", b""):
        path.write_bytes(damaged)
        with pytest.raises(InputError) as error:
            load_sam("small", path)
        message = str(error.value)
        assert str(path) in message and hashlib.sha256(damaged).hexdigest() in message and "\n" not in message


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".PTH", ".ckpt", ".bin", ""])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "sam."])
def test_checkpoints_as_people_have_them(suffix: str, prefix: str, tmp_path: Path) -> None:
    state = {f"{prefix}{name}": value for name, value in official_twin(small_sam()).state_dict().items()}
    for index, content in enumerate([state, {"model": state, "epoch": 3}, {"state_dict": state, "optimizer": {}}]):
        path = tmp_path / f"{index}{suffix}"
        torch.save(content, path)
        assert same(load_sam(str(path)).state_dict(), small_sam().state_dict())


def test_what_is_beside_a_prefixed_sam_is_named(tmp_path: Path) -> None:
    state = {f"model.{name}": value for name, value in small_sam().state_dict().items()}
    torch.save(state | {"head.weight": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(InputError, match=r"unexpected head\.weight \(1 such\)"):
        load_sam(str(tmp_path / "more.pth"))


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    path = tmp_path / "list.pth"
    torch.save([torch.zeros(1)], path)
    with pytest.raises(InputError, match="not a state dict of tensors"):
        read_state(path)
    torch.save(torch.nn.Linear(1, 1), path)
    with pytest.raises(InputError, match="not a checkpoint of tensors.*save the state_dict alone"):
        read_state(path)
    with pytest.raises(InputError, match=f"no checkpoint at {tmp_path / 'absent.pth'}"):
        load_sam("small", tmp_path / "absent.pth")
    with pytest.raises(InputError, match="unknown backbone 'vit_x'"):
        load_sam("vit_x")


class Server:
    """An http server that breaks off after `limit` bytes of a file, and may not know ranges; it logs what was asked."""

    def __init__(self, content: bytes) -> None:
        self.content, self.limit, self.ranges = content, len(content), True
        self.asked: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                server.asked.append(wanted)
                first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
                if first and first >= len(server.content):
                    self.send_error(416)
                    return
                self.send_response(206 if first else 200)
                self.send_header("Content-Length", str(len(server.content) - first))
                self.end_headers()
                self.wfile.write(server.content[first : first + server.limit])

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/"


@pytest.fixture
def server(official_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The small SAM as if it were official, named by its MD5, on a server of this machine; an empty cache folder."""
    content = official_file.read_bytes()
    running = Server(content)
    threading.Thread(target=running.http.serve_forever, daemon=True).start()
    name = f"sam_small_{hashlib.md5(content).hexdigest()[:6]}.pth"
    monkeypatch.setitem(checkpoints.OFFICIAL, "small", (name, hashlib.sha256(content).hexdigest()))
    monkeypatch.setattr(checkpoints, "SOURCE", running.url)
    monkeypatch.setenv("SAMTUNE_CHECKPOINTS", str(tmp_path / "cache"))
    monkeypatch.delenv("SAMTUNE_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield running
    running.http.shutdown()
    running.http.server_close()


@pytest.fixture
def cached(server: Server, tmp_path: Path) -> Path:
    """Where the cache folder will have the checkpoint."""
    return tmp_path / "cache" / checkpoints.OFFICIAL["small"][0]


@pytest.mark.parametrize("ranges", [True, False], ids=["server with ranges", "server without"])
def test_download_that_breaks_off_never_counts_and_goes_on(server: Server, cached: Path, ranges: bool) -> None:
    server.limit, server.ranges = len(server.content) // 3, ranges
    with pytest.raises(InputError) as error:
        load_sam("small")
    for part in (f"broken off at {server.limit} of {len(server.content)} bytes", str(cached), server.url + cached.name):
        assert part in str(error.value)
    assert not cached.exists()
    server.limit = len(server.content)
    assert same(load_sam("small").state_dict(), small_sam().state_dict())
    assert server.asked == [None, f"bytes={len(server.content) // 3}-"]
    assert cached.read_bytes() == server.content and list(cached.parent.glob("[!.]*")) == [cached]
    load_sam("small")
    assert len(server.asked) == 2  # the third time nothing is fetched


def test_two_who_want_it_at_once_fetch_it_once(server: Server, cached: Path) -> None:
    with ThreadPoolExecutor(2) as both:
        paths = list(both.map(official_checkpoint, ["small", "small"]))
    assert paths == [cached, cached] and len(server.asked) == 1 and cached.read_bytes() == server.content


def test_remains_longer_than_the_file_are_thrown_away(server: Server, cached: Path) -> None:
    cached.parent.mkdir()
    cached.with_suffix(".partial").write_bytes(server.content + b"more")
    with pytest.raises(InputError, match="cannot download"):
        official_checkpoint("small")
    assert official_checkpoint("small").read_bytes() == server.content


def test_no_server_says_what_to_fetch_by_hand_and_where_to_put_it(
    server: Server, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "SOURCE", "http://127.0.0.1:9/")  # nobody listens there
    with pytest.raises(InputError, match=f"fetch http://127.0.0.1:9/{cached.name} by hand and put it at {cached}"):
        official_checkpoint("small")


def test_offline_fetches_nothing(server: Server, cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMTUNE_OFFLINE", "1")
    with pytest.raises(InputError) as error:
        load_sam("small")
    assert is_offline()
    for allowed in ("", "0"):
        monkeypatch.setenv("SAMTUNE_OFFLINE", allowed)
        assert not is_offline()
    monkeypatch.setenv("SAMTUNE_OFFLINE", "1")
    expected = f"SAMTUNE_OFFLINE is set: fetch {server.url}{cached.name} by hand and put it at {cached}"
    assert expected in str(error.value) and server.asked == []
    cached.parent.mkdir()
    cached.write_bytes(server.content)  # by hand
    assert load_sam("small").backbone == "small" and server.asked == []


def test_file_with_another_md5_than_its_name_says(server: Server, cached: Path) -> None:
    cached.parent.mkdir()
    damaged = server.content[:-100]
    cached.write_bytes(damaged)
    with pytest.raises(InputError) as error:
        load_sam("small")
    message, expected = str(error.value), checkpoints.OFFICIAL["small"][1]
    assert f"its MD5 begins {hashlib.md5(damaged).hexdigest()[:6]}, its name says {cached.stem[-6:]}" in message
    assert f"sha256 {hashlib.sha256(damaged).hexdigest()}, expected {expected}" in message


def test_another_sha256_with_the_right_md5_is_warned_of(
    server: Server, cached: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(checkpoints.OFFICIAL, "small", (cached.name, "0" * 64))
    download(server.url, cached)
    assert official_checkpoint("small") == cached
    assert f"warning: {cached} has sha256 " in capsys.readouterr().out


def test_official_names_carry_the_md5s_that_they_are_checked_by() -> None:
    assert [name for name, _ in checkpoints.OFFICIAL.values()][:3] == [
        "sam_vit_b_01ec64.pth", "sam_vit_l_0b3195.pth", "sam_vit_h_4b8939.pth",
    ]  # fmt: skip
    assert all(len(bytes.fromhex(sha256)) == 32 for _, sha256 in checkpoints.OFFICIAL.values())


def test_weights_hash_sees_every_value_and_name() -> None:
    sam = small_sam()
    before = weights_hash(sam)
    assert before == weights_hash(small_sam()) and len(before) == 12
    with torch.no_grad():
        sam.mask_decoder.iou_token.weight[0, 0] += 1e-6
    assert weights_hash(sam) != before


def test_a_disk_that_fills_up_while_torch_writes_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(value: object, file: object) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 57536 vs 57488")  # noqa: B904 (torch's writer does so)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(DiskFull, match="disk full while writing .*sam.pth: free some space"):
        checkpoints.save_torch({}, tmp_path / "sam.pth")
    assert not list(tmp_path.iterdir())
