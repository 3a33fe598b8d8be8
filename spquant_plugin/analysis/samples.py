"""What a measurement is given to run on: one sample, or batches of a loader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from torch import Tensor, nn

from ..errors import AnalysisError, MissingHostError


def batches_of(
    given: Any, limit: int | None, progress: bool | None, name: str = "analyze"
) -> Iterator[Any]:
    """What the model takes, batch by batch: once for a sample, or from a loader up to ``limit``.

    ``name`` is the function that asks, for its bar and its errors.
    """
    if limit is not None and (type(limit) is not int or limit < 1):
        raise AnalysisError(
            f"max_batches = {limit!r}: must be a whole number above 0, or None for all batches. "
            "Correct it or leave it out."
        )
    if isinstance(given, Tensor | tuple | dict):
        return iter([given])
    is_array = type(given).__module__ == "numpy"
    if not isinstance(given, Iterable) or isinstance(given, str | bytes | nn.Module) or is_array:
        raise AnalysisError(
            f"sample_or_loader = {type(given).__name__}: must be what one call of the model takes "
            "(a tensor, a tuple, a dict), or an iterable of batches. Pass such a sample, with "
            "torch.from_numpy for an array, or a data loader."
        )
    return _from_loader(given, limit, progress, name)


def _from_loader(
    loader: Iterable[Any], limit: int | None, progress: bool | None, name: str
) -> Iterator[Any]:
    batch = None
    for batch in _with_bar(islice(loader, limit), _length(loader, limit), progress, name):
        yield batch[0] if isinstance(batch, tuple | list) and batch else batch
    if batch is None:
        raise AnalysisError(
            f"sample_or_loader = an empty {type(loader).__name__}: must give at least one batch. "
            "Pass a loader that holds data."
        )


def _length(loader: Iterable[Any], limit: int | None) -> int | None:
    try:
        length = len(loader)  # type: ignore[arg-type]
    except TypeError:  # streams do not know theirs
        return limit
    return length if limit is None else min(length, limit)


def _with_bar(
    batches: Iterable[Any], length: int | None, progress: bool | None, name: str
) -> Iterable[Any]:
    """A progress bar where it is wanted; by default for several batches, with tqdm installed."""
    if progress is False or (progress is None and length in (0, 1)):
        return batches
    try:
        from tqdm.auto import tqdm
    except ImportError:
        if progress is None:
            return batches
        raise MissingHostError(
            f"{name}(progress=True) needs tqdm, which is not installed. "
            "Run: python -m pip install tqdm"
        ) from None
    return tqdm(batches, desc=name, unit="batch", total=length)
