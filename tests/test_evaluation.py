"""evaluate.py: its measures against numpy and Cityscapes' own, and the command as a whole."""

import argparse
import errno
import json
import math
import os
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import needs, one_line, run_command, save_png
from PIL import Image

import evaluate
from benchmarks import toy_segmenter
from data.aligned_dataset import AlignedDataset, Geometry
from data.create import evenly_spaced
from evaluation import measures
from evaluation.measures import psnr, ssim
from evaluation.scenes import find_images, find_scenes, warn_of_other_runs
from evaluation.segmentation import (
    Evaluator,
    class_iou,
    confusion,
    evaluation_classes,
    kernel_distance,
    pixel_accuracy,
)
from evaluation.segmenters import Segmenter, load_segmenter
from options.evaluate_options import EvaluateOptions
from util.errors import UserError
from util.pages.html import Page, Picture

pytestmark = [
    needs("torchmetrics", "requirements-eval.txt"),
    needs("cityscapesscripts", "requirements-eval.txt"),
]


def test_psnr_by_hand() -> None:
    black = np.zeros((4, 6, 3), np.uint8)
    grey = np.full_like(black, 51)  # a fifth of 255
    assert psnr(black, grey) == pytest.approx(20 * math.log10(5))
    assert psnr(grey, grey) == math.inf


def test_ssim_is_1_for_equal_images_and_less_for_others() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    assert ssim(picture, picture) == 1.0
    assert ssim(picture, np.roll(picture, 1, 1)) < 0.2


def test_ssim_equals_that_of_torchmetrics() -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure as official

    draw = np.random.default_rng(0)
    smooth = np.add.outer(np.arange(40) * 3, np.arange(60) * 2)[..., None].repeat(3, 2)
    a = (smooth + draw.integers(0, 10, smooth.shape)).astype(np.uint8)
    b = np.clip(a + draw.normal(0, 20, a.shape), 0, 255).astype(np.uint8)
    pair = [torch.from_numpy(x).permute(2, 0, 1)[None].double() / 255 for x in (a, b)]
    assert ssim(a, b) == pytest.approx(float(official(*pair, data_range=1.0)), abs=1e-6)


def checkerboard(height: int, width: int) -> np.ndarray:
    rows, columns = np.indices((height, width))
    return ((rows + columns) % 2 * 200).astype(np.uint8)[..., None].repeat(3, 2)


def test_grid_energy_by_hand() -> None:
    assert measures.grid_energy(checkerboard(8, 12)) == pytest.approx(1)
    stripes = np.zeros((8, 12, 3), np.uint8)
    stripes[:, ::2] = 90  # every other column
    assert measures.grid_energy(stripes) == pytest.approx(1)
    slow = np.zeros((8, 12, 3), np.uint8)
    slow[:4] = 90  # a square wave of one period: only the odd frequencies 1 and 3 of 8
    assert measures.grid_energy(slow) == pytest.approx(0, abs=1e-12)
    assert math.isnan(measures.grid_energy(np.full((8, 12, 3), 7, np.uint8)))
    # by Parseval: a wave at Nyquist has twice the energy of one that is not
    rows, columns = np.indices((64, 64))
    mixed = 100 + 30 * np.cos(np.pi * columns) + 30 * np.cos(2 * np.pi * 5 * rows / 64)
    grey = mixed.round().astype(np.uint8)[..., None].repeat(3, 2)
    assert measures.grid_energy(grey) == pytest.approx(2 / 3, abs=1e-3)


def test_grid_energy_of_odd_sides() -> None:
    """Both signs of the highest frequency count, and rounding does not count as energy."""
    assert measures.grid_energy(checkerboard(64, 33)) == pytest.approx(1)
    noise = np.random.default_rng(0).integers(0, 256, (33, 65, 3), np.uint8)
    expected = 1 - 31 / 33 * 63 / 65  # of white noise
    assert measures.grid_energy(noise) == pytest.approx(expected, abs=0.02)
    assert math.isnan(measures.grid_energy(np.full((31, 37, 3), 100, np.uint8)))


def test_things_of_the_largest_ids_are_measured() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    small, large = (np.full((8, 8), i, np.uint32).view(np.int32) for i in (26001, 2**31 + 5))
    assert measures.hue_variance(image, large) == measures.hue_variance(image, small) > 0


def test_sharpness_by_hand() -> None:
    assert measures.sharpness(checkerboard(6, 6)) == pytest.approx(200)
    ramp = (np.arange(10) * 4).astype(np.uint8)[None, :, None].repeat(5, 0).repeat(3, 2)
    assert measures.sharpness(ramp) == pytest.approx(2)  # 4 to the right, 0 down


def test_variance_inside_things_by_hand() -> None:
    image = np.zeros((8, 16, 3), np.uint8)
    inst = np.full((8, 16), 7)  # road: not a thing
    inst[:, :8], inst[:, 8:12], inst[0, 15] = 26001, 26002, 26003  # the last is too small
    image[:, :4, 0], image[:, 4:8, 1] = 255, 255  # one thing is half red and half green
    image[:, 8:12] = [0, 0, 51]
    # red is (1, 0) in the plane of hues, green (-1/2, sqrt(3)/2): variances 9/16 and 3/16
    assert measures.hue_variance(image, inst) == pytest.approx((9 / 16 + 3 / 16) / 2)
    assert measures.brightness_variance(image, inst) == pytest.approx(0)
    image[:4, 8:12] = [0, 0, 255]  # 0.2 and 1: variance 0.16; hue 0.2 and 1 as well
    assert measures.brightness_variance(image, inst) == pytest.approx(0.16 / 2)
    grey = image.mean(-1, keepdims=True).round().astype(np.uint8).repeat(3, 2)
    assert measures.hue_variance(grey, inst) == pytest.approx(0, abs=1e-30)
    assert measures.hue_variance(image[:4, :5], np.full((4, 5), 26001)) > 0  # 20 pixels suffice
    assert math.isnan(measures.hue_variance(image, None))
    assert math.isnan(measures.hue_variance(image, np.full((8, 16), 7)))


def test_hue_mixture_by_hand() -> None:
    image = np.zeros((8, 16, 3), np.uint8)
    inst = np.full((8, 16), 26001)
    inst[:, 8:] = 26002
    image[:, :4, 0], image[:, 4:8] = 255, 120  # red and grey: one hue
    assert measures.hue_mixture(image, inst) == pytest.approx(0)
    image[:, 4:8] = [0, 255, 0]  # half red, half green: of two unit vectors at 120 degrees
    assert measures.hue_mixture(image, inst) == pytest.approx(0.5)
    image[:, 4:8] = [0, 255, 255]  # red and cyan are opposites
    assert measures.hue_mixture(image, inst) == pytest.approx(1)
    image[:, 8:, 2] = 255  # as much of pure blue in another thing
    assert measures.hue_mixture(image, inst) == pytest.approx(0.5)
    assert math.isnan(measures.hue_mixture(image, None))
    assert math.isnan(measures.hue_mixture(np.full((8, 16, 3), 90, np.uint8), inst))
    assert math.isnan(measures.hue_mixture(image[..., :1], inst))


def test_kernel_distance_by_hand() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(5, 3)), draw.normal(0.5, 1, (7, 3))

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (sum(x * y) / 3 + 1) ** 3

    within_a = [kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j]
    within_b = [kernel(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j]
    between = [kernel(x, y) for x in a for y in b]
    expected = np.mean(within_a) + np.mean(within_b) - 2 * np.mean(between)
    assert kernel_distance(a, b) == pytest.approx(expected)


def test_kernel_distance_does_not_hold_all_pairs() -> None:
    """Every image has eight cells: all pairs of a training set's would take gigabytes."""
    a, b = np.random.default_rng(0).normal(size=(2, 2000, 3))
    tracemalloc.start()
    found = kernel_distance(a, b)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < len(a) * len(b) * 8 / 2
    of_a, of_b, between = ((x @ y.T / 3 + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    within = sum((k.sum() - np.trace(k)) / (2000 * 1999) for k in (of_a, of_b))
    assert found == pytest.approx(within - 2 * between.mean())


def test_class_scores_equal_those_of_cityscapes() -> None:
    """Against cityscapesscripts, which counts a matrix over all ids, evaluated or not."""
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
    from cityscapesscripts.helpers.labels import labels

    classes = evaluation_classes(35, None, "ids")
    assert len(classes.names) == 19 and classes.names[0] == "road"
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 34, (50, 60))
    found = np.where(draw.random(truth.shape) < 0.6, truth, draw.integers(0, 34, truth.shape))
    matrix = confusion(classes.of_label[truth], classes.of_output[found], 19)

    whole = np.zeros((34, 34), np.ulonglong)
    np.add.at(whole, (truth, found), 1)
    args = argparse.Namespace(evalLabels=list(range(34)))
    evaluated = [label for label in labels if not label.ignoreInEval]
    expected = [official.getIouScoreForLabel(label.id, whole, args) for label in evaluated]
    np.testing.assert_allclose(class_iou(matrix), expected)
    ids = [label.id for label in evaluated]
    right = ((truth == found) & np.isin(truth, ids)).sum()
    assert pixel_accuracy(matrix) == pytest.approx(right / np.isin(truth, ids).sum())


def test_a_class_that_does_not_occur_is_left_out_of_the_mean() -> None:
    truth, found = np.array([[0, 0, 1, -1]]), np.array([[0, 2, 1, 2]])
    matrix = confusion(truth, found, 3)
    np.testing.assert_equal(class_iou(matrix), [0.5, 1, math.nan])
    assert pixel_accuracy(matrix) == pytest.approx(2 / 3)


@pytest.mark.parametrize("outputs, road", [("trainIds", 0), ("ids", 7)])
def test_classes_of_outputs(outputs: str, road: int) -> None:
    classes = evaluation_classes(35, None, outputs)
    assert classes.of_output[road] == 0 and classes.of_label[7] == 0
    assert classes.of_label[34] == -1 and classes.of_label[0] == -1  # plate, unlabeled
    assert classes.of_output[19 if outputs == "trainIds" else 0] == 19  # none of them


def test_other_data_sets_are_evaluated_on_all_their_labels() -> None:
    classes = evaluation_classes(4, 2, "trainIds")
    assert classes.ids == [0, 1, 3]
    assert classes.of_label[[0, 1, 2, 3, 255]].tolist() == [0, 1, -1, 2, -1]
    assert classes.of_output[[0, 1, 2, 3]].tolist() == [0, 1, 3, 2]
    with pytest.raises(UserError, match="--ignore_label 0 leaves no class"):
        evaluation_classes(1, 0, "ids")


# -- the command -----------------------------------------------------------------------------


class ByColour(torch.nn.Module):
    """A segmenter for tests: the train id is a 13th of the red channel's grey level."""

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return (picture[:, 0] * 255 / 13).round().long()


class Scores(torch.nn.Module):
    """The same, but as scores at half the size."""

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        levels = torch.arange(19).view(1, 19, 1, 1)
        red = picture[:, :1, ::2, ::2] * 255 / 13
        return -(red - levels).abs()


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Two 32x16 scenes whose photographs the segmenter above gets right, except one pixel."""
    label = np.full((16, 32), 7, np.uint8)  # road
    label[:8] = 23  # sky
    label[:, :8] = 26  # car
    label[0, 0] = 0  # not evaluated
    train_id = {7: 0, 23: 10, 26: 13, 0: 3}
    for name in ("a", "b"):
        photo = np.zeros((16, 32, 3), np.uint8)
        photo[..., 0] = 13 * np.vectorize(train_id.get)(label)
        if name == "b":
            photo[15, 31, 0] = 13 * 18
        save_png(tmp_path / "data" / "test_label" / f"{name}.png", label)
        save_png(tmp_path / "data" / "test_img" / f"{name}.png", photo)
        generated = photo.copy()
        generated[8:, 20:, 0] = 13 * 10  # sky in the road: 96 pixels
        save_png(tmp_path / "images" / f"{name}_synthesized_image.png", generated)
        save_png(tmp_path / "images" / f"{name}_input_label.png", generated)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(ByColour()).save(str(tmp_path / "net.pt"))
        torch.jit.script(Scores()).save(str(tmp_path / "scores.pt"))
    return tmp_path


@pytest.fixture
def measure(call: Callable, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict]:
    """measure(*flags): evaluate.py on the scenes above, without weights; returns metrics.json."""

    def no_network(*args: object, **options: object) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(scenes / "hub"))

    def run_it(*flags: object) -> dict:
        common = ["--dataroot", scenes / "data", "--gpu_ids", -1, "--out", scenes / "out"]
        call(evaluate.main, *common, "--images", scenes / "images", *flags)
        text = (scenes / "out" / "metrics.json").read_text()
        return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))

    return run_it


def test_figures_by_hand(measure: Callable, scenes: Path, capsys: pytest.CaptureFixture) -> None:
    found = measure("--segmenter", f"torchscript:{scenes / 'net.pt'}")
    evaluated = 2 * (16 * 32 - 1)
    assert found["oracle"]["pixel_accuracy"] == pytest.approx((evaluated - 1) / evaluated)
    # 2 x 96 pixels of road taken for sky; the pixel that the oracle misses is one of them
    assert found["pixel_accuracy"] == pytest.approx((evaluated - 192) / evaluated)
    road, sky = 8 * 24 * 2, 8 * 24 * 2
    iou = found["iou"]
    assert iou["road"] == pytest.approx((road - 192) / road)
    assert iou["sky"] == pytest.approx(sky / (sky + 192))
    assert iou["car"] == 1 and iou["bus"] is None
    assert found["mean_iou"] == pytest.approx((iou["road"] + iou["sky"] + 1) / 3)
    of_oracle = found["mean_iou"] / found["oracle"]["mean_iou"]
    assert found["of_oracle"]["mean_iou"] == pytest.approx(of_oracle)
    assert [row["name"] for row in found["pictures"]] == ["a", "b"]
    assert found["protocol"]["sizes"] == "32x16"
    for name in ("lpips", "fid", "kid"):
        assert found[name] is None and found["reasons"][name]
    shown = capsys.readouterr().out
    assert "mean IoU" in shown and "could not be downloaded or used (no network here)" in shown

    page = (scenes / "out" / "index.html").read_text()
    assert "<table>" in page and "mean IoU" in page and "confusion_oracle.png" in page
    pictures = sorted(path.name for path in (scenes / "out" / "images").iterdir())
    kinds = ("found", "generated", "label", "oracle", "real")
    expected = [f"{name}_{kind}.png" for name in "ab" for kind in kinds]
    assert pictures == sorted(["confusion.png", "confusion_oracle.png", *expected])


def test_properties_are_compared_with_the_photographs(measure: Callable, scenes: Path) -> None:
    inst = np.full((16, 32), 7, np.uint16)
    inst[:, :8] = 26000
    for name in "ab":
        save_png(scenes / "data" / "test_inst" / f"{name}.png", inst)
    found = measure()
    images = [scenes / "images" / f"{name}_synthesized_image.png" for name in "ab"]
    photos = [scenes / "data" / "test_img" / f"{name}.png" for name in "ab"]
    for name, function in measures.PROPERTIES.items():
        means = [
            np.mean([function(np.asarray(Image.open(path)), inst) for path in paths])
            for paths in (images, photos)
        ]
        assert [found[name], found["oracle"][name]] == pytest.approx(means)
        ratio = means[0] / means[1] if means[1] else None
        assert found["of_oracle"][name] == pytest.approx(ratio)


def test_several_epochs_in_one_table(
    call: Callable, scenes: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "SET_MEASURES", {})
    for epoch in ("20", "best"):
        images = scenes / "results" / "run" / f"test_{epoch}" / "images"
        for path in (scenes / "images").iterdir():
            image = np.array(Image.open(path))
            save_png(images / path.name, image // 2 if epoch == "20" else image)
    flags = ["--dataroot", scenes / "data", "--results_dir", scenes / "results", "--gpu_ids", -1]
    call(evaluate.main, *flags, "--name", "run", "--which_epoch", "20,best")
    table = json.loads((scenes / "results" / "comparison.json").read_text())
    assert [row["run"] for row in table] == ["run 20", "run best"]
    for row, epoch in zip(table, ("20", "best")):
        folder = scenes / "results" / "run" / f"test_{epoch}" / "evaluation"
        own = json.loads((folder / "metrics.json").read_text())
        assert float(row["PSNR (dB)"]) == pytest.approx(own["psnr"], rel=1e-3)
    *_, head, first, second, _ = capsys.readouterr().out.splitlines()
    assert second.strip().startswith("run best") and len(head) == len(first) == len(second)
    for problem in ("no such folder", "holds no images"):
        with pytest.raises(UserError, match=problem):
            call(evaluate.main, *flags, "--name", "run", "--which_epoch", "20,21")
        assert not capsys.readouterr().out  # nothing is measured
        (scenes / "results" / "run" / "test_21" / "images").mkdir(parents=True, exist_ok=True)


def test_images_of_no_run_are_not_reported_as_those_of_one(
    call: Callable, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "SET_MEASURES", {})
    monkeypatch.chdir(scenes)
    for folder in ("images", "data/test_img"):
        call(evaluate.main, "--dataroot", "data", "--gpu_ids", -1, "--images", folder)
    assert not Path("results").exists()  # where those of the run label2city would be
    assert "<h1>images: evaluation</h1>" in Path("images_evaluation", "index.html").read_text()
    assert Path("data", "test_img_evaluation", "metrics.json").exists()
    monkeypatch.chdir("images")
    (opt,) = EvaluateOptions().parse_runs(["--images", "."])
    assert opt.out == scenes / "images_evaluation"


def test_the_real_photographs_against_themselves(measure: Callable, scenes: Path) -> None:
    images = scenes / "data" / "test_img"
    found = measure("--images", images, "--segmenter", f"torchscript:{scenes / 'net.pt'}")
    assert found["psnr"] == "inf" and found["identical_pictures"] == 2 and found["ssim"] == 1
    assert found["pixel_accuracy"] == found["oracle"]["pixel_accuracy"]
    ratios = found["of_oracle"]
    assert ratios["pixel_accuracy"] == ratios["mean_iou"] == ratios["sharpness"] == 1


def test_an_empty_folder_of_instances_counts_as_none(measure: Callable, scenes: Path) -> None:
    (scenes / "data" / "test_inst").mkdir()
    assert len(measure()["pictures"]) == 2


def test_val_max_measures_what_training_validates_on(measure: Callable, scenes: Path) -> None:
    """The order is that of file names: a-2.png comes before a.png."""
    for path in [*scenes.glob("data/*/b.png"), scenes / "images" / "b_synthesized_image.png"]:
        path.rename(path.with_name(path.name.replace("b", "a-2", 1)))
    dataset = AlignedDataset(scenes / "data", "test", 35, Geometry("none"), use_instances=False)
    (first,) = [row["name"] for row in measure("--val_max", 1)["pictures"]]
    assert first == evenly_spaced(dataset.scenes, 1)[0] == "a-2"


def test_one_equal_image_does_not_make_the_mean_infinite(measure: Callable, scenes: Path) -> None:
    photo = scenes / "data" / "test_img" / "a.png"
    (scenes / "images" / "a_synthesized_image.png").write_bytes(photo.read_bytes())
    found = measure()
    assert found["identical_pictures"] == 1 and found["pictures"][0]["psnr"] == "inf"
    assert found["psnr"] == found["pictures"][1]["psnr"] and "mean_iou" not in found


def test_images_of_another_size(measure: Callable, scenes: Path) -> None:
    for path in (scenes / "images").glob("*_synthesized_image.png"):
        Image.open(path).resize((16, 8), Image.Resampling.NEAREST).save(path)
    found = measure("--segmenter", f"torchscript:{scenes / 'scores.pt'}")
    assert found["protocol"]["sizes"] == "16x8"
    assert found["protocol"]["resize"].startswith("2 photographs scaled")
    assert found["oracle"]["pixel_accuracy"] > 0.7  # red is blurred where classes meet


@pytest.mark.thorough
def test_a_segmenter_with_its_own_width(measure: Callable, scenes: Path) -> None:
    net = f"torchscript:{scenes / 'net.pt'}"
    exact = measure("--segmenter", net)
    found = measure("--segmenter", net, "--segmenter_width", 64)
    assert "width of 64" in found["protocol"]["segmenter_input"]
    assert found["pixel_accuracy"] != exact["pixel_accuracy"]
    assert found["pixel_accuracy"] == pytest.approx(exact["pixel_accuracy"], abs=0.15)


def test_features_are_of_images_at_the_segmenters_width() -> None:
    widths = []

    class Wide:
        def __call__(self, image: np.ndarray) -> np.ndarray:
            return np.zeros(image.shape[:2], int)

        def features(self, image: np.ndarray) -> torch.Tensor:
            widths.append(image.shape[1])
            return torch.zeros(1, 2, 4)

    black = np.zeros((16, 32, 3), np.uint8)
    classes = evaluation_classes(3, None, "ids")
    Evaluator(Wide(), classes, width=64).add(black, black, black[..., 0])
    assert widths == [64, 64]


def test_features_are_averaged_over_2_rows_and_4_columns_of_cells() -> None:
    maps = np.random.default_rng(0).random((3, 6, 8))
    segmenter = argparse.Namespace(features=lambda image: torch.from_numpy(maps))
    found = Evaluator(segmenter, evaluation_classes(3, None, "ids"))._cells(np.zeros((6, 8, 3)))
    expected = maps.reshape(3, 2, 3, 4, 2).mean((2, 4)).reshape(3, 8).T
    np.testing.assert_allclose(found, expected)


def test_without_matplotlib_a_segmenter_is_refused_at_the_start(
    measure: Callable, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="pip install matplotlib"):
        measure("--segmenter", f"torchscript:{scenes / 'net.pt'}")
    assert not (scenes / "out").exists()


@pytest.mark.parametrize(
    "kind, package, extra", [("onnx", "onnxruntime", "onnx"), ("hf", "transformers", "eval")]
)
def test_a_segmenter_whose_package_is_missing(
    kind: str, package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "net").touch()
    with pytest.raises(UserError, match=f"pip install -r requirements-{extra}.txt"):
        load_segmenter(f"{kind}:{tmp_path / 'net'}", torch.device("cpu"))


@pytest.mark.thorough
def test_an_onnx_segmenter_finds_what_torchscript_finds(measure: Callable, scenes: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs requirements-onnx.txt")
    pytest.importorskip("onnxscript", reason="needs requirements-onnx.txt")
    picture = torch.rand(1, 3, 16, 32)
    torch.onnx.export(Scores().eval(), (picture,), scenes / "net.onnx", verbose=False, dynamo=True)
    found = measure("--segmenter", f"onnx:{scenes / 'net.onnx'}")
    expected = measure("--segmenter", f"torchscript:{scenes / 'scores.pt'}")
    assert found["iou"] == expected["iou"] and found["mean_iou"] > 0.5


def test_an_onnx_segmenter_runs_on_the_cpu_if_a_gpu_cannot_be_used(scenes: Path, monkeypatch):
    """As where onnxruntime is built for another CUDA: it has the provider but cannot start it."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs requirements-onnx.txt")
    pytest.importorskip("onnxscript", reason="needs requirements-onnx.txt")
    picture = torch.rand(1, 3, 16, 32)
    torch.onnx.export(Scores().eval(), (picture,), scenes / "net.onnx", verbose=False, dynamo=True)
    known = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: known)
    net = load_segmenter(f"onnx:{scenes / 'net.onnx'}", torch.device("cuda"))
    assert net(np.zeros((16, 32, 3), np.uint8)).shape == (16, 32)


@pytest.mark.thorough
def test_a_transformers_segmenter(measure: Callable, scenes: Path) -> None:
    """With random weights: the counts equal those of the library's own results."""
    transformers = pytest.importorskip("transformers", reason="needs requirements-eval.txt")
    torch.manual_seed(0)
    config = transformers.SegformerConfig(
        num_labels=19,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 8, 8],
        num_attention_heads=[1, 1, 1, 1],
        decoder_hidden_size=8,
        sr_ratios=[1, 1, 1, 1],
    )
    net = transformers.SegformerForSemanticSegmentation(config).eval()
    net.save_pretrained(scenes / "net")
    transformers.SegformerImageProcessor().save_pretrained(scenes / "net")
    found = measure("--segmenter", f"hf:{scenes / 'net'}")

    right = 0
    for name in "ab":
        picture = np.array(Image.open(scenes / "images" / f"{name}_synthesized_image.png"))
        label = np.array(Image.open(scenes / "data" / "test_label" / f"{name}.png"))
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        x = torch.from_numpy((picture / 255 - mean) / std).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            logits = net(pixel_values=x).logits
        logits = torch.nn.functional.interpolate(logits, (16, 32), mode="bilinear")
        train_ids = np.select([label == 7, label == 23, label == 26], [0, 10, 13], -1)
        right += (logits.argmax(1)[0].numpy() == train_ids).sum()
    assert found["pixel_accuracy"] == pytest.approx(right / (2 * (16 * 32 - 1)))


def test_transformers_that_crop_or_pad(scenes: Path) -> None:
    """MobileNetV2's preprocessing crops the centre; DPT's may pad."""
    transformers = pytest.importorskip("transformers", reason="needs requirements-eval.txt")
    torch.manual_seed(0)
    config = transformers.MobileNetV2Config(num_labels=19, depth_multiplier=0.35)
    net = transformers.MobileNetV2ForSemanticSegmentation(config).eval()
    net.save_pretrained(scenes / "net")
    transformers.MobileNetV2ImageProcessor().save_pretrained(scenes / "net")
    image = np.random.default_rng(0).integers(0, 256, (40, 72, 3), np.uint8)
    x = torch.from_numpy(image / 127.5 - 1).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        logits = net(pixel_values=x).logits
    expected = torch.nn.functional.interpolate(logits, (40, 72), mode="bilinear").argmax(1)[0]
    found = load_segmenter(f"hf:{scenes / 'net'}", torch.device("cpu"))(image)
    assert (found == expected.numpy()).mean() > 0.99  # up to rounding

    pads = transformers.DPTImageProcessor(do_pad=True, size_divisor=32)
    pads.save_pretrained(scenes / "net")
    with pytest.raises(UserError, match="makes 96x64 of an image of 72x40"):
        load_segmenter(f"hf:{scenes / 'net'}", torch.device("cpu"))(image)

    weights = scenes / "net" / "model.safetensors"
    for path, content in (
        (weights, weights.read_bytes()[:100]),
        (scenes / "net" / "preprocessor_config.json", b"[]"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be loaded"):
            load_segmenter(f"hf:{scenes / 'net'}", torch.device("cpu"))


class Parts(torch.nn.Module):
    """A segmenter with a submodule called features, as in torchvision's networks."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Conv2d(3, 4, 1)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return self.features(picture)


class Fails(Scores):
    @torch.jit.export
    def features(self, picture: torch.Tensor) -> torch.Tensor:
        return picture[0, 0].view(7, 7)


class Flat(Scores):
    @torch.jit.export
    def features(self, picture: torch.Tensor) -> torch.Tensor:
        return picture.flatten(1)


class Shifted(torch.nn.Module):
    """Classes out of range."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return (picture[:, 0] * 255).long() + self.shift


class Mask(torch.nn.Module):
    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return picture[:, 0] > 0.5


def scripted(net: torch.nn.Module, folder: Path) -> Segmenter:
    file = folder / "net.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(net).save(str(file))
    return load_segmenter(f"torchscript:{file}", torch.device("cpu"))


BAD_FEATURES = {
    "fails": (Fails(), "an image of 8x6: "),
    "flat": (Flat(), r"expected floats \(1, C"),
}


@pytest.mark.parametrize("net, expected", BAD_FEATURES.values(), ids=BAD_FEATURES)
def test_invalid_features(net: torch.nn.Module, expected: str, tmp_path: Path) -> None:
    assert scripted(Parts(), tmp_path).features is None
    with pytest.raises(UserError, match=expected):
        scripted(net, tmp_path).features(np.zeros((6, 8, 3), np.uint8))


class Returns(torch.nn.Module):
    """Scores of this shape, all of one value."""

    def __init__(self, *shape: int, value: float = 0) -> None:
        super().__init__()
        self.scores = torch.full(shape, float(value))

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return self.scores


BAD_CLASSES = {
    "above": (Shifted(65536), "returns classes 65536 to 65536, expected 0 to 65535"),
    "below": (Shifted(-1), "returns classes -1 to -1"),
    "mask": (Mask(), "returns torch.bool"),
    "no numbers": (Returns(1, 19, 3, 4, value=math.nan), "returns scores that are not a number"),
    "one score": (Returns(1, 1, 6, 8), r"returns torch.float32 \(1, 1, 6, 8\)"),
    "channels last": (Returns(1, 6, 8, 19), r"returns torch.float32 \(1, 6, 8, 19\)"),
}


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.uint16, torch.uint32])
def test_classes_of_any_integers(kind: torch.dtype) -> None:
    net = Segmenter("onnx:x", lambda image: torch.full((1, 6, 8), 7).to(kind))
    assert (net(np.zeros((6, 8, 3), np.uint8)) == 7).all()


@pytest.mark.parametrize("net, expected", BAD_CLASSES.values(), ids=BAD_CLASSES)
def test_invalid_classes(net: torch.nn.Module, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=expected):
        scripted(net, tmp_path)(np.zeros((6, 8, 3), np.uint8))


def test_a_flipped_bit_in_a_segmenter_is_refused(tmp_path: Path) -> None:
    """torch.jit.load checks no checksums, and other weights find other classes."""
    net = torch.nn.Conv2d(3, 19, 1)
    scripted(net, tmp_path)
    file = tmp_path / "net.pt"
    content = bytearray(file.read_bytes())
    content[content.index(net.weight.detach().numpy().tobytes())] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="the checksum"):
        load_segmenter(f"torchscript:{file}", torch.device("cpu"))


REFUSED = {
    "kind": ("--segmenter keras:net", "expected one of hf:NAME_OR_DIR"),
    "no file": ("--segmenter torchscript:nowhere.pt", "nowhere.pt: no such file"),
    "damaged": ("--segmenter torchscript:README.md", "cannot be loaded"),
    "no such model": ("--segmenter hf:./nowhere", "cannot be loaded"),
    "no images": ("--images empty", "holds no images"),
    "no folder": ("--images nowhere", "generate images with test.py"),
    "other scenes": ("--images other", "no image of the data set's scenes"),
    "labels": ("--label_nc 10 --segmenter torchscript:net.pt", "label 23"),
    "weights": ("--weights_dir nowhere", "no such folder"),
    "flag": ("--segmentor x", "did you mean --segmenter?"),
    "two runs, one folder": ("--which_epoch 1,2", "for one run and one epoch"),
    "width alone": ("--segmenter_width 64", "needs --segmenter"),
    "classes alone": ("--segmenter_classes ids", "needs --segmenter"),
}


@pytest.mark.parametrize("flags, expected", REFUSED.values(), ids=REFUSED)
def test_refused(
    refused: Callable, scenes: Path, monkeypatch: pytest.MonkeyPatch, flags: str, expected: str
) -> None:
    monkeypatch.chdir(scenes)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(measures, "SET_MEASURES", {})
    (scenes / "README.md").write_text("no network")
    (scenes / "empty").mkdir()
    save_png(scenes / "other" / "c.png", np.zeros((4, 4), np.uint8))
    common = "--dataroot data --gpu_ids -1 --images images"
    assert expected in refused(evaluate.main, *common.split(), *flags.split())
    assert not any(path.is_file() for path in (scenes / "images_evaluation").rglob("*"))


def test_command_line(scenes: Path) -> None:
    done = run_command("evaluate.py", "--dataroot", scenes / "data", "--name", "never_drawn")
    assert "never_drawn/test_latest/images: no such folder" in one_line(done)
    done = run_command("evaluate.py", "--name", "mistyped")  # so that no data set is known
    assert "mistyped/test_latest/images: no such folder" in one_line(done)


# -- weights ---------------------------------------------------------------------------------


@pytest.fixture
def inception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with random weights under the names that the libraries look for."""
    from torch_fidelity import feature_extractor_inceptionv3 as library

    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(library, "load_state_dict_from_url", lambda *args, **options: {})
        patch.setattr(torch.nn.Module, "load_state_dict", lambda *args, **options: None)
        net = library.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d):  # features of about 1, not of 1e-6
            torch.nn.init.kaiming_normal_(layer.weight)
    (tmp_path / "weights").mkdir()
    torch.save(net.state_dict(), tmp_path / "weights" / measures.INCEPTION)
    return tmp_path / "weights"


@pytest.mark.slow
def test_fid_of_images_with_themselves_is_0(inception: Path) -> None:
    pytest.importorskip("torch_fidelity", reason="needs requirements-eval.txt")
    draw = np.random.default_rng(0)
    photos = [draw.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(3)]
    results = []
    for change in (0, 1):
        measure = measures.Measures(len(photos), inception, torch.device("cpu"))
        for photo in photos:
            measure.add(photo // 2 if change else photo, photo)
        results.append(measure.compute())
    same, other = results
    assert abs(same["fid"]) < 1e-3 < 1e-1 < other["fid"]
    assert same["lpips"] is None
    assert same["kid"] < other["kid"]


def test_images_too_small_for_lpips() -> None:
    measure = measures.Measures(1, None, torch.device("cpu"), rgb=False)
    measure.sets["lpips"] = torch.nn.Identity()  # which would refuse an image of 30x40
    image = np.zeros((30, 40, 3), np.uint8)
    measure.add(image, image)
    assert measure.compute()["lpips"] is None and "31 pixels" in measure.reasons["lpips"]


def test_labels_of_any_size_have_a_class() -> None:
    classes = evaluation_classes(3, 100_000, "ids")
    label = np.array([[0, 2, 3], [-1, 65_535, 100_000]])
    np.testing.assert_array_equal(classes.from_label_map(label), [[0, 2, -1], [-1, -1, -1]])


def test_weights_that_would_run_code_are_refused(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    file = tmp_path / "weights" / measures.INCEPTION
    file.parent.mkdir()
    torch.save({"weight": Evil(marker)}, file)
    measure = measures.Measures(2, file.parent, torch.device("cpu"))
    assert "not a readable checkpoint" in measure.reasons["fid"]
    assert not marker.exists()


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


# -- the toy segmenter -----------------------------------------------------------------------


def test_the_toy_segmenter_learns_and_can_be_loaded(
    call: Callable, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few steps on four scenes: better than always answering the most frequent class."""
    monkeypatch.setattr(measures, "SET_MEASURES", {})
    file = tmp_path / "made" / "net.pt"
    flags = ["--dataroot", toy_data, "--out", file, "--width", 32, "--steps", 40, "--batch", 4]
    call(toy_segmenter.main, *flags)
    common = ["--dataroot", toy_data, "--phase", "train", "--out", tmp_path / "out"]
    segmenter = ["--segmenter", f"torchscript:{file}", "--gpu_ids", -1, "--worst", 0]
    call(evaluate.main, *common, "--images", toy_data / "train_img", *segmenter)
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    classes = evaluation_classes(35, None, "trainIds")
    labels = [np.array(Image.open(p)) for p in (toy_data / "train_label").glob("*.png")]
    truth = classes.of_label[np.stack(labels)]
    most = np.bincount(truth[truth >= 0]).max() / (truth >= 0).sum()
    assert found["pixel_accuracy"] > most + 0.1


def small_map(path: Path) -> None:
    Image.open(path).resize((32, 16), Image.Resampling.NEAREST).save(path)


def unlabelled(path: Path) -> None:
    save_png(path, np.zeros((32, 64), np.uint8))


DAMAGED = {  # folder, damage, to how many files, part of the message
    "no instances": ("train_inst", Path.unlink, 1, "no inst for the label"),
    "no classes": ("train_label", unlabelled, 4, "hold none of Cityscapes"),
    "another size": ("train_label", small_map, 1, "is 32x16"),
}


@pytest.mark.parametrize("folder, damage, count, expected", DAMAGED.values(), ids=DAMAGED)
def test_scenes_unfit_for_training_are_refused(
    own_data: Path, refused: Callable, folder: str, damage: Callable, count: int, expected: str
) -> None:
    for path in sorted((own_data / folder).iterdir())[:count]:
        damage(path)
    flags = ["--dataroot", own_data, "--out", own_data / "net.pt", "--steps", 1]
    assert expected in refused(toy_segmenter.main, *flags)


def test_a_folder_as_output_is_refused_before_training(tmp_path: Path, refused: Callable) -> None:
    """Without even looking for the data set, which is missing."""
    flags = ["--dataroot", tmp_path / "nowhere", "--out", tmp_path]
    assert f"--out {tmp_path}: a folder" in refused(toy_segmenter.main, *flags)


def test_images_of_an_earlier_run_are_reported(tmp_path: Path, capsys) -> None:
    """A scene's name may hold characters that a link escapes, and the locale need not be UTF-8: ö
    is then read as two other characters."""
    names = ["a b", "ü", "\udcc3\udcb6", "b"]
    images = [tmp_path / "images" / f"{name}_synthesized_image.png" for name in names]

    def warning() -> str:
        warn_of_other_runs(tmp_path / "images", images)
        return capsys.readouterr().out

    for path in images:
        save_png(path, np.zeros((2, 2, 3), np.uint8))
    assert warning() == ""
    page = Page(tmp_path, "test")
    page.row([Picture(Path("images") / path.name, caption="image") for path in images[:3]])
    page.save()
    assert f"1 images, e.g. {images[3]}, are from an earlier run" in warning()
    (tmp_path / "index.html").write_bytes(b"\xff damaged")
    assert f"4 images, e.g. {images[0]}, are from an earlier run" in warning()


def test_an_image_whose_name_begins_another_is_of_an_earlier_run(tmp_path: Path, capsys) -> None:
    """TIFF files are shown as a view; an earlier run's scene is not taken for one on the page."""
    images = [tmp_path / "images" / f"{name}.tif" for name in ("a", "b", "bc")]
    for path in images:
        save_png(path.with_name(f"{path.stem}_view.png"), np.zeros((2, 2, 3), np.uint8))
        path.touch()
    page = Page(tmp_path, "test")
    page.row([Picture(Path("images") / f"{name}_view.png") for name in ("a", "bc")])
    page.save()
    warn_of_other_runs(tmp_path / "images", images)
    assert f"1 images, e.g. {images[1]}, are from an earlier run" in capsys.readouterr().out


def test_images_of_an_interrupted_run_are_reported(tmp_path: Path, capsys) -> None:
    """The images of a killed run of test.py are mixed with those of the run before."""
    opt = argparse.Namespace(dataroot=tmp_path, phase="test", label_nc=35, no_instance=True)
    opt.images = tmp_path / "images"
    for name in ("a", "b"):
        for kind in ("label", "img"):
            save_png(tmp_path / f"test_{kind}" / f"{name}.png", np.zeros((2, 2), np.uint8))
        save_png(opt.images / f"{name}_synthesized_image.png", np.zeros((2, 2, 3), np.uint8))
    page = tmp_path / "index.html"
    page.write_text("images/a_synthesized_image.png images/b_synthesized_image.png")
    find_scenes(opt)
    assert capsys.readouterr().out == ""
    made = opt.images / "a_synthesized_image.png"
    os.utime(made, ns=(0, page.stat().st_mtime_ns + 1000))
    find_scenes(opt)
    assert f"1 of 2 images, e.g. {made}, are newer than their page" in capsys.readouterr().out
    for path in opt.images.iterdir():  # as after a copy
        os.utime(path, ns=(0, page.stat().st_mtime_ns + 1000))
    find_scenes(opt)
    assert capsys.readouterr().out == ""


def test_images_older_than_the_weights_are_reported(tmp_path: Path, capsys) -> None:
    weights = tmp_path / "ck" / "run" / "latest_net_G.pth"
    image = tmp_path / "results" / "run" / "test_latest" / "images" / "a.png"
    for path in (weights, image):
        path.parent.mkdir(parents=True)
        path.touch()
    opt = argparse.Namespace(checkpoints_dir=tmp_path / "ck", name="run", which_epoch="latest")
    opt.images, opt.results_dir = image.parent, str(tmp_path / "results")
    evaluate.warn_if_older([image], opt)
    assert capsys.readouterr().out == ""
    os.utime(image, (0, 0))
    evaluate.warn_if_older([image], opt)
    assert f"{image}, are older than {weights}" in capsys.readouterr().out


def test_strips_have_no_grid_and_no_sharpness() -> None:
    strip = np.random.default_rng(0).integers(0, 256, (1, 64, 3), np.uint8)
    for measure in (measures.grid_energy, measures.sharpness):
        assert math.isnan(measure(strip)) and math.isnan(measure(strip.transpose(1, 0, 2)))


def test_the_newest_format_of_an_image_is_measured(tmp_path: Path) -> None:
    """test.py may have written the scene earlier, in another format."""
    old, new = (tmp_path / f"a_synthesized_image.{end}" for end in ("png", "jpg"))
    for seconds, path in ((2_000, new), (1_000, old)):
        path.touch()
        os.utime(path, (seconds, seconds))
    assert find_images(tmp_path, {"a": "a"}) == {"a": new}


def test_images_of_scenes_in_folders_are_found_where_output_wrote_them(tmp_path: Path) -> None:
    """test.py --input DIR --output writes them side by side, named as on its page."""
    names = {"a/0001": "a__0001", "b/0002": "0002_gtFine_labelIds", "b/0003": "b__0003"}
    for name in [*names.values()][:2]:
        save_png(tmp_path / f"{name}.png", np.zeros((4, 4, 3), np.uint8))
    found = {scene: path.name for scene, path in find_images(tmp_path, names).items()}
    assert found == {"a/0001": "a__0001.png", "b/0002": "0002_gtFine_labelIds.png"}


def test_a_hidden_file_does_not_make_instance_maps(scenes: Path) -> None:
    (scenes / "data" / "test_inst").mkdir()
    (scenes / "data" / "test_inst" / ".gitkeep").touch()
    flags = ["--images", str(scenes / "images"), "--dataroot", str(scenes / "data")]
    (opt,) = EvaluateOptions().parse_runs(flags)
    assert [scene.inst for scene in find_scenes(opt)] == [None, None]


def test_a_constant_photograph_has_no_ratios() -> None:
    """Its variances are zero up to rounding."""
    photo = np.full((9, 9, 3), (37, 101, 203), np.uint8)
    row = measures.measure_pair(photo // 2, photo, np.full((9, 9), 1000))
    assert all(np.isnan(value) for value in measures.mean_measures([row])["of_oracle"].values())


def test_weights_dir_without_the_right_to_make_links(tmp_path: Path, monkeypatch) -> None:
    """As most users on Windows."""

    def symlink(*_: object, **__: object) -> None:
        raise OSError(errno.EINVAL, "A required privilege is not held by the client")

    monkeypatch.setattr(measures.os, "symlink", symlink)
    before = torch.hub.get_dir()
    with pytest.raises(UserError, match=r"privilege.*; leave it out and put .*checkpoints$"):
        measures.Measures(1, tmp_path, torch.device("cpu"))
    assert torch.hub.get_dir() == before
