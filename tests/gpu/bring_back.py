"""Put what `pack.py` packed into this checkout: `bring_back.py OUT`. Every record is checked before it is placed."""

import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from pack import in_order

from samtune.common.atomic import write_atomically
from samtune.common.errors import InputError
from samtune.common.paths import repository_root
from samtune.study.records import OBJECTS, SUFFIX, cell_of, read_record


def bring_back(out: Path, root: Path) -> tuple[int, list[str]]:
    """Place the files of all archives in `out` under `root`; how many, and what was refused and why.

    A record must have the key of its cell; one that is there already stays, and so does what describes its objects.
    In the order of `pack.py`, so that a break leaves no JSON file without what it says is there.
    """
    placed, refused = 0, []
    with tempfile.TemporaryDirectory() as folder:
        for archive in sorted(out.glob("results-*.tar.gz")):
            with tarfile.open(archive) as packed:
                packed.extractall(folder, filter="data")
        for records in Path(folder).glob("results/*/records"):  # what describes the objects may be here already
            here = root / records.relative_to(folder) / OBJECTS
            if here.is_dir():
                shutil.copytree(here, records / OBJECTS, dirs_exist_ok=True)
        for path in in_order(path for path in Path(folder).rglob("*") if path.is_file()):
            target = root / path.relative_to(folder)
            if path.name.endswith(SUFFIX) and target.is_file():
                continue
            if path.name.endswith(SUFFIX) and path.parent.name != OBJECTS:
                try:
                    record = read_record(path)
                except InputError as error:
                    refused.append(str(error))
                    continue
                if record is None or cell_of(record).key() != record.key:
                    refused.append(f"{path.name}: damaged, or not the key of its cell")
                    continue
            write_atomically(target, path.read_bytes())
            placed += 1
    return placed, refused


if __name__ == "__main__":
    count, problems = bring_back(Path(sys.argv[1]), repository_root())
    print(f"placed {count} files", *problems, sep="\n")
    raise SystemExit(bool(problems))
