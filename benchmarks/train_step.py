"""One training step compared with the baseline's: time, bytes saved for backward, operations.

    python -m benchmarks.train_step
    python -m benchmarks.train_step --device cuda --width 1024 --height 512 --ngf 64 \\
        --amp bf16 --compile

Further flags are train.py's and go to both ways (--netG local --num_D 3 ...); --ngf is 32 unless
given.
"""

import torch

from benchmarks import baseline, scene
from benchmarks.measure import benchmark_parser, compare_to_peak, flops, peak_saved_bytes, report
from models.build import min_training_side, size_multiple
from models.pix2pixHD_model import Pix2PixHDModel
from util.errors import run
from util.setup import set_up_torch


def main() -> None:
    parser = benchmark_parser(__doc__, size=(512, 256), batch=1, amp=True)
    parser.add_argument("--no_feat", action="store_true", help="labels without features")
    parser.add_argument("--no_vgg", action="store_true", help="leave the VGG loss out")
    parser.add_argument("--contiguous", action="store_true", help="no channels-last maps")
    given, more = parser.parse_known_args()
    device = given.device
    set_up_torch(deterministic="--deterministic" in more, tf32="--tf32" in more)
    with scene.temporary_folder() as folder:
        flags = ["--no_vgg_loss"] if given.no_vgg else scene.vgg_flags(folder)
        flags += [] if given.no_feat else ["--instance_feat"]
        flags += ["--amp", given.amp, "--ngf", "32", *more]
        opt = scene.options(device.type, flags)
        scene.require_size(given, min_training_side(opt), size_multiple(opt))  # the baseline's
        base = baseline.TrainStep(opt, device)  # which ignores those for speed and memory
        model = Pix2PixHDModel(opt, device)
    if given.contiguous:
        model.layout = torch.contiguous_format
        model.to(memory_format=model.layout)
    batch = scene.batch(given.width, given.height, given.batch)
    floats = scene.pinned({kind: value.float() for kind, value in batch.items()}, device)
    batch = scene.pinned(batch, device)
    ways = {"baseline": lambda: base.step(floats), "project": lambda: model.step(batch)}

    saved = {  # first, as hooks set later would not see a compiled network's graph
        "baseline": peak_saved_bytes(ways["baseline"], list(base.parameters())),
        "project": peak_saved_bytes(ways["project"], list(model.parameters())),
    }
    with torch.compiler.set_stance("force_eager"):  # a counter cannot see into compiled graphs
        work = {way: flops(step) for way, step in ways.items()}
    rows = compare_to_peak(ways, work, given)
    for row in rows:
        way = row["way"]
        row["saved MB"] = saved[way] / 1e6
        row["saved ratio"] = saved[way] / saved["baseline"]
        row["TFLOP"] = work[way] / 1e12
    report("train_step", rows, given, flags=" ".join(flags) + " --contiguous" * given.contiguous)


if __name__ == "__main__":
    run(main)
