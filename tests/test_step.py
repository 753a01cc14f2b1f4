"""The training step against the plain one: three passes of D, one backward for each loss."""

import copy
import textwrap
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import thorough
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef

from benchmarks.baseline import instance_average, plain_vgg, vgg_loss
from benchmarks.measure import SavedBytes
from data.values import RGB8
from models import pix2pixHD_model
from models.build import min_training_side
from models.inference_model import InferenceModel
from models.instance_maps import instance_noise, network_input
from models.losses import feature_matching_loss, gan_loss, l1
from models.pix2pixHD_model import Pix2PixHDModel
from options.train_options import TrainOptions
from util.image_pool import ImagePool

CPU = torch.device("cpu")
TINY = (
    "--gpu_ids -1 --label_nc 6 --ngf 4 --ndf 4 --nef 4 --n_downsample_global 2 --n_blocks_global 2"
    " --n_downsample_E 1 --num_D 2 --n_layers_D 2"
)
FEWEST_LAYERS = (  # the compiler takes seconds
    "--no_vgg_loss --n_downsample_global 1 --n_blocks_global 1 --num_D 1 --n_layers_D 1"
)
HEIGHT, WIDTH = 32, 64


def options(flags: str = "--no_vgg_loss"):
    return TrainOptions().parse([*TINY.split(), *flags.split()])


def make_model(flags: str) -> Pix2PixHDModel:
    """A model whose weights depend only on the architecture's flags, and are not tiny."""
    torch.manual_seed(0)
    model = Pix2PixHDModel(options(flags), CPU)
    with torch.no_grad():
        for net in model.networks().values():
            for parameter in net.parameters():
                parameter.mul_(4).add_(0.01)
    return model


def make_batch(number: int = 0, images: int = 2) -> dict:
    generator = torch.Generator().manual_seed(100 + number)
    shape = (images, 1, HEIGHT, WIDTH)
    blocks = torch.randint(0, 6, (images, 1, 4, 8), generator=generator)
    label = blocks.repeat_interleave(8, 2).repeat_interleave(8, 3)
    inst = label * 1000 + (torch.arange(WIDTH) // 20)
    image = torch.rand(shape[0], 3, *shape[2:], generator=generator) * 2 - 1
    feat = torch.rand(shape[0], 3, *shape[2:], generator=generator) * 2 - 1
    return {"label": label.byte(), "inst": inst.int(), "image": image, "feat": feat}


def inst_noise(inst: Tensor, k: int, count: int) -> Tensor:
    """The k-th of count numbers of each instance: its id times 1 / g**k, modulo 1, on a grid."""
    g = np.roots([1, *[0] * (count - 1), -1, -1])
    g = g[(g.imag == 0) & (g.real > 1)].real[0]
    step = int(65536 / g**k)
    step += step % 2 == 0
    values = np.array([int(i) * step % 65536 / 32768 - 1 for i in inst.flatten()], np.float32)
    return torch.from_numpy(values).view(inst.shape)


def numbers(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: loss.item() for name, loss in losses.items()}


class PlainStep:
    """What the paper describes, in its most direct form; on copies of a model's networks."""

    def __init__(self, model: Pix2PixHDModel) -> None:
        self.opt = opt = model.opt
        self.G, self.D = copy.deepcopy(model.netG), copy.deepcopy(model.netD)
        self.E = copy.deepcopy(model.netE)
        self.vgg = None if opt.no_vgg_loss else plain_vgg(opt.vgg_weights)
        self.Q = copy.deepcopy(model.netQ)
        of_G = [p for net in (self.G, self.E, self.Q) if net for p in net.parameters()]
        self.optimizer_G = torch.optim.Adam(of_G, lr=opt.lr, betas=(0.5, 0.999))
        self.optimizer_D = torch.optim.Adam(self.D.parameters(), lr=opt.lr, betas=(0.5, 0.999))
        self.pool = ImagePool(opt.pool_size, opt.seed)

    def gan(self, outputs: list[list[Tensor]], target: float) -> Tensor:
        loss = nn.BCEWithLogitsLoss() if self.opt.no_lsgan else nn.MSELoss()
        return sum(loss(scale[-1], torch.ones_like(scale[-1]) * target) for scale in outputs)

    def inputs(self, batch: dict) -> tuple[Tensor, Tensor]:
        label, opt = batch["label"].long(), self.opt
        x = F.one_hot(label[:, 0], opt.label_nc).permute(0, 3, 1, 2).float()
        if not opt.no_instance:
            inst = batch["inst"].float()
            padded = F.pad(inst, (1, 1, 1, 1), mode="replicate")
            edge = torch.zeros_like(inst, dtype=torch.bool)
            for down, right in ((0, 1), (2, 1), (1, 0), (1, 2)):
                edge |= padded[..., down : down + HEIGHT, right : right + WIDTH] != inst
            x = torch.cat([x, edge.float()], 1)
        if self.E:
            regions = batch["label" if opt.label_feat else "inst"]
            return x, torch.cat([x, self.E(batch["image"], regions)], 1)
        if opt.instance_noise:
            more = [inst_noise(batch["inst"], k, opt.instance_noise) for k in (1, 2, 3)]
            return x, torch.cat([x, *more], 1)
        feat = batch["feat"]
        if opt.fit_features:
            feat = instance_average(feat, batch["inst"])
        return x, torch.cat([x, feat], 1) if opt.load_features else x

    def input_of_D(self, x: Tensor, images: Tensor, inst: Tensor) -> Tensor:
        if not self.opt.instance_mean_D:
            return torch.cat([x, images], 1)
        return torch.cat([x, images, instance_average(images, inst)], 1)

    def latent(self, x: Tensor, images: Tensor, inst: Tensor) -> Tensor:
        noise = [inst_noise(inst, k, self.opt.instance_noise) for k in (1, 2, 3)]
        read = torch.cat([x, instance_average(images, inst)], 1).permute(0, 2, 3, 1)
        for layer in self.Q:
            is_relu = isinstance(layer, nn.ReLU)
            read = read.relu() if is_relu else read @ layer.weight[:, :, 0, 0].T + layer.bias
        return ((read - torch.cat(noise, 1).permute(0, 2, 3, 1)) ** 2).mean()

    def __call__(self, batch: dict) -> dict[str, float]:
        opt, real, inst, losses = self.opt, batch["image"], batch.get("inst"), {}
        x, into_G = self.inputs(batch)
        fake = self.G(into_G)
        old = self.pool.query(self.input_of_D(x, fake.detach(), inst))
        losses["D_fake"] = self.gan(self.D(old), 0.0)
        real_outputs = self.D(self.input_of_D(x, real, inst))
        losses["D_real"] = self.gan(real_outputs, 1.0)
        outputs = self.D(self.input_of_D(x, fake, inst))
        losses["G_GAN"] = self.gan(outputs, 1.0)
        if opt.lambda_L1:
            losses["G_L1"] = opt.lambda_L1 * F.l1_loss(fake, real)
        if opt.lambda_latent:
            losses["G_latent"] = opt.lambda_latent * self.latent(x, fake, inst)
        if not opt.no_ganFeat_loss:
            weight = 4 / (opt.n_layers_D + 1) / opt.num_D * opt.lambda_feat
            losses["G_GAN_Feat"] = weight * sum(
                F.l1_loss(a, b.detach())
                for fake_maps, real_maps in zip(outputs, real_outputs)
                for a, b in zip(fake_maps[:-1], real_maps[:-1])
            )
        if self.vgg is not None:
            losses["G_VGG"] = opt.lambda_feat * vgg_loss(self.vgg, fake, real)
        self.optimizer_G.zero_grad()
        sum(loss for name, loss in losses.items() if name.startswith("G_")).backward()
        self.optimizer_D.zero_grad()
        ((losses["D_fake"] + losses["D_real"]) * 0.5).backward()
        self.optimizer_G.step()
        self.optimizer_D.step()
        return numbers(losses)

    def networks(self) -> dict[str, nn.Module]:
        return {"G": self.G, "D": self.D, **({"E": self.E} if self.E else {})}


def gradients(networks: dict[str, nn.Module]) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": parameter.grad
        for name, net in networks.items()
        for key, parameter in net.named_parameters()
    }


def assert_gradients_close(found: dict, expected: dict, tolerance: float = 2e-4) -> None:
    """Each tensor within a share of its network's largest gradient.

    (Some of them are only rounding: a bias in front of a normalization has gradient 0.)
    """
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] is not None, name
        of_net = [g for other, g in expected.items() if other[0] == name[0]]
        largest = max(g.abs().max() for g in of_net)
        assert largest > 0
        difference = (found[name] - value).abs().max()
        assert difference <= tolerance * largest, (name, difference, largest)


FLAGS = [
    "--no_vgg_loss",
    "--no_vgg_loss --no_lsgan --no_ganFeat_loss",
    "--no_vgg_loss --instance_feat",
    "--no_vgg_loss --label_feat --no_instance",
    "--no_vgg_loss --instance_feat --load_features --fit_features",
    "--no_vgg_loss --instance_noise 3 --lambda_latent 7",
    "--no_vgg_loss --num_D 3 --n_layers_D 3 --lambda_feat 3",
    "--no_vgg_loss --norm batch",
    "--no_vgg_loss --netG local --n_downsample_global 1 --n_blocks_local 1",
    "--no_vgg_loss --recipe plus --instance_feat",
    "--no_vgg_loss --no_ganFeat_loss --upsample bilinear --pool_size 2 --instance_mean_D",
    "VGG",
    *thorough(
        "--no_vgg_loss --no_ganFeat_loss",
        "--no_vgg_loss --no_lsgan",
        "--no_vgg_loss --instance_feat --load_features",
        "--no_vgg_loss --instance_noise 3",
        "--no_vgg_loss --instance_mean_D",
        "--no_vgg_loss --norm channel --instance_feat",
        "VGG --instance_feat --no_lsgan",
    ),
]


@pytest.mark.parametrize("flags", FLAGS)
def test_step_equals_the_plain_step(flags: str, request: pytest.FixtureRequest) -> None:
    if "VGG" in flags:
        flags = flags.replace("VGG", f"--vgg_weights {request.getfixturevalue('vgg_file')}")
    model = make_model(flags)
    plain = PlainStep(model)
    for number in range(2):
        batch = make_batch(number)
        if model.opt.no_instance:
            del batch["inst"]
        losses = model.step(batch)
        expected = plain(batch)
        assert numbers(losses) == pytest.approx(expected, rel=1e-4)
        assert_gradients_close(gradients(model.networks()), gradients(plain.networks()))
        assert model.finite
        for name, net in plain.networks().items():  # the next step starts from the same weights
            model.networks()[name].load_state_dict(net.state_dict())


def test_photographs_may_be_bytes() -> None:
    """They are converted to the same numbers on the device."""
    batch = make_batch()
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, batch["image"].shape, dtype=torch.uint8, generator=generator)
    batch["image"] = image
    floats = torch.stack([RGB8.to_tensor(one.permute(1, 2, 0).numpy()) for one in image])
    losses = []
    for one in (batch, batch | {"image": floats}):
        model = make_model("--no_vgg_loss --instance_feat")
        losses.append(model.step(one))
        assert torch.equal(model.real, floats)
    assert losses[0] == losses[1]


@pytest.mark.parametrize("regions", ["label", "inst"])
def test_fitted_features_are_constant_in_their_regions(regions: str) -> None:
    kind = "--label_feat" if regions == "label" else "--instance_feat"
    model = make_model(f"--no_vgg_loss --load_features --fit_features {kind}")
    batch = make_batch(images=1)
    feat, ids = batch["feat"][0].numpy().copy(), batch[regions][0, 0].numpy()
    for i in np.unique(ids):
        feat[:, ids == i] = feat[:, ids == i].mean(1, keepdims=True)
    fitted = model.generate(batch)[1]
    model.opt.fit_features = False
    by_hand = model.generate(batch | {"feat": torch.from_numpy(feat)[None]})[1]
    torch.testing.assert_close(fitted, by_hand)


def test_updates_equal_those_of_plain_adam() -> None:
    model = make_model("--no_vgg_loss --instance_feat --lr 0.001")
    plain, before = PlainStep(model), copy.deepcopy(model.networks())
    model.step(make_batch())
    plain(make_batch())
    for name, net in plain.networks().items():
        for key, expected in net.named_parameters():
            found, old = dict(model.networks()[name].named_parameters())[key], before[name]
            grad = expected.grad.abs()
            clear = grad > 1e-3 * grad.max()  # Adam's first step is the sign, not that of rounding
            if key.endswith("weight"):
                assert not torch.equal(found, dict(old.named_parameters())[key])
                torch.testing.assert_close(found[clear], expected[clear], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_biases_before_a_normalization_are_not_trained(norm: str) -> None:
    """Adam would turn their rounding errors into steps as large as any others."""
    model = make_model(f"--no_vgg_loss --instance_feat --norm {norm}")
    before = copy.deepcopy(model.networks())
    model.step(make_batch())
    untrained = {id(p) for net in model.networks().values() for p in biases_before_norms(net)}
    assert len(untrained) > 10
    for name, net in model.networks().items():
        for key, parameter in net.named_parameters():
            moved = not parameter.equal(before[name].get_parameter(key))
            assert moved == (id(parameter) not in untrained), f"{name}.{key}"


@pytest.mark.parametrize("flags", ["", "--instance_feat", "--no_lsgan --norm batch"])
def test_step_equals_the_lines_in_its_module_docstring(
    flags: str, vgg_file: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """In float64, so that equal means equal: losses, and all weights after the update."""
    lines = textwrap.dedent(pix2pixHD_model.__doc__.split("compares:")[1].split("It runs D")[0])
    assert lines.count("\n") > 8
    request.addfinalizer(lambda: torch.set_default_dtype(torch.float32))
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    model = make_model(f"--vgg_weights {vgg_file} {flags}").double()
    plain = PlainStep(model)
    batch = make_batch()
    batch["image"] = batch["image"].double()
    x, into_G = (maps.double() for maps in plain.inputs(batch))
    plain.vgg = plain.vgg.double()
    optimizers = []

    def generate(_: Tensor) -> Tensor:
        return plain.G(into_G)

    def update(*networks: nn.Module, loss: Tensor) -> None:
        """Compute the gradients; optimizers step when all losses of the step have theirs."""
        networks = [plain.G if net is generate else net for net in networks if net]
        optimizers.append(plain.optimizer_D if plain.D in networks else plain.optimizer_G)
        trained = [p for net in networks for p in net.parameters()]
        for parameter, gradient in zip(trained, torch.autograd.grad(loss, trained)):
            parameter.grad = gradient

    def matching(fake: list[list[Tensor]], real: list[list[Tensor]]) -> Tensor:
        pairs = [(a, b) for f, r in zip(fake, real) for a, b in zip(f[:-1], r[:-1])]
        return 4 * sum(F.l1_loss(a, b.detach()) for a, b in pairs) / len(pairs)

    names = {
        **{"x": x, "real": batch["image"], "G": generate, "D": plain.D, "E": plain.E},
        **{"cat": lambda *maps: torch.cat(maps, 1), "update": update},
        **{"gan_loss": plain.gan, "feature_matching_loss": matching},
        **{"vgg_loss": partial(vgg_loss, plain.vgg), "lambda_feat": model.opt.lambda_feat},
    }
    exec(lines, names)
    for optimizer in optimizers:
        optimizer.step()
    losses = model.step(batch)
    assert losses.keys() == {"G_GAN", "G_GAN_Feat", "G_VGG", "D_real", "D_fake"}
    for name, value in losses.items():
        assert value.item() == pytest.approx(names[name].item(), rel=1e-10), name
    untrained = {id(p) for net in model.networks().values() for p in biases_before_norms(net)}
    for name, net in plain.networks().items():
        for found, expected in zip(model.networks()[name].parameters(), net.parameters()):
            if id(found) not in untrained:
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def biases_before_norms(net: nn.Module) -> list[nn.Parameter]:
    """Biases that have no effect: their gradients are only rounding."""
    found = []
    for layers in net.modules():
        if isinstance(layers, nn.Sequential):
            for layer, following in pairwise(layers):
                if isinstance(following, (nn.InstanceNorm2d, nn.BatchNorm2d)):
                    found.append(layer.bias)
    return found


def test_step_with_a_pool() -> None:
    """D learns from older images, G from the newest; weights stay, so that steps are comparable."""
    model = make_model("--no_vgg_loss --pool_size 3 --lr 0")
    plain = PlainStep(model)
    for number in range(6):
        losses = model.step(make_batch(number))
        expected = plain(make_batch(number))
        assert numbers(losses) == pytest.approx(expected, rel=1e-4)
        assert_gradients_close(gradients(model.networks()), gradients(plain.networks()))
    no_pool = make_model("--no_vgg_loss --lr 0")
    assert no_pool.step(make_batch(5))["D_fake"].item() != pytest.approx(
        expected["D_fake"], rel=1e-6
    )


def test_a_full_pool_takes_images_of_another_size() -> None:
    """After --continue_train with another --loadSize, or in data sets of several sizes."""
    pool = ImagePool(3)
    pool.query(torch.zeros(3, 1, 4, 4))
    seen = [pool.query(torch.full((1, 1, 2, 2), float(k))).mean().item() for k in range(1, 40)]
    assert 2 in {image.shape[1] for image in pool.images}
    assert any(value < k for k, value in enumerate(seen, start=1))


def test_an_image_that_does_not_count_stays_out_of_the_pool() -> None:
    """A process without a share of the last batch computes with another one's image."""
    model = make_model("--no_vgg_loss --pool_size 3")
    model.step(make_batch(0), weight=0)
    assert not model.pool.images
    model.step(make_batch(1))
    assert len(model.pool.images) == 2


def test_weight_scales_the_gradients_only() -> None:
    model, half = make_model("--no_vgg_loss --lr 0"), make_model("--no_vgg_loss --lr 0")
    losses, same = model.step(make_batch()), half.step(make_batch(), weight=0.5)
    assert losses == same
    scaled = {name: 2 * grad for name, grad in gradients(half.networks()).items()}
    assert_gradients_close(scaled, gradients(model.networks()), 1e-5)


@pytest.mark.parametrize(
    "flags",
    [
        *("", "--n_downsample_global 0", "--num_D 3", "--instance_feat --n_downsample_E 3"),
        "--netG local --n_downsample_global 1",
        "--netG local --n_downsample_global 0 --n_local_enhancers 2",
    ],
)
def test_the_smallest_images_that_may_be_trained_on(flags: str) -> None:
    model = make_model(f"--no_vgg_loss --num_D 1 {flags}")
    side = min_training_side(model.opt)
    batch = {kind: value[..., :side, :side] for kind, value in make_batch().items()}
    assert all(loss.isfinite() for loss in model.step(batch).values())
    assert model.fake.shape[-2:] == (side, side)


def test_images_of_any_size_are_padded_and_cropped() -> None:
    model = make_model("--no_vgg_loss --instance_feat")
    batch = {kind: value[..., :27, :45] for kind, value in make_batch().items()}
    losses = model.step(batch)
    assert model.fake.shape == (2, 3, 27, 45)
    assert all(value.isfinite() for value in losses.values())


@pytest.mark.parametrize(
    "flags",
    [
        "--instance_noise 2 --lambda_latent 3 --instance_mean_D --lambda_L1 5 --loss_weights",
        "--recipe plus --instance_feat --output_nc 1 --ignore_label 5",
        *thorough(
            "--instance_feat --load_features --fit_features --pool_size 2 --cond_nc 3",
            "--label_feat --no_instance --norm batch --no_lsgan --use_dropout",
            "--netG local --niter_fix_global 1 --norm channel --checkpoint_activations",
        ),
    ],
)
def test_a_step_stays_on_its_device(flags: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes only, on a device that stands in for a GPU: a step mixes no tensors of two devices and
    copies no value to the host."""
    monkeypatch.setattr(nn.Module, "to", lambda module, *_, **__: module)  # they are made there
    device, opt = torch.device("meta"), options(f"--no_vgg_loss {flags}")
    shape = 2, 3, HEIGHT, WIDTH
    batch = make_batch() | {"cond": torch.zeros(shape), "loss_weight": torch.zeros(shape)[:, :1]}
    batch["image"] = torch.zeros(shape, dtype=torch.uint8)[:, : opt.output_nc]
    unused = {"inst": opt.no_instance, "cond": not opt.cond_nc, "feat": not opt.load_features}
    with FakeTensorMode(allow_non_fake_inputs=True):
        with device:
            model = Pix2PixHDModel(opt, device)
        for _ in range(2):
            losses = model.step({k: value for k, value in batch.items() if not unused.get(k)})
    assert {loss.device.type for loss in losses.values()} == {"meta"}


@pytest.mark.parametrize(
    "net",
    [
        "--n_blocks_global 9",
        "--netG local --n_downsample_global 1 --n_blocks_local 4",
        "--n_blocks_global 9 --norm batch",
        "VGG",
    ],
)
def test_recomputation_changes_only_memory(net: str, vgg_file: Path) -> None:
    flags = f"--instance_feat {net.replace('VGG', '')}"
    flags += f" --vgg_weights {vgg_file}" if "VGG" in net else " --no_vgg_loss"
    plain, saving = make_model(flags), make_model(f"{flags} --checkpoint_activations")
    peaks, losses = [], []
    for model in (plain, saving):
        with SavedBytes(list(model.parameters())) as saved:
            losses.append(model.step(make_batch()))
        peaks.append(saved.peak)
        assert saved.now == 0
    assert losses[0] == losses[1]
    assert_gradients_close(gradients(saving.networks()), gradients(plain.networks()), 1e-6)
    for name, buffer in plain.named_buffers():  # running statistics moved once, not twice
        torch.testing.assert_close(dict(saving.named_buffers())[name], buffer)
    assert peaks[1] < 0.9 * peaks[0]


@pytest.mark.parametrize(("amp", "tolerance"), [*thorough(("bf16", 0.05)), ("fp16", 0.01)])
def test_half_precision_stays_close(amp: str, tolerance: float, vgg_file: Path) -> None:
    # (VGG in fp16 is slow on a CPU)
    vgg = "--no_vgg_loss" if amp == "fp16" else f"--vgg_weights {vgg_file}"
    flags = f"{vgg} --instance_feat"
    full, half = make_model(flags), make_model(f"{flags} --amp {amp}")
    if amp == "fp16":
        half.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    expected, losses = full.step(make_batch()), half.step(make_batch())
    assert numbers(losses) == pytest.approx(numbers(expected), rel=tolerance)
    assert all(value.dtype == torch.float32 for value in losses.values())
    assert half.finite and half.scaler.get_scale() in (1.0, 1024.0)  # no step was skipped
    for name, net in full.networks().items():
        a = torch.cat([p.grad.flatten() for p in half.networks()[name].parameters()])
        b = torch.cat([p.grad.flatten() for p in net.parameters()])
        assert F.cosine_similarity(a, b, dim=0) > 0.95
        assert a.norm().item() == pytest.approx(b.norm().item(), rel=0.1)  # unscaled again


@pytest.mark.parametrize("more", ["", "--instance_feat", "--netG local --n_blocks_local 1"])
def test_half_precision_input_gives_the_same_step(more: str) -> None:
    """Labels in half precision, to which autocast would have rounded: not a bit differs."""
    given, kept = (make_model(f"--no_vgg_loss --amp bf16 {more}") for _ in range(2))
    losses = kept.step(make_batch())

    def in_float32(*maps: Tensor | None, dtype: torch.dtype, **more: object) -> Tensor:
        return network_input(*maps, **more)

    given.call["network_input"] = in_float32
    assert losses == given.step(make_batch())
    for name, net in kept.networks().items():
        for a, b in zip(net.parameters(), given.networks()[name].parameters()):
            assert torch.equal(a, b)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "flags",
    [
        "--instance_feat --checkpoint_activations --lambda_L1 10",
        "--loss_weights --no_lsgan --ignore_label 5 --instance_noise 2 --lambda_latent 3",
    ],
)
def test_a_compiled_step_is_the_same(flags: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the compiler's front end traces it; generating code for a device takes minutes."""
    flags = f"{FEWEST_LAYERS} {flags}"
    plain, traced = make_model(flags), []

    def trace(work: Callable, dynamic: bool | None) -> Callable:
        traced.append(work)
        return compile_work(work, backend="aot_eager", fullgraph=True)

    torch.compiler.reset()
    compile_work = torch.compile
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", trace)
        compiled = make_model(f"{flags} --compile")
    between = [network_input, instance_noise, gan_loss, feature_matching_loss, l1]
    networks = [*compiled.networks().values(), *([compiled.netQ] if compiled.netQ else [])]
    assert traced == [*networks, *between]
    batch = make_batch()
    batch["loss_weight"] = torch.rand(2, 1, HEIGHT, WIDTH)
    losses, expected = compiled.step(batch), plain.step(batch)
    assert numbers(losses) == pytest.approx(numbers(expected), rel=1e-4)
    assert_gradients_close(gradients(compiled.networks()), gradients(plain.networks()))


@pytest.mark.thorough
@pytest.mark.parametrize("one_size", [False, True])
def test_a_compiled_step_takes_batches_of_several_sizes(monkeypatch, one_size: bool) -> None:
    """The last batch of an epoch is smaller: then the compiler makes graphs for any size, but
    where all images have one size, graphs for each of the two."""
    aot_eager = torch._dynamo.lookup_backend("aot_eager")
    for_any_size = []

    def backend(graph, inputs):
        for_any_size.append(any(isinstance(one, torch.SymInt) for one in inputs))
        return aot_eager(graph, inputs)

    with monkeypatch.context() as patch:
        compile_network = torch.compile
        patch.setattr(
            torch,
            "compile",
            lambda net, dynamic: compile_network(net, dynamic=dynamic, backend=backend),
        )
        model = Pix2PixHDModel(options(f"{FEWEST_LAYERS} --compile"), CPU, one_size)
    whole = make_batch(images=3)
    for images in (3, 2, 3):
        batch = {k: v[:images] for k, v in whole.items() if isinstance(v, Tensor)}
        losses = model.step(batch)
        assert all(value.isfinite() for value in losses.values())
    assert any(for_any_size) != one_size


def test_a_state_can_be_loaded_by_another_kind_of_run() -> None:
    """Adam's moments take the memory layout of their weights, its settings those of the new run."""
    first, second = make_model("--no_vgg_loss"), make_model("--no_vgg_loss")
    first.step(make_batch())
    assert first.optimizer_D.state[first.netD.scale0_layer1[0].weight]["exp_avg"].is_contiguous(
        memory_format=torch.channels_last
    )
    second.to(memory_format=torch.contiguous_format)  # as on a GPU without tensor cores
    state = first.training_state()
    for group in state["optimizer_G"]["param_groups"]:
        group["fused"] = False  # as older runs on CPUs saved it
    second.load_state_dict(first.state_dict())
    second.load_training_state(state)
    for optimizer in (second.optimizer_G, second.optimizer_D):
        assert all(group["fused"] for group in optimizer.param_groups)
        for weight, values in optimizer.state.items():
            assert values["exp_avg"].stride() == weight.stride()
    losses, expected = second.step(make_batch()), first.step(make_batch())
    assert numbers(losses) == pytest.approx(numbers(expected), rel=1e-4)


def test_an_overflow_in_fp16_skips_the_update_and_lowers_the_scale() -> None:
    model = make_model("--no_vgg_loss --amp fp16")
    model.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = copy.deepcopy(model.netG.state_dict())
    model.step(make_batch())
    assert model.scaler.get_scale() == 2.0**39 and model.finite
    assert all(torch.equal(before[key], value) for key, value in model.netG.state_dict().items())


def test_an_overflow_in_fp16_does_not_stay_in_batch_norm() -> None:
    model = make_model("--no_vgg_loss --amp fp16 --norm batch --ema 0.9 --cond_nc 1")
    batch = make_batch() | {"cond": torch.full((2, 1, HEIGHT, WIDTH), 1e6)}
    model.step(batch)
    assert model.finite
    buffers = [b for net in model.saved_networks().values() for b in net.buffers()]
    assert buffers and all(buffer.isfinite().all() for buffer in buffers)


def test_a_loss_that_is_not_a_number_is_noticed() -> None:
    model = make_model("--no_vgg_loss")
    with torch.no_grad():
        next(model.netG.parameters()).fill_(float("nan"))
    model.step(make_batch())
    assert not model.finite


def test_graphs_are_never_in_memory_together(vgg_file: Path) -> None:
    """What D and VGG save is freed before the next of them begins; only G's graph remains."""
    model = make_model(f"--vgg_weights {vgg_file} --ndf 16")
    begun, ended = {}, {}
    with SavedBytes(list(model.parameters())) as saved:
        for name in ("VGG", "D"):
            called = model.call[name]

            def watched(*args, name=name, called=called):
                number = name + str(sum(key.startswith(name) for key in begun))
                begun[number] = saved.now
                outputs = called(*args)
                ended[number] = saved.now
                return outputs

            model.call[name] = watched
        model.step(make_batch())
    assert list(begun) == ["VGG0", "D0", "D1"] and saved.now == 0
    of_G = begun["VGG0"]
    assert of_G > 0
    for name in begun:
        # inputs that a later pass needs may be counted once more, whole graphs may not
        assert begun[name] == of_G
        assert ended[name] > 1.2 * of_G


@pytest.mark.parametrize("flags", ["", "--pool_size 2", "--no_ganFeat_loss", "--lambda_L1 10"])
def test_maps_of_the_losses_are_freed_before_the_generators_backward(
    flags: str, vgg_file: Path
) -> None:
    """D's feature maps, and what the losses saved for backward."""
    model = make_model(f"--vgg_weights {vgg_file} {flags}")
    maps: list[StorageWeakRef] = []
    generate, discriminate = model.call["G"], model.call["D"]
    at_forward, at_backward = [], []

    def generated(x: Tensor) -> Tensor:
        fake = generate(x)
        at_forward.append(saved.now)
        fake.register_hook(lambda _: at_backward.append((saved.now, alive())))
        return fake

    def discriminated(x: Tensor) -> list[list[Tensor]]:
        outputs = discriminate(x)
        maps.extend(StorageWeakRef(one.untyped_storage()) for scale in outputs for one in scale)
        return outputs

    def alive() -> int:
        return sum(not one.expired() for one in maps)

    model.call |= {"G": generated, "D": discriminated}
    with SavedBytes(list(model.parameters())) as saved:
        model.step(make_batch())
    assert len(maps) >= 4
    assert at_backward == [(at_forward[0], 0)]


def test_no_gradient_is_computed_and_discarded() -> None:
    """Each convolution of D computes its weight gradient twice (real, fake), never three times."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.weights = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.convolution_backward.default:
                self.weights += bool(args[-1][1])
            return func(*args, **(kwargs or {}))

    model = make_model("--no_vgg_loss")
    convolutions = {
        name: sum(isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)) for m in net.modules())
        for name, net in model.networks().items()
    }
    with Count() as count:
        model.step(make_batch())
    assert count.weights == convolutions["G"] + 2 * convolutions["D"]


def test_the_encoder_sees_photographs_padded_as_in_training() -> None:
    """Of validation and other commands: to the larger stride of G."""
    model = make_model("--no_vgg_loss --instance_feat --netG local --n_blocks_local 1")
    batch = {kind: value[..., :26, :50] for kind, value in make_batch().items()}
    seen, encode = [], model.call["E"]
    model.call["E"] = lambda image, regions: seen.append(encode(image, regions)) or seen[-1]
    model.generate(batch)
    found = InferenceModel.in_training(model, model.opt).encode_batch(batch)
    torch.testing.assert_close(found, seen[0][..., :26, :50])
