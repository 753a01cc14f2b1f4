"""Measures between two pictures, between sets of pictures, and of segmentations."""

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from util.errors import UserError
from util.run.checkpoints import load_file

PERCEPTUAL = ("lpips", "fid", "kid")
_ALEXNET = "alexnet-owt-7be5be79.pth"
_INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
WEIGHT_FILES = {"lpips": _ALEXNET, "fid": _INCEPTION, "kid": _INCEPTION}


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 pictures of one shape, in dB; inf if they are equal."""
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def ssim(a: np.ndarray, b: np.ndarray, device: torch.device) -> float:
    """Structural similarity of uint8 pictures (H, W, 3): 1 if they are equal."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    pair = [as_batch(picture).to(device).double() / 255 for picture in (a, b)]
    return round(float(structural_similarity_index_measure(*pair, data_range=1.0)), 9)


def as_batch(picture: np.ndarray) -> torch.Tensor:
    """(H, W, 3) -> (1, 3, H, W)"""
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]


# -- sets of pictures ------------------------------------------------------------------------


class Perceptual:
    """LPIPS, FID and KID, as far as their weights can be had; reasons tells why one cannot."""

    def __init__(self, count: int, weights_dir: Path | None, device: torch.device) -> None:
        """count: the number of pairs of pictures that will come."""
        self.device = device
        self.metrics: dict[str, torch.nn.Module] = {}
        self.reasons: dict[str, str] = {}
        with _hub_folder(weights_dir), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchmetrics on the memory of KID
            for name in PERCEPTUAL:
                try:
                    self.metrics[name] = self._create(name, count).to(device)
                except ImportError as error:
                    self.reasons[name] = f"{error}; pip install -r requirements-eval.txt"
                except torch.OutOfMemoryError:
                    raise
                except (OSError, RuntimeError) as error:
                    self.reasons[name] = (
                        f"{WEIGHT_FILES[name]} could not be fetched ({_line(error)}); "
                        "put it into --weights_dir"
                    )
                except UserError as error:
                    self.reasons[name] = str(error)

    def _create(self, name: str, count: int) -> torch.nn.Module:
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity as Lpips

        _refuse_code(WEIGHT_FILES[name])
        if name == "lpips":
            return Lpips("alex", normalize=True)
        if count < 2:
            raise UserError("a distance between sets of pictures needs at least 2")
        if name == "fid":
            return FrechetInceptionDistance()
        if "fid" not in self.metrics:
            raise UserError(self.reasons["fid"])
        inception = self.metrics["fid"].inception
        return KernelInceptionDistance(inception, subset_size=min(count, 1000))

    def add(self, drawn: np.ndarray, real: np.ndarray) -> None:
        """Count a generated picture and its photograph: uint8 (H, W, 3), of one size."""
        pair = [as_batch(picture).to(self.device) for picture in (drawn, real)]
        for name, metric in self.metrics.items():
            if name == "lpips":
                metric.update(*(picture.float() / 255 for picture in pair))
            else:
                metric.update(pair[0], real=False)
                metric.update(pair[1], real=True)

    def compute(self) -> dict[str, float | None]:
        """By name; None for what reasons explains."""
        torch.manual_seed(0)  # KID draws subsets
        values = {name: metric.compute() for name, metric in self.metrics.items()}
        if "kid" in values:
            values["kid"] = values["kid"][0]  # the mean over subsets, without their deviation
        return {name: float(values[name]) if name in values else None for name in PERCEPTUAL}


@contextmanager
def _hub_folder(weights_dir: Path | None) -> Iterator[None]:
    """Let torch's hub find weights in that folder, and fetch into it what is missing."""
    if weights_dir is None:
        yield
        return
    before = torch.hub.get_dir()
    with tempfile.TemporaryDirectory() as hub:
        os.symlink(weights_dir.resolve(), Path(hub) / "checkpoints", target_is_directory=True)
        torch.hub.set_dir(hub)
        try:
            yield
        finally:
            torch.hub.set_dir(before)


def _refuse_code(file: str) -> None:
    """Refuse weights that are more than tensors: the libraries would execute what they hold."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if path.is_file():
        load_file(path)


# -- segmentations ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Scores:
    """What a confusion matrix tells; iou (classes,) is NaN for a class that does not occur."""

    pixel_accuracy: float
    mean_iou: float
    iou: np.ndarray


def confusion(truth: np.ndarray, found: np.ndarray, count: int) -> np.ndarray:
    """Pixels by true class (rows) and found class (columns): (count, count + 1) int64.

    truth (H, W): 0 .. count-1, or -1 where nothing is to be judged. found (H, W): 0 .. count,
    where count stands for all that is none of the classes.
    """
    judged = truth >= 0
    pairs = truth[judged].astype(np.int64) * (count + 1) + found[judged]
    return np.bincount(pairs, minlength=count * (count + 1)).reshape(count, count + 1)


def class_scores(matrix: np.ndarray) -> Scores:
    """Pixel accuracy, and intersection over union as Cityscapes defines it, of a confusion matrix.

    The mean is over the classes that occur in the label maps.
    """
    count = len(matrix)
    right = np.diagonal(matrix)
    occurs = matrix.sum(1)
    union = occurs + matrix[:, :count].sum(0) - right
    iou = np.divide(right, union, out=np.full(count, np.nan), where=occurs > 0)
    if not occurs.any():
        return Scores(float("nan"), float("nan"), iou)
    return Scores(float(right.sum() / occurs.sum()), float(np.nanmean(iou)), iou)


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
