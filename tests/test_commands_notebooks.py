"""Small notebooks made here, run by papermill as users run it; and rules that every notebook of the kit keeps."""

import ast
import html
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

import nbformat
import psutil
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from samtune.commands import notebooks
from samtune.commands.notebooks import NotebookError, find_notebook, run_notebook, run_profile
from samtune.common.errors import InputError
from samtune.common.paths import repository_root
from samtune.report.notebook_page import mathml, write_page
from samtune.study.parameters import (
    NotebookParameters,
    ProfileName,
    SamSp,
    Spt,
    SptAblations,
    StartHere,
    TrainNanoModels,
    YourData,
)
from samtune.study.profile import Notebook, Profile, load_profile, profile_names

PARAMETERS = """\
name: str = "nano"  # backbone
steps: int = 2  # training steps
datasets: list = ["synthetic"]  # training sets
batch_size: int = 4  # images a step"""
VALIDATE = """\
from samtune.study.parameters import NotebookParameters
class Model(NotebookParameters):
    name: str
    steps: int
    datasets: list[str]
    batch_size: int
parameters = Model.from_notebook(globals())"""


def write_notebook(folder: Path, *cells: str, name: str = "small") -> Path:
    """A notebook with a heading, the parameters and validating cells above, and then `cells`."""
    head = [new_markdown_cell("# A small notebook\n\nWith $\\frac{a}{b}$."), new_code_cell(PARAMETERS)]
    head[1].metadata["tags"] = ["parameters"]
    notebook = new_notebook(cells=head + [new_code_cell(source) for source in (VALIDATE, *cells)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = folder / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


def printed(path: Path) -> str:
    """All that an executed notebook printed."""
    cells = nbformat.read(path, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


# ---------------------------------------------------------------- running


def test_run_passes_parameters_streams_output_and_writes_a_page(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    source = write_notebook(
        tmp_path,
        "import os\nprint(parameters.steps, parameters.datasets, os.getcwd() + '/lib')",
        "from tqdm.auto import tqdm\nprint('before', [n for n in tqdm(range(3), 'a bar')], 'after')",
    )
    values = {"steps": 7, "datasets": '["magnetic-tile", "neu-seg"]'}
    output = run_notebook(source, parameters=values, output=tmp_path / "out" / "run.ipynb")
    assert output == tmp_path / "out" / "run.ipynb"
    assert "7 ['magnetic-tile', 'neu-seg']" in printed(output) and "before [0, 1, 2] after" in printed(output)
    assert not re.search("a bar: +0%|widget-view", output.read_text())  # nobody wants to read a bar at 0%
    assert f"{repository_root()}/lib" in capfd.readouterr().out  # the kernel's working directory, streamed as printed
    assert str(repository_root()) not in output.read_text()  # paths of this machine do not stay in results
    page = output.with_suffix(".html").read_text()
    assert "parameters of this run" in page and "7 [" in page


def test_pictures_that_may_not_be_passed_on_are_left_out(tmp_path: Path) -> None:
    draw = """\
from pathlib import Path
from samtune.report.figures import figure_folder, panels, save
figure, _ = panels("a set of {0}", 1, 2, 2)
save(figure, figure_folder(Path({1!r}), ["{0}"]), "figure")
figure"""
    names = ("cvc-clinicdb", "bbbc038")
    source = write_notebook(tmp_path, *(draw.format(name, str(tmp_path / "results")) for name in names))
    output = run_notebook(source, output=tmp_path / "out.ipynb")
    closed, free = nbformat.read(output, as_version=4).cells[-2:]
    assert [one.output_type for one in closed.outputs] == ["stream"] and "figures/private" in closed.outputs[0].text
    assert "![a set of bbbc038](results/figures/figure.svg)" in free.outputs[-1].data["text/markdown"]
    assert (tmp_path / "results" / "figures" / "private" / "figure.svg").is_file()
    page = output.with_suffix(".html").read_text()
    assert re.findall("<img[^>]*>", page) == [
        '<img loading="lazy" alt="a set of bbbc038" src="results/figures/figure.svg"/>'
    ]


def test_saved_figures_are_links_that_lead_from_the_page_to_the_file(tmp_path: Path) -> None:
    draw = """\
from pathlib import Path
import numpy as np
from samtune.report.figures import panels, save
title = "A_*b*_ [0, 1] <i> $5 & $6"
figure, (axis,) = panels(title, 1, 3, 2)
display(figure)
axis.imshow(np.zeros((4, 4, 3), np.uint8))
save(figure, Path({0!r}), "a picture")
display(figure)
save(figure, Path({0!r}), "gone").unlink()
figure"""
    folder = tmp_path / "results" / "figures"
    source = write_notebook(tmp_path, draw.format(str(folder)))
    output = run_notebook(source, output=tmp_path / "results" / "notebooks" / "out.ipynb")
    unsaved, saved, gone = (one.data for one in nbformat.read(output, as_version=4).cells[-1].outputs)
    assert "image/png" in unsaved and set(saved) == {"text/markdown"} and "image/png" in gone
    tags = re.findall("<img[^>]*>", output.with_suffix(".html").read_text())
    assert len(tags) == 3 and all('src="data:image/png' in tag for tag in (tags[0], tags[2]))
    link = html.unescape(re.search('src="([^"]*)"', tags[1])[1])
    assert link == "../figures/a%20picture.webp"
    assert (output.parent / unquote(link)).resolve() == (folder / "a picture.webp").resolve()
    assert html.unescape(re.search('alt="([^"]*)"', tags[1])[1]) == "A_*b*_ [0, 1] <i> $5 & $6"


def test_plain_papermill_with_an_unknown_name_fails_at_the_validating_cell(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "papermill", str(write_notebook(tmp_path)), str(tmp_path / "out.ipynb")]
    misspelt = subprocess.run([*command, "-p", "stepz", "3"], capture_output=True, text=True)
    assert misspelt.returncode == 1
    assert "InputError: unknown parameter 'stepz'; known: steps, " in misspelt.stderr


def test_unknown_parameter_is_refused_before_anything_runs(tmp_path: Path) -> None:
    source = write_notebook(tmp_path)
    with pytest.raises(InputError, match=r"unknown parameter of small\.ipynb 'stepz'; known: steps, "):
        run_notebook(source, parameters={"stepz": 3}, output=tmp_path / "out.ipynb")
    assert not (tmp_path / "out.ipynb").exists()


def test_failing_cell_is_named_in_one_line_with_the_saved_notebook(tmp_path: Path) -> None:
    source = write_notebook(tmp_path, "fine = 1", "fine / 0  # breaks", "print('never')")
    with pytest.raises(NotebookError) as caught:
        run_notebook(source, output=tmp_path / "out.ipynb")
    message = str(caught.value)
    assert "\n" not in message
    assert "small.ipynb" in message and "cell `fine / 0  # breaks`: ZeroDivisionError: division by zero" in message
    assert f"saved in {tmp_path / 'out.ipynb'}" in message
    saved = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert any(output.output_type == "error" for cell in saved.cells for output in cell.get("outputs", []))


def test_a_notebook_that_was_cut_off_while_it_was_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(source: Path, output: Path, values: dict) -> tuple[int, list[str]]:
        output.write_text('{"cells": [')  # the disk was full
        return 1, ["OSError: [Errno 28] No space left on device"]

    monkeypatch.setattr(notebooks, "_papermill", cut)
    with pytest.raises(NotebookError, match="papermill failed: OSError: .* No space left on device; nothing was saved"):
        run_notebook(write_notebook(tmp_path, "1"), output=tmp_path / "out.ipynb")


def test_killed_kernel_is_called_out_of_memory_with_what_to_set(tmp_path: Path) -> None:
    source = write_notebook(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(NotebookError, match="killed, likely out of memory; set a smaller batch_size,") as caught:
        run_notebook(source, output=tmp_path / "out.ipynb")
    assert "cell `import os, signal;" in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_killing_the_runner_ends_papermill_and_its_kernel(tmp_path: Path) -> None:
    source = write_notebook(tmp_path, "print('under way', flush=True); import time; time.sleep(300)")
    script = (
        "import sys; from samtune.commands.notebooks import run_notebook; run_notebook(sys.argv[1], output=sys.argv[2])"
    )
    command = [sys.executable, "-c", script, str(source), str(tmp_path / "out.ipynb")]
    runner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in runner.stdout:
        if "under way" in line:
            break
    children = psutil.Process(runner.pid).children(recursive=True)
    assert len(children) >= 2  # papermill and its kernel
    os.kill(runner.pid, signal.SIGKILL)
    runner.wait()
    assert not psutil.wait_procs(children, timeout=20)[1]


def test_find_notebook_by_name_and_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebooks, "resolve", lambda path: tmp_path / path)
    (tmp_path / "notebooks").mkdir()
    path = write_notebook(tmp_path / "notebooks", name="10_spt")
    assert find_notebook("10_spt") == find_notebook(path) == path
    with pytest.raises(InputError, match="unknown notebook '10_sp'; known: 10_spt"):
        find_notebook("10_sp")
    with pytest.raises(InputError, match="no such notebook: .*11_spt.ipynb"):
        find_notebook("11_spt.ipynb")


# ---------------------------------------------------------------- profiles


@pytest.fixture
def two_notebook_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every profile has the notebooks `first` and `second`, in the temporary folder."""
    listed = {"first": Notebook(), "second": Notebook(parameters={"steps": 9})}
    monkeypatch.setattr(notebooks, "load_profile", lambda name: Profile.model_construct(name=name, notebooks=listed))
    monkeypatch.setattr(notebooks, "find_notebook", lambda name: tmp_path / f"{name}.ipynb")


def test_run_profile_keeps_the_order_hands_over_parameters(
    two_notebook_profile: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    calls = []
    monkeypatch.setattr(notebooks, "run_notebook", lambda *given: calls.append(given) or Path(given[0]))
    assert run_profile("tiny") == [Path("first"), Path("second")]
    assert calls == [("first", "tiny", {}), ("second", "tiny", {"steps": 9})]
    assert "profile tiny: first, second\n" in capsys.readouterr().out


def test_a_wrong_parameter_in_a_profile_is_told_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    smoke = load_profile("smoke")
    wrong = smoke.model_copy(update={"notebooks": smoke.notebooks | {"20_sam_sp": Notebook(parameters={"spead": []})}})
    monkeypatch.setattr(notebooks, "load_profile", lambda name: wrong)
    monkeypatch.setattr(notebooks, "run_notebook", lambda *given: pytest.fail("a notebook was run"))
    with pytest.raises(InputError, match="unknown parameter 'spead'; known: speed"):
        run_profile("smoke")


def test_run_profile_runs_the_rest_after_a_failure_and_names_it(
    two_notebook_profile: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []

    def run(name: str, *_: object) -> Path:
        ran.append(name)
        if name == "first":
            raise NotebookError("first.ipynb, cell `x`: ValueError: bad")
        return Path(name)

    monkeypatch.setattr(notebooks, "run_notebook", run)
    with pytest.raises(NotebookError, match="1 of 2 notebooks failed: first.ipynb, cell `x`: ValueError: bad"):
        run_profile("tiny")
    assert ran == ["first", "second"]


@pytest.mark.parametrize("profile", profile_names())
def test_every_notebook_that_a_profile_names_exists(profile: str) -> None:
    for name in load_profile(profile).notebooks:
        assert find_notebook(name).stem == name


# ---------------------------------------------------------------- parameters


class Parameters(NotebookParameters):
    profile: ProfileName
    steps: int
    rate: float
    resume: bool
    datasets: list[str]
    seeds: list[int]
    precision: Literal["auto", "fp32"]


GOOD = dict(profile="smoke", steps=2, rate=1e-3, resume=False, datasets=["a"], seeds=[0, 1], precision="auto")


def test_good_parameters_and_lists_as_text() -> None:
    others = {"In": ["", "x = 1"], "Out": {}, "unrelated": 5}  # what else stands in a notebook's globals
    assert Parameters.from_notebook(GOOD | others).model_dump() == GOOD
    changed = Parameters.from_notebook(GOOD | {"datasets": '["a", "b"]', "seeds": "[3, 4]", "rate": 1})
    assert (changed.datasets, changed.seeds, changed.rate) == (["a", "b"], [3, 4], 1.0)
    assert Parameters.from_notebook(GOOD | {"datasets": "[magnetic-tile]"}).datasets == ["magnetic-tile"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": "many"}, "parameter 'steps' = 'many' (str): expected int"),
        ({"steps": 2.5}, "parameter 'steps' = 2.5 (float): expected int"),
        ({"steps": True}, "parameter 'steps' = True (bool): expected int"),
        ({"resume": "yes"}, "parameter 'resume' = 'yes' (str): expected bool"),
        ({"profile": 3}, "parameter 'profile' = 3 (int): expected str"),
        ({"profile": "smok"}, "parameter 'profile': unknown profile 'smok'; known: smoke, "),
        ({"datasets": "magnetic-tile"}, "parameter 'datasets' = 'magnetic-tile' (str): expected list of str"),
        ({"seeds": '["a"]'}, "parameter 'seeds'[0] = 'a' (str): expected list of int"),
        ({"precision": "fp8"}, "parameter 'precision' = 'fp8' (str): expected one of 'auto', 'fp32'"),
        ({"__annotations__": {"stepz": int}, "stepz": 3}, "unknown parameter 'stepz'; known: steps, "),
        ({"In": ["", "# Parameters\nstepz = 3\n"], "stepz": 3}, "unknown parameter 'stepz'; known: steps, "),
    ],
)
def test_bad_parameters_are_named_with_value_and_expected_type(change: dict, message: str) -> None:
    with pytest.raises(InputError, match="^" + re.escape(message)):
        Parameters.from_notebook(GOOD | change)


def test_what_is_left_empty_is_the_profiles() -> None:
    given = {"profile": "quick", "datasets": [], "seeds": [], "groups": [], "transfer": []}
    assert SptAblations.from_notebook(given).groups == ["robustness"]
    assert SptAblations.from_notebook(given | {"groups": ["size"]}).groups == ["size"]
    assert SptAblations.from_notebook(given | {"profile": "cpu"}).groups == []  # there: all
    for one in (["neu-seg"], '["neu-seg"]'):  # not a model for each of the profile's three
        assert SptAblations.from_notebook(given | {"profile": "cpu", "datasets": one}).transfer == ["neu-seg"]
    main = {"profile": "cpu", "datasets": [], "seeds": [], "controls": [], "union": False, "changes": {}}
    found = Spt.from_notebook(main)
    assert (found.controls, found.union) == (["magnetic-tile", "neu-seg"], False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": ["sizes"]}, "parameter 'groups': unknown group of ablations 'sizes'; known: size, "),
        ({"datasets": ["neu-sek"]}, "parameter 'datasets': unknown data set 'neu-sek'; known: neu-seg, "),
    ],
)
def test_unknown_groups_and_data_sets_are_told_at_once(change: dict, message: str) -> None:
    with pytest.raises(InputError, match="^" + re.escape(message)):
        SptAblations.from_notebook(
            {"profile": "smoke", "datasets": [], "seeds": [], "groups": [], "transfer": []} | change
        )


def test_what_a_profile_or_a_run_cannot_give_is_told_at_once(tmp_path: Path) -> None:
    asked = {"profile": "smoke", "datasets": [], "seeds": []}
    with pytest.raises(InputError, match=re.escape("parameter 'profile' = 3 (int): expected str")):
        StartHere.from_notebook(asked | {"profile": 3})
    with pytest.raises(InputError, match=re.escape("parameter 'seeds'[0] = -1 (int): input should be greater")):
        StartHere.from_notebook(asked | {"seeds": [-1]})
    with pytest.raises(InputError, match=re.escape("parameter 'seeds'[0] = 2147483648 (int): input should be less")):
        StartHere.from_notebook(asked | {"seeds": [2**31]})
    with pytest.raises(InputError, match="^parameter 'speed': unknown backbone 'vit'; known: vit_"):
        SamSp.from_notebook(asked | {"baselines": [], "changes": {}, "speed": ["vit"]})
    mine = load_profile("smoke").model_dump(mode="json")
    del mine["datasets"]["00_start_here"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine))
    with pytest.raises(InputError, match="profile smoke has no datasets for 00_start_here: name some"):
        StartHere.from_notebook(asked | {"profile": str(tmp_path / "mine.yaml")})
    assert StartHere.from_notebook(asked | {"profile": str(tmp_path / "mine.yaml"), "datasets": ["drive"]}).datasets
    mine = {"images": "pictures", "masks": "", "out": "tuned", "method": "lora", "backbone": "nano", "prompts": []}
    with pytest.raises(InputError, match="^images and masks belong together: name both folders, or none"):
        YourData.from_notebook(
            mine
            | {"mask_coding": "binary255", "mask_suffix": "", "skip_bad": False, "train_images": 0, "learning_rate": 0}
        )
    train = {"profile": "cpu", "datasets": [], "train": True, "ship": True}
    assert TrainNanoModels.from_notebook(train).ship
    for change in ({"train": None}, {"profile": "quick"}):
        with pytest.raises(InputError, match="^ship replaces the kit's weights: it wants profile cpu and train True"):
            TrainNanoModels.from_notebook(train | change)


def test_missing_and_several_bad_parameters_are_all_named() -> None:
    given = {name: value for name, value in GOOD.items() if name != "rate"} | {"steps": "many"}
    with pytest.raises(InputError) as caught:
        Parameters.from_notebook(given)
    assert "'steps' = 'many'" in str(caught.value) and "'rate' is missing" in str(caught.value)


# ---------------------------------------------------------------- pages


def test_page_is_folded_and_needs_no_network(tmp_path: Path) -> None:
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "bar 100%"}
    outputs = [
        new_output("stream", text="step 1\rstep 2\rstep 3\n"),
        new_output("display_data", {"image/png": pixel}),
        new_output("display_data", {"text/html": "<table><tr><td>0.87</td></tr></table>", "text/plain": "table"}),
        new_output("display_data", widget),
        new_output("display_data", {"application/javascript": "require(['x'])", "text/plain": "script"}),
    ]
    cells = [
        new_markdown_cell("intro\n\n# SPT & <co>\n\n$x^2$\n\n$$\\begin{aligned}a &= b\\\\ c &= d\\end{aligned}$$"),
        new_code_cell("secret_sum = 1 + 1", outputs=outputs, execution_count=1),
    ]
    path = tmp_path / "a page.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    text = write_page(path).read_text()
    assert not re.search(r"<(script src|link|iframe)\b|@import|url\(|src=[\"'](?!data:)", text)
    assert not re.search(r"https?://(?!www\.w3\.org/1998/Math/MathML)", text)
    folded = re.search(r"<details class=\"code\">(.*?)</details>", text, re.DOTALL)[1]
    assert "secret_sum" in folded and text.count("secret_sum") == 1
    assert f"data:image/png;base64,{pixel}" in text and "<td>0.87</td>" in text
    assert "bar 100%" in text and "require(" not in text
    assert "step 3" in text and "step 1" not in text
    assert text.count("<math") == 2 and "<mtable" in text and "$$" not in text
    assert "<title>SPT &amp; &lt;co&gt;</title>" in text
    assert 'href="a%20page.ipynb"' in text


def test_formula_that_cannot_be_converted_stays_as_code(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mathml("a < b", "inline").startswith("<math")
    monkeypatch.setattr("samtune.report.notebook_page.convert", lambda *_, **__: 1 / 0)
    assert mathml("a < b", "inline") == "<code>a &lt; b</code>"


# ---------------------------------------------------------------- the kit's own notebooks

OURS = sorted((repository_root() / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_notebook_has_a_parameters_cell_of_plain_lines_and_no_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code), "committed with outputs"
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    for line in tagged[0].source.splitlines():
        assert re.fullmatch(r"\w+: (str|int|float|bool|list|dict) = .+  # \S.*", line), line
        (statement,) = ast.parse(line).body
        ast.literal_eval(statement.value)  # plain: nothing derived
        assert "=" not in ast.unparse(statement.value), f"papermill drops lines with = in the value: {line}"
    import papermill

    assert len(papermill.inspect_notebook(path)) == len(tagged[0].source.splitlines())
