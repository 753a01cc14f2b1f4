"""Measures of generated images against the real ones.

Images are (H, W, 3) uint8, or (H, W, C) of any numbers with their range scaled to 0 .. 255.

A pair measure is a function (generated, real) -> float. A property is a function (image, instance
map) -> float that is measured on both images; the ratio shows how far the generated ones are from
real. Both are reported as means over the images. A set measure is a torchmetrics metric over all
pairs. To add one, write it and enter it in PAIR_MEASURES, PROPERTIES or SET_MEASURES. Definitions
with formulas: docs/evaluation.md.
"""

import importlib
import math
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from util.errors import UserError, first_line, out_of_memory
from util.run.checkpoints import load_file

ALEXNET = "alexnet-owt-7be5be79.pth"
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"


def l1(generated: np.ndarray, real: np.ndarray) -> float:
    """The mean absolute difference, in grey levels of 255."""
    return float(np.mean(np.abs(generated.astype(np.float64) - real)))


def psnr(generated: np.ndarray, real: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB; inf if the images are equal."""
    error = np.mean((generated.astype(np.float64) - real) ** 2)
    return math.inf if error == 0 else float(10 * np.log10(255**2 / error))


def ssim(generated: np.ndarray, real: np.ndarray) -> float:
    """Structural similarity (Wang et al., 2004); 1 if the images are equal.

    A Gaussian window of 11x11 pixels, sigma 1.5, over the image mirrored at its border; the mean
    over all pixels and channels.
    """
    a, b = generated / 255.0, real / 255.0

    def local_mean(values: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(values, 1.5, radius=5, axes=(0, 1), mode="mirror")

    mean_a, mean_b = local_mean(a), local_mean(b)
    variances = local_mean(a * a) - mean_a**2 + (local_mean(b * b) - mean_b**2)
    covariance = local_mean(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
    return float(np.mean(luminance * (2 * covariance + 0.03**2) / (variances + 0.03**2)))


# -- Properties of an image ---------------------------------------------------------------------


def grey(image: np.ndarray) -> np.ndarray:
    """Brightness (luma, Rec. 601), (H, W) float64 in 0 .. 255; the mean of the channels if there
    are not three."""
    if image.shape[2] != 3:
        return image.mean(2, dtype=np.float64)
    return image @ np.array([0.299, 0.587, 0.114])


def grid_energy(image: np.ndarray, inst: np.ndarray | None = None) -> float:
    """The share of the spectrum's energy, without the mean, at the highest vertical or horizontal
    frequency, which the checkerboard pattern of transposed convolutions raises. 1 for a
    checkerboard with even sides; NaN for an image of one colour."""
    values = grey(image)
    if np.ptp(values) < 1e-6 or min(values.shape) < 2:
        return math.nan
    energy = np.abs(np.fft.fft2(values)) ** 2
    energy[0, 0] = 0
    vertical, horizontal = (np.abs(np.fft.fftfreq(side)) for side in values.shape)
    # an odd side has its highest frequency twice, with either sign
    highest = (vertical == vertical.max())[:, None] | (horizontal == horizontal.max())
    return float(energy[highest].sum() / energy.sum())


def sharpness(image: np.ndarray, inst: np.ndarray | None = None) -> float:
    """The mean absolute difference of neighbours, down and to the right, in grey levels of 255."""
    values = grey(image)
    if min(values.shape) < 2:
        return math.nan
    return float(np.mean([np.abs(np.diff(values, axis=axis)).mean() for axis in (0, 1)]))


def hue_variance(image: np.ndarray, inst: np.ndarray | None = None) -> float:
    """How much colour varies inside a thing: the variance of chroma, a vector in the plane of hues
    (its angle is the hue, its length the saturation times the brightness, 0 .. 1), mean over things
    of at least THING_PIXELS pixels; NaN if there are none, or no colour channels."""
    if image.shape[2] != 3:
        return math.nan
    return _variance_inside_things(_chroma(image), inst)


def hue_mixture(image: np.ndarray, inst: np.ndarray | None = None) -> float:
    """How much the hues inside things differ, grey parts aside: the share of chroma (see
    hue_variance) that cancels out. 0 for a red thing with grey parts, 0.5 for one that is half red
    and half green, 1 for red and cyan; NaN where hue_variance is NaN, and without chroma.

    It is the circular variance of hue, weighted by chroma (Mardia and Jupp, "Directional
    Statistics", 2000).
    """
    numbers, things = _things(inst)
    if image.shape[2] != 3 or not things.size:
        return math.nan
    plane = _chroma(image)
    left, right, lengths = (
        ndimage.sum_labels(v, numbers, things) for v in (*plane, np.hypot(*plane))
    )
    total = lengths.sum()
    return float((lengths - np.hypot(left, right)).sum() / total) if total > 1e-6 else math.nan


def brightness_variance(image: np.ndarray, inst: np.ndarray | None = None) -> float:
    """The variance inside things of brightness, the largest of red, green and blue, 0 .. 1."""
    return _variance_inside_things([image.max(-1) / 255.0], inst)


THING_PIXELS = 20


def _chroma(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    red, green, blue = np.moveaxis(image / 255.0, -1, 0)
    return red - (green + blue) / 2, math.sqrt(3) / 2 * (green - blue)


def _things(inst: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Each pixel's instance, numbered from 0 (H, W), and the numbers of the things among them that
    have at least THING_PIXELS. inst: ids, things from 1000; from 2**31 on they are negative
    (data.files)."""
    if inst is None:
        return np.zeros((0, 0), int), np.zeros(0, int)
    ids, numbers, counts = np.unique(inst, return_inverse=True, return_counts=True)
    things = (ids.astype(np.int64) & 0xFFFFFFFF >= 1000) & (counts >= THING_PIXELS)
    return numbers.reshape(inst.shape), np.flatnonzero(things)


def _variance_inside_things(values: Sequence[np.ndarray], inst: np.ndarray | None) -> float:
    """The mean over things; values: maps (H, W), whose variances are added."""
    numbers, things = _things(inst)
    if not things.size:
        return math.nan
    return float(sum(ndimage.variance(v, numbers, things) for v in values).mean())


# -- Sets of images -----------------------------------------------------------------------------


def _fid(count: int, others: dict) -> torch.nn.Module:
    """Frechet distance between the Inception v3 features of both sets."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    if count < 2:
        raise UserError("a distance between sets of images needs at least 2")
    return FrechetInceptionDistance()


def _kid(count: int, others: dict) -> torch.nn.Module:
    """Maximum mean discrepancy between the same features, mean over random subsets."""
    from torchmetrics.image.kid import KernelInceptionDistance

    return KernelInceptionDistance(others["fid"].inception, subset_size=min(count, 1000))


def _lpips(count: int, others: dict) -> torch.nn.Module:
    """Learned perceptual image patch similarity by AlexNet's features, mean over the pairs."""
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity("alex", normalize=True)


PAIR_MEASURES = {"l1": l1, "psnr": psnr, "ssim": ssim}
PROPERTIES = {
    f.__name__: f for f in (grid_energy, sharpness, hue_variance, hue_mixture, brightness_variance)
}
# name -> its network's weights, and a function (number of pairs, the measures so far) -> metric
SET_MEASURES = {"lpips": (ALEXNET, _lpips), "fid": (INCEPTION, _fid), "kid": (INCEPTION, _kid)}

_PACKAGES = {ALEXNET: ["torchmetrics"], INCEPTION: ["torchmetrics", "torch_fidelity"]}

LPIPS_MIN_SIDE = 31  # pixels; AlexNet needs that much in height and width
TOO_SMALL = f"images have less than {LPIPS_MIN_SIDE} pixels in height or width"

# The measures that --best_metric may name -> whether more is better
MORE_IS_BETTER = {
    "mean_iou": True, "pixel_accuracy": True, "lpips": False, "ssim": True, "psnr": True,
    "l1": False, "fid": False, "kid": False, "segmenter_kid": False,
}  # fmt: skip


class Measures:
    """All measures of a set of images whose packages and weights are available.

    reasons: by name, why a measure is missing. Leaves torch's random state as it was.
    """

    def __init__(
        self, count: int, weights_dir: Path | None, device: torch.device, fetch=True, rgb=True
    ) -> None:
        """count: the number of pairs to expect. weights_dir: None for torch's cache. fetch:
        download missing weights. rgb: images are 8-bit RGB, which the set measures need."""
        self.device = device
        self.sets: dict[str, torch.nn.Module] = {}
        self.reasons: dict[str, str] = {}
        if not rgb:
            self.reasons = dict.fromkeys(SET_MEASURES, "its network needs 8-bit RGB images")
            return
        failed: dict[str, str] = {}  # weights -> why they are missing; none is tried twice
        with _hub_folder(weights_dir), _repeatable(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchmetrics about KID's memory
            for name, (weights, create) in SET_MEASURES.items():
                try:
                    if weights not in failed:
                        _check_weights(weights, fetch)
                        self.sets[name] = create(count, self.sets).to(device)
                except (UserError, ImportError, OSError, RuntimeError) as error:
                    failed[weights] = _reason(error, weights)
                if name not in self.sets:
                    self.reasons[name] = failed[weights]

    def add(self, generated: np.ndarray, real: np.ndarray) -> None:
        """Add a pair of images of one size to the set measures."""
        if min(generated.shape[:2]) < LPIPS_MIN_SIDE:
            self.leave_out("lpips", TOO_SMALL)
        for name, metric in self.sets.items():
            a, b = (_batch(image, self.device) for image in (generated, real))
            if name == "lpips":
                metric.update(a / 255, b / 255)
            else:
                metric.update(a, real=False)
                metric.update(b, real=True)

    def leave_out(self, name: str, reason: str) -> None:
        """Drop a measure. If there are several processes, all must drop it."""
        if self.sets.pop(name, None):
            self.reasons[name] = reason

    def compute(self) -> dict[str, float | None]:
        """The set measures by name; None for those in reasons."""
        with _repeatable():
            found = {name: metric.compute() for name, metric in self.sets.items()}
        # KID gives a mean and a deviation
        values = {name: float(v[0] if name == "kid" else v) for name, v in found.items()}
        return {name: values.get(name) for name in SET_MEASURES}


def measure_pair(generated: np.ndarray, real: np.ndarray, inst: np.ndarray | None) -> dict:
    """The pair measures and properties of an image and its photograph, which have one size."""
    row = {name: measure(generated, real) for name, measure in PAIR_MEASURES.items()}
    for name, measure in PROPERTIES.items():
        row |= {name: measure(generated, inst), f"oracle_{name}": measure(real, inst)}
    return row


def mean_measures(rows: list[dict]) -> dict[str, object]:
    """Pair measures and properties over all images: the mean of what measure_pair returned.

    Equal images have an infinite PSNR: they are left out unless all pairs are equal. NaN, a missing
    property, is left out too. "oracle" and "of_oracle" hold the real images' properties and the
    ratios.
    """
    means = {}
    for name in (*PAIR_MEASURES, *PROPERTIES, *(f"oracle_{name}" for name in PROPERTIES)):
        values = np.array([row[name] for row in rows])
        kept = values[np.isfinite(values)]
        means[name] = float(kept.mean()) if len(kept) else float(values[0])
    oracle = {name: means.pop(f"oracle_{name}") for name in PROPERTIES}
    ratios = {name: ratio(means[name], value) for name, value in oracle.items()}
    return means | {"oracle": oracle, "of_oracle": ratios}


def ratio(part: float, whole: float) -> float:
    """part / whole; NaN if whole is zero up to rounding, as the variance of one colour is."""
    return part / whole if abs(whole) > 1e-12 else math.nan


def _batch(image: np.ndarray, device: torch.device) -> torch.Tensor:
    """(H, W, 3) -> (1, 3, H, W)"""
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].to(device)


@contextmanager
def _repeatable() -> Iterator[None]:
    """Make random choices (KID's subsets) with seed 0, and restore torch's random state."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


@contextmanager
def _hub_folder(weights_dir: Path | None) -> Iterator[None]:
    """Let torch's hub find weights in that folder, and download missing ones into it."""
    if weights_dir is None:
        yield
        return
    before = torch.hub.get_dir()
    with tempfile.TemporaryDirectory() as hub:
        try:
            os.symlink(weights_dir.resolve(), Path(hub) / "checkpoints", target_is_directory=True)
        except OSError as error:  # on Windows only administrators and developers make links
            raise UserError(
                f"--weights_dir: no link can be made to {weights_dir} ({error.strerror}); leave it "
                f"out and put the weights into {Path(before) / 'checkpoints'}"
            ) from error
        torch.hub.set_dir(hub)
        try:
            yield
        finally:
            torch.hub.set_dir(before)


def _reason(error: Exception, weights: str) -> str:
    """Why a measure is not available, in one line. Raises the error if memory ran out."""
    if out_of_memory(error):
        raise error
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ImportError):
        return f"{error}; pip install -r requirements-eval.txt"
    line = first_line(error)
    return f"{weights} could not be downloaded or used ({line}); put it into --weights_dir DIR"


def _check_weights(file: str, fetch: bool) -> None:
    """Refuse weights that are missing and may not be downloaded, or whose file holds more than
    tensors: the libraries would execute it."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if path.is_file():
        load_file(path)
    elif not fetch:
        raise UserError(f"{file} is missing")


def why_missing(name: str, weights_dir: Path | None) -> str | None:
    """Why a set measure is not available without a download: its weights are missing or damaged, or
    a package is missing. None if it is available."""
    weights = SET_MEASURES[name][0]
    with _hub_folder(weights_dir):
        try:
            _check_weights(weights, fetch=False)
            for package in _PACKAGES[weights]:
                importlib.import_module(package)
        except Exception as error:  # a broken installation fails in many ways
            return _reason(error, weights)
    return None
