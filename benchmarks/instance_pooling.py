"""The encoder's instance-wise average pooling, forward and backward, compared with a loop; and
whether its time grows with the number of instances.

python -m benchmarks.instance_pooling
python -m benchmarks.instance_pooling --device cuda
"""

import torch
from torch import Tensor

from benchmarks import baseline, scene
from benchmarks.measure import alternate, benchmark_parser, compare, report
from models.layers import instance_average
from util.errors import run
from util.parser import integer


def main() -> None:
    parser = benchmark_parser(__doc__, size=(2048, 1024), batch=2, repeat=3)  # the loop is slow
    parser.add_argument("--instances", type=integer(1), default=60)
    parser.add_argument("--channels", type=integer(1), default=3)
    given = parser.parse_args()
    device = given.device

    def instance_maps(instances: int) -> Tensor:
        return scene.batch(given.width, given.height, given.batch, instances)["inst"].to(device)

    inst = instance_maps(given.instances)
    shape = (given.batch, given.channels, given.height, given.width)
    features = torch.randn(shape, device=device, requires_grad=True)
    upstream = torch.randn(shape, device=device)

    def both(average, inst: Tensor = inst) -> Tensor:
        return torch.autograd.grad(average(features, inst), features, upstream)[0]

    difference = (both(baseline.instance_average) - both(instance_average)).abs().max().item()
    ways = {
        "loop": lambda: both(baseline.instance_average),
        "project": lambda: both(instance_average),
    }
    rows = compare(alternate(ways, device, given.repeat))
    for row in rows:
        row["times as fast"] = 1 / row["ratio"]
    few, many = instance_maps(10), instance_maps(1000)
    numbers = {
        "few": lambda: both(instance_average, few),
        "many": lambda: both(instance_average, many),
    }
    growth = compare(alternate(numbers, device, 5 * given.repeat))
    report(
        "instance_pooling",
        rows,
        given,
        shape=list(shape),
        instances=[len(one.unique()) for one in inst],
        most_instances=[len(one.unique()) for one in many],
        times_of_1000_instances_to_10=growth[1]["ratio"],
        largest_difference=difference,
    )


if __name__ == "__main__":
    run(main)
