"""Sphinx settings. The build needs no network; equations are drawn by the reader's browser."""

from __future__ import annotations

import doctest
import os
import sys
from pathlib import Path

# tqdm reads this when it is imported. On a page, each redrawing of a bar would be a line.
os.environ["TQDM_DISABLE"] = "1"
sys.path.insert(0, str(Path(__file__).parent))  # for gallery_figures

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
    "myst_parser",  # pages in Markdown, which are read beside the code as well
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "results/*.md"]
nitpicky = True  # a link to one of our names must lead somewhere; others' pages are not linked
nitpick_ignore_regex = [
    ("py:.*", r"(torch|numpy|collections|fractions|pathlib|os|spikingjelly|snntorch)\..*"),
    ("py:.*", r"(.*\.)?_\w+"),
    (
        "py:.*",
        r"Tensor|Fraction|dict\[str|spquant_plugin\.convert\.plan\.(Neuron|Layer|Gate|Norm)Step",
    ),
    ("py:.*", r"spquant_plugin\.modules\.neuron\.QuantizedNeuron"),
    ("py:.*", r"(spquant_plugin\.counts\.)?Counts(Itself)?"),
]
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

# Scripts run while the pages are built, each again only after it was changed; one that fails fails
# the build. "-D plot_gallery=0" runs none, "-D sphinx_gallery_conf.filename_pattern=plot_" only the
# short ones.
sphinx_gallery_conf = {
    "examples_dirs": ["../examples"],
    "gallery_dirs": ["gallery"],
    "filename_pattern": r"[/\\](plot_|quickstart)",
    "ignore_pattern": r"^(?!plot_|quickstart)",
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": ("matplotlib", "gallery_figures.last_value", "gallery_figures.saved_file"),
    "image_srcset": ["2x"],
    "reset_argv": "gallery_figures.arguments",
    "capture_repr": (),
    "remove_config_comments": True,
    "download_all_examples": False,
    "write_computation_times": False,
    "parallel": 2,  # examples at a time, each in a process of its own
}

# The doctest builder checks the pages' own code; the gallery's was run by the html builder.
plot_gallery = str("doctest" not in sys.argv)
