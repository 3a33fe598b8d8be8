"""The two files that are the network: ``spq_network.h`` and ``spq_network.c``."""

from __future__ import annotations

from ...functional.inputs import input_scale
from ..graph import Graph, Output, size
from .data import TYPES
from .memory import POOLS, narrowest, state_bytes
from .readout import changes, fixed_point
from .records import Source, plain

MARK = "/* Written by spq.export_c. */"
INPUTS = ("U8", "S8", "U16", "S16", "S32")


def input_storage(graph: Graph) -> str:
    """Narrowest type of C that takes every input."""
    return narrowest(graph.input.low, graph.input.high, INPUTS)


def numbers_of(graph: Graph, output: Output) -> int:
    """How many numbers an output has."""
    return size(graph[output.value].shape)


# --- spq_network.h ------------------------------------------------------------------------------


def header(graph: Graph) -> str:
    """What a caller includes."""
    given = graph.input
    kind = TYPES[input_storage(graph)][0]
    fields = "\n".join(_field(graph, index) for index in range(len(graph.outputs)))
    scores = "".join(_declared(graph, index) for index in range(len(graph.outputs)))
    return f"""{MARK}
#ifndef SPQ_NETWORK_H
#define SPQ_NETWORK_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

/* {plain(graph.model) or "A spiking network"}, on whole numbers only. One network, one caller.
 *
 *     spq_reset();
 *     for each step: spq_step(input, &output);
 */

/* One step's input, {list(given.shape)}, the last axis fastest: whole numbers from {given.low} to
 * {given.high}; others are taken as the nearest of these.{_quantizer(graph)}{_takes(graph)}
 */
#define SPQ_INPUT_SIZE {size(given.shape)}
typedef {kind} spq_input_t;

/* One step's outputs. */
typedef struct {{
{fields}
}} spq_output_t;

/* Puts all neurons to rest: before the first step of each sample. */
void spq_reset(void);

/* Runs one step. The membranes stay for the next one.{_most_steps(graph)} */
void spq_step(const spq_input_t *input, spq_output_t *output);
{scores}
/* Neuron layers. A build with SPQ_TRACE calls this function, which is then yours to write, after
 * each of them with its spikes, a bit each, and its stored states, both filled from the low end.
 */
#define SPQ_LAYERS {len(graph.neurons)}
#ifdef SPQ_TRACE
void spq_trace(int32_t layer, const uint8_t *spikes, int32_t spike_bytes, const uint8_t *states,
               int32_t state_bytes);
#endif

#ifdef __cplusplus
}}
#endif

#endif
"""


def _most_steps(graph: Graph) -> str:
    if not graph.later:
        return ""
    return (
        f" The weights change from step to step:\n * there are {len(graph.by_step)} steps after a "
        "reset, and further ones run as the last of them.\n"
    )


def _quantizer(graph: Graph) -> str:
    if graph.input.quantizer is None:
        return ""
    bits, low, high = graph.input.quantizer
    step = input_scale(bits, low, high)
    return (
        f"\n * Of an analogue x: round(x * ({2**bits - 1} / ({high!r} - {low!r}))), half to even."
        f"\n * One of them is {step!r} of x."
    )


def _takes(graph: Graph) -> str:
    if graph.takes != "static":
        return ""
    return f"\n * Give the same input in each of {graph.repeats} steps."


def _field(graph: Graph, index: int) -> str:
    output = graph.outputs[index]
    node = graph[output.value]
    what = "stored levels" if output.reads == "membrane" else "whole numbers"
    use = {None: "", "last": "; the last step's count"}.get(
        output.over_time, f"; take their {output.over_time} over all steps"
    )
    if use and changes(graph, index):
        use = f"; each step has factors of its own, see spq_add_scores{index}"
    lines = [
        f"    /* {plain(node.name)}, {list(node.shape)}: {what}{use} */",
        f"    int32_t output{index}[{numbers_of(graph, output)}];",
    ]
    if output.gate is not None:
        channels = graph[output.gate].shape[0]
        lines.append(f"    /* 1 where {plain(output.gate)} opens a channel of it; others are 0 */")
        lines.append(f"    int32_t output{index}_open[{channels}];")
    return "\n".join(lines)


def _declared(graph: Graph, index: int) -> str:
    scores = fixed_point(graph, index)
    if scores is None:
        return ""
    if changes(graph, index):
        return f"""
/* Adds to `scores` the real numbers that the model reads out of `numbers`, output{index} of this
 * step (counted from 0), times 2 to the power of {scores.shift}. Exact, where the model rounds.
 */
#define SPQ_SCORES{index}_SHIFT {scores.shift}
void spq_add_scores{index}(const int32_t *numbers, int32_t step, int64_t *scores);
"""
    return f"""
/* The real numbers that the model reads out of output{index}, added over some steps (at most
 * {scores.most_steps}), times 2 to the power of {scores.shift}. Exact, where the model rounds.
 * `numbers` is output{index} added over these steps.
 */
#define SPQ_SCORES{index}_SHIFT {scores.shift}
void spq_scores{index}(const int32_t *numbers, int32_t steps, int64_t *scores);
"""


# --- spq_network.c ------------------------------------------------------------------------------


def network(source: Source) -> str:
    """The network's data, memory and step."""
    graph = source.graph
    scores = [_scores(source, index) for index in range(len(graph.outputs))]
    statements = [f"    {line}" for line in source.statements]
    counters = [name for name in "iy" if any(f"for ({name} =" in line for line in statements)]
    if source.remembers_begin:
        statements.append("    begun = 1;")
    if graph.later:
        statements.append(f"    now += now < {len(graph.later)};")
    body = "\n".join([f"    int32_t {', '.join(counters)};", *statements])
    records = "\n\n".join(source.records)
    return f"""{MARK}
#include "spq_network.h"

#include <string.h>

#include "spq_kernels.h"

#ifdef SPQ_TRACE
#define TRACE(layer, spikes, bytes, states, more) spq_trace(layer, spikes, bytes, states, more)
#else
#define TRACE(layer, spikes, bytes, states, more) ((void)0)
#endif

{chr(10).join(source.constants.text)}

{chr(10).join(_memory(source))}

{records}

void spq_reset(void)
{{
{chr(10).join(_reset(source))}
}}

void spq_step(const spq_input_t *input, spq_output_t *output)
{{
{body}
}}
{"".join(scores)}"""


def _memory(source: Source) -> list[str]:
    lines = []
    if source.memory.state_bytes:
        lines.append("/* Membranes, packed. */")
        lines.append(f"static uint8_t spq_states[{source.memory.state_bytes}];")
    if source.remembers_begin:
        lines.append("static int32_t begun; /* whether there was a step since the reset */")
    if source.graph.later:
        lines.append("static int32_t now; /* the step since the reset, at most the last one */")
    lines.append("/* Values of one step; they share what they do not need at the same time. */")
    for kind, length in source.memory.lengths.items():
        if length:
            lines.append(f"static {kind} {POOLS[kind][0]}[{length}];")
    return lines


def _reset(source: Source) -> list[str]:
    lines = []
    for neuron in source.graph.neurons:
        rest = sum(neuron.rest << place for place in range(0, 8, neuron.state_bits))
        begin = source.memory.offsets["states", neuron.name]
        count = state_bytes(neuron)
        lines.append(f"    memset(spq_states + {begin}, {rest}, {count});")
        bits = size(neuron.shape) * neuron.state_bits % 8
        if bits:  # what fills up the last byte stays 0
            lines.append(f"    spq_states[{begin + count - 1}] = {rest & (2**bits - 1)};")
    if source.remembers_begin:
        lines.append("    begun = 0;")
    if source.graph.later:
        lines.append("    now = 0;")
    return lines


def _scores(source: Source, index: int) -> str:
    graph = source.graph
    output = graph.outputs[index]
    scores = fixed_point(graph, index)
    if scores is None:
        return ""
    channels = graph[output.value].shape[0]
    area = numbers_of(graph, output) // channels
    multipliers = source.constants.add("multipliers", "S64", scores.multipliers)
    terms = source.constants.add("terms", "S64", scores.terms)
    if changes(graph, index):
        head = f"spq_add_scores{index}(const int32_t *numbers, int32_t step, int64_t *scores)"
        place = f"step * {channels} + i / {area}"
        line = f"scores[i] += numbers[i] * {multipliers}[{place}] + {terms}[{place}];"
    else:
        head = f"spq_scores{index}(const int32_t *numbers, int32_t steps, int64_t *scores)"
        factor, term = f"{multipliers}[i / {area}]", f"{terms}[i / {area}]"
        line = f"scores[i] = numbers[i] * {factor} + steps * {term};"
    return f"""
void {head}
{{
    int32_t i;
    for (i = 0; i < {numbers_of(graph, output)}; i++) {{
        {line}
    }}
}}
"""
