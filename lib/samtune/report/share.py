"""The report as one file, for mail: one HTML with everything folded in, or a PDF."""

import base64
import mimetypes
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import unquote

from samtune.common.atomic import write_atomically
from samtune.common.errors import InputError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
_ATTRIBUTE = re.compile(r'\b(href|src)="([^"]*)"')


def single_file(folder: Path) -> Path:
    """Write `<folder>/report.html`: `index.html` with its pictures, and all other pages in folded parts at its end.

    A picture is held once: other pages link to it. Links to files that a mail has not (csv, ipynb) lead nowhere and
    become text. Returns the path.
    """
    index = (folder / "index.html").read_text(encoding="utf-8")
    others = [folder / "claims.html", *sorted((folder / "tables").glob("*.html"))]
    others = [path for path in others if not path.stem.endswith("_records")]  # thousands of keys, for the folder alone
    others += sorted((folder / "notebooks").glob("*.html"))
    held = set(re.findall(r'<figure id="figure-([^"]+)"', index))
    names = {path.resolve(): path.stem for path in others}
    parts = [_part(path, names[path.resolve()], held) for path in others]
    styles = re.findall(r"<style>(.*?)</style>", _notebook_style(others), re.DOTALL)
    text = index.replace("</main>", "".join(parts) + "</main>").replace("</style>", "".join(styles) + "</style>", 1)

    def embedded(found: re.Match) -> str:
        name, address = found.groups()
        path, _, anchor = unquote(address).partition("#")
        if name == "src":
            return f'src="{_data(folder / path)}"'
        if not path:
            return found[0]
        target = (folder / path).resolve()
        if target in names:
            return f'href="#{names[target]}-{anchor}"' if anchor else f'href="#{names[target]}"'
        return 'href="#"' if path == "index.html" else "data-file"

    out = folder / "report.html"
    write_atomically(out, _ATTRIBUTE.sub(embedded, text).encode())
    return out


def pdf(folder: Path) -> Path:
    """Write `<folder>/report.pdf`: `index.html` with all its folds open, printed by headless Chromium.

    Raises `InputError` where no Chromium is installed, or where it fails.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise InputError(f"--pdf needs Chromium or Chrome; none of these is installed: {', '.join(BROWSERS)}")
    out = folder / "report.pdf"
    text = (folder / "index.html").read_text(encoding="utf-8").replace(' loading="lazy"', "")
    with tempfile.TemporaryDirectory() as home, tempfile.NamedTemporaryFile(suffix=".html", dir=folder) as page:
        page.write(re.sub(r"<details(?! [^>]*open)", "<details open", text).encode())
        page.flush()
        command = [browser, "--headless", "--disable-gpu", f"--user-data-dir={home}", "--no-pdf-header-footer"]
        command += ["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []  # root has no sandbox
        command += [f"--print-to-pdf={out.absolute()}", Path(page.name).absolute().as_uri()]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if ran.returncode or not out.is_file():
        raise InputError(
            f"{browser} could not print the report: {(ran.stderr.strip().splitlines() or ['no message'])[-1]}"
        )
    return out


def _part(path: Path, name: str, held: set[str]) -> str:
    """What a page shows, as a folded part: anchors begin with its name, addresses are seen from the report's folder."""
    page = path.read_text(encoding="utf-8")
    title = re.search(r"<title>(.*?)</title>", page, re.DOTALL)[1].strip()
    main = re.search(r"<main>(.*)</main>", page, re.DOTALL)[1]
    parent = "" if path.parent.name not in ("tables", "notebooks") else f"{path.parent.name}/"
    main = re.sub(r'\bid="([^"]*)"', rf'id="{name}-\1"', main)

    def picture(found: re.Match) -> str:
        stem = Path(unquote(re.search(r'src="([^"]*)"', found[0])[1])).stem
        alt = re.search(r'alt="([^"]*)"', found[0])
        return (
            f'<a href="#figure-{stem}">figure: {alt[1].split(". ")[0] if alt else stem}</a>'
            if stem in held
            else found[0]
        )

    def moved(found: re.Match) -> str:
        kind, address = found.groups()
        if address.startswith("data:") or address.startswith("#figure-"):
            return found[0]
        if address.startswith("#"):
            return f'{kind}="#{name}-{address[1:]}"'
        return f'{kind}="{address[3:] if address.startswith("../") else parent + address}"'

    main = _ATTRIBUTE.sub(moved, re.sub(r"<img [^>]*>", picture, main))
    return f'<details class="part" id="{name}"><summary>{title}</summary>{main}</details>\n'


def _notebook_style(pages: list[Path]) -> str:
    notebooks = [path for path in pages if path.parent.name == "notebooks"]
    return notebooks[0].read_text(encoding="utf-8") if notebooks else ""


def _data(path: Path) -> str:
    if not path.is_file():
        return str(path) if str(path).startswith("data:") else ""
    kind = mimetypes.guess_type(path.name)[0] or "image/webp"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
