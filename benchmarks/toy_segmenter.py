"""Train a small segmentation network on the toy photographs, to evaluate generated ones.

    python -m benchmarks.toy_segmenter --dataroot datasets/toy
    python evaluate.py --name toy_labels --segmenter torchscript:checkpoints/toy_segmenter.pt

Takes about a minute on two cores. It is trained on the real training photographs alone, augmented
with blur, noise, changes of brightness, and other colours for things, so that it relies on the
content of an image and not on its finest texture or on the colours that cars happened to have. The
file is a torch.jit module: (B, 3, H, W) RGB in [0, 1] -> (B, 19, H, W) scores, in Cityscapes' train
ids. With --steps 1000 it is a stricter evaluator (docs/recipes.md).
"""

import argparse
import io
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from data.aligned_dataset import AlignedDataset, Geometry
from evaluation.segmentation import evaluation_classes
from util.errors import UserError, run
from util.files import make_folder, write_bytes
from util.parser import Parser, integer
from util.progress import bar, log

CLASSES = 19
IGNORED = -1


class UNet(nn.Module):
    """(B, 3, H, W) in [0, 1] -> (B, CLASSES, H, W) scores; any size of at least 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        pairs = [(16, 32), (32, 64), (64, 96)]
        self.first = _block(3, 16)
        self.down = nn.ModuleList(_block(a, b) for a, b in pairs)
        self.up = nn.ModuleList(_block(a + b, a) for a, b in reversed(pairs))
        self.last = nn.Conv2d(16, CLASSES, 1)

    def forward(self, image: Tensor) -> Tensor:
        kept = self.maps(image)
        x = kept.pop()
        for block in self.up:
            skip = kept.pop()
            x = F.interpolate(x, skip.shape[-2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([x, skip], 1))
        return self.last(x)

    def maps(self, image: Tensor) -> list[Tensor]:
        """The feature maps at full size, half of it, a quarter and an eighth."""
        found = [self.first(image * 2 - 1)]
        for block in self.down:
            found.append(block(F.max_pool2d(found[-1], 2)))
        return found

    @torch.jit.export
    def features(self, image: Tensor) -> Tensor:
        """The deepest feature maps, (B, 96, H/8, W/8): what KID compares."""
        return self.maps(image)[-1]


def _block(in_nc: int, out_nc: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for nc in (in_nc, out_nc):
        layers += [nn.Conv2d(nc, out_nc, 3, padding=1, bias=False), nn.BatchNorm2d(out_nc)]
        layers += [nn.ReLU(True)]
    return nn.Sequential(*layers)


def train(opt: argparse.Namespace) -> None:
    """Train on DATAROOT/train_* and write opt.out, whole or not at all."""
    begin = time.perf_counter()
    make_folder(opt.out.parent, "--out")
    if opt.out.is_dir():  # before minutes are spent
        raise UserError(f"--out {opt.out}: a folder; expected a file, e.g. {opt.out / 'net.pt'}")
    torch.manual_seed(opt.seed)
    rng = np.random.default_rng(opt.seed)
    scenes = read_scenes(opt.dataroot)
    net = UNet().to(memory_format=torch.channels_last)  # a fifth faster
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=opt.steps)
    weights = class_weights([scene.truth for scene in scenes])
    for _ in bar(range(opt.steps), desc="steps"):
        chosen = rng.choice(len(scenes), opt.batch)
        crops = [random_crop(scenes[k], opt.width, rng) for k in chosen]
        images = degraded(torch.stack([image for image, _ in crops]))
        images = images.contiguous(memory_format=torch.channels_last)
        truth = torch.stack([truth for _, truth in crops])
        loss = F.cross_entropy(net(images), truth, weights, ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript's format stays readable
        torch.jit.save(torch.jit.script(net.eval()), content)
    write_bytes(opt.out, content.getvalue())
    seconds = time.perf_counter() - begin
    log(f"{opt.out}: loss {loss.item():.3f} after {opt.steps} steps, {seconds:.0f} s")


@dataclass(frozen=True)
class Scene:
    """A training scene. photo (H, W, 3) uint8; things (H, W): 0, or numbers from 1; truth: train
    ids, IGNORED for the rest."""

    photo: np.ndarray
    things: np.ndarray
    truth: Image.Image


def read_scenes(dataroot: str) -> list[Scene]:
    """The training scenes of a data set with instance maps. UserError if it is unsuitable."""
    classes = evaluation_classes(35, None, "trainIds")
    dataset = AlignedDataset(dataroot, "train", 35, Geometry("none"))
    scenes = []
    for index in range(len(dataset)):
        maps = dataset.read_maps(index)
        truth = Image.fromarray(classes.of_label[maps["label"]].astype(np.int32))
        ids = maps["inst"]
        things = np.unique(np.where(ids < 1000, 0, ids), return_inverse=True)[1]
        scenes.append(Scene(maps["image"], things.reshape(ids.shape), truth))
    if not any(scene.truth.getextrema()[1] >= 0 for scene in scenes):
        raise UserError(
            f"--dataroot {dataroot}: its label maps hold none of Cityscapes' {CLASSES} evaluated "
            "classes, so there is nothing to learn; check that they are label ids"
        )
    return scenes


def class_weights(truths: list[Image.Image]) -> Tensor:
    """Weights (CLASSES,), of mean about 1, that grow with the square root of a class's rarity."""
    all_pixels = np.concatenate([np.asarray(truth).ravel() for truth in truths])
    counts = np.bincount(all_pixels[all_pixels >= 0], minlength=CLASSES)
    rarity = np.sqrt(counts.sum() / np.maximum(counts, 1))
    occurring = counts > 0
    weights = np.where(occurring, rarity / np.average(rarity, weights=counts), 0)
    return torch.from_numpy(np.minimum(weights, 10)).float()


def repainted(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The photograph, (H, W, 3) uint8, with half of its things in other colours, shading kept."""
    count = scene.things.max() + 1
    shifts = rng.uniform(-100, 100, (count, 3)) * (rng.random((count, 1)) < 0.5)
    shifts[0] = 0  # everything that is not a thing
    return np.clip(scene.photo + shifts[scene.things], 0, 255).astype(np.uint8)


def random_crop(scene: Scene, width: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A random crop of a scene, width x width/2, at a random scale between the one at which the
    scene just fills it and twice that; randomly flipped."""
    image, truth = Image.fromarray(repainted(scene, rng)), scene.truth
    size = width, width // 2
    fits = max(size[0] / image.width, size[1] / image.height)
    scale = fits * 2 ** rng.uniform(0, 1)
    scaled = [max(least, round(side * scale)) for side, least in zip(image.size, size)]
    left, top = (int(rng.integers(0, a - b + 1)) for a, b in zip(scaled, size))
    box = left, top, left + size[0], top + size[1]
    photo = np.asarray(image.resize(scaled, Image.Resampling.BICUBIC).crop(box))
    classes = np.asarray(truth.resize(scaled, Image.Resampling.NEAREST).crop(box))
    if rng.random() < 0.5:
        photo, classes = photo[:, ::-1], classes[:, ::-1]
    chw = torch.from_numpy(photo.copy()).permute(2, 0, 1).float() / 255
    return chw, torch.from_numpy(classes.astype(np.int64))


def degraded(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) with random defects of generated ones: wrong brightness, lost detail,
    noise, patches of false colour, and the repeating pattern of transposed convolutions."""
    count, _, height, width = images.shape

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(count, 1, 1, 1).uniform_(low, high)

    def noise(cell: int) -> Tensor:
        coarse = torch.randn(count, 3, height // cell + 1, width // cell + 1)
        smooth = F.interpolate(coarse, scale_factor=cell, mode="bilinear")
        return smooth[..., :height, :width]

    tile = torch.randn(count, 3, 8, 8).repeat(1, 1, height // 8 + 1, width // 8 + 1)
    images = (images - 0.5) * uniform(0.8, 1.2) + 0.5 + uniform(-0.1, 0.1)
    for factor in (2, 3):
        small = F.interpolate(images, scale_factor=1 / factor, mode="area")
        blurred = F.interpolate(small, (height, width), mode="bilinear")
        images = torch.where(uniform(0, 1) < 0.35, blurred, images)
    images = images + torch.randn_like(images) * uniform(0, 0.1)
    images = images + noise(4) * uniform(0, 0.15)
    images = images + tile[..., :height, :width] * uniform(0, 0.12)
    return images.clamp(0, 1)


def main() -> None:
    parser = Parser(description="Train a segmentation network on the toy photographs.")
    parser.add_argument("--dataroot", default="datasets/toy", help="train_img/ and train_label/")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/toy_segmenter.pt"))
    parser.add_argument("--width", type=integer(16), default=128, help="of the training crops")
    parser.add_argument("--steps", type=integer(1), default=500)
    parser.add_argument("--batch", type=integer(1), default=8)
    parser.add_argument("--seed", type=integer(0), default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    run(main)
