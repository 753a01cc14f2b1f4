"""Images a second of test.py --input, from files to files, compared with maps in memory.

    python -m benchmarks.files --name NAME --input maps --input_inst instances

Further flags are test.py's. Both ways use the weights of that run and generate images from the same
maps, in turns: "files" reads the maps and writes PNGs; "memory" has the maps in memory and discards
the images. Prints how many of the written images differ from those in memory.
"""

import argparse
from contextlib import redirect_stdout
from io import StringIO
from itertools import chain

import numpy as np
import torch

from benchmarks import scene
from benchmarks.measure import alternate, benchmark_parser, compare, report
from data.arrays import read_array
from data.input_files import InputFiles
from data.loader import collate
from generation.features import feature_sources, style_choosers
from generation.results import Results
from options.test_options import TestOptions
from test import create_generator, generate, write_images
from util import distributed
from util.errors import run


def main() -> None:
    given, flags = benchmark_parser(__doc__, device=False).parse_known_args()
    with scene.temporary_folder() as folder:
        opt = TestOptions().parse([*flags, "--output", folder])
        distributed.launch(lambda opt, device: measure(given, opt, device), opt)


def measure(given: argparse.Namespace, opt: argparse.Namespace, device: torch.device) -> None:
    model = create_generator(opt, device)
    dataset = InputFiles(opt)
    batches = [collate([dataset[index]]) for index in range(len(dataset))]
    sources = feature_sources(model, opt, style_choosers(model, opt))

    def memory() -> list[np.ndarray]:
        images = [generate(model, sources, batch).values() for batch in batches]
        return [image for (image,) in chain(*images)]  # of batches of one

    def files() -> None:
        with redirect_stdout(StringIO()):
            write_images(model, opt)

    times = alternate({"memory": memory, "files": files}, device, given.repeat)
    results = Results(opt, dataset, list(sources), [])
    paths = [results.paths(index, sources).values() for index in range(len(dataset))]
    written = [read_array(results.folder / path) for path in chain(*paths)]
    different = sum(not np.array_equal(*pair) for pair in zip(written, memory(), strict=True))
    rows = compare(times)
    for row in rows:
        row["images/s"] = len(written) / row["median"]
        row["of memory's rate"] = 1 / row["ratio"]
    given.device = device
    report("files", rows, given, images=len(written), different=different)


if __name__ == "__main__":
    run(main)
