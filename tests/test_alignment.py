"""Aligned channels: what is compiled for a GPU in half precision, computed here on the CPU."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models import alignment
from models.alignment import Conv2d
from models.losses import gan_loss
from models.networks import define_D, define_G
from models.recompute import recompute_blocks

NETWORKS = {
    "global": lambda: define_G(36, 3, 8, "global", 1, 1),
    "local": lambda: define_G(39, 3, 8, "local", 1, 1, 1, 1),
    "narrow": lambda: define_G(5, 3, 4, "global", 1, 1),
    "encoder": lambda: define_G(3, 3, 8, "encoder", 1),
    "discriminator": lambda: define_D(39, 8, 2, num_D=2, get_features=True),
}


class Shapes(TorchDispatchMode):
    """Records the shapes of all convolutions' weights."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.seen.append(tuple(args[1].shape))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Align on a CPU, in float64 and not in half precision, so that equal means equal."""
    align_here(monkeypatch, torch.float64)


def align_here(monkeypatch: pytest.MonkeyPatch, *precisions: torch.dtype) -> None:
    """Align on a CPU and uncompiled, in these precisions."""
    monkeypatch.setattr(alignment, "is_compiling", lambda: True)
    monkeypatch.setattr(alignment, "DEVICES", ("cpu",))
    monkeypatch.setattr(alignment, "HALF", precisions)


def network(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """In float64, its weights no longer tiny, and an input."""
    torch.manual_seed(0)
    net = NETWORKS[name]().double()
    for weight in net.parameters():
        weight.data.mul_(5).add_(0.01)
    channels = next(net.parameters()).shape[1]
    x = torch.randn(2, channels, 16, 24, dtype=torch.float64)
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    return net, (x, torch.arange(24).expand(2, 1, 16, 24) // 7) if name == "encoder" else (x,)


def flat(outputs: Tensor | list) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else [y for part in outputs for y in flat(part)]


def results(run: nn.Module, net: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Outputs and the gradients of input and parameters."""
    outputs = flat(run(*inputs))
    loss = sum((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum() for y in outputs)
    grads = torch.autograd.grad(loss, [inputs[0], *net.parameters()])
    return [*outputs, *grads]


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-11) -> None:
    for a, b in zip(found, expected):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= tolerance * max(1, b.abs().max())


@pytest.mark.parametrize(
    ("in_nc", "out_nc"), [(36, 64), (39, 64), (3, 8), (64, 3), (16, 1), (5, 3)]
)
@pytest.mark.parametrize("precision", [torch.float64, torch.bfloat16])
def test_zeros_change_nothing(in_nc: int, out_nc: int, precision: torch.dtype, monkeypatch) -> None:
    """In bf16 the order of summation may differ: within two roundings of the result."""
    torch.manual_seed(0)
    conv = Conv2d(in_nc, out_nc, 3, stride=2, padding=1).to(precision)
    x = torch.randn(2, in_nc, 9, 8).to(precision, memory_format=torch.channels_last)
    plain, inputs = nn.Conv2d.forward, [x.requires_grad_(), *conv.parameters()]
    expected = plain(conv, x)
    grads = torch.autograd.grad(expected.square().sum(), inputs)
    align_here(monkeypatch, precision)
    with Shapes() as shapes:
        found = conv(x)
    ((out_shape, in_shape, *_),) = shapes.seen
    assert out_shape % 8 == in_shape % 8 == 0
    again = torch.autograd.grad(found.square().sum(), inputs)
    tolerance = 1e-13 if precision == torch.float64 else 2**-7
    for a, b in zip([found, *again], [expected, *grads]):
        assert a.shape == b.shape and a.dtype == precision
        assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("recompute", [False, True])
def test_networks_compute_the_same(name: str, recompute: bool, exact, monkeypatch) -> None:
    """Outputs and gradients, also of what is recomputed in backward."""
    monkeypatch.setattr("models.recompute.SMALL", 0)
    net, inputs = network(name)
    if recompute:
        recompute_blocks(net)
    keys = {key: value.shape for key, value in net.state_dict().items()}
    with Shapes() as shapes:
        found = results(net, net, inputs)
    alignment.DEVICES = ()
    with Shapes() as plain:
        assert_close(found, results(net, net, inputs))
    assert keys == {key: value.shape for key, value in net.state_dict().items()}
    if name != "narrow":  # whose inner layers are not aligned, as with --ngf 4
        assert all(size % 8 == 0 for shape in shapes.seen for size in shape[:2])
    assert len(shapes.seen) == len(plain.seen) and shapes.seen != plain.seen


def test_uncompiled_convolutions_stay_as_they_are(exact, monkeypatch) -> None:
    monkeypatch.setattr(alignment, "is_compiling", torch.compiler.is_compiling)
    conv = Conv2d(36, 3, 3).double()
    with Shapes() as shapes:
        conv(torch.randn(1, 36, 8, 8, dtype=torch.float64))
    assert shapes.seen == [(3, 36, 3, 3)]


@pytest.mark.thorough
def test_the_compiler_sees_one_graph(exact) -> None:
    net, inputs = network("global")
    weights = []

    def backend(graph, example_inputs):
        convolutions = [node for node in graph.graph.nodes if node.target is torch.conv2d]
        weights.extend(node.args[1].meta["example_value"] for node in convolutions)
        return torch._dynamo.lookup_backend("aot_eager")(graph, example_inputs)

    found = results(torch.compile(net, backend=backend, fullgraph=True), net, inputs)
    assert weights and all(size % 8 == 0 for weight in weights for size in weight.shape[:2])
    # the compiler's own formula for normalization computes in float32
    assert_close(found, results(net, net, inputs), tolerance=1e-4)


@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16])
def test_autocast_sets_the_precision(amp: torch.dtype, monkeypatch) -> None:
    """Float32 maps are treated as autocast casts them; on a CPU nothing changes."""
    conv, x = Conv2d(36, 3, 3), torch.randn(1, 36, 8, 8)
    with torch.autocast("cpu", amp):
        expected = F.conv2d(x, conv.weight, conv.bias)
        with Shapes() as shapes:
            assert torch.equal(conv(x), expected)
        assert shapes.seen == [(3, 36, 3, 3)]
        align_here(monkeypatch, amp)
        with Shapes() as shapes:
            found = conv(x)
        assert shapes.seen == [(8, 40, 3, 3)] and found.dtype == amp
        torch.testing.assert_close(found, expected)
    with Shapes() as shapes:
        conv(x)
    assert shapes.seen == [(3, 36, 3, 3)]


def test_a_discriminators_scores_stay_one_map(monkeypatch) -> None:
    align_here(monkeypatch, torch.bfloat16)
    net = define_D(39, 8, 2, num_D=2)
    with torch.autocast("cpu", torch.bfloat16):
        scores = net(torch.randn(1, 39, 32, 32))
    assert [scale[-1].shape[1] for scale in scores] == [1, 1]
    gan_loss(scores, True).backward()
    assert all(weight.grad.shape == weight.shape for weight in net.parameters())
