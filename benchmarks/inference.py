"""Images a second from label maps to 8-bit images, both in memory, compared with the baseline.

    python -m benchmarks.inference --width 512 --height 256
    python -m benchmarks.inference --device cuda --amp bf16 --compile

Both have the same random weights; the difference of their images is printed in grey levels.
"""

import numpy as np
import torch

from benchmarks import scene
from benchmarks.baseline import plain_generate
from benchmarks.measure import benchmark_parser, compare_to_peak, flops, report
from models.build import build_generator
from util.errors import run
from util.parser import integer
from util.setup import set_up_torch


def main() -> None:
    parser = benchmark_parser(__doc__, size=(2048, 1024), batch=1, amp=True)
    parser.add_argument("--netG", default="local", choices=["global", "local"])
    parser.add_argument("--ngf", type=integer(1), default=32)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cuda_graphs", action="store_true", help="compiled, in CUDA graphs")
    given = parser.parse_args()
    device = given.device
    set_up_torch(deterministic=False, tf32=False)

    flags = f"--netG {given.netG} --ngf {given.ngf} --amp {given.amp}"
    flags += " --compile" * given.compile
    model = scene.random_generator(device, flags)
    if given.cuda_graphs:  # one launch per image: the time of the kernels alone
        model._generator = torch.compile(model.netG, mode="reduce-overhead")
        flags += " --cuda_graphs"
    scene.require_size(given, model.min_side, model.multiple)  # the baseline's
    torch.manual_seed(0)
    plain = build_generator(model.opt).to(device)
    maps = scene.pinned(scene.batch(given.width, given.height, given.batch), device)
    label, inst = maps["label"], maps["inst"]

    def project() -> np.ndarray:
        image = model.generate(label, inst)
        pixels = image.add(1).mul(127.5).clamp(0, 255).round()
        return pixels.byte().permute(0, 2, 3, 1).cpu().numpy()

    def baseline() -> np.ndarray:
        return plain_generate(plain, label.float(), inst.float(), model.opt.label_nc, device)

    difference = np.abs(project().astype(int) - baseline().astype(int))
    ways = {"baseline": baseline, "project": project}
    work = flops(baseline)
    rows = compare_to_peak(ways, dict.fromkeys(ways, work), given)
    for row in rows:
        row["pictures/s"] = given.batch / row["median"]
    report(
        "inference",
        rows,
        given,
        flags=flags,
        TFLOP=work / 1e12,
        mean_grey_levels_apart=float(difference.mean()),
        most_grey_levels_apart=int(difference.max()),
    )


if __name__ == "__main__":
    run(main)
