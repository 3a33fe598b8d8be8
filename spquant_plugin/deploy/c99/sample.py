"""The stored sample of a C export, and checksums of all that the network did on it."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from ...functional.packing import pack_bits
from ..engine.choice import make_engine
from ..graph import Graph
from .data import array
from .files import MARK, input_storage
from .records import plain


def checksums(graph: Graph, sample: Tensor) -> tuple[list[int], list[int]]:
    """CRC-32 of the spikes and packed states of each layer, and of the outputs, step by step.

    ``sample [T, N, *shape]``; the sample comes first, then the step, then the layer.
    """
    layers: list[int] = []
    outputs: list[int] = []
    engine = make_engine(graph, "torch")
    read = {
        output.value if output.reads == "value" else (output.value, "membrane")
        for output in graph.outputs
    }
    gates = {output.gate for output in graph.outputs if output.gate is not None}
    wanted = read | gates | {neuron.name for neuron in graph.neurons}
    for number in range(sample.shape[1]):
        state = engine.rest(1)
        for step in range(sample.shape[0]):
            given = sample[step : step + 1, number : number + 1]
            values = engine.run(given, state, wanted).values
            for neuron in graph.neurons:
                layers.append(_crc(pack_bits(values[neuron.name], 1)))
                layers.append(_crc(pack_bits(state[neuron.name], neuron.state_bits)))
            words = []
            for output in graph.outputs:
                key = output.value if output.reads == "value" else (output.value, "membrane")
                words.append(values[key].flatten())
                if output.gate is not None:
                    words.append(values[output.gate].flatten())
            outputs.append(zlib.crc32(torch.cat(words).numpy().astype("<i4").tobytes()))
    return layers, outputs


def _crc(packed: Tensor) -> int:
    return zlib.crc32(packed.numpy().tobytes())


def sample_files(graph: Graph, sample: Tensor) -> dict[str, str]:
    """``spq_sample.h`` and ``spq_sample.c``."""
    layers, outputs = checksums(graph, sample)
    steps, samples = sample.shape[:2]
    header = f"""{MARK}
#ifndef SPQ_SAMPLE_H
#define SPQ_SAMPLE_H

#include "spq_network.h"

#define SPQ_SAMPLES {samples}
#define SPQ_SAMPLE_STEPS {steps}

/* Inputs of all steps of one sample after the other. */
extern const spq_input_t spq_sample_input[];
/* CRC-32 of the spikes and of the stored states, for each sample, step and neuron layer. */
extern const uint32_t spq_sample_layers[];
/* CRC-32 of the outputs as words of four bytes, low end first, for each sample and step. */
extern const uint32_t spq_sample_outputs[];
extern const char *const spq_layer_names[];

#endif
"""
    names = [f'"{plain(neuron.name)}"' for neuron in graph.neurons] or ['""']
    kind = input_storage(graph)
    arrays = (
        array("spq_sample_input", kind, sample.transpose(0, 1).flatten().tolist(), ""),
        array("spq_sample_layers", "U32", layers, ""),
        array("spq_sample_outputs", "U32", outputs, ""),
    )
    listed = "".join(f"    {name},\n" for name in names)
    text = "\n\n".join(arrays)
    source = f"""{MARK}
#include "spq_sample.h"

{text}

const char *const spq_layer_names[{len(names)}] = {{
{listed}}};
"""
    return {"spq_sample.h": header, "spq_sample.c": source}
