"""Where a training step's time goes on a GPU: the slowest kernels, launches, idle time.

    python -m benchmarks.profile_step --device cuda --amp bf16 --compile

Further flags are train.py's. On a CPU, operators are listed instead of kernels.
"""

import time

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import scene
from benchmarks.measure import benchmark_parser, report, synchronize
from models.build import min_training_side
from models.pix2pixHD_model import Pix2PixHDModel
from util.errors import run
from util.parser import integer
from util.setup import set_up_torch

SHOWN = 15


def main() -> None:
    parser = benchmark_parser(__doc__, size=(1024, 512), batch=1, repeat=None)
    parser.add_argument("--steps", type=integer(1), default=10)
    given, more = parser.parse_known_args()
    device = given.device
    set_up_torch(deterministic=False, tf32="--tf32" in more)
    with scene.temporary_folder() as folder:
        flags = more if "--no_vgg_loss" in more else [*scene.vgg_flags(folder), *more]
        opt = scene.options(device.type, flags)
        scene.require_size(given, min_training_side(opt))
        model = Pix2PixHDModel(opt, device, one_size=True)
    batch = scene.pinned(scene.batch(given.width, given.height, given.batch), device)
    for _ in range(3):
        model.step(batch)
    synchronize(device)
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    start = time.perf_counter()
    with profile(activities=activities) as profiler:
        for _ in range(given.steps):
            model.step(batch)
        synchronize(device)
    seconds = (time.perf_counter() - start) / given.steps

    def microseconds(event) -> float:
        return event.self_device_time_total if cuda else event.self_cpu_time_total

    events = [event for event in profiler.key_averages() if microseconds(event) > 0]
    if cuda:  # kernels only, without the operators that launched them and the enclosing ranges
        events = [
            event
            for event in events
            if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
        ]
    events.sort(key=microseconds, reverse=True)
    busy = sum(microseconds(event) for event in events) / given.steps / 1e6
    rows = [
        {
            "kernel": event.key[:80],
            "ms a step": microseconds(event) / given.steps / 1e3,
            "share": microseconds(event) / given.steps / 1e6 / busy,
            "launches a step": event.count / given.steps,
        }
        for event in events[:SHOWN]
    ]
    report(
        "profile_step",
        rows,
        given,
        flags=" ".join(more),
        seconds_a_step=seconds,
        launches_a_step=sum(event.count for event in events) / given.steps,
        idle_share=max(0.0, 1 - busy / seconds),
    )


if __name__ == "__main__":
    run(main)
