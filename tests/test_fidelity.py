"""Float32 arithmetic at the size of real images, against the same formulas in float64 by numpy."""

import gc
import weakref

import numpy as np
import pytest
import torch
from conftest import thorough
from torch import Tensor, nn

from models.layers import ReflectionPad2d, instance_average
from models.losses import feature_matching_loss, gan_loss, l1
from models.networks import define_D
from models.normalization import BatchNorm2d, InstanceNorm2d, Normalize, normalize_in_one_kernel

WIDTH, HEIGHT = 2048, 1024
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


@pytest.fixture(scope="module")
def maps() -> tuple[Tensor, Tensor]:
    """Values of mean 0 and deviation 1, and a gradient whose sum is not 0."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, 3, HEIGHT, WIDTH)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator) + 1


def normalized(x: np.ndarray, grad: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Normalization over batch and pixels, and its gradient, in float64."""
    axes = (0, 2, 3)
    x, grad = x.astype(np.float64), grad.astype(np.float64)
    centred = x - x.mean(axes, keepdims=True)
    rstd = 1 / np.sqrt(np.square(centred).mean(axes, keepdims=True) + eps)
    y = centred * rstd
    along = (grad * y).mean(axes, keepdims=True)
    return y, rstd * (grad - grad.mean(axes, keepdims=True) - y * along)


NORMS = {
    "instance": lambda: InstanceNorm2d(3),
    "instance, affine": lambda: InstanceNorm2d(3, affine=True),
    "batch": lambda: BatchNorm2d(3),
}


@pytest.mark.parametrize("mean", [100, *thorough(0)])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("make", NORMS.values(), ids=NORMS)
def test_normalization(make, layout: torch.memory_format, mean: float, maps) -> None:
    x = (maps[0] + mean).contiguous(memory_format=layout).requires_grad_()
    grad = maps[1].contiguous(memory_format=layout)
    layer = make()
    y = layer(x)
    y.backward(grad)
    expected, expected_grad = normalized(x.detach().numpy(), grad.numpy(), layer.eps)
    assert y.is_contiguous(memory_format=layout)
    assert np.abs(y.detach().numpy() - expected).max() <= 2e-6
    assert np.abs(x.grad.numpy() - expected_grad).max() <= 1e-5 * np.abs(expected_grad).max()
    if layer.affine:
        of_weight = (grad.numpy().astype(np.float64) * expected).sum((0, 2, 3))
        np.testing.assert_allclose(layer.weight.grad, of_weight, rtol=1e-4, atol=0.1)
        np.testing.assert_allclose(layer.bias.grad, grad.double().sum((0, 2, 3)), rtol=1e-6)
    if isinstance(layer, nn.BatchNorm2d):
        exact = x.detach().double()
        moved = exact.mean((0, 2, 3)) * 0.1, exact.var((0, 2, 3)) * 0.1 + 0.9
        torch.testing.assert_close(layer.running_mean.double(), moved[0], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(layer.running_var.double(), moved[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("mean", [0, 100])
def test_the_formula_for_the_compiler(mean: float, maps) -> None:
    """Run eagerly: a compiler sums in its own order."""
    x = maps[0] + mean
    expected, _ = normalized(x.numpy(), maps[1].numpy(), 1e-5)
    found = normalize_in_one_kernel(x, None, None, 1e-5).numpy()
    assert np.abs(found - expected).max() <= 2e-6


def test_small_maps_in_several_images_and_half_precision() -> None:
    """Statistics per image; half precision is normalized in float32 and rounded once."""
    torch.manual_seed(0)
    x = torch.randn(3, 5, 6, 7) * torch.arange(1.0, 4.0).view(3, 1, 1, 1) + 3
    for layout in LAYOUTS.values():
        for kind in (torch.float32, torch.bfloat16, torch.float16):
            y = InstanceNorm2d(5)(x.to(kind).contiguous(memory_format=layout))
            assert y.dtype == kind
            for image, found in zip(x.to(kind).float(), y):
                expected, _ = normalized(image[None].numpy(), image[None].numpy(), 1e-5)
                exact = torch.from_numpy(expected[0]).to(kind)
                torch.testing.assert_close(found, exact, rtol=torch.finfo(kind).eps, atol=1e-6)


def test_statistics_over_processes_do_not_keep_the_graph_alive() -> None:
    """Their count is a tensor: a reference cycle through it would leak each step's graph."""
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    y, mean, variance, count = Normalize.apply(x * 1, None, None, 1e-5, True, 1.0)
    assert y.requires_grad and not any(one.requires_grad for one in (mean, variance, count))
    gc.disable()
    try:
        graph = weakref.ref(y.grad_fn)
        del y, mean, variance, count
        assert graph() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_gradients_of_normalization(layout: torch.memory_format, affine: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64).contiguous(memory_format=layout)
    for layer in (InstanceNorm2d(3, affine=affine), BatchNorm2d(3, affine=True)):
        layer = layer.double()
        values = [x.requires_grad_(), *layer.parameters()]
        assert torch.autograd.gradcheck(lambda x, *_, layer=layer: layer(x), values)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_padding_and_pooling(layout: torch.memory_format, maps) -> None:
    x = (maps[0] + 100).contiguous(memory_format=layout)
    padded = ReflectionPad2d(3)(x)
    margins = ((0, 0), (0, 0), (3, 3), (3, 3))
    np.testing.assert_array_equal(padded, np.pad(x.numpy(), margins, mode="reflect"))

    pyramid = define_D(1, 4, 1).downsample
    torch.testing.assert_close(pyramid(x).double(), pyramid(x.double()), rtol=5e-7, atol=0)

    inst = torch.arange(WIDTH).div(700, rounding_mode="floor").expand(1, 1, HEIGHT, WIDTH)
    found = instance_average(x, inst)
    for i in range(3):
        where = (inst == i).expand_as(x)
        exact = x.double()[where].view(3, -1).mean(1, keepdim=True)
        torch.testing.assert_close(
            found[where].view(3, -1).double(), exact.expand(3, where[0, 0].sum()), rtol=1e-7, atol=0
        )


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("lsgan", [True, *thorough(False)])
def test_losses(lsgan: bool, layout: torch.memory_format, maps) -> None:
    fake, real = (m.clone(memory_format=layout) for m in maps)
    exact = [m.double() for m in (fake, real)]
    found = gan_loss([[fake]], True, lsgan)
    p = -torch.nn.functional.logsigmoid(exact[0])
    expected = (exact[0] - 1).square().mean() if lsgan else p.mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)

    found = l1(fake.requires_grad_(), real)
    found.backward()
    difference = exact[0] - exact[1]
    assert found.item() == pytest.approx(difference.abs().mean().item(), rel=1e-6)
    torch.testing.assert_close(fake.grad.double(), difference.sign() / difference.numel())
    matching = feature_matching_loss([[fake, fake]], [[real, real]])
    assert matching.item() == pytest.approx(4 * difference.abs().mean().item(), rel=1e-6)
