"""Running a copy on batches: one call or one for each step, and the share of right answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map, tree_map_only

from ...convert.hosts import require_model, reset
from ...convert.trace import as_arguments, cannot_run, quiet_copy
from ...errors import AnalysisError, MissingHostError, SpQuantError
from ...modules.device import device_of
from ..dry_run import _check_timesteps

Predict = Callable[[Any], Tensor]


def call(model: nn.Module, x: Any, timesteps: int | None) -> Any:
    """``model(x)`` from rest, or with ``timesteps`` once for each step of ``x [T, ...]``, stacked.

    Inputs go where the model is.
    """
    _check_timesteps(x, timesteps)
    # Clones, because a layer that works in place would change what the caller holds.
    x = to_device_of(model, tree_map_only(Tensor, Tensor.clone, x))
    args, kwargs = as_arguments(x)
    reset(model)
    try:
        if timesteps is None:
            return model(*args, **kwargs)
        outputs = []
        for step in range(timesteps):
            now_args, now_kwargs = tree_map_only(Tensor, itemgetter(step), (args, kwargs))
            outputs.append(model(*now_args, **now_kwargs))
        return tree_map(lambda *parts: torch.stack(parts), *outputs)
    except SpQuantError:
        raise
    except Exception as error:
        raise cannot_run(model, x, error) from error


def to_device_of(model: nn.Module, x: Any) -> Any:
    """The same where the model is."""
    device = device_of(model)
    return tree_map_only(Tensor, lambda tensor: tensor.to(device), x)


def measure_accuracy(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    timesteps: int | None = None,
    predict: Predict | None = None,
) -> float:
    """Share of samples whose label a copy of the model predicts, from rest in eval mode.

    ``loader`` gives batches ``(x, labels)``. ``timesteps=T`` is for a model that takes one step
    per call, as for :func:`~spquant_plugin.analyze`. ``predict`` turns what the model returns into
    the labels ``[N]`` that it means; left out, it is the largest output, averaged over time where
    outputs are ``[T, N, classes]``. Of a tuple, as snnTorch returns, the first part counts: spikes.

    >>> import torch
    >>> from torch import nn
    >>> x = torch.eye(4)
    >>> measure_accuracy(nn.Identity(), [(x, torch.tensor([0, 1, 2, 0]))])
    0.75
    """
    check_loader(loader)
    with quiet_copy(require_model(model)) as copy:
        return accuracy_of(copy, loader, timesteps, predict or largest_mean)


def accuracy_of(
    copy: nn.Module, batches: Iterable[Any], timesteps: int | None, predict: Predict
) -> float:
    """The same of a copy that may be run and left as it is."""
    right = samples = 0
    for batch in batches:
        x, labels = _pair(batch)
        found = predict(call(copy, x, timesteps))
        if not isinstance(found, Tensor) or found.shape != labels.shape:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise AnalysisError(
                f"predict gave {shape} for labels of shape {tuple(labels.shape)}: both must hold "
                "one class for each sample. Pass predict=lambda outputs: ... that returns them."
            )
        right += int((found.to(labels.device) == labels).sum())
        samples += labels.numel()
    if not samples:
        raise AnalysisError("loader = empty: accuracy needs at least one sample. Pass a full one.")
    return right / samples


def largest_mean(outputs: Any) -> Tensor:
    """The class of the largest output, averaged over time."""
    scores = outputs[0] if isinstance(outputs, tuple | list) and outputs else outputs
    if not isinstance(scores, Tensor) or scores.ndim not in (2, 3):
        told = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise AnalysisError(
            f"the model returned {told}: must be scores [N, classes] or [T, N, classes], or a "
            "tuple that starts with them. Pass predict=lambda outputs: ... that returns labels [N]."
        )
    return (scores.mean(0) if scores.ndim == 3 else scores).argmax(1)


def _pair(batch: Any) -> tuple[Any, Tensor]:
    if isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Tensor):
        return batch[0], batch[1]
    parts = [type(part).__name__ for part in batch] if isinstance(batch, tuple | list) else []
    raise AnalysisError(
        f"loader gave {type(batch).__name__}({', '.join(parts)}): each batch must be (x, labels), "
        "labels a tensor [N]. Pass such a loader, or a list of such pairs."
    )


def check_loader(loader: object) -> None:
    """Refuse what cannot be run through more than once."""
    if isinstance(loader, Tensor | tuple | dict | str | nn.Module) or not isinstance(
        loader, Iterable
    ):
        raise AnalysisError(
            f"loader = {type(loader).__name__}: must give batches (x, labels). Pass a data loader, "
            "or a list of such pairs."
        )
    if isinstance(loader, Iterator):
        raise AnalysisError(
            f"loader = {type(loader).__name__}: can be run through once only, and every row needs "
            "all batches. Pass a data loader, or list(...) of it."
        )


def first_input(loader: Iterable[Any]) -> Any:
    """The input of the first batch."""
    for batch in loader:
        return _pair(batch)[0]
    raise AnalysisError("loader = empty: accuracy needs at least one sample. Pass a full one.")


# Progress.


class Bar:
    """Batches of all rows on one bar, or on none."""

    def __init__(self, bar: Any = None) -> None:
        self._bar = bar

    def over(self, batches: Iterable[Any], name: str) -> Iterator[Any]:
        """The batches, one by one."""
        if self._bar is not None:
            self._bar.set_postfix_str(name)
        for batch in batches:
            yield batch
            if self._bar is not None:
                self._bar.update()


@contextmanager
def progress_bar(shown: bool | None, name: str, batches: object, rows: int = 1) -> Iterator[Bar]:
    """A bar for ``rows`` runs over all batches; by default where tqdm is installed."""
    if shown is False:
        yield Bar()
        return
    try:
        from tqdm.auto import tqdm
    except ImportError:
        if shown is None:
            yield Bar()
            return
        raise MissingHostError(
            f"{name}(progress=True) needs tqdm, which is not installed. "
            "Run: python -m pip install tqdm"
        ) from None
    total = rows * len(batches) if isinstance(batches, Sized) else None
    with tqdm(total=total, desc=name, unit="batch") as bar:
        yield Bar(bar)
