"""What evaluate.py writes and prints: metrics.json, the table, the page."""

import argparse
import json
import math
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import torch

from data.values import image_values
from evaluation.measures import PAIR_MEASURES, SET_MEASURES, Measures, mean_measures, ratio
from evaluation.scenes import SceneFiles
from evaluation.segmentation import Evaluator
from util.files import write_text
from util.pages.colours import save_image, to_image
from util.pages.html import Page, Picture
from util.pages.plots import save_matrix
from util.progress import log

COMPARISONS = (*PAIR_MEASURES, *SET_MEASURES, "segmenter_kid")
TITLES = {  # the others' names are their titles
    "l1": "mean difference", "psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS", "fid": "FID",
    "kid": "KID", "segmenter_kid": "KID (segmenter)", "pixel_accuracy": "pixel accuracy",
    "mean_iou": "mean IoU",
}  # fmt: skip
HEAD = ["", "images", "oracle", "ratio"]


def summary(rows: list[dict], measures: Measures, evaluator: Evaluator | None) -> dict[str, object]:
    """All figures of a set of images by name; rows: the measures of each image."""
    figures = mean_measures(rows) | measures.compute() | {"reasons": measures.reasons}
    figures["identical_pictures"] = sum(row["psnr"] == np.inf for row in rows)
    if evaluator:
        scores = evaluator.compute()
        figures |= scores | {key: figures[key] | scores[key] for key in ("oracle", "of_oracle")}
    return figures


def protocol(
    opt: argparse.Namespace, sizes: Counter, resized: int, evaluator: Evaluator | None
) -> dict[str, str]:
    """What the figures were measured on, and how. sizes: (width, height) -> number of images;
    resized: number of photographs whose size differs from their image's."""
    described = {
        "pictures": f"{sizes.total()} of {opt.images}",
        "compared_with": f"photographs and label maps of {opt.dataroot}, {opt.phase}",
        "sizes": ", ".join(f"{width}x{height}" for width, height in sorted(sizes)),
        "resize": f"{resized} photographs scaled to their image's size (bicubic); label maps "
        "likewise (nearest)",
        "psnr_ssim": f"per image, {numbers(opt)}, then the mean; SSIM with a Gaussian window of 11",
        "weights": f"LPIPS: AlexNet, FID and KID: Inception v3 of {opt.weights_dir or 'torch hub'}",
    }
    if evaluator:
        width = opt.segmenter_width
        occurring = int(evaluator.real.any(1).sum())
        size = f"scaled to a width of {width}" if width else "at their own size"
        described |= {
            "segmenter": opt.segmenter,
            "segmenter_input": f"images {size}",
            "segmenter_classes": opt.segmenter_classes,
            "mean_iou": f"over the {occurring} of {len(evaluator.classes.names)} evaluation "
            "classes that occur in the label maps, all images counted together",
        }
    return described


def numbers(opt: argparse.Namespace) -> str:
    """The kind of numbers that the images consist of."""
    values = image_values(opt, "output")
    if values.is_rgb8:
        return "8-bit RGB"
    low, high = values.low, values.high
    return f"{values.channels} x {values.dtype} with {low:g} to {high:g} as 0 to 255"


def table(metrics: dict) -> list[list[str]]:
    """The rows below HEAD: name, the generated images' figure, the oracle's, their ratio."""
    rows = []
    for name in COMPARISONS:
        value = metrics.get(name)
        if value is None and name not in metrics["reasons"]:
            continue
        text = metrics["reasons"][name] if value is None else format_value(value)
        if name == "psnr" and metrics["identical_pictures"]:
            text += f" ({metrics['identical_pictures']} images equal their photographs)"
        rows.append([title(name), text, "", ""])
    oracle = metrics["oracle"]
    compared = {title(name): (metrics[name], oracle[name]) for name in metrics["of_oracle"]}
    ious = metrics.get("iou", {})
    compared |= {f"IoU {name}": (iou, oracle["iou"][name]) for name, iou in ious.items()}
    for name, values in compared.items():
        if not math.isnan(values[1]):
            rows.append([name, *(format_value(value) for value in (*values, ratio(*values)))])
    return rows


def format_value(value: float) -> str:
    """Four decimals, or four digits if it is smaller than a hundredth."""
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.01 else f"{value:.3e}"


def title(name: str) -> str:
    return TITLES.get(name, name.replace("_", " "))


def print_table(metrics: dict, files: str) -> None:
    """Print the protocol, the table, and where the results are."""
    for key, value in metrics["protocol"].items():
        log(f"{key.replace('_', ' ')}: {value}")
    for row in [HEAD, *table(metrics)]:
        log(f"{row[0]:19} {row[1]:9} {row[2]:9} {row[3]}".rstrip())
    log(files)


def comparison(results: dict[str, dict]) -> list[list[str]]:
    """One table of several runs; results: run -> its metrics.json. The first row is the header."""
    found = {n for one in results.values() for n, value in one.items() if value is not None}
    names = [name for name in COMPARISONS if name in found]
    ratios = list(dict.fromkeys(n for one in results.values() for n in one["of_oracle"]))
    table = [["run", *map(title, names), *(f"{title(name)} ratio" for name in ratios)]]
    for run, metrics in results.items():
        values = [metrics.get(name) for name in names]
        values += [metrics["of_oracle"].get(name) for name in ratios]
        table.append([run, *("" if value is None else format_value(value) for value in values)])
    return table


def write_json(metrics: dict, path: Path) -> None:
    """Write metrics.json. Values that JSON lacks: infinity becomes "inf", NaN null."""
    spelled = {"NaN": None, "Infinity": "inf", "-Infinity": "-inf"}
    plain = json.loads(json.dumps(metrics), parse_constant=spelled.get)
    write_text(path, json.dumps(plain, indent=1, allow_nan=False) + "\n")


def write_page(
    opt: argparse.Namespace, metrics: dict, scenes: list[SceneFiles], evaluator: Evaluator | None
) -> Path:
    """The table, the confusion matrices and the worst images. Returns the page's path."""
    of_run = opt.images.is_relative_to(Path(opt.results_dir) / opt.name)
    what = f"{opt.name}, {opt.phase}, epoch {opt.which_epoch}" if of_run else opt.images
    page = Page(opt.out, f"{what}: evaluation")
    for key, value in metrics["protocol"].items():
        page.paragraph(f"{key.replace('_', ' ')}: {value}")
    page.table(HEAD, table(metrics))
    if evaluator:
        names, plots = evaluator.classes.names, []
        for name, caption, matrix in (
            ("confusion", "generated images", evaluator.generated),
            ("confusion_oracle", "real photographs (oracle)", evaluator.real),
        ):
            plots.append(Picture(f"images/{name}.png", caption))
            save_matrix(opt.out / plots[-1].path, matrix, names, [*names, "none of these"])
        heading = "Predicted class (columns) of the pixels of each true class (rows), in percent"
        page.row(plots, heading=heading, width=700)

    measure = "pixel_accuracy" if evaluator else "ssim"
    order = np.argsort([row[measure] for row in metrics["pictures"]], kind="stable")
    for index in order[: opt.worst]:
        scene, row = scenes[index], metrics["pictures"][index]
        heading = f"{scene.name}: {title(measure)} {row[measure]:.4f}"
        page.row(scene_row(scene, opt, evaluator), heading=heading, width=384)
    return page.save()


def view(image: np.ndarray) -> np.ndarray:
    """Numbers in 0 .. 255 (H, W, C) as an image to look at (see to_image): (H, W, 3) uint8."""
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return image
    return to_image(torch.from_numpy(image / 127.5 - 1).movedim(-1, 0))


def scene_row(
    scene: SceneFiles, opt: argparse.Namespace, evaluator: Evaluator | None
) -> list[Picture]:
    """Save the images of a scene for the page."""
    generated, real, label, _ = scene.read(opt)
    images = {"generated": ("generated", view(generated)), "real": ("real", view(real))}
    if evaluator:
        colour = partial(evaluator.colour, label_nc=opt.label_nc)
        images |= {
            "label": ("label map", colour(evaluator.classes.from_label_map(label))),
            "found": ("segmentation of the generated image", colour(evaluator.predict(generated))),
            "oracle": ("segmentation of the photograph", colour(evaluator.predict(real))),
        }
    row = []
    for kind, (caption, image) in images.items():
        row.append(Picture(Path("images") / f"{scene.name}_{kind}.png", caption))
        save_image(image, opt.out / row[-1].path)
    return row
