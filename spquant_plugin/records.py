"""Frozen records that refuse a bad value when made, and round-trip through dictionaries."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any, ClassVar

from .errors import ConfigError


def fail(owner: object, name: str, value: object, rule: str) -> ConfigError:
    return ConfigError(f"{type(owner).__name__}.{name} = {value!r}: {rule}")


def whole(owner: object, name: str, low: int, high: int) -> None:
    value = getattr(owner, name)
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or not low <= value <= high:
        rule = f"must be a whole number from {low} to {high}."
        raise fail(owner, name, value, rule + f" Choose one of them, for example {low}.")
    object.__setattr__(owner, name, int(value))


def is_finite_number(value: object) -> bool:
    """Whether a value is a real number (True and False are none) that a float can hold."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def real(owner: object, name: str, *, positive: bool = False) -> None:
    value = getattr(owner, name)
    if not is_finite_number(value) or (positive and float(value) <= 0):
        kind = "a finite number above 0" if positive else "a finite number"
        raise fail(owner, name, value, f"must be {kind}.")
    object.__setattr__(owner, name, float(value))


def choice(owner: object, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(owner, name)
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise fail(owner, name, value, f"must be one of {listed}.")


def flag(owner: object, name: str) -> None:
    value = getattr(owner, name)
    if not isinstance(value, bool):
        raise fail(owner, name, value, "must be True or False.")


class Record:
    """Adds a readable round trip through plain dictionaries to the records below."""

    known: ClassVar[dict[str, type]] = {}

    def __init_subclass__(cls) -> None:
        if not cls.__name__.startswith("_"):  # a base of records is none itself
            Record.known[cls.__name__] = cls

    def to_dict(self) -> dict[str, Any]:
        """Return plain values only (JSON can hold them); ``"kind"`` names the record."""
        plain: dict[str, Any] = {"kind": type(self).__name__}
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            plain[item.name] = _to_plain(getattr(self, item.name))
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Any:
        """Rebuild the record that :meth:`to_dict` described."""
        record = _record_from(plain) if isinstance(plain, Mapping) and "kind" in plain else plain
        if not isinstance(record, cls):
            raise ConfigError(
                f"from_dict received {type(record).__name__!r} where {cls.__name__!r} or one of "
                "its kinds belongs: call from_dict of the class that wrote the dictionary."
            )
        return record


def _to_plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_to_plain(item) for item in value]
    return value


def _record_from(plain: Mapping[str, Any]) -> Record:
    kind = plain.get("kind")
    if not isinstance(kind, str) or kind not in Record.known:
        listed = ", ".join(sorted(Record.known))
        raise ConfigError(f"from_dict received kind {kind!r}: must be one of {listed}.")
    record_class = Record.known[kind]
    names = [item.name for item in dataclasses.fields(record_class)]
    unknown = sorted(set(plain) - {*names, "kind"})
    if unknown:
        raise ConfigError(
            f"from_dict received unknown field {unknown[0]!r} for {kind}: it has "
            f"{', '.join(names)}. Remove the field or correct its name."
        )
    return record_class(**{n: _from_plain(n, plain[n]) for n in names if n in plain})


def _from_plain(name: str, value: Any) -> Any:
    if name == "overrides" and isinstance(value, Mapping):
        # Its keys are selectors, which may be any word; only what they map to are records.
        return {selector: _from_plain("", item) for selector, item in value.items()}
    if isinstance(value, Mapping):
        return _record_from(value)
    if isinstance(value, list):
        return tuple(_from_plain("", item) for item in value)
    return value
