"""Runs notebooks, each in a papermill process of its own; a failure is reported in one clear line."""

import collections
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nbformat
import papermill
import yaml

from samtune.common.errors import InputError, unknown
from samtune.common.paths import repository_root, resolve, results_root
from samtune.report.figures import PRIVATE, title_alt_and_width
from samtune.report.notebook_page import write_page
from samtune.study.parameters import BY_NOTEBOOK
from samtune.study.profile import load_profile

WIDGET = "application/vnd.jupyter.widget-view+json"
LEFT_OUT = nbformat.v4.new_output(
    "stream", text=f"Pictures of this set may not be passed on: the figure lies in figures/{PRIVATE}.\n"
)

# Loaded before any fork: only the bare call is left for the child to make.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class NotebookError(InputError):
    """A notebook failed. The message says which, at which cell, why, and where it is saved."""


def find_notebook(name_or_path: str | Path) -> Path:
    """A notebook's path, from its path or its name in `notebooks/`. Raises `InputError` when there is none."""
    path = resolve(name_or_path)
    if path.suffix == ".ipynb":
        if not path.is_file():
            raise InputError(f"no such notebook: {path}")
        return path
    known = {path.stem: path for path in resolve("notebooks").glob("*.ipynb")}
    if str(name_or_path) not in known:
        raise unknown("notebook", str(name_or_path), known)
    return known[str(name_or_path)]


def run_notebook(
    name_or_path: str | Path,
    profile: str | None = None,
    parameters: dict[str, Any] | None = None,
    output: str | Path | None = None,
) -> Path:
    """Execute one notebook with papermill in a process of its own, with the repository root as working directory.

    The notebook's output is printed as it comes. Beside the executed notebook a page of the same name (.html) is
    written: git hosts and Jupyter show notebooks, but not pages. In both, saved figures are links to their files, so
    that each picture is stored once.

    Args:
        name_or_path: of the notebook.
        profile: its parameter `profile`.
        parameters: others.
        output: the executed notebook; default: `results/<profile>/notebooks/<name>.ipynb`.

    Returns the path of the executed notebook. Raises `InputError` for unknown parameters, before anything runs, and
    `NotebookError` when a cell fails or the kernel is killed; the executed part is then saved.
    """
    source = find_notebook(name_or_path)
    values = ({} if profile is None else {"profile": profile}) | (parameters or {})
    known = papermill.inspect_notebook(source)
    for name in values:
        if name not in known:
            raise unknown(f"parameter of {source.name}", name, known)
    if output is None:  # the notebooks' own default is the smoke profile
        output = results_root(load_profile(values.get("profile", "smoke")).name) / "notebooks" / source.name
    output = resolve(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)

    started = time.monotonic()
    code, tail = _papermill(source, output, values)
    try:
        _tidy(output)
    except FileNotFoundError:
        pass
    except ValueError:  # cut off: papermill found the disk full, or was killed
        output.unlink()
    if code != 0:
        raise NotebookError(_failure(source, output, code, tail, known))

    page = write_page(output)
    print(f"{source.stem}: done in {time.monotonic() - started:.0f} s, {_short(page)}", flush=True)
    return output


def run_profile(profile: str) -> list[Path]:
    """Run every notebook of the profile, in its order. One that fails does not stop the others.

    Returns the executed notebooks. At the end raises `NotebookError` that names those that failed; before anything
    runs, `InputError` when a notebook is not known.
    """
    chosen = load_profile(profile)
    listed = chosen.notebooks
    for name in listed:  # what is misspelt is said now, not after an hour
        find_notebook(name)
        if name in BY_NOTEBOOK:
            BY_NOTEBOOK[name].of_profile(chosen)
    print(f"profile {profile}: {', '.join(listed)}", flush=True)
    outputs, failures = [], []
    for name, entry in listed.items():
        try:
            outputs.append(run_notebook(name, profile, entry.parameters))
        except InputError as error:
            print(error, flush=True)
            failures.append(str(error))
    if failures:
        raise NotebookError(f"{len(failures)} of {len(listed)} notebooks failed: " + " | ".join(failures))
    return outputs


def _papermill(source: Path, output: Path, values: dict[str, Any]) -> tuple[int, list[str]]:
    """papermill's exit code and the last lines of its stderr. The notebook's output is printed directly."""
    # Short paths and YAML: papermill writes the paths into the executed notebook, and its -p guesses types.
    command = [sys.executable, "-m", "papermill", _short(source), _short(output), "--cwd", ".", "--progress-bar"]
    command += ["--stdout-file", "-", "--stderr-file", "-", "-y", yaml.safe_dump(values, default_flow_style=True)]
    tail: collections.deque[str] = collections.deque(maxlen=50)
    shown = ""
    with subprocess.Popen(
        command,
        cwd=repository_root(),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        preexec_fn=_end_with_parent if _LIBC else None,
    ) as process:
        for line in process.stderr:  # text mode ends a line at \r too: each state of the progress bar is one
            if bar := re.match(r"Executing:.*?(\d+)/(\d+) ", line):
                progress = f"{source.stem}: {bar[1]} of {bar[2]} cells"
                if progress != shown:
                    print(progress, flush=True)
                    shown = progress
            elif line.strip():
                tail.append(line.rstrip())
    return process.returncode, list(tail)


def _end_with_parent() -> None:
    """Runs in the child process: when the parent is killed, papermill and its kernel end too, and do not run on beside
    the next run. (1 is PR_SET_PDEATHSIG, of Linux. On other systems the notebook runs to its end.)
    """
    _LIBC.prctl(1, signal.SIGTERM)


def _failure(source: Path, output: Path, code: int, tail: list[str], known: dict[str, Any]) -> str:
    """One line about a failed run: notebook, cell, error, and where the executed part is."""
    name, saved = _short(source), f"saved in {_short(output)}" if output.is_file() else "nothing was saved"
    cells = nbformat.read(output, as_version=4).cells if output.is_file() else []
    # Papermill stops at the cell that failed: of those it started, the last. Cells that it adds have no start.
    started = [cell for cell in cells if cell.metadata.get("papermill", {}).get("start_time")]
    if started:
        name += f", cell `{next(iter(started[-1].source.strip().splitlines()), '')[:80]}`"
        for problem in started[-1].get("outputs", []):
            if problem.output_type == "error":
                return f"{name}: {problem.ename}: {' '.join(problem.evalue.split())[:500]}; {saved}"
    if code == -signal.SIGKILL or any("DeadKernelError" in line for line in tail):
        smaller = [key for key in known if re.search("batch|size|workers", key)]
        advice = f"a smaller {' or '.join(smaller)}" if smaller else "a smaller profile (smoke, quick)"
        return f"{name}: killed, likely out of memory; set {advice}, or free memory, and run again; {saved}"
    return f"{name}: papermill failed: {tail[-1] if tail else f'exit code {code}'}; {saved}"


def _tidy(path: Path) -> None:
    """Make an executed notebook fit to be committed.

    Progress bars are removed (readers would see them at 0%), saved figures become links (`_link`), and paths in the
    repository become relative to it.
    """
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if outputs := cell.get("outputs"):
            cell.outputs = [_link(one, path.parent) for one in outputs if WIDGET not in one.get("data", {})]
    text = nbformat.writes(notebook)
    root = repository_root()
    if root != Path(root.anchor):
        text = text.replace(json.dumps(f"{root}/")[1:-1], "")  # as it stands in the file: JSON escapes
    path.write_text(text, encoding="utf-8")


def _link(output: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """A saved figure (`report.figures.Picture`) as a link to its file, relative to the notebook's `folder`; for a
    figure that must not be passed on, a line of text; all other outputs unchanged.
    """
    saved = output.get("metadata", {}).get("image/png", {}).get("file")
    if saved is None:
        return output
    file = Path(saved)
    if file.parent.name == PRIVATE:
        return LEFT_OUT
    if not file.is_file():  # saved in a folder that is gone again
        return output
    alt = re.sub(r"([\\`*_$<\[\]])", r"\\\1", title_alt_and_width(file)[1])
    link = quote(Path(os.path.relpath(file, folder.absolute())).as_posix())
    # Markdown, not HTML: GitHub has been seen to leave out the pictures of HTML in notebooks.
    return nbformat.v4.new_output("display_data", {"text/markdown": f"![{alt}]({link})"})


def _short(path: Path) -> str:
    """`path` relative to the repository root if it is inside, else absolute."""
    return str(path.relative_to(repository_root())) if path.is_relative_to(repository_root()) else str(path)
