"""ASAM's adversarial pictures of a profile, made without the study around them."""

from collections.abc import Callable
from pathlib import Path

from samtune.common.paths import results_root
from samtune.report.adversarial import by_drop, contact_sheet, recipe
from samtune.report.figures import save
from samtune.study.execute import executor
from samtune.study.generated import adversarial_cells
from samtune.study.profile import Profile
from samtune.study.records import Record
from samtune.study.runner import files_folder, needed_cells, run_cell, run_cells

SHEET = 36  # pictures


def attack(profile: Profile, say: Callable[[str], None] = print) -> tuple[Record, Path]:
    """Make the adversarial pictures that the profile tunes ASAM on: inversion, then the attack.

    Returns the attack's record, and a contact sheet beside its pictures. Pictures that are there are not made again.
    Raises `InputError` where a model or a data set is not here.
    """
    cell, folder, run = adversarial_cells(profile)["asam"], results_root(profile.name), executor(profile)
    (record,) = run_cells([cell], folder, run, say)
    for one in needed_cells(cell.before(), folder):  # a record may be here without its pictures
        say(one.describe())
        run_cell(one, folder, run)
    sheet = contact_sheet(record, by_drop(record, SHEET), recipe(record))
    return record, save(sheet, files_folder(folder, cell), "contact_sheet")
