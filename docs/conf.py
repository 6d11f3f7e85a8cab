"""Sphinx configuration: python -m sphinx -W -b html docs docs/_build/html"""

import re
from html import escape
from importlib import metadata

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

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
html_math_renderer = "mathml"


def _mathml(tex, block):
    """Formulas that every browser shows by itself, without a script from elsewhere."""
    tex = re.sub(r"\\(big|Big)(?=[(\[])", r"\\\1l", tex)
    tex = re.sub(r"\\(big|Big)(?=[)\]])", r"\\\1r", tex)
    if r"\\" in tex and r"\begin" not in tex:
        tex = rf"\begin{{aligned}} {tex} \end{{aligned}}"
    try:
        return tex2mathml(tex, as_block=block)
    except MathError as error:
        logging.getLogger(__name__).warning("docutils cannot write %r: %s", tex, error)
        return f"<code>{escape(tex)}</code>"


def _inline(translator, node):
    translator.body.append(_mathml(node.astext(), block=False))
    raise nodes.SkipNode


def _block(translator, node):
    formula = _mathml(node.astext(), block=True)
    style = "overflow: auto hidden; padding: 0.4em 0"
    translator.body.append(f'<div style="{style}">{formula}</div>')
    raise nodes.SkipNode


def setup(app):
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
