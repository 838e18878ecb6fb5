"""An executed notebook as one page of the report's style: contents, code folded, formulas as MathML, no network.

Figures that the notebook saved are links to files in `../figures` (`samtune.commands.notebooks` puts them there); other
pictures are embedded.
"""

import html
import re
from pathlib import Path
from typing import Any

import jinja2
import nbformat
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments.formatters import HtmlFormatter
from traitlets.config import Config

from samtune.common.paths import asset

# What run_cells says of cells that have a record; and warnings, which are for who runs a notebook, not who reads it.
_RECORDED = re.compile(r"^(\d+) cells?: \1 recorded, nothing to run$")
_HEADING_OR_TABLE = re.compile(r"<h[1-4]\b.*?</h[1-4]>|<table\b.*?</table>", re.DOTALL)
# Best first. Widgets and scripts are left out: they need a kernel or a library from the network; their text stands in.
OUTPUT_KINDS = ["text/html", "text/markdown", "image/png", "image/jpeg", "image/svg+xml", "text/latex", "text/plain"]


def mathml(formula: str, display: str) -> str:
    """TeX without its dollar signs as MathML, which browsers draw by themselves; `display` is "inline" or "block".

    TeX that cannot be converted stays, as code.
    """
    try:
        return convert(formula.replace("{aligned}", "{align*}"), display=display)  # it knows only the latter
    except Exception:  # the converter has no common error class, and a page is worth more than one formula
        return f"<code>{html.escape(formula)}</code>"


class _Renderer(IPythonRenderer):
    def inline_math(self, body: str) -> str:
        return mathml(body, "inline")

    def block_math(self, body: str) -> str:
        return mathml(body, "block")

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")


class _PageExporter(HTMLExporter):
    @jinja2.pass_context
    def markdown2html(self, context: jinja2.runtime.Context, source: str) -> str:
        """Markdown to HTML, pictures attached to the cell embedded."""
        attachments = context.get("cell", {}).get("attachments", {})
        return MarkdownWithMath(renderer=_Renderer(escape=False, attachments=attachments, anchor_link_text="#")).render(
            source
        )

    def default_filters(self) -> Any:
        """Filters of nbconvert, and `tex` for outputs of LaTeX."""
        yield from super().default_filters()
        yield "tex", lambda text: mathml(text.strip().strip("$"), "block")


def page_title(notebook: nbformat.NotebookNode, otherwise: str) -> str:
    """The first top heading of the notebook."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (heading := re.search(r"^# +(.+)$", cell.source, re.MULTILINE)):
            return heading[1].strip()
    return otherwise


def _describe_pictures(notebook: nbformat.NotebookNode) -> None:
    """Give every picture that has none an alternative text: the heading that it stands under."""
    heading = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^#+ +(.+)$", cell.source, re.MULTILINE) or [heading])[-1].strip()
        for output in cell.get("outputs", []):
            if any(kind.startswith("image/") for kind in output.get("data", {})):
                output.metadata.setdefault("alt", f"Picture under: {heading}" if heading else "Picture")


def _quiet(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """`outputs` without warnings, and with one line in place of the many that say that cells have records."""
    kept, recorded = [], 0
    for output in outputs:
        if output.output_type == "stream":
            lines = output.text.rstrip("\n").split("\n")  # a progress bar's states, between carriage returns, stay one
            if output.name == "stderr" and "Warning" in output.text:
                continue
            found = [match for line in lines if (match := _RECORDED.match(line))]
            recorded += sum(int(match[1]) for match in found)
            lines = [line for line in lines if not _RECORDED.match(line)]
            if not any(line.strip() for line in lines):
                continue
            output = nbformat.from_dict({**output, "text": "\n".join(lines) + "\n"})
        kept.append(output)
    if recorded:
        kept.insert(0, nbformat.v4.new_output("stream", text=f"{recorded} cells were read from their records.\n"))
    return kept


def _described_tables(page: str) -> str:
    """Every table of a page in a frame that scrolls, with a caption (the heading above it) and scopes."""
    heading, numbers = "", {}

    def described(found: re.Match) -> str:
        nonlocal heading
        text = found[0]
        if text.startswith("<h"):
            heading = re.sub(r"<a class=\"anchor-link\".*?</a>|<[^>]+>", "", text, flags=re.DOTALL).strip()
            return text
        numbers[heading] = numbers.get(heading, 0) + 1
        name = f"{heading or 'Table'}{f', table {numbers[heading]}' if numbers[heading] > 1 else ''}"
        head, mark, body = text.partition("</thead>")
        head = head.replace("<th", '<th scope="col"').replace('<th scope="col"ead', "<thead")
        text = head + mark + body.replace("<th", '<th scope="row"')
        text = re.sub(r"<th [^>]*>\s*</th>", "<td></td>", text)
        text = re.sub(
            r"<table[^>]*>", f'<table class="sortable"><caption class="hidden">{name}</caption>', text, count=1
        )
        return f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">{text}</div>'

    page = re.sub(r"<style scoped>.*?</style>", "", page, flags=re.DOTALL)
    return _HEADING_OR_TABLE.sub(described, page)


def _contents(page: str) -> str:
    """Links to the page's second headings, as items of a list."""
    found = re.findall(r'<h2[^>]* id="([^"]+)"[^>]*>(.*?)<a class="anchor-link"', page, re.DOTALL)
    return "".join(f'<li><a href="#{anchor}">{re.sub("<[^>]+>", "", text).strip()}</a></li>' for anchor, text in found)


def write_page(path: Path, older: bool = False) -> Path:
    """Write `path` (.ipynb, executed) as a page of the same name beside it (.html); returns the page's path.

    `older`: it was executed before its last change, and the page says so.
    """
    notebook = nbformat.read(path, as_version=4)
    # The notebook is left as it is; its widgets' state would put their scripts into the page.
    notebook.metadata.pop("widgets", None)
    _describe_pictures(notebook)
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = _quiet(cell.outputs)
    exporter = _PageExporter(
        template_name="basic",
        raw_template=asset("report/templates/notebook.html.j2").read_text(encoding="utf-8"),
        config=Config(
            NbConvertBase={"display_data_priority": OUTPUT_KINDS},
            CoalesceStreamsPreprocessor={"enabled": True},  # of a progress bar, only its last state
        ),
    )
    resources = {
        "page_title": page_title(notebook, path.stem),
        "notebook_file": path.name,
        "older": older,
        "style": asset("report/templates/style.css").read_text(encoding="utf-8"),
        "script": asset("report/templates/page.js").read_text(encoding="utf-8"),
        "highlight_style": HtmlFormatter(style="default").get_style_defs(".highlight"),
        "dark_highlight_style": HtmlFormatter(style="github-dark").get_style_defs(".highlight"),
    }
    text, _ = exporter.from_notebook_node(notebook, resources)
    text = _described_tables(text).replace("<img ", '<img loading="lazy" ').replace("<pre>", '<pre tabindex="0">')
    text = text.replace('<math display="block"', '<math tabindex="0" display="block"')
    text = text.replace("<!-- contents -->", _contents(text))
    page = path.with_suffix(".html")
    page.write_text(text, encoding="utf-8")
    return page
