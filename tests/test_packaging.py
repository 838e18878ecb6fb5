"""What is installed: ranges, pins and the conda file say the same, a wheel carries its data, `make` sets up once."""

import re
import shutil
import stat
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import samtune
from samtune.common.paths import repository_root

ROOT = repository_root()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())
CONDA_PIP = next(entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict))


def pins(lines: list[str]) -> dict[str, str]:
    """Name -> version of all lines `name==version`; any other line is an error."""
    parsed = [re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line) for line in lines]
    assert all(parsed), [line for line, match in zip(lines, parsed, strict=True) if not match]
    return {canonicalize_name(match[1]): match[2] for match in parsed}


CONSTRAINTS = pins([line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")])


# ---------------------------------------------------------------- versions


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_every_dependency_is_pinned_inside_its_range(requirement: Requirement) -> None:
    assert requirement.specifier.contains(CONSTRAINTS[canonicalize_name(requirement.name)])


def test_conda_environment_names_the_same_packages_at_the_same_versions() -> None:
    options = [line for line in CONDA_PIP if line.startswith("-")]
    direct = pins([line for line in CONDA_PIP if not line.startswith("-")])
    assert options == ["-c constraints.txt", "-e ."]  # so that what those packages need in turn is pinned too
    assert direct == {name: CONSTRAINTS[name] for name in (canonicalize_name(each.name) for each in REQUIREMENTS)}
    assert "python=3.11" in CONDA["dependencies"] and PROJECT["requires-python"] == ">=3.11"


def test_what_is_installed_here_is_what_is_pinned() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "list", "--format=freeze", "--exclude-editable", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
        check=True,
    )
    installed = pins([line for line in listed.stdout.splitlines() if "==" in line])
    wanted = {canonicalize_name(requirement.name) for requirement in REQUIREMENTS}
    assert {name: installed.get(name) for name in wanted} == {name: CONSTRAINTS[name] for name in wanted}


def test_citation_names_the_kit_and_the_four_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == samtune.__version__ and citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert [paper["url"].rsplit("/", 1)[1] for paper in citation["references"]] == [
        "2304.02643",  # Segment Anything
        "2411.17217",  # SPT
        "2408.12364",  # SAM-SP
        "2405.00256",  # ASAM
    ]
    assert all(paper["authors"] and paper["year"] for paper in citation["references"])


# ---------------------------------------------------------------- wheel


def test_wheel_carries_everything_under_samtune(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "lib", tmp_path / "lib", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    # Without isolation, with the setuptools that is installed: needs no network.
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(tmp_path)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("samtune-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = next(archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    assert "samtune = samtune.commands.cli:main" in entry_points
    sources = {str(path.relative_to(tmp_path / "lib")) for path in (tmp_path / "lib").rglob("*") if path.is_file()}
    assert {name for name in sources if name.startswith("samtune/")} <= names
    for data in ("profiles/*.yaml", "paper_numbers/*.yaml", "assets/*", "report/templates/*.j2"):
        assert list((ROOT / "lib" / "samtune").glob(data)), f"nothing matches {data}"


# ---------------------------------------------------------------- make

PYTHON_STUB = """\
#!/bin/sh
echo "python $*" >> "{log}"
case "$1" in
    -c) exit {too_old};;
    --version) echo "Python 3.x";;
    -m) mkdir -p .venv/bin
        printf '#!/bin/sh\\necho "pip $*" >> "{log}"\\n[ ! -e broken ]\\n' > .venv/bin/python
        chmod +x .venv/bin/python;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Makefile, pyproject.toml and constraints.txt alone, and stand-ins for an interpreter: python-new, python-old."""
    folder = tmp_path / "a checkout"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    for name, too_old in (("python-new", 0), ("python-old", 1)):
        stub = tmp_path / name
        stub.write_text(PYTHON_STUB.format(log=tmp_path / "log", too_old=too_old))
        stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    return folder


def make_setup(folder: Path, pythons: str = "no-such-python python-old python-new") -> tuple[int, list[str], str]:
    """Exit code of `make setup`, the calls of venv and pip that it made, its stderr."""
    log = folder.parent / "log"
    log.write_text("")
    # A bare environment: a `make` around these tests hands its flags down otherwise.
    environment = {"PATH": f"{folder.parent}:/usr/bin:/bin"}
    command = ["make", "setup", f"PYTHON={pythons}"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    calls = [line for line in log.read_text().splitlines() if " -m " in line]
    return done.returncode, calls, done.stderr


VENV = "python -m venv .venv"
INSTALL = "pip -m pip install --disable-pip-version-check -c constraints.txt -e .[dev]"


def test_set_up_happens_once_and_again_when_a_pin_changes(checkout: Path) -> None:
    assert make_setup(checkout)[:2] == (0, [VENV, INSTALL])
    assert make_setup(checkout)[:2] == (0, [])
    (checkout / "constraints.txt").touch()  # git gives files new times: nothing to do
    assert make_setup(checkout)[:2] == (0, [])
    (checkout / "constraints.txt").write_text("torch==2.0\n")
    assert make_setup(checkout)[:2] == (0, [VENV, INSTALL])
    moved = checkout.rename(checkout.with_name("elsewhere"))  # scripts of a moved environment do not run
    assert make_setup(moved)[:2] == (0, ["python -m venv --clear .venv", INSTALL])


def test_broken_off_set_up_is_not_taken_for_done(checkout: Path) -> None:
    (checkout / "broken").touch()
    assert make_setup(checkout)[0] != 0
    (checkout / "broken").unlink()
    assert make_setup(checkout)[:2] == (0, [VENV, INSTALL])


def test_no_fitting_python_is_said_in_one_line(checkout: Path) -> None:
    code, calls, message = make_setup(checkout, "no-such-python python-old")
    assert code != 0 and not calls
    assert message.startswith(
        "SAMtune needs Python 3.11 or newer with venv; none of these is: no-such-python python-old."
    )


def test_ci_runs_the_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    assert "set -euo pipefail" in script.read_text() and "make test" in script.read_text()
