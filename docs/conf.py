"""Settings of the documentation's site; `make docs` builds it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import site_parts  # beside this file

import nnunet_collab

project = "nnunet_collab"
author = "nnunet_collab contributors"
copyright = author
release = version = nnunet_collab.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
suppress_warnings = ["config.cache"]
nitpicky = False

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]

default_role = "code"  # single backticks in docstrings are code
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_default_options = {"show-inheritance": True}
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes of a tuple are documented where they stand
python_display_short_literal_types = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"nnunet_collab {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False


def setup(app: object) -> None:
    """Connect what makes pages out of the code."""
    app.connect("source-read", site_parts.fill_in)  # type: ignore[attr-defined]
    app.connect("autodoc-process-docstring", site_parts.escape_docstring, priority=100)  # type: ignore[attr-defined]
