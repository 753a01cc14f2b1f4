"""Measure the pictures of test.py against the real photographs and label maps.

    python evaluate.py --name label2city_512p --segmenter hf:NAME_OR_DIR
    python evaluate.py --name toy_labels --segmenter torchscript:checkpoints/toy_segmenter.pt
    python evaluate.py --images datasets/toy/test_img --dataroot datasets/toy    # real against real

PSNR, SSIM, LPIPS, FID and KID compare with the photographs. Pixel accuracy and mean IoU compare
what a segmentation network finds in a picture with the label map that it was drawn from (paper,
Table 1), and stand beside what the network finds in the real photographs: the oracle. Results:
metrics.json and index.html in results/NAME/PHASE_EPOCH/evaluation.
"""

import argparse
import importlib.util
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from data.aligned_dataset import find_files
from data.files import label_problem, list_files, picture_names, read_integers, read_rgb
from models.segmenters import Segmenter, load_segmenter
from options import evaluate_options
from util.errors import UserError, run
from util.files import make_folder, write_text
from util.pages.colours import palette, save_image
from util.pages.html import Page, Picture
from util.progress import bar, log
from util.scores import PERCEPTUAL, Perceptual, Scores, class_scores, confusion, psnr, ssim
from util.setup import set_up_torch


def evaluate(opt: argparse.Namespace) -> dict:
    """Measure opt.images, write metrics.json and the page, and return what metrics.json holds."""
    device = torch.device("cuda", opt.gpu_ids[0]) if opt.gpu_ids else torch.device("cpu")
    set_up_torch(deterministic=False, tf32=False)
    scenes = find_scenes(opt)
    judge = Judge(opt, device) if opt.segmenter else None
    make_folder(opt.out / "images", "--out")
    perceptual = Perceptual(len(scenes), opt.weights_dir, device)
    measured, ssim_missing = [], missing_package("torchmetrics")
    sizes, resized = Counter(), 0
    for scene in bar(scenes, desc="pictures", unit="picture"):
        drawn, real, label = scene.read(opt)
        sizes[drawn.shape[1], drawn.shape[0]] += 1
        resized += real.size != drawn.shape[1::-1]
        real = np.asarray(real.resize(drawn.shape[1::-1], Image.Resampling.BICUBIC))
        row = {"name": scene.name, "psnr": psnr(drawn, real)}
        row["ssim"] = None if ssim_missing else ssim(drawn, real, device)
        perceptual.add(drawn, real)
        if judge:
            row |= judge.add(drawn, real, label)
        measured.append(row)

    reasons = dict(perceptual.reasons) | ({"ssim": ssim_missing} if ssim_missing else {})
    figures = mean_figures(measured) | perceptual.compute()
    metrics = {
        "protocol": protocol(opt, len(scenes), sizes, resized, judge),
        **figures,
        "reasons": reasons,
        **(judge.figures() if judge else {}),
        "pictures": measured,
    }
    text = json.dumps(jsonable(metrics), indent=1, allow_nan=False)
    write_text(opt.out / "metrics.json", text + "\n")
    page = write_page(opt, metrics, scenes, judge)
    report(metrics)
    log(f"{opt.out / 'metrics.json'} and {page}")
    return metrics


# -- scenes ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """The files of one scene: a generated picture and what it is compared with."""

    name: str
    drawn: Path
    photo: Path
    label: Path

    def read(self, opt: argparse.Namespace) -> tuple[np.ndarray, Image.Image, np.ndarray | None]:
        """The picture (H, W, 3) uint8, the photograph at its own size, the label map (H, W) scaled
        to the picture (None with --label_nc 0)."""
        drawn = read_rgb(self.drawn)
        label = None
        if opt.label_nc:
            full = read_integers(self.label, "label")
            problem = label_problem(np.asarray(full), self.label, opt.label_nc, opt.ignore_label)
            if problem:
                raise UserError(problem)
            label = np.asarray(full.resize(drawn.size, Image.Resampling.NEAREST))
        return np.asarray(drawn), read_rgb(self.photo), label


def find_scenes(opt: argparse.Namespace) -> list[Scene]:
    """The scenes of opt.phase that have a picture in opt.images."""
    files = find_files(opt.dataroot, opt.phase, opt.label_nc, use_instances=False)
    names = picture_names(files["label"])
    pictures = find_pictures(opt.images, names)
    missing = [str(files["label"][scene]) for scene in pictures if scene not in files["image"]]
    if missing:
        raise UserError(f"{opt.dataroot}: no photograph for {missing[0]} ({len(missing)} in all)")
    scenes = [
        Scene(names[scene], pictures[scene], files["image"][scene], files["label"][scene])
        for scene in sorted(pictures)
    ]
    if len(scenes) < len(names):
        log(f"{len(scenes)} of the {len(names)} scenes of {opt.phase} have a picture")
    return scenes


def find_pictures(folder: Path, names: dict[str, str]) -> dict[str, Path]:
    """The generated picture of every scene that has one: as test.py names them, or, in any other
    folder, by scene. names: scene key -> name."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; draw pictures with test.py, or give --images")
    found = {}
    for scene, name in names.items():
        for suffix in ("jpg", "png"):
            path = folder / f"{name}_synthesized_image.{suffix}"
            if path.is_file():
                found[scene] = path
    if not found:
        found = {scene: path for scene, path in list_files(folder).items() if scene in names}
    if not found:
        raise UserError(
            f"{folder}: no picture of the data set's scenes (expected e.g. "
            f"{next(iter(names.values()))}_synthesized_image.png); check --phase and --dataroot"
        )
    return found


# -- segmentation ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Classes:
    """The classes that are judged, numbered from 0, by label id and name.

    of_label: label -> class, -1 for labels that are not judged. of_output: a segmenter's output ->
    class, len(names) for all that is none of them.
    """

    ids: list[int]
    names: list[str]
    of_label: np.ndarray
    of_output: np.ndarray


def evaluation_classes(label_nc: int, ignore_label: int | None, outputs: str) -> Classes:
    """Cityscapes' 19 evaluation classes for its 35 labels, else all labels; never ignore_label.

    outputs: what a segmenter's outputs count, "trainIds" or "ids" (the same but for Cityscapes).
    """
    known = [(i, i, str(i)) for i in range(label_nc)]
    if label_nc == 35:
        judged = [label for label in cityscapes_labels() if not label.ignoreInEval]
        known = sorted((label.trainId, label.id, label.name) for label in judged)
    known = [one for one in known if one[1] != ignore_label]
    train_ids, ids, names = map(list, zip(*known))
    of_label = np.full(2**16, -1)
    of_label[ids] = range(len(ids))
    of_output = np.full(2**16, len(ids))
    of_output[train_ids if outputs == "trainIds" else ids] = range(len(ids))
    return Classes(ids, names, of_label, of_output)


def cityscapes_labels() -> list:
    try:
        from cityscapesscripts.helpers.labels import labels
    except ImportError as error:
        raise UserError(
            f"--segmenter: Cityscapes' classes need a package ({error}); "
            "pip install -r requirements-eval.txt"
        ) from error
    return labels


class Judge:
    """Counts what a segmenter finds in generated pictures and in the real ones."""

    def __init__(self, opt: argparse.Namespace, device: torch.device) -> None:
        self.classes = evaluation_classes(opt.label_nc, opt.ignore_label, opt.segmenter_classes)
        self.segmenter: Segmenter = load_segmenter(opt.segmenter, device)
        self.width = opt.segmenter_width
        count = len(self.classes.names)
        self.drawn = np.zeros((count, count + 1), np.int64)
        self.real = np.zeros_like(self.drawn)

    def find(self, picture: np.ndarray) -> np.ndarray:
        """The classes that the segmenter finds in a picture (H, W, 3): (H, W) integers."""
        height, width = picture.shape[:2]
        if self.width is None or self.width == width:
            return self.classes.of_output[self.segmenter(picture)]
        size = self.width, max(1, round(height * self.width / width))
        scaled = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
        found = self.classes.of_output[self.segmenter(np.asarray(scaled))]
        full = Image.fromarray(found.astype(np.int32)).resize(
            (width, height), Image.Resampling.NEAREST
        )
        return np.asarray(full)

    def add(self, drawn: np.ndarray, real: np.ndarray, label: np.ndarray) -> dict[str, float]:
        """Count a scene; returns its pixel accuracy and that of the oracle."""
        truth = self.classes.of_label[label]
        count = len(self.classes.names)
        matrices = [confusion(truth, self.find(picture), count) for picture in (drawn, real)]
        self.drawn += matrices[0]
        self.real += matrices[1]
        accuracies = [class_scores(matrix).pixel_accuracy for matrix in matrices]
        return dict(zip(("pixel_accuracy", "oracle_pixel_accuracy"), accuracies))

    def figures(self) -> dict[str, object]:
        """The scores of the pictures, of the oracle, and the former as a part of the latter."""
        drawn, real = class_scores(self.drawn), class_scores(self.real)
        return {
            **self._scores(drawn),
            "oracle": self._scores(real),
            "of_oracle": {
                "pixel_accuracy": ratio(drawn.pixel_accuracy, real.pixel_accuracy),
                "mean_iou": ratio(drawn.mean_iou, real.mean_iou),
            },
        }

    def _scores(self, scores: Scores) -> dict[str, object]:
        return {
            "pixel_accuracy": scores.pixel_accuracy,
            "mean_iou": scores.mean_iou,
            "iou": dict(zip(self.classes.names, scores.iou.tolist())),
        }

    def picture(self, found: np.ndarray, label_nc: int) -> np.ndarray:
        """Classes (H, W) in the colours of their labels; none of them is black."""
        colours = np.append(palette(label_nc)[self.classes.ids], [[0, 0, 0]], 0).astype(np.uint8)
        return colours[found]


# -- figures ---------------------------------------------------------------------------------


def mean_figures(measured: list[dict]) -> dict[str, object]:
    """PSNR and SSIM over all pictures. Pictures that equal their photograph have an infinite PSNR:
    they are counted, and left out of the mean unless there are no others."""
    finite = [row["psnr"] for row in measured if math.isfinite(row["psnr"])]
    similar = [row["ssim"] for row in measured if row["ssim"] is not None]
    return {
        "psnr": float(np.mean(finite)) if finite else math.inf,
        "identical_pictures": len(measured) - len(finite),
        "ssim": float(np.mean(similar)) if similar else None,
    }


def ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def missing_package(name: str) -> str | None:
    """Why a package cannot be used, or None."""
    if importlib.util.find_spec(name) is None:
        return f"needs the package {name}; pip install -r requirements-eval.txt"
    return None


def protocol(
    opt: argparse.Namespace, count: int, sizes: Counter, resized: int, judge: Judge | None
) -> dict[str, object]:
    """What the figures were measured on, and how."""
    shown = ", ".join(f"{width}x{height}" for width, height in sorted(sizes))
    known = {
        "pictures": f"{count} of {opt.images}",
        "compared_with": f"photographs and label maps of {opt.dataroot}, {opt.phase}",
        "sizes": shown,
        "resize": f"{resized} photographs scaled to their picture's size (bicubic); label maps "
        "likewise (nearest)",
        "psnr_ssim": "per picture, 8-bit RGB, then the mean; SSIM with a Gaussian window of 11",
        "weights": f"LPIPS: AlexNet, FID and KID: Inception v3 of {opt.weights_dir or 'torch hub'}",
    }
    if judge:
        occurring = int((judge.real.sum(1) > 0).sum())
        known["segmenter"] = opt.segmenter
        known["segmenter_input"] = (
            f"pictures scaled to a width of {opt.segmenter_width}"
            if opt.segmenter_width
            else "pictures at their own size"
        )
        known["segmenter_classes"] = opt.segmenter_classes
        known["mean_iou"] = (
            f"over the {occurring} of {len(judge.classes.names)} evaluation classes that occur in "
            "the label maps, all pictures counted together"
        )
    return known


TITLES = {
    **{"psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS", "fid": "FID", "kid": "KID"},
    **{"pixel_accuracy": "pixel accuracy", "mean_iou": "mean IoU"},
}


def figure_rows(metrics: dict) -> list[list[str]]:
    """The table: name, the pictures' figure, the oracle's, their ratio."""
    rows = []
    for name in ("psnr", "ssim", *PERCEPTUAL):
        value = metrics[name]
        told = metrics["reasons"].get(name) if value is None else f"{value:.4f}"
        rows.append([TITLES[name], told, "", ""])
    if metrics["identical_pictures"]:
        rows[0][1] += f" ({metrics['identical_pictures']} pictures equal their photographs)"
    if "oracle" not in metrics:
        return rows
    for name in ("pixel_accuracy", "mean_iou"):
        values = metrics[name], metrics["oracle"][name], metrics["of_oracle"][name]
        rows.append([TITLES[name], *(f"{value:.4f}" for value in values)])
    for name, value in metrics["iou"].items():
        oracle = metrics["oracle"]["iou"][name]
        if not math.isnan(oracle):
            values = value, oracle, ratio(value, oracle)
            rows.append([f"IoU {name}", *(f"{value:.4f}" for value in values)])
    return rows


def report(metrics: dict) -> None:
    """Print the protocol and the table."""
    for key, value in metrics["protocol"].items():
        log(f"{key.replace('_', ' ')}: {value}")
    for row in [["", "pictures", "oracle", "ratio"], *figure_rows(metrics)]:
        log(f"{row[0]:18} {row[1]:9} {row[2]:9} {row[3]}".rstrip())


def jsonable(value: object) -> object:
    """For JSON, which knows neither: infinity as "inf", not-a-number as null."""
    if isinstance(value, dict):
        return {key: jsonable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [jsonable(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf"
    return value


# -- page ------------------------------------------------------------------------------------


def write_page(
    opt: argparse.Namespace, metrics: dict, scenes: list[Scene], judge: Judge | None
) -> Path:
    """The table, the confusion matrices and the worst pictures. Returns the page's path."""
    page = Page(opt.out, f"{opt.name}, {opt.phase}, epoch {opt.which_epoch}: evaluation")
    for key, value in metrics["protocol"].items():
        page.header(f"{key.replace('_', ' ')}: {value}")
    page.table(["", "pictures", "oracle", "ratio"], figure_rows(metrics))
    if judge:
        pictures = {
            "confusion": confusion_picture(judge.drawn, judge.classes.names),
            "confusion_oracle": confusion_picture(judge.real, judge.classes.names),
        }
        captions = ["generated pictures", "real photographs (oracle)"]
        heading = "What is found (columns) in pixels of a class (rows), in percent"
        row = save_row(opt.out, pictures, captions)
        page.row(row, heading=heading, width=700)

    measure = "pixel_accuracy" if judge else "psnr" if metrics["ssim"] is None else "ssim"
    order = np.argsort([row[measure] for row in metrics["pictures"]], kind="stable")
    for index in order[: opt.worst]:
        scene, row = scenes[index], metrics["pictures"][index]
        pictures, captions = scene_pictures(scene, opt, judge)
        pictures = {f"{scene.name}_{kind}": picture for kind, picture in pictures.items()}
        heading = f"{scene.name}: {TITLES[measure]} {row[measure]:.4f}"
        page.row(save_row(opt.out, pictures, captions), heading=heading, width=384)
    return page.save()


def scene_pictures(
    scene: Scene, opt: argparse.Namespace, judge: Judge | None
) -> tuple[dict[str, np.ndarray], list[str]]:
    """A scene's pictures for the page by kind, and their captions."""
    drawn, photo, label = scene.read(opt)
    real = np.asarray(photo.resize(drawn.shape[1::-1], Image.Resampling.BICUBIC))
    pictures = {"generated": drawn, "real": real}
    if not judge:
        return pictures, ["generated", "real"]
    classes = {
        "label": judge.classes.of_label[label],  # -1 takes the last colour, black
        "found": judge.find(drawn),
        "found_real": judge.find(real),
    }
    pictures |= {kind: judge.picture(found, opt.label_nc) for kind, found in classes.items()}
    return pictures, ["generated", "real", "label map", "found in generated", "found in real"]


def save_row(folder: Path, pictures: dict[str, np.ndarray], captions: list[str]) -> list[Picture]:
    row = []
    for (name, picture), caption in zip(pictures.items(), captions):
        path = Path("images") / f"{name}.png"
        save_image(picture, folder / path)
        row.append(Picture(path, caption))
    return row


def confusion_picture(matrix: np.ndarray, names: list[str]) -> np.ndarray:
    """A confusion matrix (count, count + 1) as a picture (H, W, 3) uint8: each row in percent of
    its pixels, blue on white."""
    cell, left, top = 40, 130, 110
    font = ImageFont.load_default(13)
    columns = [*names, "none of these"]
    size = left + cell * len(columns) + 60, top + cell * len(names)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    for j, name in enumerate(columns):
        text = Image.new("L", (top * 2, 20))
        ImageDraw.Draw(text).text((0, 2), name, 255, font)
        text = text.rotate(45, expand=True)
        corner = left + j * cell + cell // 3, top - text.height
        picture.paste("black", (corner[0], corner[1]), text)
    for i, name in enumerate(names):
        y = top + i * cell
        draw.text((left - 6, y + cell // 2), name, "black", font, anchor="rm")
        for j, share in enumerate(shares[i]):
            x = left + j * cell
            shade = round(255 * (1 - share))
            box = (x, y, x + cell, y + cell)
            draw.rectangle(box, fill=(shade, shade, 255 - (255 - shade) // 4), outline="lightgrey")
            if share >= 0.005:
                ink = "white" if share > 0.5 else "black"
                middle = x + cell // 2, y + cell // 2
                draw.text(middle, f"{100 * share:.0f}", ink, font, anchor="mm")
    return np.asarray(picture)


def main() -> None:
    evaluate(evaluate_options.parse())


if __name__ == "__main__":
    run(main)
