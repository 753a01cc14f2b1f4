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
    del maps["image"]  # its memory is not to count

    def image(tiling: Tiling | None) -> np.ndarray:
        model.tiling = tiling
        return to_uint8(model.generate(**maps))

    ways = {"tiles": lambda: image(Tiling(given.tile, given.tile_dir))}
    more = {}
    if given.compare:
        ways = {"whole": lambda: image(None), **ways}
        difference = np.abs(ways["tiles"]().astype(int) - ways["whole"]())
        more["most_grey_levels_apart"] = int(difference.max())
        more["share_of_values_that_differ"] = float((difference > 0).mean())
        times = alternate(ways, given.device, given.repeat)
    else:
        times = alternate(ways, given.device, repeat=1, warm_up=0)
    report(
        "tiling",
        compare(times),
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
