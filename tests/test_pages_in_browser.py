"""Every page of a report in headless Chromium, on a screen and on a phone, light and dark.

The report is made of made-up records, with a figure and an executed notebook; SAMTUNE_LOOK_AT=results/cpu looks at a
real one instead.
"""

import os
import shutil
from pathlib import Path

import nbformat
import pytest

from fake_records import fake_cells, fake_execute
from samtune.report import figures, share
from samtune.report.pages import build_report
from samtune.report.tables import image_values
from samtune.study.records import read_records
from samtune.study.runner import run_cells

CHROMIUM = next(filter(None, map(shutil.which, share.BROWSERS)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")
SIZES = {"screen": (1280, 900), "phone": (390, 844)}
RULES = [
    "color-contrast", "td-headers-attr", "th-has-data-cells", "scope-attr-valid", "image-alt", "svg-img-alt",
    "empty-table-header", "table-duplicate-name", "link-name", "button-name", "document-title", "html-has-lang",
    "duplicate-id-aria", "scrollable-region-focusable", "landmark-one-main", "heading-order",
]  # fmt: skip


def notebook() -> nbformat.NotebookNode:
    table = (
        '<table border="1"><thead><tr><th></th><th>IoU</th></tr></thead>'
        "<tbody><tr><th>lora</th><td>0.6</td></tr></tbody></table>"
    )
    new = nbformat.v4
    outputs = [
        new.new_output("stream", text="18 cells: 18 recorded, nothing to run\n" * 3),
        new.new_output("stream", name="stderr", text="/tmp/1.py:3: FutureWarning: old\n"),
        new.new_output("display_data", {"text/html": table}),
        new.new_output("display_data", {"text/markdown": "![IoU image by image](../figures/scatter.svg)"}),
    ]
    cells = [new.new_markdown_cell("# A notebook\n\n$x = y^2$"), new.new_markdown_cell("## 1. Measure")]
    return new.new_notebook(cells=[*cells, new.new_code_cell("run()  # all of it\nx = 'text' + 1", outputs=outputs)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "SAMTUNE_LOOK_AT" in os.environ:
        return Path(os.environ["SAMTUNE_LOOK_AT"]).absolute()
    folder = tmp_path_factory.mktemp("results") / "cpu"
    run_cells(fake_cells(("spt_main", "baselines"), methods=("lora", "spt")), folder, fake_execute, say=str)
    records = [record for record in read_records(folder / "records") if record.objects is not None]
    one, two = (next(record for record in records if record.method == name) for name in ("lora", "spt"))
    values = [image_values(record, "iou", "final") for record in (one, two)]
    figures.save(figures.image_scatter(*values, ("lora", "spt"), "IoU image by image"), folder / "figures", "scatter")
    (folder / "notebooks").mkdir()
    nbformat.write(notebook(), folder / "notebooks" / "10_spt.ipynb")
    build_report("cpu", folder)
    share.single_file(folder)
    return folder


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_pages_fit_read_well_and_fetch_nothing(folder: Path, browser, size: str, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    requests, errors, wrong = [], [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    notebooks = [f"notebooks/{path.name}" for path in sorted((folder / "notebooks").glob("*.html"))]
    assert notebooks
    for name in ("index.html", "claims.html", "tables/spt_main.html", "tables/spt_main_records.html", *notebooks):
        page.goto((folder / name).as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
        across = page.evaluate("document.documentElement.scrollWidth")
        wrong += [f"{name}: {across} pixels wide on {width}"] if across > width else []
        if name == "index.html":
            box = page.locator(".verdict").first.bounding_box()
            assert box["y"] + box["height"] < height and box["x"] + box["width"] <= width
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert dark == (scheme == "dark"), name
        found = Axe().run(page, options={"runOnly": {"type": "rule", "values": RULES}}).response
        wrong += [
            f"{name}: {violation['id']}: {node['html'][:140]} {node['failureSummary'][:160]}"
            for violation in found["violations"]
            for node in violation["nodes"][:3]
        ]
        wrong += page.evaluate(
            "name => [...document.querySelectorAll('table')].filter(t => !t.caption || [...t.querySelectorAll('th')]"
            ".some(h => !h.scope)).map(t => `${name}: a table without caption or scope: ${t.outerHTML.slice(0, 120)}`)",
            name,
        )
    context.close()
    assert wrong == [] and errors == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


def test_a_click_sorts_a_table_and_a_rows_name_leads_to_its_records(folder: Path, browser) -> None:
    page = browser.new_page()
    page.goto((folder / "tables" / "spt_main.html").as_uri())
    place = page.locator("table").first.locator("thead th").count()
    rows = "[...document.querySelector('table').tBodies[0].rows]"
    read = f"{rows}.map(row => parseFloat(row.cells[{place - 1}].textContent))"
    button = page.locator("table").first.locator("thead th button").last
    button.click()
    first = [value for value in page.evaluate(read) if value == value]
    button.click()
    second = [value for value in page.evaluate(read) if value == value]
    assert first == sorted(first, reverse=True) and second == sorted(second) and len(set(first)) > 1

    link = page.locator("tbody th a").first
    named = link.inner_text()
    link.click()
    page.wait_for_url("**/spt_main_records.html*")
    rows, shown = page.locator("table.records tbody tr"), page.locator("table.records tbody tr:visible")
    assert 0 < shown.count() < rows.count()
    assert all(named in text for text in shown.all_inner_texts())
    page.close()


def test_one_file_needs_no_other_and_pages_can_be_printed(folder: Path, browser, tmp_path: Path) -> None:
    alone = shutil.copy(share.single_file(folder), tmp_path / "mailed.html")
    page = browser.new_page(viewport={"width": 390, "height": 844})
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(Path(alone).as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.wait_for_function("[...document.images].every(image => image.loading = 'eager')")
    page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth)")
    links = "[...document.querySelectorAll('a[href]')].map(a => a.getAttribute('href')).filter(h => h != '#')"
    leads = "h => h[0] == '#' && document.getElementById(decodeURIComponent(h.slice(1)))"
    assert page.evaluate(f"{links}.filter(h => !({leads})(h))") == []
    assert [url for url in asked if not url.startswith("data:")] == [Path(alone).as_uri()]
    page.close()
    assert share.pdf(folder).read_bytes().startswith(b"%PDF")
