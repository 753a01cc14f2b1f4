"""The networks: shapes, gradients, checkpoint layouts, initial weights, instance averages."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import thorough
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from models.layers import instance_average, reflect_by_index, reflect_channels_last
from models.networks import define_D, define_G
from models.normalization import ChannelNorm2d, InstanceNorm2d
from models.recompute import Sequential, recompute_blocks

LAYOUTS = json.loads((Path(__file__).parent / "checkpoint_layouts.json").read_text())

GENERATORS = {
    "global": {"n_downsample_global": 2, "n_blocks_global": 2},
    "global, no blocks": {"n_downsample_global": 0, "n_blocks_global": 0},
    "global, dropout": {"n_downsample_global": 1, "use_dropout": True},
    "global, batch norm": {"n_downsample_global": 2, "norm": "batch"},
    "global, channel norm": {"n_downsample_global": 2, "norm": "channel"},
    "local": {"n_downsample_global": 1, "n_blocks_global": 1, "n_blocks_local": 1},
    "local, two enhancers": {
        **{"n_downsample_global": 1, "n_blocks_global": 1},
        **{"n_blocks_local": 1, "n_local_enhancers": 2},
    },
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def all_get_gradients(net: nn.Module, loss: Tensor) -> None:
    loss.backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, f"{name} receives no gradient"
        assert parameter.grad.isfinite().all(), name
    # a bias in front of a normalization has a gradient of zero up to rounding
    weights = [(n, p) for n, p in net.named_parameters() if p.ndim > 1]
    assert weights
    for name, parameter in weights:
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", GENERATORS)
def test_generator_gives_images_and_all_of_it_trains(kind: str) -> None:
    net = define_G(5, 3, 4, kind.split(",")[0], **GENERATORS[kind])
    y = net(torch.randn(2, 5, 16, 24))
    assert y.shape == (2, 3, 16, 24)
    assert y.isfinite().all() and y.abs().max() <= 1
    all_get_gradients(net, (y * torch.randn_like(y)).sum())


def test_encoder_gives_features_constant_in_instances_and_all_of_it_trains() -> None:
    net = define_G(3, 4, 4, "encoder", 2)
    inst = torch.arange(4).repeat_interleave(4).expand(2, 1, 8, 16) * 11000
    y = net(torch.randn(2, 3, 8, 16), inst)
    assert y.shape == (2, 4, 8, 16) and y.abs().max() <= 1
    for i in range(4):
        stripe = y[..., 4 * i : 4 * i + 4].flatten(2)
        assert torch.equal(stripe, stripe[..., :1].expand_as(stripe))
    all_get_gradients(net, (y * torch.randn_like(y)).sum())


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("get_features", [True, False])
@pytest.mark.parametrize("n_layers, num_D", [(3, 2), (1, 1), (4, 3)])
def test_discriminator_gives_scores_of_all_scales(
    n_layers: int, num_D: int, get_features: bool, norm: str
) -> None:
    net = define_D(5, 4, n_layers, norm, num_D, get_features)
    outputs = net(torch.randn(2, 5, 64, 96))
    assert len(outputs) == num_D
    for scale, maps in enumerate(outputs):
        assert len(maps) == (n_layers + 2 if get_features else 1)
        # each stage: 4x4 kernel, padding 2; all but the last two stages halve
        height, width = 64 // 2**scale, 96 // 2**scale
        for _ in range(n_layers):
            height, width = height // 2 + 1, width // 2 + 1
        assert maps[-1].shape == (2, 1, height + 2, width + 2)
        if get_features:
            channels = [min(4 * 2**n, 512) for n in range(n_layers + 1)]
            assert [m.shape[1] for m in maps[:-1]] == channels
            assert maps[0].shape == (2, 4, 64 // 2**scale // 2 + 1, 96 // 2**scale // 2 + 1)
        assert all(m.isfinite().all() for m in maps)
    all_get_gradients(net, sum(m.square().mean() for maps in outputs for m in maps))


def test_discriminator_widens_to_512_channels_at_most() -> None:
    with torch.device("meta"):
        state = define_D(39, 64, 5, num_D=1, get_features=True).state_dict()
    assert [state[f"scale0_layer{n}.0.weight"].shape[0] for n in range(7)] == [
        *(64, 128, 256, 512, 512, 512),
        1,
    ]


def test_the_highest_scale_number_sees_full_resolution() -> None:
    net = define_D(3, 4, 3, num_D=3, get_features=True)
    x = torch.randn(1, 3, 32, 64)
    half = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
    quarter = F.avg_pool2d(half, 3, 2, 1, count_include_pad=False)
    for maps, number, seen in zip(net(x), (2, 1, 0), (x, half, quarter)):
        for stage, found in enumerate(maps):
            seen = getattr(net, f"scale{number}_layer{stage}")(seen)
            assert torch.equal(found, seen)


def test_full_resolution_does_not_see_the_coarse_channels() -> None:
    net = define_D(5, 4, 1, num_D=3, get_features=True, coarse_nc=2)
    x = torch.randn(1, 5, 32, 64, requires_grad=True)
    for scale, maps in enumerate(net(x)):
        gradient = torch.autograd.grad(maps[-1].sum(), x, retain_graph=True)[0]
        assert gradient[:, :3].abs().max() > 0
        assert (gradient[:, 3:].abs().max() > 0) == (scale > 0)


def test_image_pyramid_averages_only_pixels_inside() -> None:
    x = torch.arange(24.0).view(1, 1, 4, 6)
    found = define_D(1, 4, 1, num_D=2).downsample(x)[0, 0]
    padded = np.pad(x[0, 0].numpy(), 1, constant_values=np.nan)
    expected = [
        [np.nanmean(padded[r : r + 3, c : c + 3]) for c in range(0, 6, 2)] for r in range(0, 4, 2)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_local_enhancer_adds_the_global_generators_features_to_its_own() -> None:
    net = define_G(4, 3, 4, "local", 1, 1, n_local_enhancers=1, n_blocks_local=1).eval()
    x = torch.randn(1, 4, 16, 32)
    half = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
    expected = net.model1_2(net.model1_1(x) + net.model(half))
    torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize("enhancers", [1, 2])
def test_global_part_of_the_enhancer_takes_the_coarse_generators_weights(enhancers: int) -> None:
    fine = define_G(4, 3, 4, "local", 2, 2, n_local_enhancers=enhancers).state_dict()
    coarse = define_G(4, 3, 4 * 2**enhancers, "global", 2, 2).state_dict()
    shared = {name for name in fine if name.startswith("model.")}
    assert all(fine[name].shape == coarse[name].shape for name in shared)
    assert len(coarse) - len(shared) == 2  # the last convolution's weight and bias
    assert {f"model{n}_{part}" for n in range(1, enhancers + 1) for part in (1, 2)} == {
        name.split(".")[0] for name in set(fine) - shared
    }


@pytest.mark.parametrize("name", LAYOUTS)
def test_state_dict_has_the_layout_of_released_checkpoints(name: str) -> None:
    flags = LAYOUTS[name]["flags"]
    channels = 36 + (3 if "--instance_feat" in flags else 0)
    with torch.device("meta"):  # full-size networks without their memory
        if name.startswith("G_1024p"):
            net = define_G(channels, 3, 32, "local", 4, 9, 1, 3)
        elif name.startswith("G"):
            norm = "batch" if "batch" in flags else "instance"
            net = define_G(channels, 3, 64, "global", 4, 9, norm=norm)
        elif name == "E":
            net = define_G(3, 3, 16, "encoder", 4)
        else:
            scales = 3 if "--num_D 3" in flags else 2
            features = "--no_ganFeat_loss" not in flags
            net = define_D(39, 64, 3, num_D=scales, get_features=features)
    found = {key: list(value.shape) for key, value in net.state_dict().items()}
    assert found == LAYOUTS[name]["state"]


FRESH = {
    "global": lambda: define_G(8, 3, 16, "global", 2, 2, norm="batch"),
    "local": lambda: define_G(8, 3, 16, "local", 2, 2),
    "encoder": lambda: define_G(8, 3, 16, "encoder", 3),
    "discriminator": lambda: define_D(8, 16, 3, "batch", 2, True),
}


@pytest.mark.parametrize("make", FRESH.values(), ids=FRESH)
def test_initial_weights(make: Callable[[], nn.Module]) -> None:
    net = make()
    convolutions = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    weights = torch.cat([m.weight.flatten() for m in convolutions])
    assert abs(weights.mean()) < 5 * 0.02 / len(weights) ** 0.5
    assert abs(weights.std() - 0.02) < 5 * 0.02 / (2 * len(weights)) ** 0.5
    for layer in convolutions:  # torch's own initialization would be U(-b, b) of another variance
        bound = 8 * 0.02 / (2 * layer.weight.numel()) ** 0.5
        assert abs(layer.weight.std() - 0.02) < bound
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert 0.95 < layer.weight.mean() < 1.05 and 0.002 < layer.weight.std() < 0.05
            assert not layer.bias.any()


def test_networks_refuse_unknown_kinds() -> None:
    with pytest.raises(ValueError, match="encoder"):
        define_G(3, 3, 4, "globl")
    with pytest.raises(KeyError, match="layer"):
        define_D(3, 4, 3, "layer")


def test_dropout_is_random_in_training_and_off_in_eval() -> None:
    net = define_G(3, 3, 4, "global", 1, 2, use_dropout=True)
    x = torch.randn(1, 3, 8, 8)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_recomputed_blocks_give_the_same_gradients() -> None:
    net = define_G(3, 3, 4, "global", 1, 2)
    x = torch.randn(1, 3, 8, 8)
    gradients = []
    for on in (False, True):
        if on:
            recompute_blocks(net)
        net.zero_grad()
        net(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in net.parameters()])
    for plain, recomputed in zip(*gradients):
        torch.testing.assert_close(recomputed, plain)


# Instance averages ---------------------------------------------------------------------------


def average_by_loop(features: np.ndarray, inst: np.ndarray) -> np.ndarray:
    """The plain definition, image by image and instance by instance."""
    out = np.empty_like(features, dtype=np.float64)
    for b in range(len(features)):
        for i in np.unique(inst[b]):
            where = inst[b, 0] == i
            out[b][:, where] = features[b][:, where].astype(np.float64).mean(1, keepdims=True)
    return out


IDS = {
    "cityscapes": [7, 11, 24001, 26002, 33000, 33007],
    "16-bit": [0, 32767, 32768, 65535],
    "negative": [-32536, -1, 0, 5],
    "beyond 16-bit": [3, 65536, 70000, 2**31 - 1],
}


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
def test_instance_average_equals_a_loop(ids: list[int], kind: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 3, 9, 13)).astype(np.float32)
    inst = rng.choice(ids, (2, 1, 9, 13))  # both images have the same ids
    found = instance_average(torch.from_numpy(features), torch.from_numpy(inst).to(kind))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, average_by_loop(features, inst), atol=1e-6)


@pytest.mark.parametrize("value", ["small ids", "large ids"])
def test_instance_average_of_one_instance_and_of_single_pixels(value: str) -> None:
    high = 1 if value == "small ids" else 10**6
    features = torch.randn(1, 2, 4, 6)
    whole = instance_average(features, torch.full((1, 1, 4, 6), high))
    torch.testing.assert_close(whole, features.mean((2, 3), keepdim=True).expand_as(features))
    each = instance_average(features, torch.arange(24).view(1, 1, 4, 6) * high)
    torch.testing.assert_close(each, features)


def test_an_instance_of_more_pixels_than_float32_counts() -> None:
    features = torch.ones(1, 1, 1, 2**24 + 2**20)
    inst = torch.zeros(1, 1, 1, features.shape[3], dtype=torch.int32)
    assert instance_average(features, inst).unique().tolist() == [1.0]


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_averaged_in_float32(half: torch.dtype) -> None:
    # 70000 pixels of 1: a sum in float16 overflows, one in bfloat16 stops at 256
    features = torch.ones(1, 1, 100, 700, dtype=half)
    found = instance_average(features, torch.zeros(1, 1, 100, 700, dtype=torch.int32))
    assert found.dtype == torch.float32 and (found == 1).all()


def test_many_pixels_do_not_lose_digits() -> None:
    features = torch.full((1, 1, 1000, 2000), 0.1)
    found = instance_average(features, torch.zeros(1, 1, 1000, 2000, dtype=torch.int32))
    torch.testing.assert_close(found, features, rtol=1e-6, atol=0)


@pytest.mark.parametrize("ids", [[1, 2, 33000], [-3, 2, 10**6]])
def test_gradients_of_the_instance_average(ids: list[int]) -> None:
    inst = torch.from_numpy(np.random.default_rng(1).choice(ids, (2, 1, 3, 4)))
    features = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: instance_average(f, inst), features)
    assert torch.autograd.gradgradcheck(lambda f: instance_average(f, inst), features)
    assert torch.autograd.gradgradcheck(lambda f: instance_average(f, inst).pow(3), features)


def test_encoder_alone_is_the_networks_output_averaged() -> None:
    net = define_G(3, 2, 4, "encoder", 1)
    image = torch.randn(1, 3, 8, 8)
    inst = torch.from_numpy(np.random.default_rng(2).choice([7, 33001], (1, 1, 8, 8)))
    with torch.no_grad():
        expected = average_by_loop(net.model(image).numpy(), inst.numpy())
        np.testing.assert_allclose(net(image, inst), expected, atol=1e-6)


@pytest.mark.parametrize("images", [3, *thorough(1)])
@pytest.mark.parametrize("affine", [False, True])
def test_instance_norm_keeps_channels_last(images: int, affine: bool) -> None:
    """torch's own values and gradients, without a change of layout; also when compiled."""
    torch.manual_seed(0)
    plain, ours = (kind(5, affine=affine) for kind in (nn.InstanceNorm2d, InstanceNorm2d))
    if affine:
        nn.init.normal_(plain.weight)
        ours.load_state_dict(plain.state_dict())
    x = torch.randn(images, 5, 6, 7, requires_grad=True)
    last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    expected = plain(x)
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    for run in (ours, torch.compile(ours, backend="aot_eager")):
        last.grad = None
        found = run(last)
        (found * weights).sum().backward()
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(last.grad, x.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_channel_norm_equals_numpy(layout: torch.memory_format) -> None:
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    norm = ChannelNorm2d(5).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    values, scale, offset = (t.detach().numpy() for t in (x, norm.weight, norm.bias))
    centred = values - values.mean(1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    expected = expected * scale[:, None, None] + offset[:, None, None]
    np.testing.assert_allclose(norm(x).detach(), expected, atol=1e-12)
    assert torch.autograd.gradcheck(norm, x)


@pytest.mark.parametrize("reflect", [reflect_channels_last, reflect_by_index])
@pytest.mark.parametrize("shape", [(1, 5, 6, 7), (3, 2, 4, 5)])
def test_reflection_as_gpus_compute_it(shape: tuple[int, ...], reflect: Callable) -> None:
    """numpy's values, and the gradient of their sum; channels-last maps stay channels-last."""
    x = torch.randn(shape, dtype=torch.float64).to(memory_format=torch.channels_last)
    x.requires_grad_()
    found = reflect(x, (3, 2, 1, 3))
    assert found.is_contiguous(memory_format=torch.channels_last) or reflect is reflect_by_index
    margins = ((0, 0), (0, 0), (1, 3), (3, 2))
    np.testing.assert_array_equal(found.detach(), np.pad(x.detach(), margins, mode="reflect"))
    assert torch.autograd.gradcheck(lambda x: reflect(x, (3, 2, 1, 3)), x)


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("upsample", ["transpose", "nearest"])
@pytest.mark.parametrize("amp", [True, *thorough(False)])
def test_recomputation_changes_no_bit(name: str, upsample: str, amp: bool, monkeypatch):
    """Outputs and gradients are those of plain layers, also if backward runs twice."""
    net = define_G(
        4, 3, 4, **{"netG": name.split(",")[0], **GENERATORS[name], "upsample": upsample}
    )
    x = torch.randn(2, 4, 32, 64)
    found = []
    for small in (0, 2**40):
        monkeypatch.setattr("models.recompute.SMALL", small)
        torch.manual_seed(1)
        image = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            y = net(image).float()
        once = torch.autograd.grad(y.square().sum(), image, retain_graph=True)
        y.sum().backward()
        found.append([y, *once, image.grad, *(p.grad for p in net.parameters())])
        net.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(*found))


@pytest.mark.parametrize("norm", [InstanceNorm2d, ChannelNorm2d])
@pytest.mark.parametrize("amp", [False, True])
def test_maps_that_are_recomputed_are_freed_in_forward(norm: type, amp: bool, monkeypatch) -> None:
    """All that is kept of four convolutions is their outputs, not their inputs as well."""
    monkeypatch.setattr("models.recompute.SMALL", 0)
    convolutions = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(4)]
    later = [layer for conv in convolutions[1:] for layer in (norm(8), nn.ReLU(True), conv)]
    x, made = torch.randn(1, 8, 32, 64), []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.shape == x.shape:
                made.append(StorageWeakRef(out.untyped_storage()))
            return out

    with Record(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
        y = Sequential(convolutions[0], *later)(x)
    alive = {storage.cdata for storage in made if not storage.expired()}
    assert len(alive) == 4 + amp  # with autocast x as bfloat16, too
    y.sum().backward()


def test_frozen_normalizations_are_recomputed(monkeypatch) -> None:
    """Their trainable parameters get the gradients of plain layers, the frozen ones none."""
    found = []
    for small in (0, 2**40):
        monkeypatch.setattr("models.recompute.SMALL", small)
        torch.manual_seed(1)
        net = define_G(4, 3, 4, "global", 1, 1, norm="channel")
        first, second, *_ = (layer for layer in net.modules() if isinstance(layer, ChannelNorm2d))
        for parameter in (first.weight, first.bias, second.bias):
            parameter.requires_grad_(False)
        net(torch.randn(1, 4, 16, 16)).square().sum().backward()
        assert first.weight.grad is None and second.bias.grad is None
        found.append([p.grad for p in net.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*found))
