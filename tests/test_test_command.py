"""test.py through its command line: pages, names, architectures, sizes."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHARED, TINY, needs, one_line, run_command, run_ok, save_png
from PIL import Image

import encode_features
import precompute_feature_maps
import test as command  # test.py
from data.arrays import read_array
from generation.results import save
from models.networks import define_G
from options.test_options import TestOptions
from util.errors import UserError
from util.parallel import background

NETWORK = ["--n_downsample_global", "1", "--n_blocks_global", "1"]


def write_generator(folder: Path, channels: int = 36, **flags) -> Path:
    """Random weights of a small generator as a run's folder holds them, without opt.json."""
    torch.manual_seed(0)
    net = define_G(channels, 3, 4, flags.pop("netG", "global"), 1, 1, n_blocks_local=1, **flags)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), folder / "latest_net_G.pth")
    return folder


def test_page(toy_data: Path, tmp_path: Path) -> None:
    trained = run_command(
        *("train.py", "--name", "small", "--dataroot", toy_data, "--checkpoints_dir", tmp_path),
        *(*TINY, "--niter", 1, "--niter_decay", 0, "--no_html"),
    )
    assert trained.returncode == 0, trained.stderr
    run_ok(
        *("test.py", "--name", "small", "--checkpoints_dir", tmp_path, "--nThreads", 0),
        *("--results_dir", tmp_path / "results"),
    )
    folder = tmp_path / "results" / "small" / "test_latest"
    page = (folder / "index.html").read_text()
    sources = re.findall(r'src="([^"]+)"', page)
    assert len(sources) == 6  # two scenes: label map, generated, real
    assert all((folder / source).is_file() for source in sources)
    stems = sorted(path.stem for path in (toy_data / "test_label").iterdir())
    for stem in stems:
        generated = Image.open(folder / "images" / f"{stem}_synthesized_image.png")
        assert generated.size == (64, 32)


@pytest.mark.parametrize("second", [(16, 32), (24, 32)])
def test_cudnn_does_not_search_again_for_each_size(
    second: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its search for the fastest algorithm takes seconds on a GPU."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # restored afterwards
    write_generator(tmp_path / "run", 35)
    for name, size in ("a", (16, 32)), ("b", second):
        save_png(tmp_path / "data" / "test_label" / f"{name}.png", np.zeros(size, np.uint8))
    flags = [*NETWORK, "--ngf", "4", "--no_instance", "--resize_or_crop", "none", "--name", "run"]
    flags += ["--checkpoints_dir", tmp_path, "--results_dir", tmp_path, "--gpu_ids", "-1"]
    opt = TestOptions().parse([*map(str, flags), "--dataroot", str(tmp_path / "data")])
    command.test(opt, torch.device("cpu"))
    assert torch.backends.cudnn.benchmark == (second == (16, 32))


def test_aspect_ratio_widens_saved_images(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    for channels in (1, 3):
        save(np.full((4, 6, channels), 7, np.uint8), path, 1.5, label=path)
        np.testing.assert_array_equal(read_array(path), np.full((4, 9, channels), 7))


@pytest.fixture
def odd_data(tmp_path: Path) -> Path:
    """Two scenes whose sizes are no multiples of the stride, without photographs."""
    rng = np.random.default_rng(0)
    for name, (height, width) in {"wide": (19, 37), "high": (41, 21)}.items():
        label = rng.integers(0, 35, (height, width)).astype(np.uint8)
        save_png(tmp_path / "odd" / "test_label" / f"{name}.png", label)
        save_png(tmp_path / "odd" / "test_inst" / f"{name}.png", label.astype(np.uint16) * 1000)
    return tmp_path / "odd"


@pytest.mark.parametrize("netG", ["global", "local"])
def test_output_size_is_input_size(odd_data: Path, tmp_path: Path, netG: str) -> None:
    write_generator(tmp_path / "odd_run", netG=netG)
    run_ok(
        *("test.py", "--name", "odd_run", "--checkpoints_dir", tmp_path, "--dataroot", odd_data),
        *("--ngf", 4, *NETWORK, "--n_blocks_local", 1, "--netG", netG),
        *("--resize_or_crop", "none", "--nThreads", 0, "--gpu_ids", -1, "--image_format", "jpg"),
        *("--results_dir", tmp_path / "results"),
    )
    images = tmp_path / "results" / "odd_run" / "test_latest" / "images"
    assert Image.open(images / "wide_synthesized_image.jpg").size == (37, 19)
    assert Image.open(images / "high_synthesized_image.jpg").size == (21, 41)


def test_a_missing_package_is_reported_before_anything_is_generated(
    refused, odd_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_generator(tmp_path / "run")
    monkeypatch.setattr(command, "generate", None)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    line = refused(
        *(command.main, "--name", "run", "--checkpoints_dir", tmp_path, "--dataroot", odd_data),
        *("--ngf", 4, *NETWORK, "--resize_or_crop", "none", "--gpu_ids", -1),
        *("--image_format", "tif", "--results_dir", tmp_path / "results"),
    )
    assert "TIFF files need the package tifffile; pip install -r requirements-images" in line
    assert not (tmp_path / "results").exists()


def test_batches_and_how_many(toy_data: Path, tmp_path: Path) -> None:
    write_generator(tmp_path / "run", norm="batch")
    images_by_batch = []
    for batch in (1, 2):
        run_ok(
            *("test.py", "--name", "run", "--checkpoints_dir", tmp_path, "--dataroot", toy_data),
            *("--ngf", 4, *NETWORK, "--loadSize", 64, "--norm", "batch"),
            *("--nThreads", 0, "--gpu_ids", -1, "--batchSize", batch, "--phase", "train"),
            *("--how_many", 3, "--results_dir", tmp_path / f"results{batch}"),
        )
        images = tmp_path / f"results{batch}" / "run" / "train_latest" / "images"
        paths = sorted(images.glob("*_synthesized_image.png"))
        assert len(paths) == 3
        images_by_batch.append([np.asarray(Image.open(path)).astype(int) for path in paths])
    # with --norm batch each image has its own statistics, whatever the batch
    assert max(np.abs(a - b).max() for a, b in zip(*images_by_batch)) <= 1


@pytest.mark.parametrize(
    "image_format",
    ["png", pytest.param("tif", marks=needs("tifffile", "requirements-images.txt"))],
)
def test_the_page_shows_what_shown_images_returns(
    image_format: str, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call
) -> None:
    """An extra image at its place in the row, as a function or an array, and as a file."""
    write_generator(tmp_path / "run")
    usual = command.shown_images

    def with_instances(opt, maps: dict, generated: dict, photo: Path) -> dict:
        inst = (maps["inst"][0].numpy() % 256).astype(np.uint8)
        return {"instances": inst, **usual(opt, maps, generated, photo), "again": lambda: inst}

    monkeypatch.setattr(command, "shown_images", with_instances)
    call(
        command.main,
        *("--name", "run", "--checkpoints_dir", tmp_path, "--dataroot", toy_data),
        *("--ngf", 4, *NETWORK, "--loadSize", 64, "--gpu_ids", -1),
        *("--nThreads", 0, "--how_many", 1, "--results_dir", tmp_path / "results"),
        *("--image_format", image_format),
    )
    (page,) = (tmp_path / "results").rglob("index.html")
    captions = re.findall(r"<figcaption>([^<]+)", page.read_text())
    shown = "synthesized_image" if image_format == "png" else "synthesized_image_view"
    assert captions == ["instances", "input_label", shown, "real_image", "again"]
    files = list((page.parent / "images").iterdir())
    assert len(files) == len(captions) + (image_format == "tif")


def test_background_work_is_bounded_and_its_errors_are_raised() -> None:
    done: list[int] = []

    def work(number: int) -> None:
        if number == 7:
            raise OSError("disk full")
        done.append(number)

    with pytest.raises(OSError, match="disk full"), background(max_pending=2) as submit:
        for number in range(100):
            submit(work, number)
    assert max(done) < 7 + 2 + 2  # it stopped soon
    with background() as submit:
        for number in range(200, 210):
            submit(work, number)
    assert set(range(200, 210)) <= set(done)


@pytest.mark.parametrize("script", [command, encode_features, precompute_feature_maps])
def test_exit_status_of_processes_is_the_commands(script, monkeypatch) -> None:
    """distributed.launch returns it where it starts one process per GPU."""
    monkeypatch.setattr("sys.argv", ["command"])
    monkeypatch.setattr("util.distributed.launch", lambda work, opt: 3)
    assert script.main() == 3


def test_other_architecture_is_refused(toy_data: Path, tmp_path: Path) -> None:
    write_generator(tmp_path / "run")
    done = run_command(
        *("test.py", "--name", "run", "--checkpoints_dir", tmp_path, "--dataroot", toy_data),
        *("--ngf", 8, *NETWORK, "--gpu_ids", -1, "--results_dir", tmp_path / "results"),
    )
    message = one_line(done)
    assert "model.1.weight is [4, 36, 7, 7], expected [8, 36, 7, 7]" in message
    assert not (tmp_path / "results").exists()


def test_missing_weights(toy_data: Path, tmp_path: Path) -> None:
    where = ["--name", "none", "--checkpoints_dir", tmp_path]
    done = run_command("test.py", *where, "--gpu_ids", -1, "--ngf", 4)
    assert f"{tmp_path / 'none'}: no such run folder" in one_line(done)
    (tmp_path / "none").mkdir()
    done = run_command("test.py", *where, "--gpu_ids", -1, "--ngf", 4)
    assert "latest_net_G.pth: no such file" in one_line(done)


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--data_type", "8"], "--data_type 8"),
        (["--engine", "x"], "--engine"),
        (["--style", "car=1"], "styles need a model trained with"),
        (["--name", "../x"], "--name"),
    ],
)
def test_refused_flags(flags: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        TestOptions().parse(flags)


@pytest.mark.skipif(not (SHARED / "golden").is_dir(), reason="no ../shared/golden")
@pytest.mark.parametrize(
    ("case", "data"), [("labels_512p", "golden/data"), ("features_512p", "cityscapes_sample")]
)
def test_golden_images(case: str, data: str, tmp_path: Path) -> None:
    """Images from the golden starting weights, to one grey level; label colours exactly."""
    if not (SHARED / data).is_dir():
        pytest.skip(f"{case} needs ../shared/{data}")
    shutil.copytree(SHARED / "golden" / case / "init", tmp_path / "ck" / case)
    record = json.loads((SHARED / "golden" / case / "case.json").read_text())
    run_ok(
        *("test.py", "--name", case, "--checkpoints_dir", tmp_path / "ck"),
        *("--dataroot", SHARED / data, *record["test_args"].split(), "--gpu_ids", -1),
        *("--results_dir", tmp_path, "--nThreads", 0, "--how_many", 3),
    )
    images = next((tmp_path / case).iterdir()) / "images"
    golden = np.load(SHARED / "golden" / case / "images.npz")
    compared = 0
    for key in golden:
        kind, stem = key.split("/")
        if kind == "trained":
            continue
        ending = {"init": "synthesized_image", "label": "input_label"}[kind]
        found = np.asarray(Image.open(images / f"{stem}_{ending}.png")).astype(int)
        assert np.abs(found - golden[key]).max() <= (1 if kind == "init" else 0), key
        compared += 1
    assert compared == 6
