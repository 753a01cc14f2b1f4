"""The encoder's instance-wise average pooling, forward and backward, beside a loop.

python -m benchmarks.instance_pooling
python -m benchmarks.instance_pooling --device cuda
"""

import argparse

import torch
from torch import Tensor

from benchmarks import baseline, scene
from benchmarks.measure import add_common_flags, alternate, compare, report
from models.networks import instance_average
from util.errors import run


def main() -> None:
    parser = argparse.ArgumentParser(description="Instance pooling beside a loop.")
    add_common_flags(parser)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--height", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--instances", type=int, default=60)
    parser.add_argument("--channels", type=int, default=3)
    parser.set_defaults(repeat=3)  # the loop takes long
    given = parser.parse_args()
    device = torch.device(given.device)

    inst = scene.batch(given.width, given.height, given.batch, given.instances)["inst"].to(device)
    shape = (given.batch, given.channels, given.height, given.width)
    features = torch.randn(shape, device=device, requires_grad=True)
    upstream = torch.randn(shape, device=device)

    def both(average) -> Tensor:
        return torch.autograd.grad(average(features, inst), features, upstream)[0]

    difference = (both(baseline.instance_average) - both(instance_average)).abs().max().item()
    ways = {
        "loop": lambda: both(baseline.instance_average),
        "project": lambda: both(instance_average),
    }
    rows = compare(alternate(ways, device, given.repeat), "loop")
    for row in rows:
        row["times as fast"] = 1 / row["ratio"]
    found = [len(one.unique()) for one in inst]
    report(
        "instance_pooling",
        rows,
        device,
        given.json,
        shape=list(shape),
        instances=found,
        largest_difference=difference,
    )


if __name__ == "__main__":
    run(main)
