"""Inputs of the benchmarks: options, random street scenes, VGG with random weights."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor

from models.build import build_generator
from models.inference_model import InferenceModel
from options.test_options import TestOptions
from options.train_options import TrainOptions
from util.errors import UserError

LABELS = 35


def options(device: str, flags: Sequence[str]) -> argparse.Namespace:
    """Training options from train.py's flags."""
    return TrainOptions().parse(["--gpu_ids", "0" if device == "cuda" else "-1", *flags])


def batch(width: int, height: int, images: int, instances: int = 60) -> dict[str, Tensor]:
    """A batch like the loader's: maps of tiles, each of one of the instances, and noise images."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = (8, 32) if instances <= 100 else (32, 128)
    number = torch.randint(0, instances, (images, 1, rows, columns), generator=generator)
    number = torch.nn.functional.interpolate(number.float(), (height, width)).int()
    return {
        "label": (number % LABELS).to(torch.uint8),
        "inst": (number % LABELS) * 1000 + number,
        "image": torch.rand(images, 3, height, width, generator=generator) * 2 - 1,
    }


def require_size(given: argparse.Namespace, least: int, multiple: int = 1) -> None:
    """Raise UserError for a --width or --height that is too small, or not such a multiple."""
    sides = given.width, given.height
    if min(sides) < least or any(side % multiple for side in sides):
        raise UserError(
            f"--width {given.width} --height {given.height}: expected multiples of {multiple}, "
            f"at least {least}"
        )


def pinned(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The batch as the loader gives it for that device: in pinned memory for a GPU."""
    if device.type != "cuda":
        return batch
    return {kind: value.pin_memory() for kind, value in batch.items()}


def vgg_flags(folder: str) -> list[str]:
    """The flags for a perceptual loss with random weights, at the same cost as with the real ones;
    the classifier, which is not used, takes no space in the file."""
    with torch.device("meta"):
        state = torchvision.models.vgg19(weights=None).state_dict()
    generator = torch.Generator().manual_seed(0)
    for name, value in state.items():
        state[name] = torch.zeros(1).expand(value.shape)
        if name.startswith("features"):
            spread = (2 / value[0].numel()) ** 0.5 if value.dim() == 4 else 0.1
            state[name] = torch.randn(value.shape, generator=generator) * spread
    path = Path(folder) / "vgg19.pth"
    torch.save(state, path)
    return ["--vgg_weights", str(path)]


def write_scenes(root: Path, count: int, width: int, height: int) -> None:
    """PNGs in train_label, train_inst and train_img, about as compressible as street scenes."""
    rng = np.random.default_rng(0)
    for kind in ("label", "inst", "img"):
        (root / f"train_{kind}").mkdir(parents=True)
    for number in range(count):
        maps = batch(width, height, 1)
        coarse = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        photo = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        noise = rng.integers(-3, 4, (height, width, 3))
        arrays = {
            "label": maps["label"][0, 0].numpy(),
            "inst": maps["inst"][0, 0].numpy().astype(np.uint16),
            "img": np.clip(np.asarray(photo) + noise, 0, 255).astype(np.uint8),
        }
        for kind, array in arrays.items():
            Image.fromarray(array).save(root / f"train_{kind}" / f"{number:04}.png")


def temporary_folder() -> tempfile.TemporaryDirectory:
    """A folder that is removed at the end of its with block."""
    return tempfile.TemporaryDirectory(prefix="benchmark_")


def random_generator(device: torch.device, flags: str) -> InferenceModel:
    """A generator with random weights, the same for the same flags of test.py."""
    with temporary_folder() as folder:
        where = ["--checkpoints_dir", folder, "--gpu_ids", "0" if device.type == "cuda" else "-1"]
        opt = TestOptions().parse([*where, *flags.split()])
        torch.manual_seed(0)
        torch.save(build_generator(opt).state_dict(), Path(folder) / "latest_net_G.pth")
        return InferenceModel(opt, device, Path(folder))
