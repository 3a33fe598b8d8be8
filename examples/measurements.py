"""Measurements as JSON lines: what was measured stays measured, and a stopped script goes on."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any


def arguments(description: str, results: str, seeds: list[int]) -> argparse.ArgumentParser:
    """What every script that measures takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds)
    parser.add_argument("--results", type=Path, default=Path(results))
    parser.add_argument("--show", type=Path, help="print the table of stored results, no training")
    return parser


def read(file: Path) -> list[dict[str, Any]]:
    """All measurements of a file, none if there is no file yet."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def stored(file: Path) -> list[dict[str, Any]]:
    """All measurements of a file that must be there."""
    if not file.exists():
        raise SystemExit(f"--show {file}: there is no such file. Give one that --results wrote.")
    return read(file)


def not_measured(file: Path, seed: int, choices: dict[str, Any]) -> dict[str, Any]:
    """The choices that a file has no measurement of with this seed."""
    done = {found["choice"] for found in read(file) if found["seed"] == seed}
    return {name: change for name, change in choices.items() if name not in done}


def append(file: Path, measurement: dict[str, Any]) -> None:
    with file.open("a") as lines:
        lines.write(json.dumps(measurement) + "\n")


def percent(shares: list[float], sign: str = "") -> tuple[float, str]:
    """Mean of shares in percent, and ``mean ± standard deviation`` as text (one has none).

    ``sign="+"`` writes the sign of a positive mean too, as of a difference.
    """
    values = [100 * share for share in shares]
    mean = statistics.mean(values)
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return mean, f"{mean:{sign}.2f}{spread}"
