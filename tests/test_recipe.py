"""What --recipe plus is made of: each part against an independent computation."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, one_line, run_command, run_ok
from PIL import Image
from test_options import FIRST_FLAGS
from torch import nn

from models import load_generator
from models.ema import start_average, update_average
from models.networks import define_G
from models.upsampling import UpsampleConv2d, as_subpixel, upsampling
from options.train_options import RECIPES, TrainOptions
from util.run.checkpoints import load_file
from util.run.flags import OLD_DEFAULTS


def interpolated(x: torch.Tensor, upsample: str) -> torch.Tensor:
    """(B, C, H, W) -> (B, C, 2H, 2W): pixels doubled, or means of neighbours between them."""
    if upsample == "nearest":
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    padded = F.pad(x, (0, 1, 0, 1))
    height, width = x.shape[2:]
    big = x.new_zeros(*x.shape[:2], 2 * height, 2 * width)
    for i in range(2):
        for j in range(2):
            corners = [padded[:, :, a : a + height, b : b + width] for a in (0, i) for b in (0, j)]
            big[:, :, i::2, j::2] = sum(corners) / 4
    return big


@pytest.mark.parametrize("upsample", ["nearest", "bilinear"])
def test_upsampling_is_interpolation_and_a_convolution(upsample: str) -> None:
    torch.manual_seed(0)
    layer = UpsampleConv2d(6, 4, upsample).double()
    x = torch.randn(2, 6, 5, 7, dtype=torch.double, requires_grad=True)
    weight = layer.weight.detach().flip(2, 3).transpose(0, 1)
    plane = interpolated(F.pad(x, (2, 2, 2, 2)), upsample)  # zero outside the image
    expected = F.conv2d(plane, weight, layer.bias, padding=1)[..., 4:-4, 4:-4]
    assert layer(x).shape == (2, 4, 10, 14)
    assert torch.allclose(layer(x), expected, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(layer, x)


@pytest.mark.parametrize("netG", ["global", "local", "encoder"])
@pytest.mark.parametrize("upsample", ["nearest", "bilinear"])
def test_upsampling_keeps_checkpoint_layouts(netG: str, upsample: str) -> None:
    plain = define_G(5, 3, 4, netG, 2, 1)
    other = define_G(5, 3, 4, netG, 2, 1, upsample=upsample)
    shapes = [{k: v.shape for k, v in net.state_dict().items()} for net in (plain, other)]
    assert shapes[0] == shapes[1]
    layers = [layer for layer in plain.modules() if isinstance(layer, nn.ConvTranspose2d)]
    smooth = [layer for layer in other.modules() if isinstance(layer, UpsampleConv2d)]
    assert layers and len(layers) == len(smooth)


@pytest.mark.parametrize("upsample", ["transpose", "nearest"])
def test_subpixel_weights_compute_what_the_3x3_weights_did(upsample: str) -> None:
    torch.manual_seed(0)
    old, new = (upsampling(6, 4, kind).double() for kind in (upsample, "icnr"))
    new.weight.data, new.bias.data = as_subpixel(old.weight.data, upsample), old.bias.data
    x = torch.randn(2, 6, 5, 7, dtype=torch.double)
    assert new(x).shape == (2, 4, 10, 14)
    assert torch.allclose(new(x), old(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("netG", ["global", "local", "encoder"])
def test_subpixel_convolutions_begin_as_doubled_pixels(netG: str) -> None:
    """Weights that doubled pixels share have no highest-frequency part, in either direction."""
    torch.manual_seed(0)
    net = define_G(5, 3, 16, netG, 2, 1, upsample="icnr")
    ups = [layer for layer in net.modules() if isinstance(layer, nn.ConvTranspose2d)]
    assert ups
    sign = torch.tensor([1.0, -1, 1, -1])
    for layer in ups:
        kernel = layer.weight.detach()
        assert kernel.shape[2:] == (4, 4)
        for part in (kernel @ sign, kernel.mT @ sign):
            assert part.abs().max() < 1e-7
        corners = kernel[..., ::3, ::3]  # where only one of the nine 3x3 weights contributes
        assert corners.std() == pytest.approx(0.02, rel=0.15)


def nyquist_share(image: torch.Tensor) -> float:
    """The share of the energy, without that of the mean, at the highest vertical and horizontal
    frequencies."""
    energy = np.abs(np.fft.fft2(image.mean(1)[0].numpy())) ** 2
    energy[0, 0] = 0
    rows, columns = energy.shape[0] // 2, energy.shape[1] // 2
    return (energy[rows].sum() + energy[:, columns].sum()) / energy.sum()


def test_fresh_generators_show_a_grid_only_with_the_transposed_convolution() -> None:
    shares = {"transpose": [], "nearest": [], "bilinear": [], "icnr": []}
    for seed in range(5):
        x = torch.randn(1, 3, 8, 16, generator=torch.Generator().manual_seed(seed))
        x = F.interpolate(x, scale_factor=8, mode="bicubic")
        for upsample in shares:
            torch.manual_seed(seed)
            net = define_G(3, 3, 8, "global", 2, 1, upsample=upsample)
            with torch.no_grad():
                shares[upsample].append(nyquist_share(net(x)))
    means = {upsample: np.mean(values) for upsample, values in shares.items()}
    assert all(means[name] < means["transpose"] / 5 for name in ("nearest", "bilinear", "icnr"))


# -- Moving averages ----------------------------------------------------------------------------


def test_averages_follow_the_weights_by_the_formula() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).double()
    average = start_average(net)
    expected = {name: p.detach().numpy().copy() for name, p in net.named_parameters()}
    for step in range(100):
        with torch.no_grad():
            for p in net.parameters():
                p += torch.randn_like(p)
            net[1].running_mean += step
        update_average(average, net, 0.9, step)
        decay = 0.9 if step >= 80 else (1 + step) / (10 + step)
        for name, p in net.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * p.detach().numpy()
    for name, p in average.named_parameters():
        np.testing.assert_allclose(p.numpy(), expected[name], rtol=1e-12)
    assert torch.equal(average[1].running_mean, net[1].running_mean)


# -- The commands -------------------------------------------------------------------------------

TRAIN = [*TINY, "--niter", 1, "--niter_decay", 1, "--recipe", "plus", "--ema", 0.9, "--no_html"]


@pytest.fixture(scope="module")
def trained(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with features under --recipe plus: checkpoints/plus."""
    root = tmp_path_factory.mktemp("plus")
    where = ["--dataroot", toy_data, "--checkpoints_dir", root / "checkpoints"]
    features = ["--instance_feat", "--nef", 4, "--n_downsample_E", 1]
    run_ok("train.py", *TRAIN, *where, *features, "--name", "plus")
    return root / "checkpoints" / "plus"


def test_a_recipe_sets_the_flags_that_are_not_given(trained: Path) -> None:
    options = json.loads((trained / "opt.json").read_text())
    found = {flag: options[flag] for flag in RECIPES["plus"]}
    assert found == RECIPES["plus"] | {"ema": 0.9, "instance_noise": 0}  # it has features
    assert set(RECIPES["plus"]) <= {"norm", *OLD_DEFAULTS}  # --norm existed from the start


@pytest.mark.parametrize(
    "flags, noise",
    [("", 3), ("--no_instance", 0), ("--instance_noise 0", 0), ("--instance_noise 1", 1)],
)
def test_the_recipe_has_noise_where_there_are_instances(flags: str, noise: int) -> None:
    opt = TrainOptions().parse(["--recipe", "plus", "--gpu_ids", "-1", *flags.split()])
    assert opt.instance_noise == noise


def test_averages_are_saved_with_the_weights(trained: Path) -> None:
    for name in "GE":
        raw, average = (
            load_file(trained / f"latest_net_{name}{ending}.pth") for ending in ("", "_ema")
        )
        assert raw.keys() == average.keys()
        assert any(not torch.equal(raw[key], average[key]) for key in raw)
    assert not (trained / "latest_net_D_ema.pth").exists()


def test_images_come_from_the_averages_by_default(
    trained: Path, toy_data: Path, tmp_path: Path
) -> None:
    images = {}
    for ema in (None, 0):
        out = tmp_path / str(ema)
        flags = [] if ema is None else ["--ema", ema]
        where = ["--checkpoints_dir", trained.parent, "--name", "plus", "--results_dir", out]
        encode = ["--use_encoded_image", "--gpu_ids", -1]
        run_ok("test.py", *where, *encode, *flags)
        paths = sorted(out.rglob("*_synthesized_image.png"))
        images[ema] = [np.asarray(Image.open(path)) for path in paths]
    assert len(images[None]) == 2
    assert any((a != b).any() for a, b in zip(images[None], images[0]))

    label, inst, photo = (
        np.asarray(Image.open(sorted((toy_data / f"test_{kind}").iterdir())[0]))
        for kind in ("label", "inst", "img")
    )
    for ema, flags in ((None, {}), (0, {"ema": 0.0})):
        G = load_generator(trained, **flags)
        image = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None] / 127.5 - 1
        feat = G.encode(image, torch.from_numpy(inst.astype(np.int32))[None, None])
        found = G(label, inst, feat[0])
        assert np.abs(found.astype(int) - images[ema][0]).max() <= 1


def test_the_next_stage_takes_features_from_the_average(
    trained: Path, own_data: Path, tmp_path: Path
) -> None:
    """precompute_feature_maps.py, then the local stage on top of it trains and generates."""
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(trained, checkpoints / "plus")
    where = ["--dataroot", own_data, "--checkpoints_dir", checkpoints]
    run_ok("precompute_feature_maps.py", *where, "--name", "plus", "--gpu_ids", -1)
    local = [*TRAIN, *where, "--name", "local", "--netG", "local", "--ngf", 2, "--loadSize", 128]
    local += [
        "--instance_feat",
        "--nef",
        4,
        "--n_downsample_E",
        1,
        "--load_features",
        "--fit_features",
    ]
    local += ["--load_pretrain", checkpoints / "plus", "--n_blocks_local", 1]
    run_ok("train.py", *local, "--niter_fix_global", 1)
    test = ["--checkpoints_dir", checkpoints, "--name", "local", "--results_dir", tmp_path / "out"]
    run_ok("test.py", *test, "--use_encoded_image", "--gpu_ids", -1)
    assert len(list((tmp_path / "out").rglob("*_synthesized_image.png"))) == 2


def test_a_run_from_before_these_flags_is_continued(toy_data: Path, tmp_path: Path) -> None:
    """Its opt.json and latest_state.pth do not have them; without them all is as in the paper."""
    where = [*TINY, "--dataroot", toy_data, "--checkpoints_dir", tmp_path, "--name", "old"]
    where += ["--no_html"]
    run_ok("train.py", *where, "--niter", 1, "--niter_decay", 0)
    state = load_file(tmp_path / "old" / "latest_state.pth")
    state["flags"] = {flag: state["flags"][flag] for flag in FIRST_FLAGS.split()}
    torch.save(state, tmp_path / "old" / "latest_state.pth")
    done = run_command("train.py", *where, "--niter", 2, "--niter_decay", 0, "--continue_train")
    assert done.returncode == 0 and "note: --niter was 1" in done.stdout, done.stderr
    plus = ["--niter", 3, "--niter_decay", 0, "--continue_train", "--recipe", "plus"]
    refusal = one_line(run_command("train.py", *where, *plus))
    assert "--upsample was transpose, now nearest" in refusal
