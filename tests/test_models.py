"""Networks by name: their sizes, what they refuse, and that they convert and run."""

from __future__ import annotations

import copy
import io
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import snntorch as snn
import torch
from snntorch._neurons.neurons import SpikingNeuron
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

import spquant_plugin as spq
from spquant_plugin.errors import ModelError
from spquant_plugin.models.registry import NETWORKS
from spquant_plugin.modules.neuron import QuantizedNeuron
from spquant_plugin.modules.quantized_layer import QuantizedLayer

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "models.rst"
SPIKINGJELLY = spq.models.list_models("spikingjelly")
ALL = [(host, name) for host in NETWORKS for name in spq.models.list_models(host)]
STEPS = 3


def side(name: str) -> int:
    """Height and width of the tests' frames: 32, or more where a network needs more."""
    return max([32, *(found[name].shrinks for found in NETWORKS.values() if name in found)])


def create(name: str, host: str = "spikingjelly", **options) -> nn.Module:
    size = side(name) if isinstance(name, str) else 32
    defaults = {"in_channels": 2, "size": size, "num_classes": 4, "width": 0.125}
    return spq.models.create(name, host=host, **(defaults | options))


def events(steps: int = STEPS, side: int = 32) -> Tensor:
    return (torch.rand(steps, 2, 2, side, side) < 0.3).float()


def run(net: nn.Module, x: Tensor) -> Tensor:
    """A whole sequence from rest, whatever the host."""
    spq.reset(net)
    if any(isinstance(m, layer.Linear) for m in net.modules()):
        return net(x)
    return torch.stack([net(step) for step in x])


def neurons(net: nn.Module) -> dict[str, nn.Module]:
    kinds = (neuron.BaseNode, SpikingNeuron)
    return {path: m for path, m in net.named_modules() if isinstance(m, kinds)}


def fired(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The spikes of every neuron in the last call of one run."""
    found: dict[str, Tensor] = {}
    hooks = [
        m.register_forward_hook(lambda _m, _x, spikes, path=path: found.update({path: spikes}))
        for path, m in neurons(net).items()
    ]
    with torch.no_grad():
        run(net, x)
    for hook in hooks:
        hook.remove()
    return found


def neuron_counts(net: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """Neurons per layer, seen by one sample in one time step."""
    device = next(net.parameters()).device
    spikes = fired(net.eval(), torch.zeros(1, 1, *shape, device=device))
    return {path: one.numel() for path, one in spikes.items()}


def full(name: str, channels: int, size: tuple[int, int], classes: int) -> nn.Module:
    with torch.device("meta"):
        return spq.models.create(name, in_channels=channels, size=size, num_classes=classes)


def conv_weights(net: nn.Module) -> int:
    convs = (nn.Conv1d, nn.Conv2d)
    return sum(m.weight.numel() for m in net.modules() if isinstance(m, convs))


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


# --- what the publication and the page say ------------------------------------------------------


def test_vgg9_has_the_neurons_of_the_paper():
    square, wide = full("vgg9", 2, (48, 48), 10), full("vgg9", 2, (48, 64), 101)
    assert sum(neuron_counts(square, (2, 48, 48)).values()) == 921_600
    assert sum(neuron_counts(wide, (2, 48, 64)).values()) == 1_228_800
    assert square.fc1.weight.shape == (10, 4608)


def test_vgg9_of_snntorch_has_them_too():
    net = spq.models.create("vgg9", host="snntorch", in_channels=2, size=48, num_classes=10)
    assert sum(neuron_counts(net, (2, 48, 48)).values()) == 921_600


@pytest.mark.parametrize("name", spq.models.list_models("snntorch"))
def test_what_both_hosts_have_has_the_same_keys_and_shapes(name):
    one, other = create(name), create(name, "snntorch")
    shapes = [{key: p.shape for key, p in net.named_parameters()} for net in (one, other)]
    assert shapes[0] == shapes[1]
    assert list(shapes[0]) == list(shapes[1])
    assert [path for path, _ in one.named_children()] == [p for p, _ in other.named_children()]


@pytest.mark.parametrize("host", NETWORKS)
def test_an_mlp_takes_frames_of_one_line(host):
    net = create("mlp", host, in_channels=1, size=(1, 700), num_classes=20, width=1)
    assert net.fc1.weight.shape == (256, 700)
    assert run(net.eval(), torch.ones(STEPS, 2, 1, 1, 700)).shape == (STEPS, 2, 20)


def test_vgg7_has_the_counts_of_the_paper():
    net = full("vgg7", 3, (48, 48), 10)
    assert conv_weights(net) == 1_171_296
    assert sum(neuron_counts(net, (3, 48, 48)).values()) == 276_480


def test_mobilenet_light_has_the_counts_of_the_paper():
    net = full("mobilenet_light", 3, (48, 48), 10)
    counts = neuron_counts(net, (3, 48, 48))
    assert conv_weights(net) == 68_096
    assert counts.pop("neuron12") == 256
    assert sum(counts.values()) == 903_168


def test_resnet19_has_the_counts_of_the_paper():
    net = full("resnet19", 3, (32, 32), 10)
    counts = neuron_counts(net, (3, 32, 32))
    assert conv_weights(net) == 12_486_336
    assert counts.pop("neuron2") == 256
    assert sum(counts.values()) == 1_376_256


def test_resnet26_has_three_three_and_five_blocks():
    net = full("resnet26", 3, (32, 32), 10)
    blocks = [getattr(net, f"block{index}") for index in range(1, 12)]
    assert [block.conv1.out_channels for block in blocks] == [128] * 3 + [256] * 3 + [512] * 5
    shortcuts = [not isinstance(block.shortcut, nn.Identity) for block in blocks]
    assert [index for index, is_conv in enumerate(shortcuts) if is_conv] == [0, 3, 6]
    assert len(neuron_counts(net, (3, 32, 32))) == 1 + 2 * 11 + 1


def test_resnet34_has_the_counts_of_the_paper():
    net = full("resnet34", 3, (224, 224), 1000)
    counts = neuron_counts(net, (3, 224, 224))
    assert parameters(net) == 21_797_672
    assert conv_weights(net) == 21_267_648
    counts.pop("neuron1")
    assert sum(counts.values()) == 2_759_680


def test_spikformer_has_four_blocks_of_256_and_no_weight_beside_them():
    net = full("spikformer_4_256", 3, (32, 32), 10)
    stem = 9 * (3 * 32 + 32 * 64 + 64 * 128 + 128 * 256 + 256 * 256)
    block = 256 * (3 * 256 + 256 + 2 * 4 * 256)  # q, k and v, projection, two of four times 256
    assert conv_weights(net) == stem + 4 * block
    assert net.head.weight.shape == (10, 256)
    tokens = 32 // 4 * 32 // 4
    frames = 32 * 32**2 + 64 * 32**2 + 128 * 16**2 + 2 * 256 * 8**2
    per_token = 4 * 256 * (3 + 1 + 1 + 4 + 1)  # q, k and v, attention, projection, both of the MLP
    assert sum(neuron_counts(net, (3, 32, 32)).values()) == frames + tokens * per_token


def test_the_attention_of_spikformer_fires_at_half_the_threshold_unless_a_neuron_is_given():
    attention = create("spikformer_4_256").blocks[3].attn
    assert (attention.attn_lif.v_threshold, attention.qkv_lif.v_threshold) == (0.5, 1.0)
    given = create("spikformer_4_256", neuron=partial(neuron.LIFNode, v_threshold=0.7))
    assert {m.v_threshold for m in neurons(given).values()} == {0.7}


def test_the_width_of_spikformer_is_shared_by_its_eight_heads():
    widths = [(0.01, 8), (0.45, 112), (0.5, 128), (1.5, 384)]
    for width, embedding in widths:
        assert create("spikformer_4_256", width=width).head.in_features == embedding


def test_the_detector_has_the_counts_of_the_paper():
    net = full("custom_yolo_v2", 2, (240, 304), 576)
    counts = neuron_counts(net, (2, 240, 304))
    linear = net.fc1.weight.numel() + net.fc2.weight.numel()
    assert conv_weights(net) + linear == 21_146_176
    assert counts.pop("neuron17") == 512
    assert sum(counts.values()) == 6_435_840
    assert [type(m) for m in net if "Pool" in type(m).__name__] == [
        *[layer.MaxPool2d] * 5,
        layer.AvgPool2d,
    ]
    kernels = [m.kernel_size[0] for m in net if isinstance(m, nn.Conv2d)]
    assert kernels == [3, 3, 3, 1, 3, 3, 1, 3, 3, 1, 3, 1, 3, 3, 1, 3]


def number(text: str) -> int:
    """One number, or the sum of several."""
    return sum(int(part.replace(",", "")) for part in text.split(" + "))


def rows_of_the_page() -> dict[str, tuple]:
    count = r"     - ([\d,]+(?: \+ [\d,]+)?)\n"
    size = r"     - (\d+)x(\d+)x(\d+), (\d+) classes\n"
    pattern = rf"   \* - ``(\w+)``\n     - .*\n{size}{count}{count}{count}"
    found = re.findall(pattern, PAGE.read_text())
    return {row[0]: tuple(map(number, row[1:])) for row in found}


@pytest.mark.parametrize(("host", "name"), ALL)
def test_the_page_has_a_row_with_the_counts_that_are_measured(host, name):
    channels, height, width, classes, conv, total, spiking = rows_of_the_page()[name]
    # snnTorch's neurons cannot be made on the meta device.
    with torch.device("meta" if host == "spikingjelly" else "cpu"):
        net = spq.models.create(
            name, host=host, in_channels=channels, size=(height, width), num_classes=classes
        )
    assert conv_weights(net) == conv
    assert parameters(net) == total
    assert sum(neuron_counts(net, (channels, height, width)).values()) == spiking


# --- how they are built -------------------------------------------------------------------------


def test_the_layers_of_spikingjelly_are_its_own_and_in_order():
    net = create("vgg5", width=1)
    assert [type(m) for m in net] == [
        *[layer.Conv2d, layer.BatchNorm2d, neuron.LIFNode] * 2,
        layer.AvgPool2d,
        *[layer.Conv2d, layer.BatchNorm2d, neuron.LIFNode] * 2,
        layer.AvgPool2d,
        layer.Flatten,
        layer.Linear,
    ]
    assert net.conv1.bias is None
    assert net.fc1.bias is not None
    assert all(m.step_mode == "m" for m in net)


def test_the_layers_of_snntorch_are_torchs_own_and_in_order():
    conv_net, mlp = create("conv_net", "snntorch"), create("mlp", "snntorch")
    conv = [nn.Conv2d, nn.BatchNorm2d, snn.Leaky, nn.AvgPool2d]
    assert [type(m) for m in conv_net] == [*conv * 2, nn.Flatten, nn.Linear]
    assert [type(m) for m in mlp] == [nn.Flatten, *[nn.Linear, snn.Leaky] * 2, nn.Linear]


@pytest.mark.parametrize(("host", "name"), [("spikingjelly", "vgg5"), ("snntorch", "conv_net")])
def test_the_default_neuron_is_the_papers(host, name):
    node = create(name, host).neuron1
    currents = torch.randn(50, 2, 40) + 0.3
    v = torch.zeros(2, 40)
    want = []
    for x in currents:
        u = 0.5 * v + x
        want.append((u >= 1).float())
        v = u * (1 - want[-1])
    spikes = node(currents) if host == "spikingjelly" else torch.stack([node(x) for x in currents])
    assert torch.equal(spikes, torch.stack(want))
    assert 0.1 < spikes.mean() < 0.9


def test_a_block_adds_before_its_second_neuron():
    net = create("resnet19").eval()
    block, x = net.block4, torch.randn(2, 1, 16, 8, 8)
    y = block.norm2(block.conv2(block.neuron1(block.norm1(block.conv1(x)))))
    want = block.neuron2(y + block.shortcut.norm1(block.shortcut.conv1(x)))
    functional.reset_net(net)
    assert torch.equal(block(x), want)
    assert block.shortcut.conv1.stride == (2, 2)
    assert isinstance(net.block2.shortcut, nn.Identity)


@pytest.mark.parametrize(("host", "name"), ALL)
def test_the_same_seed_gives_the_same_network(host, name):
    nets = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        nets.append(create(name, host))
    one, same, other = (net.state_dict() for net in nets)
    assert list(one) == list(same) == list(other)
    assert all(torch.equal(one[key], same[key]) for key in one)
    last = [key for key in one if key.endswith("weight")][-1]
    assert not torch.equal(one[last], other[last])


@pytest.mark.parametrize(("host", "name"), ALL)
def test_no_neuron_layer_starts_silent(host, name):
    net = create(name, host, width=0.5 if host == "snntorch" or name[0] == "m" else 0.25)
    rates = dict.fromkeys(neurons(net), 0.0)
    for path, m in neurons(net).items():
        m.register_forward_hook(
            lambda _m, _x, y, path=path: rates.update({path: rates[path] + float(y.sum())})
        )
    with torch.no_grad():
        run(net, events(6, side(name)))
    assert all(rate > 0 for rate in rates.values()), rates


# SpikingJelly's Spikformer takes whole sequences only.
@pytest.mark.parametrize("name", [name for name in SPIKINGJELLY if "spikformer" not in name])
def test_single_steps_equal_the_sequence(name, float64):
    net, x = create(name).eval(), events(side=side(name)).double()
    with torch.no_grad():
        together = run(net, x)
        functional.reset_net(net)
        functional.set_step_mode(net, "s")
        apart = torch.stack([net(step) for step in x])
    assert together.shape == (STEPS, 2, 4)
    torch.testing.assert_close(apart, together)


@pytest.mark.parametrize(("host", "name"), ALL)
@pytest.mark.parametrize("way", ["copy", "saved"])
def test_a_duplicate_runs_alike(host, name, way):
    net, x = create(name, host).eval(), events(side=side(name))
    with torch.no_grad():
        want = run(net, x)
    spq.reset(net)
    if way == "copy":
        other = copy.deepcopy(net)
    else:
        file = io.BytesIO()
        torch.save(net, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    with torch.no_grad():
        assert torch.equal(run(other, x), want)


# --- conversion ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("host", "name"), ALL)
def test_every_network_converts_and_trains(host, name):
    net, x = create(name, host), events(side=side(name))
    config = spq.presets.quant_snn(weight_bits=2, adaptive=True)
    converted = spq.convert(net, config, sample=x if host == "spikingjelly" else x[0])
    for path, m in net.named_modules():
        if path in neurons(net):
            assert isinstance(converted.get_submodule(path), QuantizedNeuron), path
        elif isinstance(m, (nn.Linear, nn.Conv2d)):
            assert isinstance(converted.get_submodule(path), QuantizedLayer), path
    out = run(converted.train(), x)
    assert out.shape == (STEPS, 2, 4)
    assert out.isfinite().all()
    out.square().sum().backward()
    for path, p in converted.named_parameters():
        assert p.grad is not None, path
        assert p.grad.isfinite().all(), path


# --- size, width and neurons of one's own -------------------------------------------------------


@pytest.mark.parametrize(("host", "name"), ALL)
def test_the_smallest_size_runs_and_one_less_is_refused(host, name):
    least = NETWORKS[host][name].shrinks
    net = create(name, host, size=least, in_channels=1).eval()
    assert run(net, torch.ones(2, 1, 1, least, least)).shape == (2, 1, 4)
    if least == 1:
        return
    with pytest.raises(ModelError, match=f"shrinks height and width by {least}, so both must be"):
        create(name, host, size=(least, least - 1))


@pytest.mark.parametrize(("host", "name"), ALL)
def test_any_size_from_the_smallest_on_runs(host, name):
    height, width = side(name) + 3, side(name) + 18
    net = create(name, host, size=(height, width)).eval()
    assert run(net, torch.ones(1, 1, 2, height, width)).shape == (1, 1, 4)


def test_a_size_may_be_a_list_and_numbers_may_be_numpys():
    import numpy as np

    net = create("vgg5", size=[np.int64(8), 12], in_channels=np.int32(1), width=np.float32(0.5))
    assert net.fc1.in_features == 32 * 2 * 3


def test_the_width_multiplies_every_hidden_count():
    def counts(width: float) -> list[int]:
        net = create("resnet19", width=width)
        layers = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        return [m.weight.shape[0] for m in layers]

    *hidden, last = counts(1.0)
    assert counts(0.3) == [round(0.3 * count) for count in hidden] + [last]
    assert last == 4
    *thinnest, last = counts(1e-6)
    assert set(thinnest) == {1}
    assert last == 4


def test_a_neuron_of_ones_own_is_used_everywhere_and_never_shared():
    plif = partial(neuron.ParametricLIFNode, init_tau=4.0, v_reset=None)
    net = create("resnet19", neuron=plif)
    found = list(neurons(net).values())
    assert {type(m) for m in found} == {neuron.ParametricLIFNode}
    assert len(found) == 18
    assert len({id(m) for m in found}) == 18
    assert all(m.v_reset is None and m.step_mode == "m" for m in found)
    assert run(net, events()).isfinite().all()


def test_a_class_is_enough_as_a_neuron():
    assert type(create("vgg5", neuron=neuron.IFNode).neuron1) is neuron.IFNode


def test_a_quantised_neuron_can_be_given_at_once():
    from spquant_plugin.spikingjelly.neuron import TernaryMembraneLIFNode

    node = create("vgg5", neuron=TernaryMembraneLIFNode).neuron4
    assert isinstance(node, TernaryMembraneLIFNode)


def test_a_neuron_of_snntorch_of_ones_own():
    synaptic = partial(snn.Synaptic, alpha=0.8, beta=0.9, init_hidden=True)
    net = create("conv_net", "snntorch", neuron=synaptic)
    assert {type(m) for m in neurons(net).values()} == {snn.Synaptic}
    assert run(net, events()).isfinite().all()


# --- refusals -----------------------------------------------------------------------------------


def refused(*args, **options) -> str:
    with pytest.raises(ModelError) as caught:
        create(*args, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("VGG9", "vgg9"),
        ("vgg-9", "vgg9"),
        ("resnet18", "resnet19"),
        ("mobilenet", "mobilenet_light"),
        ("spikformer", "spikformer_4_256"),
        ("yolo_v2", "custom_yolo_v2"),
        (["vgg9"], "vgg9"),
    ],
)
def test_an_unknown_name_gets_the_closest_ones(given, meant):
    message = refused(given)
    assert f"create({given!r}): must be the name of a network of spikingjelly" in message
    assert repr(meant) in message.split("Closest: ")[1]
    assert "spq.models.list_models('spikingjelly')" in message


@pytest.mark.parametrize("given", ["", "gpt", None, 9])
def test_a_name_like_no_other_gets_all_of_them(given):
    message = refused(given)
    assert all(repr(name) in message for name in SPIKINGJELLY)


def test_a_network_of_the_other_host_is_said_to_be_there():
    for name in ("resnet19", "spikformer_4_256", "custom_yolo_v2"):
        message = refused(name, "snntorch")
        assert "It is a network of spikingjelly: pass host='spikingjelly'" in message


@pytest.mark.parametrize("given", ["SpikingJelly", "spiking_jelly", "snn", None, 3])
def test_an_unknown_host_gets_the_closest_ones(given):
    message = refused("vgg9", given)
    assert f"host = {given!r}: must be one of 'spikingjelly', 'snntorch'. Closest: " in message
    if given is not None:
        with pytest.raises(ModelError, match="must be one of 'spikingjelly', 'snntorch'"):
            spq.models.list_models(given)


def test_an_unknown_option_gets_the_closest_one():
    message = refused("vgg9", in_channel=2)
    assert "create received unknown option 'in_channel': it takes name, host, in_ch" in message
    assert "Closest: 'in_channels'" in message
    with pytest.raises(ModelError, match="Closest: 'num_classes'"):
        spq.models.create("vgg9", in_channels=2, size=48, classes=3)


def test_a_missing_option_is_named():
    with pytest.raises(TypeError, match="'num_classes'"):
        spq.models.create("vgg9", in_channels=2, size=48)


@pytest.mark.parametrize("option", ["in_channels", "num_classes"])
@pytest.mark.parametrize("value", [0, -1, 2.0, "3", None, True, (2,)])
def test_counts_must_be_whole_and_positive(option, value):
    message = refused("vgg9", **{option: value})
    assert f"create('vgg9', {option}={value!r}): must be a whole number above 0" in message


@pytest.mark.parametrize("value", [0, -48, 48.0, "48", None, True, (48,), (48, 0), (1, 2, 3), []])
def test_a_size_must_be_one_or_two_whole_positive_numbers(value):
    message = refused("vgg9", size=value)
    assert f"create('vgg9', size={value!r}): must be a whole number above 0, or the pair" in message


@pytest.mark.parametrize("value", [0, -0.5, float("nan"), float("inf"), "1", None, True])
def test_a_width_must_be_a_finite_positive_number(value):
    message = refused("vgg9", width=value)
    assert f"create('vgg9', width={value!r}): must be a finite number above 0" in message


def test_a_size_that_is_too_small_says_the_smallest():
    message = refused("vgg9", size=8)
    assert "create('vgg9', size=(8, 8)): vgg9 shrinks height and width by 16, so" in message
    assert "both must be at least 16. Use a larger size or a network that" in message


class SingleStepLIFNode(neuron.LIFNode):
    def supported_step_mode(self):
        return ("s",)


SHARED = neuron.LIFNode()


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (neuron.LIFNode(), "neuron=<an instance of LIFNode>): must be a class"),
        ("LIFNode", "neuron='LIFNode'): must be a class"),
        (3, "neuron=3): must be a class"),
        (nn.ReLU, "neuron=ReLU) returned ReLU, which is no neuron of SpikingJelly: it must be"),
        (dict, "returned dict, which is no neuron of SpikingJelly"),
        (lambda: None, "returned NoneType, which is no neuron of SpikingJelly"),
        (layer.Dropout, "returned Dropout, which is no neuron of SpikingJelly"),
        (partial(snn.Leaky, 0.5), "returned Leaky, which is no neuron of SpikingJelly"),
        (neuron.NonSpikingLIFNode, "returned NonSpikingLIFNode, which emits no spikes"),
        (SingleStepLIFNode, "returned SingleStepLIFNode, which has no multi-step mode"),
        (lambda: SHARED, "returned the same LIFNode twice"),
        (neuron.PSN, "missing a required argument: 'T', but it must be a class"),
    ],
)
def test_a_wrong_neuron_of_spikingjelly_is_refused(given, fault):
    message = refused("vgg5", neuron=given)
    assert message.startswith("create('vgg5', neuron=")
    assert fault in message
    assert "For example neuron=functools.partial(neuron.LIFNode, tau=2.0)" in message


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (partial(snn.Leaky, 0.5), "returned Leaky with init_hidden=False"),
        (partial(snn.Leaky, 0.5, init_hidden=True, output=True), "Leaky with output=True"),
        (neuron.LIFNode, "returned LIFNode, which is no neuron of snnTorch"),
        (snn.Leaky, "missing a required argument: 'beta', but it must be a class"),
        (snn.Leaky(0.5, init_hidden=True), "neuron=<an instance of Leaky>): must be a class"),
    ],
)
def test_a_wrong_neuron_of_snntorch_is_refused(given, fault):
    message = refused("mlp", "snntorch", neuron=given)
    assert fault in message
    assert "neuron=functools.partial(snn.Leaky, beta=0.9, init_hidden=True)" in message


# --- hosts --------------------------------------------------------------------------------------


def test_names_load_no_host_a_network_loads_its_own_and_a_missing_one_is_said():
    code = """
import sys
import spquant_plugin as spq

def loaded():
    return [host for host in ("spikingjelly", "snntorch") if host in sys.modules]

def create(name, **options):
    try:
        spq.models.create(name, in_channels=1, size=4, num_classes=2, **options)
    except (spq.errors.ModelError, spq.errors.MissingHostError) as error:
        print(type(error).__name__, str(error).split(":")[0].split(",")[0])

assert len(spq.models.list_models()) == 12
create("vgg")
create("vgg9")
print(loaded())
create("mlp", host="snntorch")
print(loaded())

import importlib.metadata as metadata
def missing(name):
    raise metadata.PackageNotFoundError(name)
metadata.version = missing
create("vgg5")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == [
        "ModelError create('vgg')",
        "ModelError create('vgg9'",
        "[]",
        "['snntorch']",
        "MissingHostError spquant_plugin.spikingjelly needs spikingjelly",
    ], done.stderr


def test_the_list_is_sorted_and_complete():
    assert sorted(NETWORKS["spikingjelly"]) == SPIKINGJELLY
    assert spq.models.list_models() == SPIKINGJELLY
    assert set(spq.models.list_models("snntorch")) < set(SPIKINGJELLY)
