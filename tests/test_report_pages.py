"""The report: every number on its pages is right, every link leads somewhere, nothing comes from the network."""

import re
from html.parser import HTMLParser
from urllib.parse import unquote

import nbformat
import pytest

from fake_records import fake_cells, fake_execute
from samtune.report import figures
from samtune.report.circumstances import facts
from samtune.report.claims import CLAIMS
from samtune.report.pages import build_report, interval_picture
from samtune.report.tables import TABLES, check_tables, image_values, read_table
from samtune.study.cells import GenerationCell, TimingCell, TrainingCell, plain_cell
from samtune.study.records import Record, read_records
from samtune.study.runner import run_cells


class Page(HTMLParser):
    """Links, anchors and text of a page; fails on tags that are not closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.anchors, self.open, self.text = [], set(), [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.links += [values[name] for name in ("href", "src") if name in values]
        self.anchors.add(values.get("id"))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass  # the lines and circles of inline pictures

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "cpu"
    run_cells(
        fake_cells(("spt_main", "baselines"), methods=("lora", "spt")), folder, fake_execute, say=lambda line: None
    )
    records = read_records(folder / "records")
    one, two = (next(r for r in records if r.objects is not None and r.method == name) for name in ("lora", "spt"))
    scatter = figures.image_scatter(
        *(image_values(r, "iou", "final") for r in (one, two)), ("lora", "spt"), "A < B & C"
    )
    figures.save(scatter, folder / "figures", "scatter of images")
    figures.figure_folder(folder, ["drive"])
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "00_start_here.ipynb").write_text(
        nbformat.writes(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Start & look")]))
    )
    build_report("cpu", folder)
    return folder


def text_of(page: Page) -> str:
    return " ".join(" ".join(page.text).split())


def test_every_link_leads_somewhere_and_nothing_needs_the_network(folder):
    pages = {name: Page((folder / name).read_text()) for name in ("index.html", "claims.html")}
    for name, page in pages.items():
        assert page.links
        for link in page.links:
            path, _, anchor = unquote(link).partition("#")
            assert not path.startswith(("http:", "https:", "//", "/")), link
            assert (folder / path).is_file() if path else True, link
            if anchor:
                assert anchor in pages[path or name].anchors, link
        assert not re.search(r"url\(|@import|<script src|<link", (folder / name).read_text())
    readme = (folder / "README.md").read_text()
    assert "](figures/scatter%20of%20images.svg)" in readme
    for link in re.findall(r"\]\(([^)]+)\)", readme):
        assert (folder / unquote(link)).is_file(), link


def test_the_page_says_what_was_run_and_what_was_not(folder):
    text = text_of(Page((folder / "index.html").read_text()))
    records = read_records(folder / "records")
    assert "12 trainings, 18 measurements" in text and "0, 1, 2" in text and records[0].hardware in text
    assert records[0].packages["torch"] in text and records[0].date[:10] in text and "fp32" in text
    assert "The real sets with the nano SAM in fp32, 3,000 images a training." in text
    head = text.partition("Pictures Claims Tables")[0]
    assert "SPT: Does SPT beat LoRA at equal training?" in head and "1 commit (" in head
    lora = read_table(folder / "tables" / "baselines.csv").query("method == 'lora' and metric == 'iou'")
    for row in lora.to_dict("records"):
        assert f"{row['mean']:.3f} ± {row['std']:.3f}" in text_of(
            Page((folder / "tables" / "baselines.html").read_text())
        )
    for name in ("sam_sp_main", "asam_ablation"):
        assert f"table {name} : {TABLES[name]}" in text
    assert "notebook 90_train_nano_models" in text and "notebook 00_start_here" not in text
    assert "Start & look (executed before its last change)" in text  # it is another notebook than the project's
    assert "neu-seg test 12 1 images without a mask" in text and "0 other" not in text
    readme = (folder / "README.md").read_text()
    assert "[page](notebooks/00_start_here.html) (executed before its last change)" in readme
    assert len(readme.splitlines()) < 300 and "[csv](tables/baselines.csv)" in readme
    assert "![A < B & C](" in readme and "- table `sam_sp_main`" in readme
    assert (folder / "index.html").read_text().count("A &lt; B &amp; C") == 2  # alternative text, caption


def test_the_head_of_the_page_counts_each_kind_of_record_apart():
    training = TrainingCell("lora", ("neu-seg",), "nano")
    cells = [training, training.evaluation("neu-seg"), GenerationCell("sample", "bsds500", 2, "nano"),
             TimingCell("lora", "nano", "train", 1, "fp32", False, "a card")]  # fmt: skip
    head = dict(facts([Record(cell.key(), cell.kind, plain_cell(cell)) for cell in cells]))
    assert head["records"] == "1 trainings, 1 measurements, 1 sets of generated pictures, 1 timings"


def test_the_claims_page_has_every_claim_and_verdict(folder):
    page = Page((folder / "claims.html").read_text())
    assert {claim.id for claim in CLAIMS} <= page.anchors
    table = read_table(folder / "tables" / "claims.csv")
    shown = (folder / "tables" / "claims.md").read_text()
    for row in table.query("verdict != 'not run'").to_dict("records"):
        effect = f"{row['effect']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        assert effect in text_of(page) and effect in shown
    for claim in CLAIMS:
        assert claim.statement in text_of(page)
    assert "+0.014" in text_of(page)  # the paper's own effect of A1


def test_a_report_built_again_is_the_same_and_its_tables_are_those_of_the_records(folder):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.suffix in (".html", ".md", ".csv")}
    build_report("cpu", folder)
    assert {path: path.read_bytes() for path in before} == before
    assert check_tables(folder) == []


def test_a_profile_that_was_never_run_has_a_page_too(tmp_path):
    text = text_of(Page(build_report("quick", tmp_path).read_text()))
    assert "none yet" in text and "No table has a record yet." in text and "None of them has been tested" in text
    assert "notebook 00_start_here" in text
    assert "Not run" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("text", ["", '{"cells": [{"cell_type'])
def test_a_notebook_that_is_cut_short_is_left_out(tmp_path, text):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "00_start_here.ipynb").write_text(text)
    (tmp_path / "notebooks" / "00_start_here.html").write_text("<title>Start here</title>")
    with pytest.warns(UserWarning, match="00_start_here.ipynb is no whole notebook: left out; run it again"):
        page = build_report("smoke", tmp_path)
    assert "Start here" in page.read_text()


def test_intervals_are_drawn_to_scale():
    middle = interval_picture(0.0, -0.5, 0.5, 1.0, width=100)
    assert 'cx="50.0"' in middle and 'x1="26.0" x2="74.0"' in middle and "good" not in middle and "bad" not in middle
    assert 'interval good"' in interval_picture(0.5, 0.4, 0.6, 1.0)
    assert 'interval bad"' in interval_picture(-0.5, -0.6, -0.4, 1.0)
    small = interval_picture(0.0, -0.025, 0.025, 1.0, width=100)  # on an axis of its own
    assert 'x1="26.0" x2="74.0"' in small and "dasharray" in middle and "dasharray" not in small
