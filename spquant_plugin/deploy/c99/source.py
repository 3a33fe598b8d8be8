"""The step of the C network, as calls of the kernels."""

from __future__ import annotations

from ..graph import ChannelDecision, Convolution, Dense, Graph, Input, Neuron, Node, Reshape, size
from .memory import place, state_bytes
from .records import ROWS, WRITERS, Source, decision, plain
from .stages import Stage, gate_of, grid, stages


def write_source(graph: Graph) -> Source:
    """Everything of ``spq_network.c`` but its frame."""
    order = stages(graph)
    source = Source(graph, order, place(graph, order))
    for stage in order:
        _stage(source, stage)
    return source


def _stage(source: Source, stage: Stage) -> None:
    root = stage.root
    say = source.statements.append
    say(f"/* {', '.join(plain(node.name) for node in stage.members)} */")
    if isinstance(root, Input):
        say(f"for (i = 0; i < {size(root.shape)}; i++) {{")
        bounds = f"{root.low}, {root.high}"
        say(f"    spq_put({source.value(root)}, i, spq_clamp(input[i], {bounds}));")
        say("}")
    elif isinstance(root, ChannelDecision):
        say(f"spq_decide({decision(source, root)});")
    elif not isinstance(root, Reshape):
        _rows(source, stage)
    _outputs(source, root)


def _rows(source: Source, stage: Stage) -> None:
    root, say = stage.root, source.statements.append
    written = [WRITERS[type(node)](source, node) for node in stage.members]
    if isinstance(root, Convolution | Dense):
        written.append([f"spq_copy_row({source.value(root, ROWS)}, {source.value(root)}, 0, y);"])
    if root.binary:
        say(f"spq_clear({source.value(root)});")
    for node in stage.members:
        if isinstance(node, Convolution | Dense) and gate_of(source.graph, node):
            say(f"spq_list_open({source.address('convolution', source.numbers[node.name])});")
    say(f"for (y = 0; y < {grid(root.shape)[1]}; y++) {{")
    for lines in written:
        for line in lines:
            say(f"    {line}")
    say("}")
    if isinstance(root, Neuron):
        _after_firing(source, root)


def _after_firing(source: Source, neuron: Neuron) -> None:
    say, number = source.statements.append, source.numbers[neuron.name]
    if neuron.pixels is not None:
        begun = "begun" if neuron.pixels.score == "prior" else "1"
        say(f"spq_mask_pixels({source.address('neuron', number)}, {begun});")
    layer = source.graph.neurons.index(neuron)
    spikes = source.memory.address(("value", neuron.name))
    states = f"spq_states + {source.memory.offsets['states', neuron.name]}"
    bytes_ = f"{-(-size(neuron.shape) // 8)}, {states}, {state_bytes(neuron)}"
    say(f"TRACE({layer}, {spikes}, {bytes_});")


def _outputs(source: Source, root: Node) -> None:
    for index, output in enumerate(source.graph.outputs):
        if output.value == root.name and output.reads == "membrane":
            neuron = source.address("neuron", source.numbers[root.name])
            source.statements.append(f"spq_read_levels({neuron}, output->output{index});")
        elif output.value == root.name:
            line = f"spq_read({source.value(root)}, output->output{index});"
            source.statements.append(line)
        if output.gate == root.name:
            line = f"spq_read({source.value(root)}, output->output{index}_open);"
            source.statements.append(line)
