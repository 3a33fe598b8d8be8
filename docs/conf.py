"""Sphinx settings. The build needs no network; equations are drawn by the reader's browser."""

from __future__ import annotations

import doctest

import spquant_plugin

project = "spquant_plugin"
author = "The spquant_plugin developers"
project_copyright = author
version = release = spquant_plugin.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"spquant_plugin {release}"
html_show_sourcelink = False

autosummary_generate = False  # the reference pages are written by hand
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # the hosts' docstrings are not ours to render

# Docstring examples already run under pytest, each in its own module; here only the pages' run.
doctest_test_doctest_blocks = ""
doctest_default_flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
doctest_global_setup = """
import torch
import spquant_plugin as spq

torch.manual_seed(0)
"""
