"""How Sphinx makes the site: ``make docs``."""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import moesaic  # noqa: E402
from docs.generator import write  # noqa: E402

write(HERE / "generated")

project = "moesaic"
author = copyright = "moesaic contributors"
version = release = moesaic.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["generator"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
autodoc_mock_imports = ["fastapi", "starlette", "triton", "uvicorn"]  # may be missing
smartquotes = False
default_role = "py:obj"
suppress_warnings = ["ref.python"]  # `bytes` and other names that several classes have
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "separated"
napoleon_numpy_docstring = False
html_theme = "furo"
html_title = f"moesaic {moesaic.__version__}"
html_copy_source = False
html_show_sphinx = False


def keep_columns(app: object, what: str, name: str, obj: object, options: object, lines: list[str]):
    """Show paragraphs whose words stand in columns as they are written."""
    kept: list[str] = []
    for paragraph in "\n".join(lines).split("\n\n"):
        rows = paragraph.splitlines()
        has_columns = any(re.search(r"\S {3,}\S", row) for row in rows)
        if has_columns and not any(row.startswith("==") for row in rows):
            rows = ["::", "", *(f"   {row}" for row in rows)]
        kept += [*rows, ""]
    lines[:] = kept


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", keep_columns)
