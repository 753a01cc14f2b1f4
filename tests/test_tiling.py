"""Generation in tiles equals generation of the whole image."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
from conftest import ROOT, run_ok, thorough
from PIL import Image
from tiny_run import write_run
from torch import nn

from models import load_generator, tiling
from models.inference_model import use_own_statistics
from models.networks import define_G
from models.tiling import Map, Tiling, tiles
from options.test_options import TestOptions
from util.errors import UserError

GENERATORS = {
    "global": {"n_downsample_global": 2, "n_blocks_global": 2},
    "global, batch norm": {"norm": "batch", "use_dropout": True},
    "global, no blocks": {"n_downsample_global": 1, "n_blocks_global": 0},
    "local": {"n_downsample_global": 1, "n_blocks_global": 1, "n_blocks_local": 2},
    "local, two enhancers": {"n_downsample_global": 1, "n_local_enhancers": 2},
    "local, no blocks": {"n_blocks_global": 0, "n_blocks_local": 0, "norm": "batch"},
    "global, nearest": {"upsample": "nearest", "norm": "channel"},
    "local, icnr": {"n_downsample_global": 1, "upsample": "icnr"},
    "local, bilinear": {"n_downsample_global": 1, "upsample": "bilinear"},
}


def generator(kind: str) -> nn.Module:
    """A generator in float64 whose parameters, also those of batch norms, are all random."""
    flags = GENERATORS[kind]
    torch.manual_seed(0)
    net = define_G(5, 3, 4, kind.split(",")[0], **flags).double().eval()
    for value in net.parameters():
        value.data.normal_(0, 0.15)
    use_own_statistics(net)
    return net


@pytest.mark.parametrize(
    ("side", "on_disk"), [(1, True), (8, False), *thorough((3, False), (8, True))]
)
@pytest.mark.parametrize("kind", GENERATORS)
def test_tiles_give_the_whole_image(
    kind: str, side: int, on_disk: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tiling, "MAX_IN_MEMORY", 0 if on_disk else 2**28)
    files, temporary_file = [], tempfile.TemporaryFile

    def counted(dir: Path) -> IO:
        files.append(dir)
        return temporary_file(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", counted)
    net = generator(kind)
    x = torch.randn(1, 5, 48, 80, dtype=torch.float64)
    parts = []

    def read(region: tuple[slice, slice]) -> torch.Tensor:
        parts.append(x[(..., *region)].clone())
        return parts[-1]

    with torch.inference_mode():
        expected = net(x)
    found = Tiling(side, tmp_path).generate(net, Map(read, (48, 80), 5))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert expected.std() > 0.05
    assert len(parts) > 3 and max(part.numel() for part in parts) < x.numel()
    assert bool(files) == on_disk and set(files) <= {tmp_path}
    assert not list(tmp_path.iterdir())


def test_tiles_cover_a_map_once() -> None:
    counts = np.zeros((13, 7), int)
    for region in tiles((13, 7), 5):
        assert max(counts[region].shape) <= 5
        counts[region] += 1
    assert (counts == 1).all()


RUNS = {
    "global": {},
    "local": {"netG": "local", "norm": "batch"},
    "no_instance": {"no_instance": True, "label_nc": 7, "ignore_label": 255},
    "rgb": {"label_nc": 0, "no_instance": True},
    "features": {"instance_feat": True},
    "noise": {"instance_noise": 3},
}


@pytest.mark.parametrize("kind", RUNS)
def test_maps_of_any_size(kind: str, tmp_path: Path) -> None:
    """Padding, one-hot labels and edges are those of the whole image, a batch equals its images."""
    flags = {"instance_feat": False, **RUNS[kind]}
    G = load_generator(write_run(tmp_path, "run", **flags))
    G.netG.double()
    G.dtype = torch.float64
    rng = np.random.default_rng(0)
    label = rng.integers(0, 7, (2, 45, 83))
    if kind == "no_instance":
        label[:, 10:20, :30] = 255
    if kind == "rgb":
        label = rng.integers(0, 256, (2, 45, 83, 3), np.uint8)
    inst = None if flags.get("no_instance") else rng.integers(0, 3, (2, 45, 83)) * 40000
    feat = rng.normal(size=(2, 3, 45, 83)) if kind == "features" else None
    whole = G(label, inst, feat)
    G.tiling = Tiling(2)
    tiled = G(label, inst, feat)
    assert tiled.shape == whole.shape and whole.std() > 10
    # float32 at the end, then truncated: a value between two grey levels may become either
    assert np.abs(tiled.astype(int) - whole).max() <= 1
    assert (tiled != whole).mean() < 1e-3


def test_half_precision(tmp_path: Path) -> None:
    G = load_generator(write_run(tmp_path, "run", instance_feat=False), data_type=16)
    label = np.random.default_rng(0).integers(0, 35, (32, 64))
    whole = G(label, label).astype(int)
    G.tiling = Tiling(2)
    assert np.abs(G(label, label) - whole).mean() < 1
    G.opt.amp = "bf16"
    assert np.abs(G(label, label) - whole).mean() < 5


def test_normalization_far_from_zero_keeps_its_digits() -> None:
    """Where float32 rounds the mean itself by up to a hundredth of the deviation."""
    noise = np.random.default_rng(0).normal(size=(1, 2, 9, 11))
    values = torch.from_numpy(noise + np.array([2e5, -3e5])[:, None, None]).float()
    x = Map(lambda at: values[(..., *at)], (9, 11), 2)
    found = Tiling(4)._normalized(x, nn.InstanceNorm2d(2)).read((slice(0, 9), slice(0, 11)))
    exact = values.double().numpy()
    mean, deviation = (f(exact, (2, 3), keepdims=True) for f in (np.mean, np.std))
    np.testing.assert_allclose(found, (exact - mean) / deviation, atol=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_process_leaves_no_file(number: int, tmp_path: Path) -> None:
    program = f"""
import time, torch
from models import tiling
from models.networks import GlobalGenerator
tiling.MAX_IN_MEMORY = 0
reads = 0
def read(region):
    global reads
    reads += 1
    if reads == 3:
        print("reading", flush=True)
        time.sleep(60)
    return torch.zeros(1, 1, *(part.stop - part.start for part in region))
net = GlobalGenerator(1, 3, 4, 1, 0).eval()
tiling.Tiling(2, {str(tmp_path)!r}).generate(net, tiling.Map(read, (64, 64), 1))
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"reading\n"
    process.send_signal(number)
    assert process.wait(30) == -number
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(self: tiling.Stored, region: object, tile: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tiling.Stored, "write", fail)
    G = load_generator(write_run(tmp_path, "run", instance_feat=False))
    G.tiling = Tiling(8, tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path}: cannot be written.*No space.*--tile_dir"):
        G(np.zeros((32, 64), int), np.zeros((32, 64), int))


def test_command_line(toy_data: Path, tmp_path: Path) -> None:
    write_run(tmp_path, "run", loadSize=64)
    images = []
    for tile in ([], ["--tile", 8, "--tile_dir", tmp_path / "maps"]):
        run_ok(
            *("test.py", "--name", "run", "--checkpoints_dir", tmp_path, "--gpu_ids", -1),
            *("--dataroot", toy_data, "--results_dir", tmp_path / f"results{len(tile)}"),
            *("--nThreads", 0, "--style", "car=2", *tile),
        )
        paths = sorted((tmp_path / f"results{len(tile)}").rglob("*_synthesized_image.png"))
        images.append(np.stack([np.asarray(Image.open(path)).astype(int) for path in paths]))
    assert images[0].shape == (2, 32, 64, 3)
    assert np.abs(images[0] - images[1]).max() <= 1
    assert not list((tmp_path / "maps").iterdir())


@pytest.mark.parametrize(
    "flags, named",
    [(["--tile", "0"], "--tile"), (["--tile_dir", "x"], "--tile_dir needs --tile")]
    + [(["--tile", "64", flag], "--tile: leave") for flag in ("--compile", "--onnx=x")],
)
def test_refused_flags(flags: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        TestOptions().parse(["--gpu_ids", "-1", *flags])
