"""evaluate.py: its measures against numpy and Cityscapes' own, and the command as a whole."""

import argparse
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import one_line, run_command, save_png
from PIL import Image

from util.scores import class_scores, confusion, psnr

pytest.importorskip("torchmetrics", reason="needs requirements-eval.txt")
pytest.importorskip("cityscapesscripts", reason="needs requirements-eval.txt")

import evaluate
from benchmarks import toy_segmenter
from util import scores

CPU = torch.device("cpu")


def test_psnr_by_hand() -> None:
    black = np.zeros((4, 6, 3), np.uint8)
    grey = np.full_like(black, 51)  # a fifth of 255
    assert psnr(black, grey) == pytest.approx(20 * math.log10(5))
    assert psnr(grey, grey) == math.inf


def test_ssim_is_1_for_equal_pictures_and_less_for_others() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    assert scores.ssim(picture, picture, CPU) == 1.0
    assert scores.ssim(picture, np.roll(picture, 1, 1), CPU) < 0.2


def test_class_scores_are_those_of_cityscapes() -> None:
    """Against cityscapesscripts, that counts a matrix over all ids, judged or not."""
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
    from cityscapesscripts.helpers.labels import labels

    classes = evaluate.evaluation_classes(35, None, "ids")
    assert len(classes.names) == 19 and classes.names[0] == "road"
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 34, (50, 60))
    found = np.where(draw.random(truth.shape) < 0.6, truth, draw.integers(0, 34, truth.shape))
    matrix = confusion(classes.of_label[truth], classes.of_output[found], 19)

    whole = np.zeros((34, 34), np.ulonglong)
    np.add.at(whole, (truth, found), 1)
    args = argparse.Namespace(evalLabels=list(range(34)))
    judged = [label for label in labels if not label.ignoreInEval]
    expected = [official.getIouScoreForLabel(label.id, whole, args) for label in judged]
    result = class_scores(matrix)
    np.testing.assert_allclose(result.iou, expected)
    assert result.mean_iou == pytest.approx(np.mean(expected))
    ids = [label.id for label in judged]
    right = ((truth == found) & np.isin(truth, ids)).sum()
    assert result.pixel_accuracy == pytest.approx(right / np.isin(truth, ids).sum())


def test_a_class_that_does_not_occur_is_not_in_the_mean() -> None:
    truth, found = np.array([[0, 0, 1, -1]]), np.array([[0, 2, 1, 2]])
    result = class_scores(confusion(truth, found, 3))
    np.testing.assert_equal(result.iou, [0.5, 1, math.nan])
    assert result.mean_iou == 0.75 and result.pixel_accuracy == pytest.approx(2 / 3)


@pytest.mark.parametrize("outputs, road", [("trainIds", 0), ("ids", 7)])
def test_classes_of_outputs(outputs: str, road: int) -> None:
    classes = evaluate.evaluation_classes(35, None, outputs)
    assert classes.of_output[road] == 0 and classes.of_label[7] == 0
    assert classes.of_label[34] == -1 and classes.of_label[0] == -1  # plate, unlabeled
    assert classes.of_output[19 if outputs == "trainIds" else 0] == 19  # none of them


def test_other_data_sets_are_judged_on_all_their_labels() -> None:
    classes = evaluate.evaluation_classes(4, 2, "trainIds")
    assert classes.ids == [0, 1, 3]
    assert classes.of_label[[0, 1, 2, 3, 255]].tolist() == [0, 1, -1, 2, -1]
    assert classes.of_output[[0, 1, 2, 3]].tolist() == [0, 1, 3, 2]


# -- the command -----------------------------------------------------------------------------


class ByColour(torch.nn.Module):
    """A segmenter for tests: the train id is a 13th of the red channel's grey level."""

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return (picture[:, 0] * 255 / 13).round().long()


class Scores(torch.nn.Module):
    """The same by scores, at half the size."""

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        levels = torch.arange(19).view(1, 19, 1, 1)
        red = picture[:, :1, ::2, ::2] * 255 / 13
        return -(red - levels).abs()


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Two scenes 32x16 whose photographs the segmenter above reads right, but for one pixel."""
    label = np.full((16, 32), 7, np.uint8)  # road
    label[:8] = 23  # sky
    label[:, :8] = 26  # car
    label[0, 0] = 0  # not judged
    train_id = {7: 0, 23: 10, 26: 13, 0: 3}
    for name in ("a", "b"):
        photo = np.zeros((16, 32, 3), np.uint8)
        photo[..., 0] = 13 * np.vectorize(train_id.get)(label)
        if name == "b":
            photo[15, 31, 0] = 13 * 18
        save_png(tmp_path / "data" / "test_label" / f"{name}.png", label)
        save_png(tmp_path / "data" / "test_img" / f"{name}.png", photo)
        drawn = photo.copy()
        drawn[8:, 20:, 0] = 13 * 10  # sky in the road: 96 pixels
        save_png(tmp_path / "images" / f"{name}_synthesized_image.png", drawn)
        save_png(tmp_path / "images" / f"{name}_input_label.png", drawn)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(ByColour()).save(str(tmp_path / "net.pt"))
        torch.jit.script(Scores()).save(str(tmp_path / "scores.pt"))
    return tmp_path


@pytest.fixture
def measure(call: Callable, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict]:
    """measure(*flags): evaluate.py on the scenes above, without weights; what metrics.json says."""

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
    judged = 2 * (16 * 32 - 1)
    assert found["oracle"]["pixel_accuracy"] == pytest.approx((judged - 1) / judged)
    # 2 x 96 pixels of road taken for sky; the pixel that the oracle misses is one of them
    assert found["pixel_accuracy"] == pytest.approx((judged - 192) / judged)
    road, sky, car = 8 * 24 * 2, 8 * 24 * 2, 2 * (16 * 8 - 1)
    iou = found["iou"]
    assert iou["road"] == pytest.approx((road - 192) / road)
    assert iou["sky"] == pytest.approx(sky / (sky + 192))
    assert iou["car"] == 1 and iou["bus"] is None and car
    assert found["mean_iou"] == pytest.approx((iou["road"] + iou["sky"] + 1) / 3)
    of_oracle = found["mean_iou"] / found["oracle"]["mean_iou"]
    assert found["of_oracle"]["mean_iou"] == pytest.approx(of_oracle)
    assert [row["name"] for row in found["pictures"]] == ["a", "b"]
    assert found["protocol"]["sizes"] == "32x16"
    for name in ("lpips", "fid", "kid"):
        assert found[name] is None and found["reasons"][name]
    shown = capsys.readouterr().out
    assert "mean IoU" in shown and "could not be fetched (no network here)" in shown

    page = (scenes / "out" / "index.html").read_text()
    assert "<table>" in page and "mean IoU" in page and "confusion_oracle.png" in page
    pictures = sorted(path.name for path in (scenes / "out" / "images").iterdir())
    kinds = ("found", "found_real", "generated", "label", "real")
    expected = [f"{name}_{kind}.png" for name in "ab" for kind in kinds]
    assert pictures == sorted(["confusion.png", "confusion_oracle.png", *expected])


def test_the_real_photographs_against_themselves(measure: Callable, scenes: Path) -> None:
    images = scenes / "data" / "test_img"
    found = measure("--images", images, "--segmenter", f"torchscript:{scenes / 'net.pt'}")
    assert found["psnr"] == "inf" and found["identical_pictures"] == 2 and found["ssim"] == 1
    assert found["pixel_accuracy"] == found["oracle"]["pixel_accuracy"]
    assert found["of_oracle"] == {"pixel_accuracy": 1, "mean_iou": 1}


def test_one_equal_picture_does_not_make_the_mean_infinite(measure: Callable, scenes: Path) -> None:
    photo = scenes / "data" / "test_img" / "a.png"
    (scenes / "images" / "a_synthesized_image.png").write_bytes(photo.read_bytes())
    found = measure()
    assert found["identical_pictures"] == 1 and found["pictures"][0]["psnr"] == "inf"
    assert found["psnr"] == found["pictures"][1]["psnr"] and "mean_iou" not in found


def test_pictures_of_another_size(measure: Callable, scenes: Path) -> None:
    for path in (scenes / "images").glob("*_synthesized_image.png"):
        Image.open(path).resize((16, 8), Image.Resampling.NEAREST).save(path)
    found = measure("--segmenter", f"torchscript:{scenes / 'scores.pt'}")
    assert found["protocol"]["sizes"] == "16x8"
    assert found["protocol"]["resize"].startswith("2 photographs scaled")
    assert found["oracle"]["pixel_accuracy"] > 0.7  # red is blurred where classes meet


def test_a_segmenter_of_its_own_width(measure: Callable, scenes: Path) -> None:
    net = f"torchscript:{scenes / 'net.pt'}"
    exact = measure("--segmenter", net)
    found = measure("--segmenter", net, "--segmenter_width", 64)
    assert "width of 64" in found["protocol"]["segmenter_input"]
    assert found["pixel_accuracy"] != exact["pixel_accuracy"]
    assert found["pixel_accuracy"] == pytest.approx(exact["pixel_accuracy"], abs=0.15)


def test_an_onnx_segmenter_finds_what_torchscript_finds(measure: Callable, scenes: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs requirements-onnx.txt")
    pytest.importorskip("onnxscript", reason="needs requirements-onnx.txt")
    picture = torch.rand(1, 3, 16, 32)
    torch.onnx.export(Scores().eval(), (picture,), scenes / "net.onnx", verbose=False, dynamo=True)
    found = measure("--segmenter", f"onnx:{scenes / 'net.onnx'}")
    expected = measure("--segmenter", f"torchscript:{scenes / 'scores.pt'}")
    assert found["iou"] == expected["iou"] and found["mean_iou"] > 0.5


def test_a_transformers_segmenter(measure: Callable, scenes: Path) -> None:
    """With random weights: what is counted is what the library itself finds."""
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


REFUSED = {
    "kind": ("--segmenter keras:net", "expected one of hf:NAME_OR_DIR"),
    "no file": ("--segmenter torchscript:nowhere.pt", "nowhere.pt: no such file"),
    "damaged": ("--segmenter torchscript:README.md", "cannot be loaded"),
    "no such model": ("--segmenter hf:./nowhere", "cannot be loaded"),
    "no pictures": ("--images empty", "holds no pictures"),
    "no folder": ("--images nowhere", "draw pictures with test.py"),
    "other scenes": ("--images other", "no picture of the data set's scenes"),
    "labels": ("--label_nc 10 --segmenter torchscript:net.pt", "label 23"),
    "weights": ("--weights_dir nowhere", "no such folder"),
    "flag": ("--segmentor x", "did you mean --segmenter?"),
    "width alone": ("--segmenter_width 64", "needs --segmenter"),
}


@pytest.mark.parametrize("flags, told", REFUSED.values(), ids=REFUSED)
def test_refused(
    refused: Callable, scenes: Path, monkeypatch: pytest.MonkeyPatch, flags: str, told: str
) -> None:
    monkeypatch.chdir(scenes)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(evaluate, "Perceptual", lambda *args: argparse.Namespace(add=print))
    (scenes / "README.md").write_text("no network")
    (scenes / "empty").mkdir()
    save_png(scenes / "other" / "c.png", np.zeros((4, 4), np.uint8))
    common = "--dataroot data --gpu_ids -1 --images images"
    assert told in refused(evaluate.main, *common.split(), *flags.split())
    assert not any(path.is_file() for path in (scenes / "results").rglob("*"))


def test_command_line(scenes: Path) -> None:
    done = run_command("evaluate.py", "--dataroot", scenes / "data", "--name", "never_drawn")
    assert "never_drawn/test_latest/images: no such folder" in one_line(done)


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
    torch.save(net.state_dict(), tmp_path / "weights" / scores.WEIGHT_FILES["fid"])
    return tmp_path / "weights"


@pytest.mark.slow
def test_fid_of_pictures_with_themselves_is_0(inception: Path) -> None:
    pytest.importorskip("torch_fidelity", reason="needs requirements-eval.txt")
    draw = np.random.default_rng(0)
    photos = [draw.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(3)]
    results = []
    for change in (0, 1):
        measure = scores.Perceptual(len(photos), inception, torch.device("cpu"))
        for photo in photos:
            measure.add(photo // 2 if change else photo, photo)
        results.append(measure.compute())
    same, other = results
    assert abs(same["fid"]) < 1e-3 < 1e-1 < other["fid"]
    assert same["lpips"] is None
    assert same["kid"] < other["kid"]


def test_weights_that_would_run_code_are_refused(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    file = tmp_path / "weights" / scores.WEIGHT_FILES["fid"]
    file.parent.mkdir()
    torch.save({"weight": Evil(marker)}, file)
    measure = scores.Perceptual(2, file.parent, torch.device("cpu"))
    assert "not a readable checkpoint" in measure.reasons["fid"]
    assert not marker.exists()


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


# -- the toy segmenter -----------------------------------------------------------------------


def test_the_toy_segmenter_learns_and_is_read(
    call: Callable, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few steps on four scenes: better than always answering the most frequent class."""
    monkeypatch.setattr(evaluate, "Perceptual", NoWeights)
    file = tmp_path / "made" / "net.pt"
    flags = ["--dataroot", toy_data, "--out", file, "--width", 32, "--steps", 40, "--batch", 4]
    call(toy_segmenter.main, *flags)
    common = ["--dataroot", toy_data, "--phase", "train", "--out", tmp_path / "out"]
    segmenter = ["--segmenter", f"torchscript:{file}", "--gpu_ids", -1, "--worst", 0]
    call(evaluate.main, *common, "--images", toy_data / "train_img", *segmenter)
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    classes = evaluate.evaluation_classes(35, None, "trainIds")
    labels = [np.array(Image.open(p)) for p in (toy_data / "train_label").glob("*.png")]
    truth = classes.of_label[np.stack(labels)]
    most = np.bincount(truth[truth >= 0]).max() / (truth >= 0).sum()
    assert found["pixel_accuracy"] > most + 0.1


class NoWeights:
    """LPIPS, FID and KID where no weights are."""

    def __init__(self, *args: object) -> None:
        self.reasons = dict.fromkeys(scores.PERCEPTUAL, "no weights")

    def add(self, *args: object) -> None:
        """Count nothing."""

    def compute(self) -> dict:
        return dict.fromkeys(scores.PERCEPTUAL)
