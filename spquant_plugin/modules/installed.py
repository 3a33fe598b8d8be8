"""Whether an optional framework is installed, and what to type if not."""

from __future__ import annotations

from importlib import metadata

from ..errors import MissingHostError


def require(distribution: str, *, extra: str, at_least: int) -> None:
    """Raise unless ``distribution`` is installed with this major version or a later one."""
    command = f'python -m pip install "spquant-plugin[{extra}]"'
    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        raise MissingHostError(
            f"spquant_plugin.{extra} needs {distribution}, which is not installed. Run: {command}"
        ) from None
    if int(version.split(".")[0]) < at_least:
        raise MissingHostError(
            f"spquant_plugin.{extra} received {distribution} {version}: it needs version "
            f"{at_least} or later. Run: {command} --upgrade"
        )
