"""What the gallery shows besides the open figures of pyplot; ``conf.py`` names these functions."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst


def last_value(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """The figure that a block ends with, as a notebook would show it."""
    figure = block_vars["example_globals"].pop("___", None)  # sphinx-gallery's name for it
    block_vars["example_globals"]["___"] = None
    if not isinstance(figure, Figure) or getattr(figure, "number", None) is not None:
        return ""
    path = next(block_vars["image_path_iterator"])
    figure.savefig(path, dpi=200)
    return figure_rst([path], gallery_conf["src_dir"])


def saved_file(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """The figure that a script saved beside itself, under its own name."""
    source = Path(block_vars["src_file"]).with_suffix(".png")
    if not source.exists():
        return ""
    path = next(block_vars["image_path_iterator"])
    shutil.move(source, path)
    return figure_rst([path], gallery_conf["src_dir"])


def arguments(gallery_conf: dict[str, Any], script_vars: dict[str, Any]) -> list[str]:
    """No arguments; and the script's docstring, which it may show as its help.

    The gallery takes the docstring off before it runs a script.
    """
    source = Path(script_vars["src_file"]).read_text(encoding="utf-8")
    script_vars["example_globals"]["__doc__"] = ast.get_docstring(ast.parse(source), clean=False)
    return []
