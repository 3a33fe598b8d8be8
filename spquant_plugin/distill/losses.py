"""The loss of membrane-aware distillation (MD-SNN)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

from ..convert.hosts import reset
from ..convert.trace import as_arguments
from ..errors import DistillationError
from ..records import is_finite_number
from .layers import check_layers, check_paths, check_shapes, choose
from .networks import Potentials, eager, joined, spiking_paths, unwrapped, watched
from .parts import DistillationParts
from .teacher import frozen
from .terms import depth_weights, distribution_difference, soften, squared_difference

Forward = Callable[[nn.Module, Any], Any]
DIFFERENCES = {"mse": squared_difference, "distribution": distribution_difference}


class DistillationLoss:
    r"""A student's loss on the labels, on a teacher's logits and on its membrane potentials.

    .. math::

        L = \mathrm{CE} + \lambda_\mathrm{KL}\,\tau^2\,
            \mathrm{KL}\big(\mathrm{softmax}(z_T/\tau)\,\|\,\mathrm{softmax}(z_S/\tau)\big)
            + \lambda_M \sum_{i=0}^{n-1} 2^{-(n-1-i)}\,\mathrm{mean}\,(u_i^S - u_i^T)^2

    ``u`` is the potential before firing and reset, of the neurons ``i`` in the order in which they
    are called: with ``layers="stages"`` those that end a stage (a stage is all neurons of one
    spatial shape; without space, of one number of features), with ``"all"`` all of them, or the
    paths given. ``mode="distribution"`` compares each channel's mean and standard deviation
    instead. ``logits_weight`` is :math:`\lambda_\mathrm{KL}`, ``membrane_weight``
    :math:`\lambda_M` and ``temperature`` :math:`\tau`.

    A call ``distill(x, target)`` runs both networks from rest and returns the loss; its parts are
    in :attr:`last`. The teacher runs in eval mode without gradient and is then left as it was. The
    student runs in the mode that it is in, and is left at rest. ``teacher_x`` is the teacher's
    input where that is another one; where it has another number of steps, averages over time are
    compared.

    ``forward(model, x)`` runs a network over all steps where ``model(x)`` does not, ``readout``
    makes logits ``[N, classes]`` of what it returns (left out: of a tuple the first part, and the
    mean over time of ``[T, N, classes]``), ``criterion(logits, target)`` replaces the cross
    entropy. A student may be wrapped in ``DistributedDataParallel``; a compiled one runs without
    its compiled code in here.

    The loss holds no parameters and is no module. Raises
    :class:`~spquant_plugin.errors.DistillationError` where the networks cannot be compared, and
    where a part is not finite.

    >>> import torch, spquant_plugin as spq
    >>> from spikingjelly.activation_based import layer, neuron
    >>> teacher = nn.Sequential(layer.Linear(6, 8), neuron.LIFNode(), layer.Linear(8, 2))
    >>> for module in teacher:
    ...     module.step_mode = "m"
    >>> x, labels = torch.rand(4, 16, 6), torch.randint(0, 2, (16,))
    >>> student = spq.convert(teacher, spq.presets.md_snn(4, norm=None), sample=x)
    >>> distill = spq.distill.DistillationLoss(teacher, student)
    >>> distill(x, labels).backward()
    >>> student[0].weight.grad.shape, list(distill.last.membrane)
    (torch.Size([8, 6]), ['1'])
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        layers: str | Iterable[str] = "stages",
        mode: str = "mse",
        logits_weight: float = 1.0,
        membrane_weight: float = 1.0,
        temperature: float = 4.0,
        *,
        criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        readout: Callable[[Any], Tensor] | None = None,
        forward: Forward | None = None,
    ) -> None:
        self.teacher, self.student = eager("teacher", teacher), eager("student", student)
        if isinstance(self.teacher, DistributedDataParallel):
            self.teacher = self.teacher.module  # it has nothing to synchronise
        if unwrapped(self.teacher) is unwrapped(self.student):
            raise DistillationError(
                "DistillationLoss: teacher and student are one network: the teacher must be "
                "another, which does not train. Pass a copy, copy.deepcopy(model)."
            )
        _check_numbers(logits_weight, membrane_weight, temperature)
        if mode not in DIFFERENCES:
            raise DistillationError(
                f"DistillationLoss(mode={mode!r}): must be 'mse' or 'distribution'. Choose one."
            )
        for name, given in (("criterion", criterion), ("readout", readout), ("forward", forward)):
            if given is not None and not callable(given):
                raise DistillationError(
                    f"DistillationLoss({name}={given!r}): must be a function. Pass one or leave it "
                    "out."
                )
        self.logits_weight, self.membrane_weight = float(logits_weight), float(membrane_weight)
        self.temperature, self.mode = float(temperature), mode
        self.criterion, self.forward = criterion, forward or _call
        self.readout = readout or mean_logits
        self._asked = check_layers(layers)
        self._candidates = self._find() if self.membrane_weight else []
        self._paths: list[str] | None = None
        self._last: DistillationParts | None = None

    def _find(self) -> list[str]:
        wanted = self._asked if isinstance(self._asked, tuple) else None
        roles = (("teacher", self.teacher), ("student", self.student))
        found = [spiking_paths(role, unwrapped(model), wanted) for role, model in roles]
        return check_paths(self._asked, *found)

    @property
    def paths(self) -> tuple[str, ...]:
        """The layers that are compared, in their order; known once a batch has run."""
        return () if self._paths is None else tuple(self._paths)

    @property
    def last(self) -> DistillationParts:
        """The parts of the last loss."""
        if self._last is None:
            raise DistillationError(
                "DistillationLoss.last: nothing ran yet: it holds the parts of the last loss. Call "
                "distill(x, target) first."
            )
        return self._last

    def __call__(self, x: Any, target: Any, *, teacher_x: Any = None) -> Tensor:
        """The loss of one batch, a number with gradient to the student."""
        wanted, theirs = self.observe_teacher(x if teacher_x is None else teacher_x)
        outputs, ours = self.observe_student(x)
        logits, wanted = self._logits(outputs, wanted)
        ce = self._criterion(logits, target)
        kl, parts = ce.new_zeros(()), {}
        if self.logits_weight:
            kl = soften(_precise(logits), _precise(wanted.to(logits.device)), self.temperature)
        if self.membrane_weight:
            parts = self._membrane(ours, theirs)
        weights = dict(zip(parts, depth_weights(len(parts)), strict=True))
        total = ce + self.logits_weight * kl
        for path, part in parts.items():
            total = total + self.membrane_weight * weights[path] * part
        _check_finite(total, {"ce": ce, "kl": kl} | {f"membrane of {p}": parts[p] for p in parts})
        self._last = DistillationParts(
            total.detach(),
            ce.detach(),
            kl.detach(),
            {path: part.detach() for path, part in parts.items()},
            weights,
            logits.detach(),
            wanted,
        )
        return total

    # The networks.

    def observe_teacher(self, x: Any) -> tuple[Any, Potentials]:
        """What the teacher returns, and its potentials ``[T, N, ...]`` of the compared layers."""
        # Clones: a layer that works in place would change what the student is given.
        x = tree_map_only(Tensor, Tensor.clone, x)
        paths = self._candidates if self._paths is None else self._paths
        with frozen(self.teacher), watched(unwrapped(self.teacher), paths) as found:
            outputs = self.forward(self.teacher, x)
            potentials = joined("teacher", found)
        if self._paths is None and self.membrane_weight:
            self._paths = choose(self._asked, potentials)
        return outputs, potentials

    def observe_student(self, x: Any) -> tuple[Any, Potentials]:
        """The same of the student, with gradient, in the mode that it is in."""
        network = unwrapped(self.student)
        reset(network)
        try:
            with watched(network, self.paths) as found:
                outputs = self.forward(self.student, x)
                return outputs, joined("student", found)
        finally:
            reset(network)

    # The parts.

    def _logits(self, ours: Any, theirs: Any) -> tuple[Tensor, Tensor]:
        student, teacher = self.readout(ours), self.readout(theirs)
        for role, logits in (("student", student), ("teacher", teacher)):
            if not isinstance(logits, Tensor) or logits.ndim != 2:
                told = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                raise DistillationError(
                    f"the {role}'s readout gave {told}: must be logits [N, classes]. Pass "
                    "readout=lambda outputs: ... that returns them."
                )
        if student.shape != teacher.shape:
            raise DistillationError(
                f"the student's logits have shape {tuple(student.shape)}, the teacher's "
                f"{tuple(teacher.shape)}: must be the same samples and classes. Pass a teacher of "
                "the same classes, and teacher_x with the same samples."
            )
        return student, teacher

    def _criterion(self, logits: Tensor, target: Any) -> Tensor:
        ce = self.criterion(logits, target)
        if not isinstance(ce, Tensor) or ce.numel() != 1:
            told = tuple(ce.shape) if isinstance(ce, Tensor) else type(ce).__name__
            raise DistillationError(
                f"criterion gave {told}: must be one number. Pass one with reduction='mean'."
            )
        return ce.reshape(())

    def _membrane(self, ours: Potentials, theirs: Potentials) -> dict[str, Tensor]:
        paths = list(self.paths)
        check_shapes(paths, theirs, ours, self.mode)
        last = ours[paths[-1]]
        learns = any(p.requires_grad for p in unwrapped(self.student).parameters())
        if torch.is_grad_enabled() and learns and not last.requires_grad:
            raise DistillationError(
                f"{paths[-1]}: the student's potential carries no gradient: must be computed with "
                "one. Keep it out of what is checkpointed, or leave the layer out of layers."
            )
        difference = DIFFERENCES[self.mode]
        return {path: difference(ours[path], theirs[path].to(last.device)) for path in paths}


def mean_logits(outputs: Any) -> Tensor:
    """Logits ``[N, classes]`` of what a network returns.

    >>> mean_logits((torch.ones(4, 2, 3), None)).shape
    torch.Size([2, 3])
    """
    first = outputs[0] if isinstance(outputs, tuple | list) and outputs else outputs
    return first.mean(0) if isinstance(first, Tensor) and first.ndim == 3 else first


def _call(model: nn.Module, x: Any) -> Any:
    args, kwargs = as_arguments(x)
    return model(*args, **kwargs)


def _precise(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _check_numbers(logits_weight: object, membrane_weight: object, temperature: object) -> None:
    for name, value, rule in (
        ("logits_weight", logits_weight, "0 or more"),
        ("membrane_weight", membrane_weight, "0 or more"),
        ("temperature", temperature, "above 0"),
    ):
        good = is_finite_number(value) and value >= 0  # type: ignore[operator]
        if not good or (name == "temperature" and value == 0):
            raise DistillationError(
                f"DistillationLoss({name}={value!r}): must be a finite number, {rule}. "
                f"Leave it out for {4.0 if name == 'temperature' else 1.0:g}."
            )


def _check_finite(total: Tensor, parts: dict[str, Tensor]) -> None:
    # One look at the sum: on a GPU each would wait for the computation.
    if bool(total.isfinite()):
        return
    bad = [name for name, part in parts.items() if not bool(part.isfinite())]
    named = ", ".join(bad) or "the weighted sum"
    value = float(parts[bad[0]].detach()) if bad else float(total.detach())
    raise DistillationError(
        f"the loss is not finite: {named} is {value}: every part must be a finite number. Look for "
        "NaN or huge values in the input, the weights and the norms of student and teacher; lower "
        "the learning rate, or the weight of that part."
    )
