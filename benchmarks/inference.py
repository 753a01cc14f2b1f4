"""Images a second from label maps in memory to 8-bit images in memory, beside the plain way.

    python -m benchmarks.inference --width 512 --height 256
    python -m benchmarks.inference --device cuda --amp bf16 --compile

Both have the same random weights; the difference of their images is printed in grey levels.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks import scene
from benchmarks.baseline import plain_generate
from benchmarks.measure import add_common_flags, alternate, compare, flops, matmul_peak, report
from models.build import AMP_TYPES, build_generator
from models.inference_model import InferenceModel
from options.base_options import integer
from options.test_options import TestOptions
from util.errors import run
from util.run.checkpoints import save_set
from util.setup import set_up_torch


def main() -> None:
    parser = argparse.ArgumentParser(description="Inference beside the plain way.")
    add_common_flags(parser)
    parser.add_argument("--width", type=integer(1), default=2048)
    parser.add_argument("--height", type=integer(1), default=1024)
    parser.add_argument("--batch", type=integer(1), default=1)
    parser.add_argument("--netG", default="local", choices=["global", "local"])
    parser.add_argument("--ngf", type=integer(1), default=32)
    parser.add_argument("--amp", default="off", choices=["off", *AMP_TYPES])
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    device = torch.device(given.device)
    set_up_torch(deterministic=False, tf32=False)

    with scene.temporary_folder() as folder:
        flags = f"--name run --checkpoints_dir {folder} --netG {given.netG} --ngf {given.ngf}"
        flags += f" --gpu_ids {0 if given.device == 'cuda' else -1} --amp {given.amp}"
        flags += " --compile" * given.compile
        opt = TestOptions().parse(flags.split())
        run_folder = Path(folder) / "run"
        run_folder.mkdir()
        torch.manual_seed(0)
        plain = build_generator(opt).to(device)
        save_set(run_folder, {"latest_net_G.pth": plain.state_dict()})
        model = InferenceModel(opt, device, run_folder)

    maps = scene.pinned(scene.batch(given.width, given.height, given.batch), device)
    label, inst = maps["label"], maps["inst"]

    def project() -> np.ndarray:
        picture = model.generate(label, inst)
        pixels = picture.add(1).mul(127.5).clamp(0, 255).round()
        return pixels.byte().permute(0, 2, 3, 1).cpu().numpy()

    def baseline() -> np.ndarray:
        return plain_generate(plain, label.float(), inst.float(), opt.label_nc, device)

    difference = np.abs(project().astype(int) - baseline().astype(int))
    work = flops(baseline)
    ways = {"baseline": baseline, "project": project}
    dtypes = {"baseline": torch.float32, "project": AMP_TYPES.get(given.amp, torch.float32)}
    before = {way: matmul_peak(device, dtype) for way, dtype in dtypes.items()}
    calls = 10 if device.type == "cuda" else 1
    times = alternate(ways, device, given.repeat, calls=calls)
    peaks = {way: max(before[way], matmul_peak(device, dtypes[way])) for way in ways}
    rows = compare(times, "baseline")
    for row in rows:
        row["pictures/s"] = given.batch / row["median"]
        row["share of peak"] = work / row["median"] / peaks[row["way"]]
    report(
        "inference",
        rows,
        device,
        given.json,
        flags=flags,
        size=f"{given.width}x{given.height}",
        TFLOP=work / 1e12,
        mean_grey_levels_apart=float(difference.mean()),
        most_grey_levels_apart=int(difference.max()),
    )


if __name__ == "__main__":
    run(main)
