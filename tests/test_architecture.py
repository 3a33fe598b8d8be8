"""The house rules: what may import what, and what importing costs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "spquant_plugin"

# A part may import the parts before it. Hosts stand on one line: they do not import each other.
LAYERS = [
    {"errors", "table", "counts"},
    {"records"},
    {"config"},
    {"presets", "functional"},
    {"kernels"},
    {"modules"},
    {"spikingjelly", "snntorch"},
    {"convert"},
    {"analysis", "deploy", "distill"},
    {"models", "data"},
]
# Parts that build a host's networks need that host.
MAY_IMPORT_HOSTS = {"models"}
FRAMEWORKS = {"spikingjelly", "snntorch"}
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def level(part: str) -> int:
    return next(index for index, parts in enumerate(LAYERS) if part in parts)


def imports(path: Path) -> set[tuple[bool, str]]:
    """Pairs of (ours, first name) that a file imports anywhere."""
    package = ("spquant_plugin", *path.relative_to(PACKAGE).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {(False, alias.name.split(".")[0]) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((False, node.module.split(".")[0]))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            full = (*base, *(node.module or "").split(".")) if node.module else base
            names = [full[1]] if len(full) > 1 else [alias.name for alias in node.names]
            found |= {(True, name) for name in names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_from_parts_before_its_own(path):
    own = part_of(path)
    for ours, name in imports(path):
        if not ours:
            allowed = name == own or own in MAY_IMPORT_HOSTS
            assert name not in FRAMEWORKS or allowed, f"{path} imports {name}"
            continue
        assert name == own or level(name) < level(own), f"{path} imports {name}"


def test_every_part_has_its_place():
    assert {part_of(path) for path in FILES} == set().union(*LAYERS)


def test_files_and_functions_stay_short():
    for path in FILES:
        text = path.read_text()
        assert text.count("\n") <= 360, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno <= 60, (path, node.name)
            assert not isinstance(node, ast.Assert), f"{path}:{node.lineno} checks by assert"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_loads_no_host():
    code = "import sys, spquant_plugin; print([h for h in %r if h in sys.modules])"
    assert run(code % sorted(FRAMEWORKS)) == "[]"


def test_importing_adds_no_other_package():
    """What costs time on import is other packages; torch brings numpy itself."""
    code = (
        "import sys, torch, torch.utils._python_dispatch, torch.utils.weak\n"
        "before = set(sys.modules)\n"
        "import spquant_plugin\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    assert run(code) in ("['spquant_plugin', 'torch']", "['spquant_plugin']")


HOSTS_REFUSED = """
import importlib.metadata as m, importlib, json, sys
import spquant_plugin as spq
def missing(name): raise m.PackageNotFoundError(name)
def old(name): return "0.0.0.0.14"
told = []
for version, host in ((missing, "snntorch"), (missing, "spikingjelly"), (old, "spikingjelly")):
    m.version = version
    try:
        importlib.import_module(f"spquant_plugin.{host}")
    except spq.errors.MissingHostError as error:
        assert isinstance(error, ImportError)
        assert f"spquant_plugin.{host}" not in sys.modules
        told.append(str(error))
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def refused():
    """What importing a host's part says: both hosts missing, then an old one; in one process."""
    told = json.loads(run(HOSTS_REFUSED))
    assert len(told) == 3
    return dict(zip(("snntorch", "spikingjelly", "old"), told, strict=True))


@pytest.mark.parametrize("host", sorted(FRAMEWORKS))
def test_a_missing_host_is_an_error_with_the_command_that_fixes_it(refused, host):
    assert f"needs {host}, which is not installed" in refused[host]
    assert f'python -m pip install "spquant-plugin[{host}]"' in refused[host]


def test_an_old_host_is_an_error_with_the_command_that_fixes_it(refused):
    assert "received spikingjelly 0.0.0.0.14: it needs version 2 or later" in refused["old"]
    assert "--upgrade" in refused["old"]
