"""`samtune data`: data sets, what is known, what is here, fetch, check."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Data sets: what is known, what is here, fetch, check.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("list")
def data_list() -> None:
    """List all data sets, and which are here (in the folder SAMTUNE_DATA)."""
    from samtune.common.paths import data_root
    from samtune.data.registry import list_datasets

    rows = list_datasets()
    width, domains = max(len(row.name) for row in rows), ""
    for row in rows:
        if row.domain != domains:
            typer.echo(f"{row.domain}")
            domains = row.domain
        here = "here" if row.present else "-"
        if row.images is not None:
            here = "train {train}, val {val}, test {test}".format(**row.images)
        elif row.present:
            here = "cannot be opened (see samtune data check)"
        typer.echo(f"  {row.name:{width}}  {here:34}  {row.title}")
    typer.echo(f"(looked for in {data_root()}; set SAMTUNE_DATA for another folder)")


@app.command("info")
def data_info(name: str) -> None:
    """Show licence, citation, splits, how to get it."""
    from samtune.data.registry import info

    typer.echo(info(name))


@app.command("download")
def data_download(name: str) -> None:
    """Fetch a data set from its authors.

    It is put into the folder SAMTUNE_DATA.
    """
    from samtune.data.download import download

    download(name, say=typer.echo)


@app.command("check")
def data_check(name: str) -> None:
    """Open every sample and report what is wrong.

    Look-alikes across splits are listed too. Exit status 1 when something is wrong.
    """
    from samtune.data.download import check

    report = check(name)
    typer.echo(report.text())
    if not report.ok:
        raise typer.Exit(1)


@app.command("export")
def data_export(
    name: str,
    folder: Path,
    split: Annotated[str, typer.Option(help="train, val or test alone; else all.")] = "",
) -> None:
    """Write a data set as folders of pictures and masks.

    samtune tune and other programs read such, also of generated pictures (generated:KEY).
    """
    from samtune.common.errors import counted, unknown
    from samtune.data.export import export
    from samtune.data.splits import SPLITS

    if split and split not in SPLITS:
        raise unknown("split", split, SPLITS)
    count = export(name, folder, (split,) if split else SPLITS)
    typer.echo(f"{counted(count, 'picture')}: {folder / 'images'}, with masks in {folder / 'masks'}")
