"""An executed notebook as one page: code folded, formulas as MathML, no network.

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


def write_page(path: Path) -> Path:
    """Write `path` (.ipynb, executed) as a page of the same name beside it (.html); returns the page's path."""
    notebook = nbformat.read(path, as_version=4)
    # The notebook is left as it is; its widgets' state would put their scripts into the page.
    notebook.metadata.pop("widgets", None)
    _describe_pictures(notebook)
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
        "highlight_style": HtmlFormatter(style="default").get_style_defs(".highlight"),
    }
    text, _ = exporter.from_notebook_node(notebook, resources)
    page = path.with_suffix(".html")
    page.write_text(text, encoding="utf-8")
    return page
