"""Pack what a run has written under results/ since OUT/started was made into OUT: `pack.py OUT`.

At most 4 archives of 15 MiB (64 MiB come back in all): records first, then generated pictures, then small checkpoints;
whole or absent. The latents of generated pictures stay: those of 200 inversions are 160 MB, and a training wants the
pictures alone.

A JSON file says that what it belongs to is there: `x.json` the picture `x.png`, `finished.json` the folder. So it comes
after that and never without: a generation would not make the picture again.
"""

import io
import sys
import tarfile
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from samtune.common.atomic import write_atomically
from samtune.common.paths import repository_root
from samtune.data.generated import FINISHED

ARCHIVES, BYTES = 4, 15 * 2**20
ORDER = ("records", "generated")  # folders, and then the rest
LARGEST = 4 * 2**20  # a file above that (a checkpoint to resume from, a random ViT-B) stays


def picture(path: Path) -> str:
    """The name of a generated picture's files: `x` of `x.png`, `x.json` and of `x.before.png`."""
    return path.stem.removesuffix(".before")


def in_order(files: Iterable[Path]) -> list[Path]:
    """`files` folder by folder, in `ORDER`: what belongs to a JSON file directly before it, `finished.json` last."""

    def rank(path: Path) -> tuple:
        kind = next((place for place, name in enumerate(ORDER) if name in path.parts), len(ORDER))
        return kind, str(path.parent), path.name == FINISHED, picture(path), path.suffix == ".json", path.name

    return sorted(files, key=rank)


def new_files(root: Path, since: float) -> list[Path]:
    """Files under results/ written after `since` (seconds), `in_order`, without what is half done or too large, and
    without the JSON files that would say it is there."""
    files = [path for path in (root / "results").rglob("*") if path.is_file() and path.stat().st_mtime >= since]
    wanted = [
        path
        for path in files
        if path.suffix not in (".lock", ".partial", ".pt")
        and not {"rehearsal", "cache"} & set(path.relative_to(root).parts)
        and not (path.suffix == ".safetensors" and _generated(path, root))
    ]
    kept = {path for path in wanted if path.stat().st_size <= LARGEST}
    facts = {path for path in kept if path.suffix == ".json" and path.name != FINISHED and _generated(path, root)}
    kept -= {path for path in facts if path.with_name(f"{path.stem}.png") not in kept}
    incomplete = {path.parent for path in wanted if path not in kept}
    return in_order(path for path in kept if path.name != FINISHED or path.parent not in incomplete)


def pack(out: Path, root: Path) -> int:
    """Write `out/results-N.tar.gz`; how many files are in them. What does not fit is left out and counted."""
    files = new_files(root, (out / "started").stat().st_mtime)
    archives: list[list[Path]] = [[]]
    held = 0
    for _, group in groupby(files, lambda path: (path.parent, picture(path))):  # a picture and its JSON: never apart
        together = list(group)
        size = sum(path.stat().st_size for path in together)
        if held + size > BYTES:
            if len(archives) == ARCHIVES:
                break  # and nothing after it: it may be a folder's `finished.json`
            archives.append([])
            held = 0
        archives[-1] += together
        held += size
    # The last one first: from pack to pack files only move to later archives. A machine that is taken away in between
    # so leaves some of them twice; the other way round they would be in none, and `finished.json` perhaps in one.
    for place, content in reversed(list(enumerate(archives))):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for path in content:
                archive.add(path, str(path.relative_to(root)))
        write_atomically(out / f"results-{place}.tar.gz", buffer.getvalue())
    packed = sum(map(len, archives))
    print(f"packed {packed} of {len(files)} files")
    return packed


def _generated(path: Path, root: Path) -> bool:
    """Is it a file of a set of generated pictures?"""
    return "generated" in path.relative_to(root).parts


if __name__ == "__main__":
    pack(Path(sys.argv[1]), repository_root())
