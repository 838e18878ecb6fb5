"""The cells of each notebook: to count them beforehand, and to run them without the notebooks."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samtune.common.errors import InputError, first_line, unknown
from samtune.common.paths import results_root
from samtune.study import asam, baselines, sam_sp, spt
from samtune.study.estimate import disk_bytes, estimate_seconds
from samtune.study.parameters import BY_NOTEBOOK, Asam
from samtune.study.profile import Profile
from samtune.study.records import Record, read_records
from samtune.study.runner import missing_cells, only_planned


def _asam(profile: Profile, given: Asam) -> list[Record]:
    from samtune.study.generated import run_generated  # not above: it brings diffusers, seconds

    return [*run_generated(profile), *asam.run_main(profile, given.datasets, given.seeds)]


# As the notebooks call them.
ASKED: dict[str, Callable[[Profile, Any], list[Record]]] = {
    "00_start_here": lambda profile, given: baselines.run_baselines(profile, given.datasets, given.seeds),
    "10_spt": lambda profile, given: spt.run_main(
        profile, given.datasets, given.seeds, given.controls, bool(given.union), given.changes
    ),
    "11_spt_ablations": lambda profile, given: spt.run_ablations(
        profile, given.datasets, given.seeds, given.groups, given.transfer
    ),
    "20_sam_sp": lambda profile, given: sam_sp.run_main(
        profile, given.datasets, given.seeds, given.baselines, given.changes
    ),
    "21_sam_sp_ablations": lambda profile, given: sam_sp.run_ablations(
        profile, given.datasets, given.seeds, given.groups
    ),
    "30_asam": _asam,
    "31_asam_ablations": lambda profile, given: asam.run_ablations(profile, given.datasets, given.seeds, given.groups),
    "90_train_nano_models": lambda profile, given: baselines.run_nano_sam(profile, given.datasets),
}


def ask_for_cells(notebook: str, profile: Profile) -> list[Record]:
    """The records of all cells of a notebook, as the profile runs it; cells without a record are run.

    Raises `InputError` for a notebook without cells, and for wrong parameters, or none of data sets, in the profile.
    """
    if notebook not in ASKED:
        raise unknown("notebook", notebook, ASKED)
    return ASKED[notebook](profile, BY_NOTEBOOK[notebook].of_profile(profile))


@dataclass(frozen=True)
class Outlook:
    """What is left to run for a notebook.

    Fields:
        notebook: its name.
        cells: number of its cells.
        missing: number of cells without a record, with those that they need.
        seconds: for these, on this machine in one process; None: nothing similar was run or timed here.
        bytes: that they leave on disk.
        lacking: why the cells cannot be counted (a data set is not here), or "".
    """

    notebook: str
    cells: int = 0
    missing: int = 0
    seconds: float | None = 0.0
    bytes: int = 0
    lacking: str = ""


def outlook(profile: Profile) -> Iterator[Outlook]:
    """What is left to run for each notebook of a profile. Nothing is run; neither weights nor the device need be here.

    While learning rates are not chosen yet, each counts as three trainings: one rate, and its two neighbours.
    """
    folder = results_root(profile.name)
    known = [*read_records(folder / "records"), *_timed_elsewhere(folder)]
    anywhere = profile.model_copy(update={"device": "cpu", "precision": "fp32"})
    planned: set[str] = set()  # cells that two notebooks share are run once
    for notebook in profile.notebooks:
        try:
            with only_planned() as cells:
                ask_for_cells(notebook, anywhere)
        except InputError as error:
            yield Outlook(notebook, lacking=first_line(error))
            continue
        left = [cell for cell in missing_cells(cells, folder) if cell.key() not in planned]
        planned |= {cell.key() for cell in left}
        asked = len({cell.key() for cell in cells})
        yield Outlook(notebook, asked, len(left), estimate_seconds(left, known), disk_bytes(left))


def _timed_elsewhere(folder: Path) -> list[Record]:
    """What `samtune bench` timed for the other profiles: on the same hardware it holds for this one too."""
    others = [other for other in folder.parent.glob("*/records") if other.parent != folder]
    timed: list[Record] = []
    for other in others:
        with suppress(InputError):  # a foreign file there is not this profile's business
            timed += [record for record in read_records(other) if record.kind == "timing"]
    return timed
