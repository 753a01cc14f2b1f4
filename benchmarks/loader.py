"""Reading scenes: the baseline's data set, the project's, and the project's caches.

    python -m benchmarks.loader
    python -m benchmarks.loader --workers 4 --scenes 32

Writes PNGs of street-like noise into a temporary folder and reads them one epoch at a time.
"""

from collections import deque
from functools import partial
from pathlib import Path

from torch.utils.data import DataLoader

from benchmarks import baseline, scene
from benchmarks.measure import alternate, benchmark_parser, compare, report
from data.create import create_dataset, create_loader
from util.errors import run
from util.parser import integer


def main() -> None:
    parser = benchmark_parser(__doc__, size=(2048, 1024))
    parser.add_argument("--scenes", type=integer(1), default=8)
    parser.add_argument("--loadSize", type=integer(1), default=1024)
    parser.add_argument("--workers", type=integer(0), default=0)
    given = parser.parse_args()

    with scene.temporary_folder() as folder:
        root = Path(folder)
        scene.write_scenes(root, given.scenes, given.width, given.height)
        flags = f"--dataroot {root} --loadSize {given.loadSize} --nThreads {given.workers}".split()
        plain = DataLoader(
            baseline.Scenes(root, given.loadSize),
            num_workers=given.workers,
            pin_memory=given.device.type == "cuda",
            persistent_workers=given.workers > 0,
        )
        loaders = {"baseline": plain}
        for kind in ("none", "ram", "disk"):
            name = "project" if kind == "none" else f"--cache {kind}"
            opt = scene.options(given.device.type, [*flags, "--cache", kind, "--no_vgg_loss"])
            loaders[name] = create_loader(opt, create_dataset(opt, training=True))
        # a deque of length 0 takes all batches and keeps none
        ways = {name: partial(deque, one, maxlen=0) for name, one in loaders.items()}
        rows = compare(alternate(ways, given.device, given.repeat))
        uncached = rows[1]["median"]
        for row in rows:
            row["items/s"] = given.scenes / row["median"]
            row["times baseline"] = 1 / row["ratio"]
            row["times project"] = uncached / row["median"]
    report("loader", rows, given)


if __name__ == "__main__":
    run(main)
