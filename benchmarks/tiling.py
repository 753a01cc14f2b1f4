"""Generation in tiles: its memory, and its time compared with that of the whole image.

    python -m benchmarks.tiling --size 2048x1024 --ngf 16 --compare
    python -m benchmarks.tiling --size 8192x4096

Without --compare only tiles are generated, once, so that the peak memory is theirs; with it, both
are, in turns, and the difference between the images is printed in grey levels.
"""

from pathlib import Path

import numpy as np

from benchmarks import scene
from benchmarks.measure import alternate, benchmark_parser, compare, report
from models.inference_model import to_uint8
from models.tiling import Tiling
from util.errors import run
from util.parser import integer, size
from util.progress import peak_memory
from util.setup import set_up_torch


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--size", type=size, metavar=size.metavar, default="2048x1024")
    parser.add_argument("--tile", type=integer(8), default=512)
    parser.add_argument("--tile_dir", type=Path, default=None)
    parser.add_argument("--netG", default="global", choices=["global", "local"])
    parser.add_argument("--ngf", type=integer(1), default=64)
    parser.add_argument("--compare", action="store_true", help="generate the whole image as well")
    given = parser.parse_args()
    set_up_torch(deterministic=False, tf32=False)
    flags = f"--netG {given.netG} --ngf {given.ngf}"
    model = scene.random_generator(given.device, flags)
    loaded = peak_memory(given.device)
    maps = scene.batch(*given.size, 1)
    label, inst = maps.pop("label"), maps.pop("inst")
    del maps

    def whole() -> np.ndarray:
        model.tiling = None
        return to_uint8(model.generate(label, inst))

    def tiled() -> np.ndarray:
        model.tiling = Tiling(given.tile, given.tile_dir)
        return to_uint8(model.generate(label, inst))

    more = {}
    if given.compare:
        difference = np.abs(tiled().astype(int) - whole())
        more["most_grey_levels_apart"] = int(difference.max())
        more["share_of_values_that_differ"] = float((difference > 0).mean())
        ways = {"whole": whole, "tiles": tiled}
        rows = compare(alternate(ways, given.device, given.repeat), "whole")
    else:
        rows = compare(alternate({"tiles": tiled}, given.device, 1, warm_up=0), "tiles")
    report(
        "tiling",
        rows,
        given,
        flags=flags,
        size=f"{given.size[0]}x{given.size[1]}",
        tile=given.tile,
        GB_after_loading=loaded,
        GB_at_most=peak_memory(given.device),
        **more,
    )


if __name__ == "__main__":
    run(main)
