"""Measurements as JSON lines: what was measured stays measured, and a stopped script goes on."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any


def read(file: Path) -> list[dict[str, Any]]:
    """All measurements of a file, none if there is no file yet."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def stored(file: Path) -> list[dict[str, Any]]:
    """All measurements of a file that must be there."""
    if not file.exists():
        raise SystemExit(f"--show {file}: there is no such file. Give one that --results wrote.")
    return read(file)


def append(file: Path, measurement: dict[str, Any]) -> None:
    with file.open("a") as lines:
        lines.write(json.dumps(measurement) + "\n")


def percent(shares: list[float]) -> tuple[float, str]:
    """Mean of shares in percent, and ``mean ± standard deviation`` as text (one has none)."""
    values = [100 * share for share in shares]
    mean = statistics.mean(values)
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return mean, f"{mean:.2f}{spread}"
