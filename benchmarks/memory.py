"""Memory of a training step by stage, size and flag, compared with the baseline's step.

    python -m benchmarks.memory
    python -m benchmarks.memory --device cuda --amp bf16

"saved" is what autograd keeps for backward; "allocated" the peak of all tensors in a step: weights,
gradients and Adam's moments too. Both depend on shapes alone, so on a CPU they are counted without
computing anything (meta tensors), for the full-size networks. On CUDA the step is run, and
"allocated" is the allocator's own figure. Both ways average features as the project does, because
the baseline's loop over instances needs real values; what that loop saves is left out.
"""

import math
from contextlib import nullcontext
from functools import partial
from unittest.mock import patch

import torch

from benchmarks import baseline, scene
from benchmarks.measure import AllocatedBytes, benchmark_parser, peak_saved_bytes, report
from models.layers import instance_average
from models.pix2pixHD_model import Pix2PixHDModel
from util.errors import run
from util.parser import number
from util.setup import set_up_torch

LOCAL = "--netG local --ngf 32 --num_D 3"
STAGES = {
    "512p": ("", 1024, 512),
    "512p, features": ("--instance_feat", 1024, 512),
    "1024p on crops": (LOCAL, 1024, 1024),
    "1024p": (LOCAL, 2048, 1024),
    "1024p, outer part alone": (f"{LOCAL} --niter_fix_global 1", 2048, 1024),
}


def measure(make, batch: dict, device: torch.device) -> dict[str, float]:
    """One way's GB saved for backward, and peak GiB allocated."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
    with nullcontext() if on_gpu else AllocatedBytes() as allocated:
        with torch.device(device):  # no weights are initialized where nothing is computed
            step = make()
        step.step(batch)  # the optimizers' state, as in every later step
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        step.step(batch)
    peak = torch.cuda.max_memory_allocated() if on_gpu else allocated.peak
    saved = peak_saved_bytes(lambda: step.step(batch), list(step.parameters()))
    return {"saved GB": saved / 1e9, "allocated GiB": peak / 2**30}


def main() -> None:
    parser = benchmark_parser(__doc__, batch=1, repeat=None, amp=True)
    parser.add_argument("--stage", action="append", choices=list(STAGES), help="default: all")
    parser.add_argument(
        "--limit",
        type=number(0.1, 1e6),
        metavar="GIB",
        help="use no more, as on a smaller GPU (cuDNN uses all memory that makes it faster)",
    )
    given = parser.parse_args()
    device = given.device if given.device.type == "cuda" else torch.device("meta")
    if device.type == "meta" and given.amp != "off":
        parser.error("--amp is measured with --device cuda")
    if given.limit is not None:
        if device.type == "meta":
            parser.error("--limit needs --device cuda")
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, given.limit * 2**30 / total))

    set_up_torch(deterministic=False, tf32=False)  # cuDNN chooses algorithms as in training
    rows = []
    recomputed = "--checkpoint_activations"
    ways = {
        "baseline": (baseline.TrainStep, "off", []),
        "project": (Pix2PixHDModel, given.amp, []),
        recomputed: (Pix2PixHDModel, given.amp, [recomputed]),
    }
    average = patch("benchmarks.baseline.instance_average", instance_average)
    with scene.temporary_folder() as folder, average:
        vgg = scene.vgg_flags(folder)
        for stage in given.stage or STAGES:
            flags, width, height = STAGES[stage]
            flags = [*flags.split(), *vgg]
            batch = scene.batch(width, height, given.batch)
            batch = {kind: value.to(device) for kind, value in batch.items()}
            base = None
            for way, (kind, precision, more) in ways.items():
                opt = scene.options(given.device.type, [*flags, "--amp", precision, *more])
                try:
                    row = measure(partial(kind, opt, device), batch, device)
                except torch.OutOfMemoryError:
                    row = {"saved GB": math.nan, "allocated GiB": math.nan}
                base = base or row["saved GB"]
                size = f"{width}x{height}"
                head = {"stage": stage, "size": size, "precision": precision, "way": way}
                rows.append({**head, **row, "ratio": row["saved GB"] / base})
    report("memory", rows, given)


if __name__ == "__main__":
    run(main)
