"""Validation during training: its figures, the best checkpoint, patience, resume, pages."""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes, urlparse

import numpy as np
import pytest
import torch
from commands import run_together
from conftest import ROOT, TINY, needs, one_line, run_command, run_ok, save_png, thorough
from PIL import Image
from trainer import Training, assert_same, outcome, train

from evaluation import measures, validation
from evaluation.validation import Validation
from models.pix2pixHD_model import Pix2PixHDModel
from options.train_options import TrainOptions
from util.compare import common_scenes
from util.errors import UserError
from util.run.checkpoints import load_file
from util.run.loggers import create_loggers
from util.run.page import RunPage
from util.run.resume import Position
from util.run.visualizer import read_rows

SHORT = ["--niter", 3, "--niter_decay", 1, "--val_freq", 1, "--lr", 0.002]


@pytest.fixture(scope="module")
def validated(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """checkpoints/run: four epochs, each validated on the two test scenes."""
    folder = tmp_path_factory.mktemp("validated") / "run"
    log = train(folder, "--dataroot", toy_data, *SHORT, "--recipe", "plus", "--display_freq", 2)
    assert "validation on 2 scenes of test every 1 epochs; the best by ssim is kept" in log
    assert log.count("validation after epoch") == 4
    return folder


def evaluated(run: Path, toy_data: Path, epoch: str, out: Path) -> dict:
    """What test.py and evaluate.py measure for an epoch."""
    where = ["--checkpoints_dir", run.parent, "--name", run.name, "--results_dir", out]
    where += ["--which_epoch", epoch, "--gpu_ids", -1]
    run_ok("test.py", *where)
    run_ok("evaluate.py", *where, "--weights_dir", out)
    path = out / run.name / f"test_{epoch}" / "evaluation" / "metrics.json"
    return json.loads(path.read_text())


def test_the_best_epoch_has_evaluates_figures(validated: Path, toy_data: Path, tmp_path: Path):
    pytest.importorskip("torchmetrics", reason="needs requirements-eval.txt")
    rows = read_rows(validated / "validation.jsonl")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    best = max(rows, key=lambda row: row["ssim"])
    for epoch, row in (("best", best), ("latest", rows[-1])):
        found = evaluated(validated, toy_data, epoch, tmp_path)
        names = ("l1", "psnr", "ssim", "grid_energy", "sharpness", "hue_mixture")
        for name in names:
            assert found[name] == pytest.approx(row[name], rel=1e-6), (epoch, name)
            if f"oracle_{name}" in row:
                assert found["oracle"][name] == pytest.approx(row[f"oracle_{name}"], rel=1e-6)
    position = load_file(validated / "latest_state.pth")["position"]
    assert (position["best_epoch"], position["best"]) == (best["epoch"], best["ssim"])
    assert best["ssim"] >= rows[-1]["ssim"]


def test_validation_leaves_training_as_it_is(toy_data: Path, tmp_path: Path) -> None:
    flags = ["--dataroot", toy_data, *SHORT, "--use_dropout", "--norm", "batch"]
    flags += ["--print_freq", 1, "--display_freq", 2]
    train(tmp_path / "with", *flags)
    log = train(tmp_path / "without", *flags, "--val_phase", "none")
    assert "no validation" in log
    one, other = outcome(tmp_path / "with"), outcome(tmp_path / "without")
    for found in (one, other):
        del found["latest_state.pth"]["position"], found["latest_state.pth"]["flags"]
    for name in other:
        assert one[name] == other[name], name
    assert {name for name in one if name not in other} == {"best_net_D.pth", "best_net_G.pth"}


@pytest.mark.parametrize("folders, part", [("val test", "of val"), ("test", "of test"), ("", "no")])
def test_the_default_phase(folders: str, part: str, own_data: Path, tmp_path: Path) -> None:
    for kind in ("label", "inst", "img"):
        if "val" in folders:
            (own_data / f"val_{kind}").symlink_to(own_data / f"test_{kind}")
        if not folders:
            for path in (own_data / f"test_{kind}").iterdir():
                path.unlink()
    log = train(tmp_path / "run", "--dataroot", own_data, "--niter", 1, "--niter_decay", 0)
    (line,) = [line for line in log.splitlines() if "validation on" in line or "no valid" in line]
    assert part in line


def test_a_bad_scene_ends_validation_but_not_training(own_data: Path, tmp_path: Path) -> None:
    last = sorted((own_data / "test_label").iterdir())[-1]
    save_png(last, np.full((32, 64), 99, np.uint8))
    log = train(tmp_path / "run", "--dataroot", own_data, *SHORT)
    assert "warning: validation failed" in log and "label 99" in log and "done: weights" in log
    (own_data / "test_inst" / last.name.replace("labelIds", "instanceIds")).unlink()
    log = train(tmp_path / "other", "--dataroot", own_data, *SHORT)
    assert "no validation on test:" in log and "done: weights" in log


def run_out_of_gpu_memory(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def run_out_of_cpu_memory(*_: object) -> None:
    torch.empty(10**15)


def without_memory_for_images() -> None:
    Validation._generate = run_out_of_gpu_memory


def without_memory_for_measures(fail: Callable[..., None] = run_out_of_gpu_memory) -> None:
    validation.why_missing = lambda *_: "not there"  # it checks weights, too
    measures._check_weights = fail


def without_cpu_memory_for_measures() -> None:
    without_memory_for_measures(run_out_of_cpu_memory)


@pytest.mark.parametrize(
    "without, error",
    [
        (without_memory_for_images, "CUDA out of memory"),
        *thorough(
            (without_memory_for_measures, "CUDA out of memory"),
            (without_cpu_memory_for_measures, "[enforce fail at"),
        ),
    ],
)
def test_too_little_memory_ends_validation_but_not_training(
    without: Callable[[], None], error: str, toy_data: Path, tmp_path: Path
) -> None:
    training = Training(tmp_path / "run", "--dataroot", toy_data, *SHORT, prepare=without)
    assert training.end() == 0
    output = training.output()
    assert output.count(f"validation failed and is turned off: {error}") == 1
    assert load_file(tmp_path / "run" / "latest_state.pth")["position"]["epoch"] == 5


def test_a_missing_phase_is_refused(toy_data: Path, tmp_path: Path) -> None:
    where = [*TINY, "--dataroot", toy_data, "--checkpoints_dir", tmp_path, "--name", "run"]
    assert "evening_label" in one_line(run_command("train.py", *where, "--val_phase", "evening"))
    refusal = one_line(run_command("train.py", *where, "--best_metric", "fid"))
    assert "--best_metric fid: not measured here" in refusal and "ssim" in refusal
    for flag, value in (("best_metric", "ssim"), ("patience", 2), ("segmenter", "onnx:x")):
        refusal = one_line(
            run_command("train.py", *where, "--val_phase", "none", f"--{flag}", value)
        )
        assert f"--{flag} needs validation, and there is none" in refusal


def test_measures_of_sets_need_two_scenes(toy_data: Path, monkeypatch) -> None:
    """Even if all weights are there."""
    monkeypatch.setattr("evaluation.validation.why_missing", lambda *_: None)
    assert {"lpips", "fid", "kid"} <= set(measured(toy_data))
    assert "lpips" in measured(toy_data, "--val_max", "1")
    assert not {"fid", "kid"} & set(measured(toy_data, "--val_max", "1"))


def test_kid_needs_a_scene_for_each_process(toy_data: Path, monkeypatch) -> None:
    """torchmetrics gathers what each process has seen."""
    monkeypatch.setattr("evaluation.validation.why_missing", lambda *_: None)
    three = argparse.Namespace(world_size=lambda: 3)
    monkeypatch.setattr("evaluation.validation.distributed", three)
    found = measured(toy_data)
    assert "kid" not in found and "fid" in found


@pytest.mark.thorough
def test_unusable_weights_do_not_end_training(toy_data: Path, tmp_path: Path) -> None:
    """Damaged ones: the best is by SSIM, as without. Unusable ones only end validation."""
    weights = tmp_path / measures.ALEXNET
    weights.write_bytes(b"half")
    assert "lpips" not in measured(toy_data, "--weights_dir", str(tmp_path))
    with pytest.raises(UserError, match=r"--best_metric lpips: not measured here \(.*alexnet"):
        measured(toy_data, "--weights_dir", str(tmp_path), "--best_metric", "lpips")
    torch.save({"x": torch.zeros(1)}, weights)  # intact, but of no use
    more = ["--weights_dir", tmp_path, "--niter", 1, "--niter_decay", 0]
    log = train(tmp_path / "run", "--dataroot", toy_data, *more)
    assert "the best by lpips is kept" in log
    assert "warning: validation failed and is turned off: lpips" in log and "done: weights" in log


def test_a_missing_package_drops_its_measures(
    toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / measures.ALEXNET)

    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    with monkeypatch.context() as patch:
        patch.setattr(measures.importlib, "import_module", broken)
        assert "lpips" not in measured(toy_data, "--weights_dir", str(tmp_path))
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    assert "lpips" not in measured(toy_data, "--weights_dir", str(tmp_path))
    with pytest.raises(UserError, match=r"requirements-eval\.txt\); there are ssim"):
        measured(toy_data, "--weights_dir", str(tmp_path), "--best_metric", "lpips")


def measured(data: Path, *flags: str) -> list[str]:
    """The measures of the data set's test scenes that --best_metric may name."""
    opt = TrainOptions().parse([*TINY, "--dataroot", str(data), "--val_phase", "test", *flags])
    return Validation(opt, Pix2PixHDModel(opt, torch.device("cpu"))).available


def test_images_are_measured_in_float32_however_they_are_trained(toy_data: Path) -> None:
    figures = []
    for amp in ("off", "bf16"):
        flags = *TINY, "--dataroot", str(toy_data), "--val_phase", "test", "--amp", amp
        opt = TrainOptions().parse(flags)
        torch.manual_seed(0)
        measured, _ = Validation(opt, Pix2PixHDModel(opt, torch.device("cpu"))).measure()
        figures.append((measured["l1"], measured["ssim"]))
    assert figures[0] == figures[1]


@pytest.mark.parametrize("more", [True, False])
def test_the_best_and_patience_by_hand(more: bool) -> None:
    at = Position(epoch=2)
    sign = 1 if more else -1
    at.set_metric("ssim")
    assert at.add_validation(sign * 0.5, more) and at.best_epoch == 1
    at.epoch = 3
    assert not at.add_validation(sign * 0.5, more) and at.worse == 1  # no better than the first
    assert not at.add_validation(float("nan"), more) and at.worse == 1
    assert not at.add_validation(float("-inf" if more else "inf"), more) and at.worse == 2
    assert at.add_validation(sign * 0.6, more) and (at.best_epoch, at.worse) == (2, 0)
    note = at.set_metric("l1")  # another metric starts over
    assert note.startswith("note: the best validation by ssim was after epoch 2; the measure,")
    assert at.add_validation(9.0, False) and at.best == 9.0
    at.set_metric("l1", "4 scenes")  # an older state does not name the scenes
    assert not at.add_validation(9.5, False)
    assert not at.set_metric("l1", "4 scenes, net.pt 1a2b")  # nor do they name all of the segmenter
    assert not at.add_validation(9.5, False)
    at.set_metric("l1", "2 scenes")
    assert at.add_validation(9.7, False) and at.best == 9.7


def test_patience_ends_training_and_is_resumed(toy_data: Path, tmp_path: Path) -> None:
    """With a rate of 0 no validation is better than the first."""
    flags = ["--dataroot", toy_data, "--niter", 9, "--niter_decay", 0, "--val_freq", 1, "--lr", 0]
    flags += ["--patience", 2]
    log = train(tmp_path / "run", *flags)
    assert "no better ssim since epoch 1, in 2 validations (--patience)" in log
    assert load_file(tmp_path / "run" / "latest_state.pth")["position"]["epoch"] == 4
    assert (tmp_path / "run" / "3_net_G.pth").is_file()
    again = train(tmp_path / "run", *flags, "--continue_train")
    assert "ended after epoch 3 (--patience 2)" in again and "validation after" not in again
    more = train(tmp_path / "run", *flags[:-2], "--continue_train", "--patience", 4)
    assert "in 4 validations" in more
    continued = train(tmp_path / "run", *flags, "--continue_train", "--best_metric", "psnr")
    assert "note: the best validation by ssim was after epoch 1" in continued
    assert "no better psnr since epoch 6, in 2 validations" in continued


def fail_to_save_once() -> None:
    import util.run.training_run as module

    original = module.save

    def failed(*args: object) -> bool:
        module.save = original
        return False

    module.save = failed


def test_a_best_that_could_not_be_saved_is_replaced_by_the_next(toy_data: Path, tmp_path: Path):
    """With a rate of 0 no validation is better than the first."""
    flags = ["--dataroot", toy_data, "--niter", 3, "--niter_decay", 0, "--val_freq", 1, "--lr", 0]
    flags += ["--save_epoch_freq", 9]
    training = Training(tmp_path / "run", *flags, prepare=fail_to_save_once)
    assert training.end() == 0, training.output()
    assert load_file(tmp_path / "run" / "latest_state.pth")["position"]["best_epoch"] == 2
    assert (tmp_path / "run" / "best_net_G.pth").is_file()


@needs("cityscapesscripts", "requirements-eval.txt")
def test_a_measure_that_is_nan_is_reported_and_ends_no_training(
    toy_data: Path, tmp_path: Path
) -> None:
    """Mean IoU where no label map has an evaluated class."""
    data = shutil.copytree(toy_data, tmp_path / "data")
    for path in data.glob("*_label/*.png"):
        Image.fromarray(np.zeros_like(Image.open(path))).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(NoClass()).save(str(tmp_path / "net.pt"))
    flags = ["--dataroot", data, "--niter", 3, "--niter_decay", 0, "--val_freq", 1, "--patience", 1]
    log = train(tmp_path / "run", *flags, "--segmenter", f"torchscript:{tmp_path}/net.pt")
    assert "mean_iou cannot be measured on these scenes" in log and "done: weights" in log
    assert "mean_iou nan (none is the best)" in log
    assert "<th>best</th>" not in (tmp_path / "run" / "web" / "index.html").read_text()


class NoClass(torch.nn.Module):
    """A segmenter that finds the first of 19 classes everywhere."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found = torch.zeros(image.shape[0], 19, image.shape[2], image.shape[3])
        found[:, 0] = 1
        return found


def test_another_segmenter_of_the_same_name_is_another(tmp_path: Path) -> None:
    opt = argparse.Namespace(segmenter=f"torchscript:{tmp_path / 'net.pt'}")
    opt.segmenter_classes, opt.segmenter_width = "trainIds", None
    found = []
    for content, change in ((b"a", {}), (b"b", {}), (b"b", {"segmenter_classes": "ids"})):
        (tmp_path / "net.pt").write_bytes(content)
        found.append(validation._segmenter(argparse.Namespace(**{**vars(opt), **change})))
    found.append(validation._segmenter(argparse.Namespace(**{**vars(opt), "segmenter_width": 32})))
    assert len(set(found)) == 4 and all(name.startswith("net.pt") for name in found)


def test_loaded_weights_are_measured(toy_data: Path, tmp_path: Path) -> None:
    """Validation sees the averages of the weights that --load_pretrain loaded."""
    last = ["--dataroot", toy_data, "--niter", 1, "--niter_decay", 0]
    train(tmp_path / "first", *last, "--lr", 0.002)
    train(tmp_path / "next", *last, "--lr", 0, "--ema", 0.5, "--load_pretrain", tmp_path / "first")
    (first,), (following,) = (
        read_rows(tmp_path / name / "validation.jsonl") for name in ("first", "next")
    )
    assert following == pytest.approx(first, rel=1e-6)


def save_val_scenes(data: Path, heights: tuple[int, ...]) -> None:
    """Black scenes of the phase val, 64 pixels wide."""
    for k, height in enumerate(heights):
        for kind, mode in (("label", "L"), ("inst", "L"), ("img", "RGB")):
            (data / f"val_{kind}").mkdir(exist_ok=True)
            Image.new(mode, (64, height)).save(data / f"val_{kind}" / f"{k}.png")


def test_a_scene_that_is_not_measured_drops_no_measure(own_data: Path, monkeypatch) -> None:
    """One that is too small for LPIPS, and not of those that --val_max selects."""
    monkeypatch.setattr("evaluation.validation.why_missing", lambda *_: None)
    save_val_scenes(own_data, heights=(32, 16, 32))
    assert "lpips" not in measured(own_data, "--val_phase", "val")
    assert "lpips" in measured(own_data, "--val_phase", "val", "--val_max", "2")


def test_some_scenes_of_several_sizes_from_memory(own_data: Path, tmp_path: Path) -> None:
    """--cache ram holds the scenes that --val_max selects, whatever their sizes."""
    save_val_scenes(own_data, heights=(32, 40, 48))
    flags = ["--dataroot", own_data, "--niter", 1, "--niter_decay", 0, "--val_max", 2]
    log = train(tmp_path / "run", *flags, "--cache", "ram")
    assert "validation on 2 scenes of val" in log and "validation after epoch 1" in log
    assert "warning" not in log


def test_an_odd_folder_of_photographs_does_not_end_training(own_data: Path, tmp_path: Path) -> None:
    (own_data / "val_img").mkdir()
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (64, 32)).save(own_data / "val_img" / name)
    flags = ["--dataroot", own_data, "--niter", 1, "--niter_decay", 0]
    log = train(tmp_path / "run", *flags)
    assert "no validation: " in log and "a.jpg" in log and "done: weights" in log


@pytest.mark.thorough
def test_two_processes_measure_what_one_does(validated: Path, toy_data: Path, tmp_path: Path):
    """From the same weights: those of the run above."""
    rows = {}
    for name, processes in (("one", 1), ("two", 2)):
        where = ["--checkpoints_dir", tmp_path, "--name", name, "--dataroot", toy_data]
        flags = ["--batchSize", 2, "--niter", 1, "--niter_decay", 0, "--lr", 0, "--recipe", "plus"]
        flags += ["--load_pretrain", validated]
        run_together(processes, "train.py", *TINY, *where, *flags)
        (rows[name],) = read_rows(tmp_path / name / "validation.jsonl")
    assert rows["two"].keys() == rows["one"].keys()
    for key, value in rows["one"].items():
        assert rows["two"][key] == pytest.approx(value, rel=1e-6), key


class WrongSize(torch.nn.Module):
    """A segmenter for images of another size."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.view(1, 3, 7, 7)


@needs("cityscapesscripts", "requirements-eval.txt")
def test_a_segmenter_is_tried_before_training(toy_data: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(WrongSize()).save(str(tmp_path / "net.pt"))
    flags = ["--dataroot", toy_data, "--checkpoints_dir", tmp_path, "--name", "run"]
    done = run_command("train.py", *TINY, *flags, "--segmenter", f"torchscript:{tmp_path}/net.pt")
    assert "an image of 64x32: " in one_line(done)
    assert not list((tmp_path / "run").glob("*.pth"))


@pytest.mark.thorough
def test_a_segmenter_in_training_finds_what_evaluate_finds(toy_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("cityscapesscripts", reason="needs requirements-eval.txt")
    net = tmp_path / "net.pt"
    flags = ["--dataroot", toy_data, "--out", net, "--width", 32, "--steps", 5, "--batch", 2]
    run_ok("-m", "benchmarks.toy_segmenter", *flags)
    segmenter = ["--segmenter", f"torchscript:{net}"]
    log = train(tmp_path / "run", "--dataroot", toy_data, *SHORT, *segmenter)
    assert "the best by mean_iou" in log
    where = ["--checkpoints_dir", tmp_path, "--name", "run", "--results_dir", tmp_path / "out"]
    run_ok("test.py", *where, "--which_epoch", "best", "--gpu_ids", -1)
    flags = [*segmenter, "--which_epoch", "best", "--gpu_ids", -1, "--weights_dir", tmp_path]
    run_ok("evaluate.py", *where, *flags)
    path = tmp_path / "out" / "run" / "test_best" / "evaluation" / "metrics.json"
    found = json.loads(path.read_text())
    best = max(read_rows(tmp_path / "run" / "validation.jsonl"), key=lambda row: row["mean_iou"])
    for name in ("mean_iou", "pixel_accuracy", "segmenter_kid"):
        assert found[name] == pytest.approx(best[name], rel=1e-6, abs=1e-9), name


def killed_at_random(folder: Path, flags: list, draw: random.Random, times: int) -> None:
    """Start, and kill at a random moment; then let it end."""
    for k in range(times):
        training = Training(folder, *flags, *(["--continue_train"] if k else []))
        time.sleep(draw.uniform(0.2, 3))
        if training.process.is_alive():
            training.process.kill()
            assert training.end() in (-signal.SIGKILL, 0), training.output()
    train(folder, *flags, "--continue_train")


FLAGS = [*SHORT, "--save_latest_freq", 1, "--print_freq", 1, "--display_freq", 1]
FLAGS += ["--recipe", "plus"]


def validations(folder: Path) -> tuple[list[dict], dict[str, bytes]]:
    images = sorted((folder / "web" / "validation").iterdir())
    return read_rows(folder / "validation.jsonl"), {p.name: p.read_bytes() for p in images}


@pytest.mark.parametrize("times", [*thorough(3), pytest.param(30, marks=pytest.mark.slow)])
def test_killed_at_random_moments_ends_the_same(times: int, toy_data: Path, tmp_path: Path) -> None:
    flags = ["--dataroot", toy_data, *FLAGS, "--patience", 3]
    train(tmp_path / "whole", *flags)
    killed_at_random(tmp_path / "parts", flags, random.Random(times), times)
    assert_same(tmp_path / "whole", tmp_path / "parts")
    assert validations(tmp_path / "whole") == validations(tmp_path / "parts")


def test_pages(validated: Path, tmp_path: Path) -> None:
    web = validated / "web"
    index, scenes = (web / name for name in ("index.html", "validation.html"))
    assert "validation.html" in index.read_text() and "validation_curves.png" in index.read_text()
    assert "--recipe plus" in index.read_text()
    text = scenes.read_text()
    assert text.count("data-scene=") == 2 and 'http-equiv="refresh"' not in text
    assert "http://" not in text and "https://" not in text
    steps = json.loads(text.split("const rows = ")[1].split(";\n")[0])
    assert [step["text"].split(":")[0].split(" (")[0] for step in steps] == [
        f"epoch {n}" for n in (1, 2, 3, 4)
    ]
    assert sum("(the best)" in step["text"] for step in steps) == 1
    for step in steps:
        assert len(list((web / "validation").glob(f"{step['prefix']}*.jpg"))) == 2

    where = ["--checkpoints_dir", validated.parent]
    assert "the same name" in one_line(run_command("-m", "util.compare", "a/run", "b/run", *where))
    assert "NAME" in one_line(run_command("-m", "util.compare"))
    run_ok("-m", "util.compare", "run", "run", *where)
    assert (validated.parent / "compare" / "index.html").is_file()


@pytest.mark.parametrize("width", [400, *thorough(1200)])
def test_pages_in_a_browser(width: int, validated: Path, browser) -> None:
    """Every image loads from the file, nothing is wider than the window, the slider moves all."""
    compared = validated.parent / "compare" / "index.html"
    run_command("-m", "util.compare", "run", "run", "--checkpoints_dir", validated.parent)
    page = browser.new_page()
    page.set_viewport_size({"width": width, "height": 900})
    asked, failed = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfailed", lambda request: failed.append(request.url))
    for path in (validated / "web" / "index.html", validated / "web" / "validation.html", compared):
        page.goto(path.as_uri())
        for image in page.locator("img").all():
            image.scroll_into_view_if_needed()
            page.wait_for_function("image => image.naturalWidth > 0", arg=image.element_handle())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        links = page.eval_on_selector_all("a", "links => links.map(link => link.href)")
        assert links and all(Path(unquote(urlparse(link).path)).is_file() for link in links)
    page.goto((validated / "web" / "validation.html").as_uri())
    scenes = page.locator("img[data-scene]")
    before = scenes.evaluate_all("images => images.map(image => image.src)")
    page.locator("input[type=range]").focus()
    page.keyboard.press("Home")
    after = scenes.evaluate_all("images => images.map(image => image.src)")
    assert len(after) == 2 and all("epoch0001_" in source for source in after)
    assert not set(before) & set(after)
    assert "epoch 1" in page.locator("#shown").inner_text()
    page.close()
    assert all(url.startswith("file:") for url in asked) and not failed


def test_a_thousand_validations(tmp_path: Path) -> None:
    """The pages are written quickly, and hold an image for each scene, not for each epoch."""
    page = RunPage(tmp_path, 256)
    image = Image.new("RGB", (8, 4))
    for epoch in range(1, 1001):
        for scene in "abcd":
            image.save(tmp_path / "web" / "validation" / f"epoch{epoch:04d}_{scene}.jpg")
    for scene in "abcd":
        for name in ("input_label", "real_image"):
            image.save(tmp_path / "web" / "validation" / f"{name}_{scene}.jpg")
    rows = [{"epoch": n, "step": n, "ssim": n / 1000, "oracle_x": 1} for n in range(1, 1001)]
    page.write([], rows, {"best": "7"})  # draws the curves, as it does once in a while
    start = time.perf_counter()
    page.write([], rows, {"best": "7"})
    assert time.perf_counter() - start < 1
    text = (tmp_path / "web" / "validation.html").read_text()
    assert text.count("<img") == 12 and text.count("epoch0999_") == 1
    assert "epoch 7 (the best)" in text and len(text) < 300_000


def test_the_slider_finds_scenes_of_any_name(tmp_path: Path, browser) -> None:
    """Also names that are not Unicode, or have line breaks, which HTML changes."""
    web, image = tmp_path / "web", Image.new("RGB", (8, 4))
    page = RunPage(tmp_path, 256)
    for scene in ("plain", "50%25 #?\"'<b>", "new\r\nline", os.fsdecode(b"no \xff Unicode")):
        for name in ("input_label_", "real_image_", "epoch0001_", "epoch0002_"):
            image.save(web / "validation" / f"{name}{scene}.jpg")
    page.write([], [{"epoch": n, "step": n, "ssim": 0.5} for n in (1, 2)], {})
    shown = browser.new_page()
    shown.goto((web / "validation.html").as_uri())
    shown.locator("input[type=range]").focus()
    shown.keyboard.press("Home")
    found = shown.eval_on_selector_all("img[data-scene]", "images => images.map(i => i.src)")
    assert {unquote_to_bytes(urlparse(source).path) for source in found} == {
        os.fsencode(path) for path in (web / "validation").glob("epoch0001_*")
    }


def test_the_slider_after_the_first_validation(tmp_path: Path, browser) -> None:
    web = tmp_path / "web"
    page = RunPage(tmp_path, 256)
    for name in ("input_label_a", "real_image_a", "epoch0005_a"):
        Image.new("RGB", (8, 4)).save(web / "validation" / f"{name}.jpg")
    page.write([], [{"epoch": 5, "step": 9, "ssim": 0.25}], {"best": "5"})
    shown = browser.new_page()
    shown.goto((web / "validation.html").as_uri())
    assert shown.locator("#shown").inner_text() == "epoch 5 (the best): ssim 0.25"
    slider = shown.locator("input[type=range]")
    assert [slider.get_attribute(name) for name in ("min", "max", "value")] == ["0", "0", "0"]
    shown.close()


def test_other_scenes_than_before(toy_data: Path, tmp_path: Path) -> None:
    """A resumed run that validates on other scenes shows these, and looks for their best."""
    flags = ["--dataroot", toy_data, "--niter_decay", 0, "--val_freq", 1, "--lr", 0]
    train(tmp_path / "run", *flags, "--niter", 1, "--val_phase", "train")
    flags += ["--niter", 3, "--continue_train", "--patience", 9]
    log = train(tmp_path / "run", *flags, "--val_phase", "test", "--val_max", 1)
    assert "could not be written" not in log
    assert "validation after epoch 2" in log and "best: epoch 2" in log
    text = (tmp_path / "run" / "web" / "validation.html").read_text()
    assert text.count("data-scene=") == 1 and "epoch0002_" in text and "epoch0001_" not in text


def test_compared_images_are_those_of_their_run(tmp_path: Path) -> None:
    """toy_b's scene 1 and toy's scene b_1."""
    for name, grey in (("toy", 50), ("toy_b", 200)):
        for k, scene in enumerate(("1", "b_1")):
            for file in (f"epoch0001_{scene}", f"input_label_{scene}", f"real_image_{scene}"):
                image = np.full((8, 8), grey + 9 * k, np.uint8)
                save_png(tmp_path / name / "web" / "validation" / f"{file}.png", image)
    for path in tmp_path.glob("*/web/validation/*.png"):
        path.rename(path.with_suffix(".jpg"))
    (tmp_path / "out" / "images").mkdir(parents=True)
    runs = {name: tmp_path / name for name in ("toy", "toy_b")}
    rows = common_scenes(runs, {name: [{"epoch": 1}] for name in runs}, tmp_path / "out")
    for scene, more in (("1", 0), ("b_1", 9)):
        greys = [np.asarray(Image.open(tmp_path / "out" / p.path)).mean() for p in rows[scene]]
        assert greys == [50 + more, 50 + more, 200 + more, 50 + more]


def test_comparing_runs(tmp_path: Path) -> None:
    for name, lr in (("a", 0.1), ("b", 0.2)):
        folder = tmp_path / name
        save_png(folder / "web" / "x.png", np.zeros((4, 4), np.uint8))
        (folder / "opt.json").write_text(json.dumps({"lr": lr, "ngf": 8, "name": name}))
        (folder / "metrics.jsonl").write_text(
            '{"epoch": 1, "step": 1, "G_GAN": 1.0}\n{"epoch": 1, "step": 2, "G_GAN": 2}\n'
        )
        (folder / "validation.jsonl").write_text('{"epoch": 1, "step": 2, "ssim": 0.25}\n')
        images = folder / "web" / "validation"
        images.mkdir()
        for file in ("epoch0001_s", "input_label_s", "real_image_s"):
            Image.new("RGB", (8, 4)).save(images / f"{file}.jpg")
    run_ok("-m", "util.compare", "a", "b", "--checkpoints_dir", tmp_path)
    text = (tmp_path / "compare" / "index.html").read_text()
    assert "--lr" in text and "--ngf" not in text and "0.25" in text and "losses.png" in text
    assert text.count("_s.jpg") >= 4
    (tmp_path / "a" / "web" / "validation" / "real_image_s.jpg").unlink()  # not yet written
    run_ok("-m", "util.compare", "a", "b", "--checkpoints_dir", tmp_path)
    assert "_s.jpg" not in (tmp_path / "compare" / "index.html").read_text()
    assert "no such run" in one_line(
        run_command("-m", "util.compare", "a", "none", "--checkpoints_dir", tmp_path)
    )
    (tmp_path / "short").mkdir()  # a run of fewer images than --print_freq
    assert "--print_freq" in one_line(
        run_command("-m", "util.compare", "a", "short", "--checkpoints_dir", tmp_path)
    )


@pytest.mark.thorough
def test_comparing_on_a_full_disk_keeps_complete_images(tmp_path: Path) -> None:
    """And the error names the image that does not fit, not the one that is copied."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    source, out = tmp_path / "web" / "validation", tmp_path / "out"
    for folder in (source, out / "images"):
        folder.mkdir(parents=True)
    for file in ("epoch0001_s", "input_label_s", "real_image_s"):
        noise.save(source / f"{file}.jpg")
    earlier = out / "images" / "0_s.jpg"
    earlier.write_bytes(b"earlier")
    program = (
        "import resource, sys; from pathlib import Path; from util.compare import common_scenes\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))\n"
        "run, out = map(Path, sys.argv[1:])\n"
        "try: common_scenes({'run': run}, {'run': [{'epoch': 1}]}, out)\n"
        "except OSError as error: print(error.filename)"
    )
    command = [sys.executable, "-c", program, tmp_path, out]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == f"{earlier}\n", done.stderr
    assert [path.read_bytes() for path in (out / "images").iterdir()] == [b"earlier"]


# -- Trackers -----------------------------------------------------------------------------------


@pytest.mark.thorough
def test_weights_and_biases_offline(toy_data: Path, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("wandb", reason="needs requirements-test.txt")
    monkeypatch.setenv("WANDB_MODE", "offline")
    where = [*TINY, "--dataroot", toy_data, "--checkpoints_dir", tmp_path, "--name", "run"]
    run_ok("train.py", *where, "--wandb", "--niter", 1, "--niter_decay", 0)
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.thorough
def test_mlflow_offline(toy_data: Path, tmp_path: Path, monkeypatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs requirements-test.txt")
    pytest.importorskip("alembic", reason="needs requirements-test.txt")
    uri = f"sqlite:///{tmp_path / 'tracking.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    where = [*TINY, "--dataroot", toy_data, "--checkpoints_dir", tmp_path, "--name", "run"]
    flags = ["--mlflow", "--print_freq", 1, "--niter", 1, "--niter_decay", 0, "--gpu_ids", -1]
    client = mlflow.MlflowClient(uri)
    client.create_experiment("pix2pixHD", artifact_location=str(tmp_path / "artifacts"))
    run_ok("train.py", *where, *flags)
    run = (tmp_path / "run" / "mlflow_id.txt").read_text()
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    logged = client.get_metric_history(run, "loss/G_GAN")
    assert [(m.step, m.value) for m in logged] == [(row["step"], row["G_GAN"]) for row in rows]
    (validation,) = client.get_metric_history(run, "validation/ssim")
    assert validation.value == read_rows(tmp_path / "run" / "validation.jsonl")[-1]["ssim"]


@pytest.mark.parametrize("flag", ["wandb", "mlflow"])
def test_a_missing_package_is_named(flag: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, flag, None)
    flags = {"tf_log": False, "wandb": False, "mlflow": False, flag: True}
    with pytest.raises(UserError, match=f"--{flag} needs a package.*pip install {flag}"):
        create_loggers(argparse.Namespace(**flags), tmp_path, False)
