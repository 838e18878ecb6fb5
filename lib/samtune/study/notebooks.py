"""Which cells each notebook asks for: to count them beforehand, and to run them without the notebooks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from samtune.common.errors import InputError, unknown
from samtune.common.paths import results_root
from samtune.study import asam, baselines, sam_sp, spt
from samtune.study.estimate import disk_bytes, estimate_seconds
from samtune.study.profile import Profile
from samtune.study.records import Record, read_records
from samtune.study.runner import missing_cells, only_planned

Parameters = Mapping[str, object]

# As the notebooks call them: profile, data sets, seeds, and the parameters that the profile gives the notebook.
ASKED: dict[str, Callable[[Profile, Sequence[str], Sequence[int], Parameters], list[Record]]] = {
    "00_start_here": lambda profile, names, seeds, given: baselines.run_baselines(profile, names, seeds),
    "10_spt": lambda profile, names, seeds, given: spt.run_main(
        profile, names, seeds, given.get("controls", ()), bool(given.get("union"))
    ),
    "11_spt_ablations": lambda profile, names, seeds, given: spt.run_ablations(
        profile, names, seeds, given.get("groups", ()), given.get("transfer", ())
    ),
    "20_sam_sp": lambda profile, names, seeds, given: sam_sp.run_main(profile, names, seeds),
    "21_sam_sp_ablations": lambda profile, names, seeds, given: sam_sp.run_ablations(
        profile, names, seeds, given.get("groups", ())
    ),
    "31_asam_ablations": lambda profile, names, seeds, given: asam.run_ablations(
        profile, names, seeds, given.get("groups", ())
    ),
    "90_train_nano_models": lambda profile, names, seeds, given: baselines.run_nano_sam(profile, names),
}


def ask_for_cells(notebook: str, profile: Profile) -> list[Record]:
    """Ask for all cells of a notebook as the profile runs it: their records; what has none is run.

    Raises `InputError` for a notebook that asks for none.
    """
    if notebook not in ASKED:
        raise unknown("notebook", notebook, ASKED)
    return ASKED[notebook](profile, profile.datasets[notebook], profile.seeds, profile.notebooks[notebook].parameters)


@dataclass(frozen=True)
class Outlook:
    """What is left of a notebook: its cells, those without a record (and what they need), time and disk for these.

    Fields:
        cells, missing: numbers.
        seconds: on this machine, one process; None: nothing alike was run or timed here.
        bytes: that they leave on disk.
        lacking: why the cells could not be counted (a data set that is not here), or "".
    """

    notebook: str
    cells: int = 0
    missing: int = 0
    seconds: float | None = 0.0
    bytes: int = 0
    lacking: str = ""


def outlook(profile: Profile) -> Iterator[Outlook]:
    """What is left of each notebook of a profile; nothing is run, and neither weights nor the device need be here.

    Before learning rates are chosen, each is supposed to need three trainings: one, and its two neighbours.
    """
    folder = results_root(profile.name)
    known = read_records(folder / "records")
    anywhere = profile.model_copy(update={"device": "cpu", "precision": "fp32"})
    planned: set[str] = set()  # cells that two notebooks share are run once
    for notebook in profile.notebooks:
        try:
            with only_planned() as cells:
                ask_for_cells(notebook, anywhere)
        except InputError as error:
            yield Outlook(notebook, lacking=str(error).splitlines()[0])
            continue
        left = [cell for cell in missing_cells(cells, folder) if cell.key() not in planned]
        planned |= {cell.key() for cell in left}
        asked = len({cell.key() for cell in cells})
        yield Outlook(notebook, asked, len(left), estimate_seconds(left, known), disk_bytes(left))
