"""Where numbers come from: each record with its seed, commit, machine, date and the command that runs it again."""

from collections.abc import Iterable, Sequence

import pandas as pd

from samtune.report.claims import NOTEBOOKS
from samtune.study.records import SUFFIX, Record

MACHINE_COLUMNS = ["commit", "changes", "machine", "records", "hours", "from", "to"]
LIST_COLUMNS = ["record", "kind", "method", "dataset", "seed", "commit", "changes", "machine", "date", "command"]


def provenance(records: Iterable[Record]) -> pd.DataFrame:
    """All commits and machines: a row each with how many records, hours and the days from first to last.

    `changes`: "yes" where the working tree differed from the commit.
    """
    rows = [
        (record.commit[:9], "yes" if record.dirty else "", record.hardware, 1, record.seconds / 3600, record.date[:10])
        for record in records
    ]
    table = pd.DataFrame(rows, columns=["commit", "changes", "machine", "records", "hours", "date"])
    grouped = table.groupby(["commit", "changes", "machine"], as_index=False).agg(
        records=("records", "sum"), hours=("hours", "sum"), first=("date", "min"), last=("date", "max")
    )
    grouped.columns = MACHINE_COLUMNS
    return grouped.sort_values(["from", "commit", "machine"]).reset_index(drop=True)


def record_list(records: Sequence[Record], profile: str) -> pd.DataFrame:
    """A row a record, by its key: what tables name in their column `records`, to be looked up here.

    `command` deletes the record and asks for its cell again; a training's has the notebook that measures it. It is
    empty where no notebook of the kit asks for the cell.
    """
    notebooks = {record.key: _notebooks(record) for record in records}
    for record in records:  # what was only compared at other learning rates belongs to the notebook of the chosen one
        for place in record.tables:
            if place.startswith("learning_rates:"):
                trained_with = (record.cell.get("training") or {}).get("prompt")
                notebooks[record.key] += ["20_sam_sp" if trained_with == "none" else "10_spt"]
    of_training: dict[str, list[str]] = {}
    for record in records:
        if record.kind == "evaluation" and record.cell.get("training"):
            of_training.setdefault(str(record.cell["training"]), []).extend(notebooks[record.key])
    rows = []
    for record in records:
        asked = notebooks[record.key] or of_training.get(str(record.cell), [])
        rows.append(
            (
                record.key, record.kind, record.method, record.dataset or "+".join(record.train_datasets),
                record.cell.get("seed", ""), record.commit[:9], "yes" if record.dirty else "", record.hardware,
                record.date, _command(record, asked[0], profile) if asked else "",
            )
        )  # fmt: skip
    return pd.DataFrame(rows, columns=LIST_COLUMNS).astype(str)


def _notebooks(record: Record) -> list[str]:
    known = NOTEBOOKS | {"nano_sam": "90_train_nano_models"}
    names = [place.partition(":")[0].replace("_choices", "_ablation") for place in record.tables]
    return [known[name] for name in names if name in known]


def _command(record: Record, notebook: str, profile: str) -> str:
    sets = dict.fromkeys((*record.train_datasets, *filter(None, [record.dataset])))
    return (
        f"rm results/{profile}/records/{record.key}{SUFFIX} && papermill notebooks/{notebook}.ipynb out.ipynb "
        f"-p profile {profile} -y '{{datasets: [{', '.join(sets)}], seeds: [{record.seed}]}}'"
    )
