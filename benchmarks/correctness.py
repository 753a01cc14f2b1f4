"""A training step on a device compared with the same step in float64 on the CPU.

    python -m benchmarks.correctness --device cuda

For small networks of every kind and each precision: the largest relative difference of the losses,
and of the generated image in units of [-1, 1].
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks import scene
from benchmarks.measure import benchmark_parser, report
from models.build import min_training_side
from models.pix2pixHD_model import Pix2PixHDModel
from util.errors import run
from util.setup import set_up_torch

SMALL = "--ngf 8 --ndf 8 --n_blocks_global 2 --n_downsample_global 2 --no_vgg_loss --nef 8 --seed 1"
CPU = torch.device("cpu")
NETWORKS = {
    "global": "",
    "local": "--netG local --ngf 4",
    "features": "--instance_feat --n_downsample_E 2",
    "batch norm": "--norm batch",
    "pool": "--pool_size 4",
    "plus": "--recipe plus --instance_mean_D --lambda_latent 20",
}
PRECISIONS = {
    "float64": "",
    "float32": "",
    "tf32": "--tf32",
    "bf16": "--amp bf16",
    "fp16": "--amp fp16",
    "recomputed": "--checkpoint_activations",
}


@contextmanager
def double_precision() -> Iterator[None]:
    """Compute everything in float64 meanwhile."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with patch.object(Tensor, "float", Tensor.double):
            yield
    finally:
        torch.set_default_dtype(before)


def options(device: str, flags: str) -> argparse.Namespace:
    return scene.options(device, [*SMALL.split(), *flags.split()])


def first_weights(flags: str) -> dict[str, Tensor]:
    """The weights that every precision starts from: those initialized in float32."""
    torch.manual_seed(0)
    model = Pix2PixHDModel(options("cpu", flags), CPU)
    return model.state_dict()


def step(
    flags: str, device: torch.device, batch: dict[str, Tensor], weights: dict[str, Tensor]
) -> tuple[dict, Tensor]:
    """The losses of two steps that start from these weights, and the last image."""
    opt = options(device.type, flags)
    set_up_torch(deterministic=False, tf32=opt.tf32)
    model = Pix2PixHDModel(opt, device)
    if opt.amp == "fp16":  # so that no step is skipped to find the scale
        model.scaler = torch.amp.GradScaler(device.type, init_scale=128.0)
    model.load_state_dict(weights)
    batch = {**batch, "image": batch["image"].to(torch.get_default_dtype())}
    losses = {}
    for number in (1, 2):
        found = model.step(batch)
        losses |= {f"{name} {number}": float(value) for name, value in found.items()}
    return losses, model.fake.cpu().double()


def main() -> None:
    given = benchmark_parser(__doc__, size=(256, 128), repeat=None).parse_args()
    for flags in NETWORKS.values():
        scene.require_size(given, min_training_side(options("cpu", flags)))
    batch = scene.batch(given.width, given.height, 2, instances=20)
    rows = []
    for network, flags in NETWORKS.items():
        weights = first_weights(flags)
        with double_precision():
            exact, image = step(flags, CPU, batch, weights)
        for precision, more in PRECISIONS.items():
            with double_precision() if precision == "float64" else nullcontext():
                losses, fake = step(f"{flags} {more}", given.device, batch, weights)
            error = max(abs(losses[n] - v) / abs(v) for n, v in exact.items())
            largest = (fake - image).abs().max().item()
            rows.append(
                {"network": network, "precision": precision, "losses": error, "image": largest}
            )
    report("correctness", rows, given)


if __name__ == "__main__":
    run(main)
