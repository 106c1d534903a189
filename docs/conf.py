"""The documentation site: ``tox -e docs`` builds it into .tox/docs/html, warnings as errors, without a network.

Only formulas want one, where the pages are read: MathJax comes from its public address.
"""

import sys
from pathlib import Path

import dr_plugin

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "dr_plugin"
copyright = "the dr_plugin developers"
version = release = dr_plugin.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_click",
    "directives",
]
exclude_patterns = ["_ext"]
html_theme = "furo"
html_title = f"dr_plugin {version}"
html_copy_source = False
nitpicky = True
# No inventory of another project is fetched: the build needs no network. What is theirs stays plain text.
nitpick_ignore_regex = [("py:.*", r"(?!dr_plugin).*")]

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

# A single backtick in our docstrings is code.
default_role = "code"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Shape"]
autodoc_typehints = "none"
autodoc_member_order = "bysource"
