"""Pack what a run has written under results/ since OUT/started was made into OUT: `pack.py OUT`.

At most 4 archives of 15 MiB (64 MiB come back in all): records first, then generated pictures, then small checkpoints;
whole or absent. The latents of generated pictures stay: those of 200 inversions are 160 MB, and a training wants the
pictures alone.
"""

import io
import sys
import tarfile
from pathlib import Path

from samtune.common.atomic import write_atomically
from samtune.common.paths import repository_root

ARCHIVES, BYTES = 4, 15 * 2**20
ORDER = ("records", "generated")  # folders, and then the rest
LARGEST = 4 * 2**20  # a file above that (a checkpoint to resume from, a random ViT-B) stays


def new_files(root: Path, since: float) -> list[Path]:
    """Files under results/ written after `since` (seconds), in `ORDER`, without what is half done."""
    files = [path for path in (root / "results").rglob("*") if path.is_file() and path.stat().st_mtime >= since]
    kept = [
        path
        for path in files
        if path.suffix not in (".lock", ".partial", ".pt")
        and path.stat().st_size <= LARGEST
        and not {"rehearsal", "cache"} & set(path.relative_to(root).parts)
        and not (path.suffix == ".safetensors" and "generated" in path.relative_to(root).parts)
    ]

    def rank(path: Path) -> int:
        return next((place for place, name in enumerate(ORDER) if name in path.parts), len(ORDER))

    return sorted(kept, key=lambda path: (rank(path), str(path)))


def pack(out: Path, root: Path) -> int:
    """Write `out/results-N.tar`; how many files are in them. What does not fit is left out and counted."""
    place, packed, held = 0, 0, 0
    buffer = io.BytesIO()
    files = new_files(root, (out / "started").stat().st_mtime)
    archive = tarfile.open(fileobj=buffer, mode="w:gz")
    for path in files:
        size = path.stat().st_size
        if held + size > BYTES:
            archive.close()
            write_atomically(out / f"results-{place}.tar.gz", buffer.getvalue())
            place, held, buffer = place + 1, 0, io.BytesIO()
            if place == ARCHIVES:
                break
            archive = tarfile.open(fileobj=buffer, mode="w:gz")
        archive.add(path, str(path.relative_to(root)))
        held, packed = held + size, packed + 1
    if place < ARCHIVES:
        archive.close()
        write_atomically(out / f"results-{place}.tar.gz", buffer.getvalue())
    print(f"packed {packed} of {len(files)} files")
    return packed


if __name__ == "__main__":
    pack(Path(sys.argv[1]), repository_root())
