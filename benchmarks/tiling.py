"""Generation in tiles: its time beside that of the whole image, and memory.

    python -m benchmarks.tiling --size 2048x1024 --ngf 16 --compare
    python -m benchmarks.tiling --size 8192x4096

Without --compare only tiles are generated, once, so that the peak memory is theirs; with it, both
in turns, and the difference of the images is printed in grey levels.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks import scene
from benchmarks.measure import add_common_flags, alternate, compare, report
from models.build import build_generator
from models.inference_model import InferenceModel, to_pictures
from models.tiling import Tiling
from options.base_options import integer
from options.test_options import TestOptions
from util.errors import run
from util.progress import peak_memory
from util.run.checkpoints import save_set
from util.setup import set_up_torch


def main() -> None:
    parser = argparse.ArgumentParser(description="Generation in tiles beside the whole image.")
    add_common_flags(parser)
    parser.add_argument("--size", type=size, default=(2048, 1024), help="WIDTHxHEIGHT")
    parser.add_argument("--tile", type=integer(8), default=512)
    parser.add_argument("--tile_dir", type=Path, default=None)
    parser.add_argument("--netG", default="global", choices=["global", "local"])
    parser.add_argument("--ngf", type=integer(1), default=64)
    parser.add_argument("--compare", action="store_true", help="generate the whole image as well")
    given = parser.parse_args()
    device = torch.device(given.device)
    set_up_torch(deterministic=False, tf32=False)

    with scene.temporary_folder() as folder:
        flags = f"--name run --checkpoints_dir {folder} --netG {given.netG} --ngf {given.ngf}"
        flags += f" --gpu_ids {0 if given.device == 'cuda' else -1}"
        opt = TestOptions().parse(flags.split())
        torch.manual_seed(0)
        (Path(folder) / "run").mkdir()
        save_set(Path(folder) / "run", {"latest_net_G.pth": build_generator(opt).state_dict()})
        model = InferenceModel(opt, device, Path(folder) / "run")
    loaded = peak_memory(device)
    maps = scene.batch(*given.size, 1)
    label, inst = maps.pop("label"), maps.pop("inst")
    del maps

    def whole() -> np.ndarray:
        model.tiling = None
        return to_pictures(model.generate(label, inst))

    def tiled() -> np.ndarray:
        model.tiling = Tiling(given.tile, given.tile_dir)
        return to_pictures(model.generate(label, inst))

    more = {}
    if given.compare:
        difference = np.abs(tiled().astype(int) - whole())
        more["most_grey_levels_apart"] = int(difference.max())
        more["share_of_values_that_differ"] = float((difference > 0).mean())
        rows = compare(alternate({"whole": whole, "tiles": tiled}, device, given.repeat), "whole")
    else:
        rows = compare(alternate({"tiles": tiled}, device, 1, warm_up=0), "tiles")
    report(
        "tiling",
        rows,
        device,
        given.json,
        flags=flags,
        size=f"{given.size[0]}x{given.size[1]}",
        tile=given.tile,
        GB_after_loading=loaded,
        GB_at_most=peak_memory(device),
        **more,
    )


def size(text: str) -> tuple[int, int]:
    """An argparse type: WIDTHxHEIGHT."""
    width, _, height = text.partition("x")
    return integer(1)(width), integer(1)(height)


if __name__ == "__main__":
    run(main)
