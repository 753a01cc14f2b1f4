"""What a segmenter finds in images: its classes against the label maps, and its features (KID)."""

import argparse
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from evaluation.measures import ratio
from evaluation.segmenters import Segmenter, load_segmenter
from util import distributed
from util.errors import UserError, optional_package
from util.pages.colours import palette


@dataclass(frozen=True)
class Classes:
    """The classes that are evaluated, numbered from 0, by label id and name.

    of_label: label -> class, -1 for labels that are not evaluated. of_output: a segmenter's
    output -> class, len(names) for everything else.
    """

    ids: list[int]
    names: list[str]
    of_label: np.ndarray
    of_output: np.ndarray

    def from_label_map(self, label: np.ndarray) -> np.ndarray:
        """The classes of a label map (H, W); labels may be any integers."""
        known = (label >= 0) & (label < len(self.of_label))
        return np.where(known, self.of_label[np.where(known, label, 0)], -1)


def evaluation_classes(label_nc: int, ignore_label: int | None, outputs: str) -> Classes:
    """Cityscapes' 19 evaluation classes for its 35 labels, else all labels; never ignore_label.

    outputs: what a segmenter's outputs mean, "trainIds" or "ids" (which only differ in Cityscapes).
    Raises UserError if no class is left.
    """
    known = [(i, i, str(i)) for i in range(label_nc)]
    if label_nc == 35:
        where = "cityscapesscripts.helpers.labels"
        needs_it, install = "--segmenter: Cityscapes' classes need", "-r requirements-eval.txt"
        labels = optional_package(where, needs_it, install).labels
        known = sorted((one.trainId, one.id, one.name) for one in labels if not one.ignoreInEval)
    known = [one for one in known if one[1] != ignore_label]
    if not known:
        raise UserError(f"--segmenter: --ignore_label {ignore_label} leaves no class to measure")
    train_ids, ids, names = map(list, zip(*known))
    of_label = np.full(2**16, -1)
    of_label[ids] = range(len(ids))
    of_output = np.full(2**16, len(ids))
    of_output[train_ids if outputs == "trainIds" else ids] = range(len(ids))
    return Classes(ids, names, of_label, of_output)


def confusion(truth: np.ndarray, found: np.ndarray, count: int) -> np.ndarray:
    """Pixels by true class (rows) and found class (columns): (count, count + 1) int64.

    truth (H, W): 0 .. count-1, or -1 for pixels that are not evaluated. found (H, W): 0 .. count,
    where count stands for everything that is none of the classes.
    """
    evaluated = truth >= 0
    pairs = truth[evaluated].astype(np.int64) * (count + 1) + found[evaluated]
    return np.bincount(pairs, minlength=count * (count + 1)).reshape(count, count + 1)


def pixel_accuracy(matrix: np.ndarray) -> float:
    """The share of the evaluated pixels that have the right class; NaN if there are none."""
    return ratio(int(np.diagonal(matrix).sum()), int(matrix.sum()))


def class_iou(matrix: np.ndarray) -> np.ndarray:
    """Intersection over union of each class as Cityscapes defines it, from a confusion matrix;
    NaN for classes that do not occur in the label maps. The mean IoU is np.nanmean of it."""
    hits, occurs = np.diagonal(matrix), matrix.sum(1)
    union = occurs + matrix[:, :-1].sum(0) - hits
    return np.divide(hits, union, out=np.full(len(hits), np.nan), where=occurs > 0)


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The squared maximum mean discrepancy of two sets of features (N, C), unbiased, with the
    kernel (x.y / C + 1)^3 (Binkowski et al., "Demystifying MMD GANs", ICLR 2018)."""

    def pairs(x: np.ndarray, y: np.ndarray) -> float:
        """The sum of the kernel over all pairs, some rows at a time: the matrix of all pairs would
        take gigabytes for the cells of a training set."""
        parts = np.array_split(x, len(x) // 256 + 1)
        return sum(((rows @ y.T / x.shape[1] + 1) ** 3).sum() for rows in parts)

    def mean_of_others(x: np.ndarray) -> float:
        itself = ((np.square(x).sum(1) / x.shape[1] + 1) ** 3).sum()
        return (pairs(x, x) - itself) / (len(x) * (len(x) - 1))

    return float(mean_of_others(a) + mean_of_others(b) - 2 * pairs(a, b) / (len(a) * len(b)))


class Evaluator:
    """Counts what a segmenter finds in generated images and in the real ones (the oracle).

    generated, real: confusion matrices over all images so far.
    """

    def __init__(self, segmenter: Segmenter, classes: Classes, width: int | None = None) -> None:
        """width: images are scaled to it for the segmenter; None for their own width."""
        self.segmenter, self.classes, self.width = segmenter, classes, width
        self.reset()

    def reset(self) -> None:
        """Count from zero."""
        count = len(self.classes.names)
        self.generated, self.real = (np.zeros((count, count + 1), np.int64) for _ in range(2))
        self.features: list[tuple[np.ndarray, np.ndarray]] = []  # of generated and real cells

    def try_size(self, size: tuple[int, int]) -> None:
        """Raise now the UserError that images of this (width, height) would cause."""
        black = np.zeros((size[1], size[0], 3), np.uint8)
        self.add(black, black, black[..., 0])
        self.reset()

    def predict(self, image: np.ndarray) -> np.ndarray:
        """The classes that the segmenter finds in an image (H, W, 3): (H, W) integers."""
        height, width = image.shape[:2]
        found = self.classes.of_output[self.segmenter(self._scaled(image))]
        found = Image.fromarray(found.astype(np.int32))
        return np.asarray(found.resize((width, height), Image.Resampling.NEAREST))

    def _scaled(self, image: np.ndarray) -> np.ndarray:
        """An image as the segmenter sees it, (H, W, 3)."""
        height, width = image.shape[:2]
        if self.width is None or self.width == width:
            return image
        size = self.width, max(1, round(height * self.width / width))
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))

    def add(self, generated: np.ndarray, real: np.ndarray, label: np.ndarray) -> dict[str, float]:
        """Count a scene: images (H, W, 3) uint8, label map (H, W). Returns its pixel accuracy and
        that of the oracle."""
        truth, count = self.classes.from_label_map(label), len(self.classes.names)
        of_generated = confusion(truth, self.predict(generated), count)
        of_real = confusion(truth, self.predict(real), count)
        self.generated += of_generated
        self.real += of_real
        if self.segmenter.features:
            self.features.append((self._cells(generated), self._cells(real)))
        return {
            "pixel_accuracy": pixel_accuracy(of_generated),
            "oracle_pixel_accuracy": pixel_accuracy(of_real),
        }

    def _cells(self, image: np.ndarray) -> np.ndarray:
        """The segmenter's features, averaged over 2 x 4 cells of an image: (8, C)."""
        maps = self.segmenter.features(self._scaled(image)).double()
        return F.adaptive_avg_pool2d(maps, (2, 4)).flatten(1).T.cpu().numpy()

    def compute(self) -> dict[str, object]:
        """The scores of the generated images and of the oracle, and their ratio; the distance
        between the segmenter's features, if it has any. Processes call it together."""
        parts = distributed.gather((self.generated, self.real, self.features))
        generated, real, features = (sum(part[1:], part[0]) for part in zip(*parts))
        scores, oracle = self._scores(generated), self._scores(real)
        names = "pixel_accuracy", "mean_iou"
        of_oracle = {name: ratio(scores[name], oracle[name]) for name in names}
        if features:
            cells = (np.concatenate(cells) for cells in zip(*features))
            scores["segmenter_kid"] = kernel_distance(*cells)
        return {**scores, "oracle": oracle, "of_oracle": of_oracle}

    def _scores(self, matrix: np.ndarray) -> dict[str, object]:
        iou = class_iou(matrix)
        return {
            "pixel_accuracy": pixel_accuracy(matrix),
            "mean_iou": float(np.nanmean(iou)) if matrix.any() else math.nan,
            "iou": dict(zip(self.classes.names, iou.tolist())),
        }

    def colour(self, classes: np.ndarray, label_nc: int) -> np.ndarray:
        """Classes (H, W) in the colours of their labels; everything else, also -1, is black."""
        colours = np.append(palette(label_nc)[self.classes.ids], [[0, 0, 0]], 0).astype(np.uint8)
        return colours[classes]


def create_evaluator(opt: argparse.Namespace, device: torch.device) -> Evaluator:
    """The evaluator that --segmenter and its flags ask for."""
    classes = evaluation_classes(opt.label_nc, opt.ignore_label, opt.segmenter_classes)
    segmenter = load_segmenter(opt.segmenter, device)
    return Evaluator(segmenter, classes, opt.segmenter_width)
