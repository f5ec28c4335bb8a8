"""The site's settings. The build (CMakeLists.txt) says by ATTZOO_DOXYGEN_OUT where Doxygen's XML is."""

import os
import re
import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import logging

docs = Path(__file__).parent
root = docs.parent
sys.path.insert(0, str(docs))
import fill  # noqa: E402
import headers  # noqa: E402

project = "attzoo"
copyright = re.search(r"\(c\) (.*)", (root / "LICENSE").read_text())[1]
release = ".".join(re.findall(r"#define ATTZOO_VERSION_[A-Z]+ (\d+)$",
                              (root / "include/attzoo/version.hpp").read_text(), re.MULTILINE))
extensions = ["myst_parser", "breathe"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["requirements.txt"]
primary_domain = "cpp"
highlight_language = "cpp"
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_extra_path = ["llms.txt"]
html_title = f"attzoo {release}"
html_math_renderer = "mathml"

headers.xml = Path(os.environ["ATTZOO_DOXYGEN_OUT"], "xml")
breathe_projects = {"attzoo": str(headers.xml)}
breathe_default_project = "attzoo"
breathe_default_members = ("members", "protected-members")
breathe_show_include = False


def visit_math(display):
    """Equations are MathML, which browsers set by themselves: no script, no fonts, no network. What
    stands beside each other, with a \\qquad between, goes below each other in a narrow window."""

    def visit(translator, node):
        if display:
            parts = node.astext().split(r"\qquad")
            mathml = "".join(f"<div>{convert(part, display='block')}</div>" for part in parts)
            translator.body.append(f'<div class="equations">{mathml}</div>')
        else:
            translator.body.append(convert(node.astext(), display="inline"))
        raise nodes.SkipNode

    return visit


def check(app):
    """What fill.py writes into pages is up to date."""
    for page in fill.pages():
        if fill.filled(page.read_text(), page) != page.read_text():
            logging.getLogger(__name__).warning("%s is older than its sources: run python3 docs/fill.py", page)


def setup(app):
    app.add_html_math_renderer("mathml", (visit_math(False), None), (visit_math(True), None))
    app.add_directive("headers", headers.Headers)
    app.connect("builder-inited", check)
