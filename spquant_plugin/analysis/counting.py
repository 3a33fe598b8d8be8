"""Rows of a memory report, from a dry run: by the equation, or as bytes that are really held."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..convert.hosts import Hosts
from ..errors import AnalysisError
from ..modules.neuron import QuantizedNeuron
from ..modules.quantized_layer import QuantizedLayer
from . import modules as parts
from .batch import batch_size, layout_of, membrane_of
from .dry_run import Calls, DryRun, Held
from .memory import MemoryReport, MemoryRow

LATENT = (
    "the network is in its training form: quantised weights and membranes are held as floats "
    "that lie on their levels"
)


def count_memory(run: DryRun, mode: str) -> MemoryReport:
    """Count every module with weights or state of the network that ran."""
    counter = _Counter(run, mode)
    latent = mode == "measured" and counter.quantized
    return MemoryReport(mode, tuple(counter.rows()), (LATENT,) if latent else ())


def is_quantized(model: nn.Module) -> bool:
    """Whether any weight or membrane of the network is quantised."""
    return any(
        (isinstance(module, QuantizedNeuron) and module.membrane is not None)
        or (isinstance(module, QuantizedLayer) and module.weight_quantizer is not None)
        for module in model.modules()
    )


class _Counter:
    """Walks the modules once; a tensor that stands at several places is counted at the first."""

    def __init__(self, run: DryRun, mode: str) -> None:
        self.run, self.mode, self.hosts = run, mode, Hosts()
        self.measured = mode == "measured"
        self.quantized = is_quantized(run.model)
        self.modules = list(run.model.named_modules(remove_duplicate=False))
        self.kinds = {path: parts.kind_of(module, self.hosts) for path, module in self.modules}
        self.counted: dict[int, str] = {}
        self.summed: set[int] = set()
        # Looked up once, because a parametrized weight is another tensor at each look.
        self.weights = {
            id(module): parts.weights_of(module)
            for path, module in self.modules
            if self.kinds[path] == "weights"
        }
        # Another module may hold a layer's weight too (a neuron its recurrent one, say).
        self.synapses = {id(weight) for held in self.weights.values() for weight in held}
        self.batch = batch_size(run)

    def rows(self) -> list[MemoryRow]:
        rows: list[MemoryRow] = []
        first: dict[int, str] = {}
        for path, module in self.modules:
            if parts.is_part(module):
                continue
            if id(module) in first:
                row = self._alias(path, module, first[id(module)])
            else:
                first[id(module)] = path
                row = self._row(path, module)
            if row is not None:
                rows.append(row)
        return rows

    def _alias(self, path: str, module: nn.Module, first: str) -> MemoryRow | None:
        if self.kinds[path] == "other" and not list(parts.held_tensors(module)):
            return None
        note = f"the same module as {first}, counted there"
        return MemoryRow(path, type(module).__name__, "shared", note=note)

    def _row(self, path: str, module: nn.Module) -> MemoryRow | None:
        kind = self.kinds[path]
        row = MemoryRow(path, type(module).__name__, kind)
        if kind == "weights":
            row = self._with_weights(row, module)
        elif kind in ("neuron", "state"):
            row = self._with_states(row, module)
        elif not list(parts.held_tensors(module)):
            return None
        return self._with_other(row, module)

    # Weights.

    def _with_weights(self, row: MemoryRow, module: nn.Module) -> MemoryRow:
        count, bits, information, size = 0, 0, 0.0, 0.0
        notes: list[str] = []
        computed = self.measured and parametrize.is_parametrized(module)
        for weight in self.weights[id(module)]:
            bits = 8 * weight.element_size()
            if not self.measured:
                bits, information, said = parts.weight_bits(module, weight, self.mode)
                notes += [said] if said else []
            first = self.counted.setdefault(id(weight), row.path)
            if first != row.path:
                notes.append(f"the same weight as {first}, counted there")
                continue
            count += weight.numel()
            size += 0.0 if computed else weight.numel() * bits / 8
        if computed:
            notes.append("computed from its parametrizations, which hold the bytes")
        if not self._is_called(row.path):
            notes.append("not called by the sample")
        return replace(
            row,
            weights=count,
            weight_bits=bits,
            weight_information_bits=information,
            weight_bytes=size,
            note="; ".join(notes),
        )

    def _is_called(self, path: str) -> bool:
        """Called itself, or through an outer layer that computes with its weights (attention)."""
        outer = [path, *(path[:end] for end, letter in enumerate(path) if letter == ".")]
        return any(self.kinds[p] == "weights" and p in self.run.calls for p in outer)

    # Neurons.

    def _with_states(self, row: MemoryRow, module: nn.Module) -> MemoryRow:
        calls = self.run.calls.get(row.path)
        if calls is None:
            return replace(row, note="not called by the sample, so its size is not known")
        further = self._further(calls)
        row = replace(row, membrane_bytes=sum(further.values()) / 8)
        neurons = self._neurons(row.path, module)
        if row.kind == "state" or not neurons:
            return self._with_kept_state(row, calls)
        bits, information = self._membrane_bits(row.path, module)
        names = ", ".join(name for name in further if name not in parts.DERIVED)
        notes = [f"also keeps {names}" if names else "", "" if bits else "keeps no membrane"]
        spike_bits, spike_bytes = self._spikes(calls, neurons)
        return replace(
            row,
            neurons=neurons,
            membrane_bits=bits,
            information_bits=information,
            state_bits=round(sum(further.values()) / neurons),
            spike_bits=spike_bits,
            membrane_bytes=row.membrane_bytes + neurons * bits / 8,
            spike_bytes=spike_bytes,
            note="; ".join(note for note in notes if note),
        )

    def _with_kept_state(self, row: MemoryRow, calls: Calls) -> MemoryRow:
        """No spiking neuron: its membrane, if it has one, counts like any state."""
        membrane = membrane_of(self.run, row.path)
        held = 0.0 if membrane is None else self._per_sample(membrane) * membrane.bits / 8
        names = ", ".join(name for name in calls.states if name not in parts.DERIVED)
        note = f"keeps {names}, emits no spikes" if names else "holds no state at inference"
        return replace(row, membrane_bytes=row.membrane_bytes + held, note=note)

    def _neurons(self, path: str, module: nn.Module) -> int:
        layout = layout_of(self.run, path, module, self.kinds[path])
        if layout is None:
            return 0
        if path not in self.run.fed and layout.shape[:1] != (self.batch,):
            return layout.elements  # fed by a constant, which has no batch
        if layout.elements % self.batch:
            raise AnalysisError(
                f"{path} ({type(module).__name__}): its membrane has the shape {layout.shape}, "
                f"which the batch of {self.batch} that another neuron shows does not divide: all "
                "must see one batch. Pass a batch of one sample."
            )
        return layout.elements // self.batch

    def _membrane_bits(self, path: str, module: nn.Module) -> tuple[int, float]:
        held = membrane_of(self.run, path)
        if held is None:
            return 0, 0.0
        quantized = None if self.measured else parts.membrane_bits(module)
        return quantized or (held.bits, float(held.bits))

    def _further(self, calls: Calls) -> dict[str, int]:
        """Bits per sample of each state beside membrane and spikes."""
        left_out = (*parts.MEMBRANES, *parts.SPIKES, *(() if self.measured else parts.DERIVED))
        return {
            name: self._per_sample(held) * held.bits
            for name, held in calls.states.items()
            if name not in left_out
        }

    def _spikes(self, calls: Calls, neurons: int) -> tuple[int, float]:
        if not self.measured:
            bits = 1 if self.mode == "equation" else 8 if self.quantized else 32
            return bits, neurons * bits / 8
        if calls.output is None:
            return 0, 0.0
        return calls.output.bits, self._per_sample(calls.output) * calls.output.bits / 8

    def _per_sample(self, held: Held) -> int:
        # A single number, such as a counter of steps, is not one of each sample.
        return held.elements // self.batch if held.elements % self.batch == 0 else held.elements

    # The rest.

    def _with_other(self, row: MemoryRow, module: nn.Module) -> MemoryRow:
        states = {name for host in self.hosts.all for name, _ in host.named_states(module)}
        bits = 0 if self.measured else parts.scale_bits(module) + parts.folded_bias_bits(module)
        skipped = () if self.measured else parts.TRAINING_ONLY
        for name, tensor in self._others(row.path, module):
            if id(tensor) in self.counted or name in states or name in skipped:
                continue
            self.counted[id(tensor)] = row.path
            bits += 8 * tensor.element_size() * tensor.numel()
        fresh = {id(p): p.numel() for p in module.parameters(recurse=False)}
        parameters = sum(count for key, count in fresh.items() if key not in self.summed)
        self.summed.update(fresh)
        row = replace(row, other_bytes=bits / 8, parameters=parameters)
        folded = not self.measured and parts.is_folded(module)
        return replace(row, note="folded into its layer") if folded else row

    def _others(self, path: str, module: nn.Module) -> list[tuple[str, Tensor]]:
        """Tensors that are no synapse; scales replace what a quantiser holds, unless measured."""
        held = [(name, t) for name, t in parts.held_tensors(module) if id(t) not in self.synapses]
        if self.measured:
            return held
        if parts.is_folded(module):
            return []  # its layer holds what is left of it, a bias
        # What a weight is computed from is no second weight.
        if "parametrizations" in path.split("."):
            return []
        if id(module) in self.weights and "weight" not in module._parameters:
            held = [(name, tensor) for name, tensor in held if not name.startswith("weight_")]
        inner = {
            id(b) for child in module.children() if parts.is_part(child) for b in child.buffers()
        }
        return [(name, tensor) for name, tensor in held if id(tensor) not in inner]
