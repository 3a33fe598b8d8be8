"""Which configuration each module gets, from ``include``, ``exclude`` and ``overrides``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable

from torch import nn

from ..config import SpQuantConfig
from ..errors import ConfigError, SelectionError, SpQuantError, SpQuantWarning
from ..modules.neuron import QuantizedNeuron
from ..modules.quantized_norm import QuantizedBatchNorm
from .hosts import require_model
from .matching import as_selectors, closest, explain_unmatched, unmatched


def check_arguments(model: object, config: object, on_unmatched: object) -> None:
    """Refuse what is no model, no configuration or no way to treat an unmatched selector."""
    require_model(model)
    if not isinstance(config, SpQuantConfig):
        raise ConfigError(
            f"config = {type(config).__name__}: must be a SpQuantConfig. Use "
            "spq.SpQuantConfig(...), one of spq.presets, or SpQuantConfig.from_dict of a dict."
        )
    if on_unmatched not in ("error", "warn", "ignore"):
        raise ConfigError(f"on_unmatched = {on_unmatched!r}: must be 'error', 'warn' or 'ignore'.")


class Selection:
    """Resolves selectors once, and says of each module what it gets and why."""

    def __init__(
        self,
        model: nn.Module,
        config: SpQuantConfig,
        include: str | Iterable[str] | None,
        exclude: str | Iterable[str] | None,
        on_unmatched: str,
    ) -> None:
        self.config = config
        self.include = as_selectors(include, "include")
        self.exclude = as_selectors(exclude, "exclude") or ()
        self.on_unmatched = on_unmatched
        self.modules = list(model.named_modules(remove_duplicate=False))
        self._by_path = dict(self.modules)
        self._first: dict[int, str] = {}
        for path, module in self.modules:
            self._first.setdefault(id(module), path)
        self._check_selectors()

    @property
    def is_limited(self) -> bool:
        """Whether the user narrowed the choice: part of a configuration may then find nothing."""
        left_alone = any(config is None for config in self.config.overrides.values())
        return self.include is not None or bool(self.exclude) or left_alone

    @property
    def configs(self) -> list[SpQuantConfig]:
        """The configuration and all its overrides."""
        return [self.config, *(c for c in self.config.overrides.values() if c is not None)]

    def alias_of(self, path: str) -> str | None:
        """The first path of a module that has several; None for the first one itself."""
        first = self._first[id(self._by_path[path])]
        return first if first != path else None

    def config_for(self, path: str) -> tuple[SpQuantConfig | None, str]:
        """What a module gets, and the reason where that is nothing."""
        module = self._by_path[path]
        if closest(self.exclude, path, module) is not None:
            return None, "excluded"
        if self.include is not None and closest(self.include, path, module) is None:
            return None, "not included"
        selector = closest(self.config.overrides, path, module)
        if selector is None:
            return self.config, ""
        override = self.config.overrides[selector]
        return override, f"left alone by override {selector!r}" if override is None else ""

    def names_exactly(self, path: str) -> bool:
        """Whether an override names this very path: then its ``weights`` serve an edge as well."""
        return path in self.config.overrides

    def complain(self, message: str, error: type[SpQuantError]) -> None:
        """Raise, warn or say nothing, as ``on_unmatched`` asks."""
        if self.on_unmatched == "error":
            raise error(message)
        if self.on_unmatched == "warn":
            warnings.warn(message, SpQuantWarning, stacklevel=5)

    def _check_selectors(self) -> None:
        given = {
            "include": self.include or (),
            "exclude": self.exclude,
            "overrides": tuple(self.config.overrides),
        }
        for origin, selectors in given.items():
            for selector in unmatched(selectors, self.modules):
                message = explain_unmatched(selector, origin, self.modules)
                self.complain(message, SelectionError)

    def check_shared(self, convertible: Callable[[nn.Module], bool]) -> None:
        """A module that stands at several paths can only be one thing."""
        for path, module in self.modules:
            first = self.alias_of(path)
            if first is None or not convertible(module):
                continue
            if self.config_for(first)[0] != self.config_for(path)[0]:
                raise SelectionError(
                    f"{first} and {path} are one shared module, and the selectors give them "
                    "different configurations: a shared module must get one. Select both paths "
                    "alike."
                )


def asks_to_change(config: SpQuantConfig | None, module: nn.Module) -> bool:
    """Whether a configuration asks to quantise what is quantised already."""
    if config is None:
        return False
    if isinstance(module, QuantizedBatchNorm):
        return config.norm is not None
    return config.changes_neurons if isinstance(module, QuantizedNeuron) else config.changes_layers
