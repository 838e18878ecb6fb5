"""The report of a profile: `results/<profile>/index.html` and `README.md`, which lead to all that was found.

Answers come first, then pictures, claims in three groups, and links to a page a table, whose rows lead to their
records. Everything comes from files of that folder; no page needs the network.
"""

import html
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from PIL import Image

from samtune.common.atomic import write_atomically
from samtune.common.errors import counted
from samtune.common.paths import asset, repository_root, results_root
from samtune.report.answers import answers
from samtune.report.circumstances import commits, facts, machines, sets
from samtune.report.claim_list import CLAIMS, KINDS
from samtune.report.claims import (
    NO_REFERENCE,
    NOT_RUN,
    NOTEBOOKS,
    VERDICTS,
    build_claims,
    counts_text,
    effect_text,
    paper_effect,
)
from samtune.report.contrasts import interval_text
from samtune.report.figures import DPI, title_alt_and_width
from samtune.report.labels import GLOSSARY, metric_label
from samtune.report.notebook_page import write_page
from samtune.report.paper_numbers import load_paper_numbers, paper_of
from samtune.report.readable_tables import (
    MEAN,
    NOT_AVAILABLE,
    SPREAD,
    WITHOUT_SPREAD,
    Pivot,
    pivots,
    reported_elsewhere,
    title,
    write_pages,
)
from samtune.report.statistics import FEWEST_UNITS
from samtune.report.table_records import address, records_of
from samtune.report.tables import LOOK_AT, build_tables, write_tables
from samtune.study.profile import Profile, load_profile
from samtune.study.records import Record, read_records

WIDE = 7.6  # inches: a figure wider than this gets the whole width of the page
SMALL = 0.05  # effects and intervals up to this are drawn on an axis of their own
CAUTION = (
    "With three seeds an interval is too narrow where the noise of training outweighs that of images: it then covers "
    "the true effect in about three cases of four, not in 95 of 100."
)
STAND_IN = (
    "All scores are of the nano SAM, three million parameters of SAM's own classes, unless a row names another "
    "backbone. They show whether an idea works at this size; they neither confirm nor refute the papers, which tune "
    "SAM ViT-B, of 90 million, or larger."
)
PAPERS = {"spt": "SPT", "sam_sp": "SAM-SP", "asam": "ASAM"}


@dataclass(frozen=True)
class TableView:
    """One table on the page: `shown` empty where nothing was run; `elsewhere` what the paper reports on sets that were
    not run; `paper` which that is; `parts` break-downs by object size and class."""

    name: str
    title: str
    shown: list[Pivot]
    elsewhere: Pivot | None
    paper: str
    parts: tuple["TableView", ...] = ()


@dataclass(frozen=True)
class ClaimView:
    """One claim on the page.

    `kind` one of `KINDS`; `rows` of the claims table, the one that counts (the mean of sets, or the only) last;
    `margin` what the claim allows, as text, "" none; `counts` pictures, sets and seeds.
    """

    id: str
    kind: str
    statement: str
    source: str
    metric: str
    verdict: str
    rows: tuple[dict[str, Any], ...]
    paper: str
    command: str
    margin: str
    counts: str


@dataclass(frozen=True)
class FileView:
    """A figure or an executed notebook's page: `path` relative to the report, `other` the notebook itself where it is
    there, `older` where that was executed before its last change; `wide` figures need the page's whole width;
    `photograph`: it shows images; size in pixels, 0: not known; `alt` what a figure shows, in words; `notebook` the
    executed one that shows a figure, with what to look at."""

    path: str
    title: str
    other: str = ""
    older: bool = False
    wide: bool = False
    photograph: bool = False
    width: int = 0
    height: int = 0
    alt: str = ""
    notebook: str = ""

    @property
    def stem(self) -> str:
        return Path(self.path).stem


def build_report(profile: str, results: Path | None = None) -> Path:
    """Write tables, claims and pages from the records of `profile`; the path of `index.html`.

    `profile`: a name or a yaml file; `results`: a folder in place of `results/<profile>`.
    """
    chosen = load_profile(profile)
    folder = results or results_root(chosen.name)
    records = read_records(folder / "records")
    tables = build_tables(records)
    claims = build_claims(records, profile, chosen.backbone)
    write_tables(tables | {"claims": claims}, folder / "tables")
    write_pages(tables, folder / "tables")
    for notebook in sorted((folder / "notebooks").glob("*.ipynb")):
        if _is_whole(notebook):
            write_page(notebook, _is_older(notebook))
        else:
            warnings.warn(f"{notebook} is no whole notebook: left out; run it again, or remove it", stacklevel=2)
    write_all(profile, folder, records, tables, claims)
    return folder / "index.html"


def write_all(
    name: str, folder: Path, records: Sequence[Record], tables: dict[str, pd.DataFrame], claims: pd.DataFrame
) -> None:
    """All pages, in HTML and in markdown, of tables and claims that are built already; `name`: the profile, or its
    file."""
    profile = load_profile(name)
    context = _context(profile, name, folder, records, tables, claims)
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(asset("report/templates")),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.globals |= context | {
        "interval": interval_picture,
        "effect_text": effect_text,
        "counts_text": counts_text,
        "row_address": address,
    }

    def write(template: str, path: str, **more: Any) -> None:
        write_atomically(folder / path, pages.get_template(f"{template}.j2").render(more).encode())

    write("report_index.html", "index.html")
    write("report_claims.html", "claims.html")
    write("readme.md", "README.md")
    write("claims.md", "tables/claims.md")
    for view in context["tables"]:
        rows = records_of(view.name, records)
        listed = rows.to_numpy().tolist()
        write_atomically(folder / "tables" / f"{view.name}_records.csv", rows.to_csv(index=False).encode())
        notebook = NOTEBOOKS.get(view.name, "")
        command = f"samtune results --profile {name}"
        if notebook:
            command = f"papermill notebooks/{notebook}.ipynb out.ipynb -p profile {name}"
        write("report_records.html", f"tables/{view.name}_records.html", name=view.name, title=view.title,
              command=command, columns=list(rows), rows=listed)  # fmt: skip
        for one in (view, *(part for part in view.parts if part.shown)):
            write(
                "report_table.html",
                f"tables/{one.name}.html",
                view=one,
                look_at=LOOK_AT.get(view.name, ""),
                records_page=f"{view.name}_records.html",
                records=listed,
            )


def interval_picture(effect: float, low: float, high: float, reach: float, width: int = 150) -> str:
    """An effect and its interval as inline SVG, with a mark at 0: on a solid line from -0.05 to 0.05 where they fit,
    else on a dashed one from -reach to reach."""
    small = max(abs(low), abs(high), abs(effect)) <= SMALL
    half = SMALL if small else max(reach, SMALL)

    def place(value: float) -> float:
        return round(width / 2 * (1 + max(-1.0, min(1.0, value / half)) * 0.96), 1)

    kind = " good" if low > 0 else " bad" if high < 0 else ""
    dashes = "" if small else ' stroke-dasharray="3 3"'
    return (
        f'<svg class="interval{kind}" width="{width}" height="16" viewBox="0 0 {width} 16" role="img" '
        f'aria-label="{interval_text(effect, low, high)}">'
        f'<line x1="0" x2="{width}" y1="8" y2="8" stroke="var(--soft)"{dashes}/>'
        f'<line x1="{width / 2}" x2="{width / 2}" y1="1" y2="15" stroke="var(--soft)"/>'
        f'<line x1="{place(low)}" x2="{place(high)}" y1="8" y2="8" stroke="currentColor" stroke-width="4"/>'
        f'<circle cx="{place(effect)}" cy="8" r="4.5" fill="currentColor"/></svg>'
    )


def _context(
    profile: Profile,
    name: str,
    folder: Path,
    records: Sequence[Record],
    tables: dict[str, pd.DataFrame],
    claims: pd.DataFrame,
) -> dict[str, Any]:
    """All that the pages show."""
    views, table_views = _claim_views(claims), _table_views(tables)
    known = [row for claim in views for row in claim.rows if pd.notna(row["effect"])]
    notebooks = _notebooks(folder)
    made = {Path(one.path).stem for one in notebooks}
    return {
        "profile": profile,
        "answers": answers(records, name),
        "kinds": KINDS,
        "glossary": dict(GLOSSARY),
        "metric_label": metric_label,
        "description": _sentence(profile.description),
        "stand_in": STAND_IN if profile.backbone == "nano" else "",
        "facts": facts(records),
        "machines": machines(records),
        "packages": max(records, key=lambda record: record.date).packages if records else {},
        "sets": sets(records),
        "tables": [view for view in table_views if view.shown],
        "tables_not_run": [view for view in table_views if not view.shown],
        "claims": views,
        "papers": PAPERS,
        "paper_of_claim": {claim.id: claim.paper for claim in CLAIMS},
        "paper_titles": {name: numbers.paper for name, numbers in load_paper_numbers().items()},
        "verdicts": VERDICTS,
        "commits": commits(records),
        "reach": max([abs(row[end]) for row in known for end in ("low", "high")], default=0.0) or 1.0,
        "figures": _figures(folder),
        "private": (folder / "figures" / "private").is_dir(),
        "notebooks": notebooks,
        "notebooks_not_run": [name for name in profile.notebooks if name not in made],
        "NOT_RUN": NOT_RUN,
        "NO_REFERENCE": NO_REFERENCE,
        "FEWEST_UNITS": FEWEST_UNITS,
        "CAUTION": CAUTION,
        "NOT_AVAILABLE": NOT_AVAILABLE,
        "SPREAD": SPREAD,
        "WITHOUT_SPREAD": WITHOUT_SPREAD,
    }


def _table_views(tables: dict[str, pd.DataFrame]) -> list[TableView]:
    papers = load_paper_numbers()

    def view(name: str, parts: tuple[TableView, ...] = ()) -> TableView:
        # Papers report whole sets only.
        paper = None if name.endswith(("_by_size", "_by_class")) else paper_of(name, papers)
        shown, elsewhere = pivots(name, tables[name], paper), reported_elsewhere(name, tables[name], paper)
        return TableView(name, title(name), shown, elsewhere, paper.describe() if paper else "", parts)

    mains = [name for name in tables if not name.endswith(("_by_size", "_by_class"))]
    parts = {
        name: tuple(view(f"{name}_by_{by}") for by in ("size", "class") if f"{name}_by_{by}" in tables)
        for name in mains
    }
    return [view(name, parts[name]) for name in mains]


def _claim_views(table: pd.DataFrame) -> list[ClaimView]:
    papers = load_paper_numbers()
    rows_of: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_dict("records"):
        rows_of.setdefault(row["id"], []).append(row)
    views = []
    for claim in CLAIMS:
        rows = sorted(rows_of[claim.id], key=lambda row: row["dataset"] == MEAN)
        reported = paper_effect(claim, papers)
        views.append(
            ClaimView(
                claim.id, claim.kind, claim.statement, claim.source, claim.metric, rows[-1]["verdict"], tuple(rows),
                NOT_AVAILABLE if reported is None else f"{reported:+.3f}", rows[-1]["command"],
                f"{claim.margin:.3f} below" if claim.margin else "", _counts(rows[-1]),
            )
        )  # fmt: skip
    return views


def _counts(row: dict[str, Any]) -> str:
    counts = [counted(int(row[name]), name.removesuffix("s")) for name in ("images", "sets", "seeds")]
    return ", ".join(counts) if row["verdict"] != NOT_RUN else ""


def _figures(folder: Path) -> list[FileView]:
    views, shown_in = [], {}
    for page in sorted((folder / "notebooks").glob("*.html"), reverse=True):  # the first that shows it
        for name in re.findall(r"\.\./figures/([\w.-]+)", page.read_text(encoding="utf-8")):
            shown_in[name] = page.stem
    for path in sorted((*(folder / "figures").glob("*.svg"), *(folder / "figures").glob("*.webp"))):
        words, alt, inches = title_alt_and_width(path)
        photograph = path.suffix == ".webp"
        if photograph:
            with Image.open(path) as image:
                width, height = image.size
        else:
            box = re.search(r'<svg[^>]* viewBox="0 0 ([\d.]+) ([\d.]+)"', path.read_text(encoding="utf-8")[:4000])
            width, height = (round(float(side) / 72 * DPI) for side in box.groups()) if box else (0, 0)
        views.append(
            FileView(
                f"figures/{path.name}", words, "", False, inches > WIDE, photograph, width, height, alt,
                shown_in.get(path.name, ""),
            )
        )  # fmt: skip
    return views


def _notebooks(folder: Path) -> list[FileView]:
    """Executed notebooks that have a page."""
    views = []
    for path in sorted((folder / "notebooks").glob("*.html")):
        found = re.search(r"<title>(.*?)</title>", path.read_text(encoding="utf-8")[:4000], re.DOTALL)
        source = path.with_suffix(".ipynb")
        words = html.unescape(found[1].strip()) if found else path.stem
        other = f"notebooks/{source.name}" if source.is_file() and _is_whole(source) else ""
        views.append(FileView(f"notebooks/{path.name}", words, other, bool(other) and _is_older(source)))
    return views


def _is_whole(notebook: Path) -> bool:
    """Is it a notebook to its end? One that was killed while it was written is not."""
    try:
        return "cells" in json.loads(notebook.read_text(encoding="utf-8"))
    except ValueError:
        return False


def _is_older(executed: Path) -> bool:
    """Was a notebook executed before its last change? What papermill puts in does not count."""
    notebook = repository_root() / "notebooks" / executed.name
    if not notebook.is_file():
        return False
    ran, now = (
        {"".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]}
        for path in (executed, notebook)
    )
    return not now <= ran


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
