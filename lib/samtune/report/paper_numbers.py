"""What the papers report, from `paper_numbers/*.yaml`, each with its source."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from samtune.common.errors import InputError
from samtune.common.paths import asset

COLUMNS = ["table", "backbone", "prompt", "metric", "output", "method", "dataset", "mean"]


@dataclass(frozen=True)
class PaperNumbers:
    """What a paper reports: `values` one row a number (fractions), `source` where it was read, `note` what to know."""

    paper: str
    source: str
    note: str
    values: pd.DataFrame

    def describe(self) -> str:
        """Which paper, what to know of its numbers, where they were read."""
        return f"Paper: {self.paper}. {self.note}" + (f" Read from: {self.source}." if self.source else "")


def load_paper_numbers(folder: Path | None = None) -> dict[str, PaperNumbers]:
    """Every `paper_numbers/*.yaml` by its name; raises `InputError` naming a file that is not as it should be."""
    numbers = {}
    for path in sorted((folder or asset("paper_numbers")).glob("*.yaml")):
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
            rows = []
            for table, blocks in data["tables"].items():
                for block in blocks:
                    scale = {"percent": 0.01, "fraction": 1.0, "pixels": 1.0}[block["unit"]]
                    shared = [table, *(block[name] for name in ("backbone", "prompt", "metric", "output"))]
                    for method, sets in block["methods"].items():
                        rows += [[*shared, method, name, round(value * scale, 6)] for name, value in sets.items()]
            values = pd.DataFrame(rows, columns=COLUMNS)
            numbers[path.stem] = PaperNumbers(data["paper"], data["source"], data["note"], values)
        except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: not as paper numbers should be ({type(error).__name__}: {error})") from error
    return numbers


def paper_of(table: str, papers: Mapping[str, PaperNumbers]) -> PaperNumbers | None:
    """The paper that `table` reproduces ("spt_main": spt), if any; a validation of our own choices reproduces none."""
    if table.endswith("_choices"):
        return None
    return next((papers[name] for name in papers if table.startswith(f"{name}_")), None)


def reported_in(table: str, paper: PaperNumbers | None) -> pd.DataFrame:
    """The rows of `paper.values` that belong to `table`; none without a paper."""
    return pd.DataFrame(columns=COLUMNS) if paper is None else paper.values[paper.values["table"] == table]
