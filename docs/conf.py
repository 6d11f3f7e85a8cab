"""Sphinx configuration: python -m sphinx -W -b html docs docs/_build/html"""

from importlib import metadata

project = "pyrocg"
author = "the pyrocg authors"
copyright = author
try:
    release = metadata.version("pyrocg")
except metadata.PackageNotFoundError:  # built from a checkout that is not installed
    release = ""

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["config.cache"]

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "pyrocg"
html_show_sourcelink = False
