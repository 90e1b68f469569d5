"""Configuration of the documentation site, which is built without network and with warnings as errors.

uv run --group docs --extra lab sphinx-build -W --keep-going docs build/docs
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

import backpass

project = "backpass"
author = copyright = "The backpass developers"
version = release = backpass.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "mathml", "repository_pages"]
exclude_patterns = ["_extensions"]

html_theme = "pydata_sphinx_theme"
html_title = "backpass"
html_show_sourcelink = False
html_theme_options = {
    "header_links_before_dropdown": 4,
    "show_prev_next": False,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_output_stderr = "remove"  # warnings of packages, with paths of the machine that builds

autodoc_member_order = "groupwise"
autodoc_typehints_format = "short"
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 88
