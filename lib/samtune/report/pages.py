"""The report of a profile: `results/<profile>/index.html` and `README.md`, which lead to all that was found.

Everything on the pages comes from files of that folder: records give tables and claims, figures and executed notebooks
are linked as they lie there. No page needs the network.
"""

import html
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import pandas as pd

from samtune.common.atomic import write_atomically
from samtune.common.paths import asset, results_root
from samtune.report.claims import (
    CLAIMS,
    FEWEST_UNITS,
    NO_REFERENCE,
    NOT_RUN,
    VERDICTS,
    build_claims,
    effect_text,
    paper_effect,
)
from samtune.report.figures import title_and_width
from samtune.report.provenance import record_list
from samtune.report.readable_tables import (
    MEAN,
    NOT_AVAILABLE,
    Pivot,
    load_paper_numbers,
    markdown,
    paper_of,
    pivots,
    reported_elsewhere,
    title,
    write_pages,
)
from samtune.report.tables import build_tables, write_tables
from samtune.study.cells import NO_BACKBONE
from samtune.study.profile import Profile, load_profile
from samtune.study.records import Record, read_records

WIDE = 7.6  # inches: a figure wider than this gets the whole width of the page
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
    """One claim on the page; `rows` of the claims table, the one that counts (the mean of sets, or the only) last."""

    id: str
    statement: str
    source: str
    metric: str
    verdict: str
    rows: tuple[dict[str, Any], ...]
    paper: str
    command: str


@dataclass(frozen=True)
class FileView:
    """A figure or an executed notebook's page: `path` relative to the report, `other` the notebook itself where it is
    there; `wide` figures need the page's whole width."""

    path: str
    title: str
    other: str = ""
    wide: bool = False


def build_report(profile: str, results: Path | None = None) -> Path:
    """Write tables, claims and pages from the records of `profile`; the path of `index.html`.

    `profile`: a name or a yaml file; `results`: a folder in place of `results/<profile>`.
    """
    chosen = load_profile(profile)
    folder = results or results_root(chosen.name)
    records = read_records(folder / "records")
    tables = build_tables(records)
    claims = build_claims(records, profile, chosen.backbone)
    write_tables(tables | {"claims": claims, "records": record_list(records, chosen.name)}, folder / "tables")
    write_pages(tables, folder / "tables")
    context = _context(chosen, folder, records, tables, claims)
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(asset("report/templates")), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    pages.globals["interval"] = interval_picture
    for name in ("index", "claims"):
        text = pages.get_template(f"report_{name}.html.j2").render(context)
        write_atomically(folder / f"{name}.html", text.encode())
    write_atomically(folder / "README.md", _readme(context).encode())
    write_atomically(folder / "tables" / "claims.md", _claims_markdown(context).encode())
    return folder / "index.html"


def interval_picture(effect: float, low: float, high: float, reach: float, width: int = 150) -> str:
    """An effect and its interval on a line from -reach to reach with a mark at 0, as inline SVG."""

    def place(value: float) -> float:
        return round(width / 2 * (1 + max(-1.0, min(1.0, value / reach)) * 0.96), 1)

    colour = "#18794e" if low > 0 else "#b42318" if high < 0 else "#667085"
    return (
        f'<svg class="interval" width="{width}" height="16" viewBox="0 0 {width} 16" role="img" '
        f'aria-label="{effect:+.3f}, from {low:+.3f} to {high:+.3f}">'
        f'<line x1="0" x2="{width}" y1="8" y2="8" stroke="#e3e6ec"/>'
        f'<line x1="{width / 2}" x2="{width / 2}" y1="1" y2="15" stroke="#98a2b3"/>'
        f'<line x1="{place(low)}" x2="{place(high)}" y1="8" y2="8" stroke="{colour}" stroke-width="2.5"/>'
        f'<circle cx="{place(effect)}" cy="8" r="4" fill="{colour}"/></svg>'
    )


def _context(
    profile: Profile, folder: Path, records: Sequence[Record], tables: dict[str, pd.DataFrame], claims: pd.DataFrame
) -> dict[str, Any]:
    """All that the pages show."""
    views, table_views = _claim_views(claims), _table_views(tables)
    known = [row for claim in views for row in claim.rows if pd.notna(row["effect"])]
    notebooks = _notebooks(folder)
    made = {Path(one.path).stem for one in notebooks}
    return {
        "profile": profile,
        "description": _sentence(profile.description),
        "facts": _facts(records),
        "machines": _machines(records),
        "packages": max(records, key=lambda record: record.date).packages if records else {},
        "sets": _sets(records),
        "tables": [view for view in table_views if view.shown],
        "tables_not_run": [view for view in table_views if not view.shown],
        "claims": views,
        "papers": PAPERS,
        "paper_of_claim": {claim.id: claim.paper for claim in CLAIMS},
        "paper_titles": {name: numbers.paper for name, numbers in load_paper_numbers().items()},
        "verdicts": [(verdict, sum(claim.verdict == verdict for claim in views)) for verdict in VERDICTS],
        "reach": max([abs(row[end]) for row in known for end in ("low", "high")], default=0.0) or 1.0,
        "figures": _figures(folder),
        "private": (folder / "figures" / "private").is_dir(),
        "notebooks": notebooks,
        "notebooks_not_run": [name for name in profile.notebooks if name not in made],
        "NOT_RUN": NOT_RUN,
        "NO_REFERENCE": NO_REFERENCE,
        "FEWEST_UNITS": FEWEST_UNITS,
        "NOT_AVAILABLE": NOT_AVAILABLE,
    }


def _facts(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Short facts for the head of the page."""
    if not records:
        return [("records", "none yet")]
    measured = [record for record in records if record.kind == "evaluation"]
    hours = sum(record.seconds for record in records) / 3600
    dates = sorted(record.date[:10] for record in records if record.date)
    commits = Counter(f"{record.commit[:9]}{' + changes' if record.dirty else ''}" for record in records)
    seeds = sorted({record.seed for record in measured})
    facts = [
        ("records", f"{len(records) - len(measured)} trainings, {len(measured)} measurements"),
        ("seeds", ", ".join(map(str, seeds)) or "none"),
        ("backbone", ", ".join(sorted({record.backbone for record in records} - {NO_BACKBONE})) or "none"),
        (
            "precision",
            ", ".join(sorted({record.precision for record in records if record.precision})) or "not recorded",
        ),
        ("time spent", f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.0f} min"),
        ("made", " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "not recorded"),
        (
            "commit",
            ", ".join(f"{name} ({count})" if len(commits) > 1 else name for name, count in commits.most_common(4))
            + (f" and {len(commits) - 4} more" if len(commits) > 4 else ""),
        ),
    ]
    return facts


def _machines(records: Sequence[Record]) -> list[dict[str, Any]]:
    """What ran where: cells, hours and the largest peak of memory by machine."""
    machines: dict[str, list[Record]] = {}
    for record in records:
        machines.setdefault(record.hardware or "not recorded", []).append(record)
    return [
        {
            "hardware": name,
            "cells": len(ran),
            "hours": sum(record.seconds for record in ran) / 3600,
            "memory": max(record.peak_memory_mb for record in ran) / 1024,
            "card": max((record.peak_gpu_memory_mb or 0 for record in ran), default=0) / 1024,
        }
        for name, ran in sorted(machines.items())
    ]


def _sets(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Data sets measured: part (pictures without an object and large objects alone apart), images, and what was
    dropped, by reason."""
    sets: dict[tuple[str, str], dict[str, Any]] = {}
    for record in records:
        if record.kind == "evaluation":
            part, least = record.cell["split"], dict(record.cell["options"]).get("min_side")
            part += ", without an object" if record.cell["target"] == "nothing" else ""
            part += f", objects of {least} px at least" if least else ""
            row = sets.setdefault((record.dataset, part), {"images": 0, "dropped": {}})
            row["images"] = max(row["images"], record.images)
            for reason, count in record.extras.get("dropped", {}).items():
                row["dropped"][reason] = max(row["dropped"].get(reason, 0), count)
    return [{"dataset": name, "split": split, **row} for (name, split), row in sorted(sets.items())]


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
                claim.id, claim.statement, claim.source, claim.metric, rows[-1]["verdict"], tuple(rows),
                NOT_AVAILABLE if reported is None else f"{reported:+.3f}", rows[-1]["command"],
            )
        )  # fmt: skip
    return views


def _figures(folder: Path) -> list[FileView]:
    views = []
    for path in sorted((*(folder / "figures").glob("*.svg"), *(folder / "figures").glob("*.webp"))):
        words, width = title_and_width(path)
        views.append(FileView(f"figures/{path.name}", words, wide=width > WIDE))
    return views


def _notebooks(folder: Path) -> list[FileView]:
    """Executed notebooks that have a page."""
    views = []
    for path in sorted((folder / "notebooks").glob("*.html")):
        found = re.search(r"<title>(.*?)</title>", path.read_text(encoding="utf-8")[:4000], re.DOTALL)
        source = path.with_suffix(".ipynb")
        words = html.unescape(found[1].strip()) if found else path.stem
        views.append(FileView(f"notebooks/{path.name}", words, f"notebooks/{source.name}" if source.is_file() else ""))
    return views


def _readme(context: dict[str, Any]) -> str:
    """The same report for git hosts, which render markdown and no HTML."""
    profile = context["profile"]
    lines = [f"# Results of the profile `{profile.name}`", "", context["description"], ""]
    lines += ["*Written by `samtune report`; [index.html](index.html) is the same to read in a browser.*", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in context["facts"])]
    lines += [f"| machine | {machine['hardware']} ({machine['cells']} cells) |" for machine in context["machines"]]
    counts = ", ".join(f"{count} {verdict}" for verdict, count in context["verdicts"] if count)
    lines += ["", "## Claims", "", f"{counts}. All of them: [tables/claims.md](tables/claims.md).", ""]
    tested = [claim for claim in context["claims"] if claim.verdict != NOT_RUN]
    if tested:
        lines += ["| claim | | effect [95% interval] | paper | verdict |", "|---|---|---:|---:|---|"]
        lines += [
            f"| {one.id} | {one.statement} | {effect_text(one.rows[-1])} | {one.paper} | **{one.verdict}** |"
            for one in tested
        ]
    lines += ["", "## Tables", ""]
    for view in context["tables"]:
        more = "".join(f", [{part.name}](tables/{part.name}.md)" for part in view.parts)
        links = f"[csv](tables/{view.name}.csv), [page](tables/{view.name}.md){more}"
        lines += [f"### {view.title}", "", f"Mean ± standard deviation over seeds. {links}", ""]
        for part in view.shown:
            lines += [part.caption, "", markdown(part), ""]
    lines += ["## Figures", "", *(f"![{one.title}]({quote(one.path)})\n" for one in context["figures"])]
    lines += ["## Executed notebooks", ""]
    lines += [f"- {one.title}: [notebook]({one.other or one.path}), [page]({one.path})" for one in context["notebooks"]]
    lines += ["", "## Not run", ""]
    lines += [f"- table `{view.name}`: {view.title}" for view in context["tables_not_run"]]
    lines += [f"- notebook `{name}`" for name in context["notebooks_not_run"]]
    waiting = [claim.id for claim in context["claims"] if claim.verdict == NOT_RUN]
    lines += [f"- claims {', '.join(waiting)}"] if waiting else []
    return "\n".join(lines) + "\n"


def _claims_markdown(context: dict[str, Any]) -> str:
    lines = [f"# Claims, profile `{context['profile'].name}`", ""]
    rule = "A claim holds when its effect is above 0: *reproduced* where the 95% paired bootstrap interval over images "
    rule += "and seeds lies above 0, *not reproduced* where it lies below, else *inconclusive*, as is what "
    rule += f"rests on fewer than {FEWEST_UNITS} independent images or groups. Images of one tile, patient, sequence "
    lines += [rule + "or slide are drawn together.", ""]
    for name, short in context["papers"].items():
        lines += [f"## {short}", "", context["paper_titles"].get(name, ""), ""]
        lines += [
            "| claim | | data | effect [95% interval] | paper | verdict | command |",
            "|---|---|---|---:|---:|---|---|",
        ]
        for claim in (one for one in context["claims"] if context["paper_of_claim"][one.id] == name):
            for row in claim.rows:
                lines.append(
                    f"| {claim.id} | {claim.statement} | {row['dataset']} | {effect_text(row)} | {claim.paper} | "
                    f"**{row['verdict']}** | `{row['command']}` |"
                )
        lines.append("")
    return "\n".join(lines)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
