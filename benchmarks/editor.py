"""How long the editor takes: an edit with its image, and a gallery of ten styles.

python -m benchmarks.editor --name toy_features
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.measure import alternate
from data.create import create_dataset
from models import create_model
from options.edit_options import EditOptions
from util.errors import run
from util.setup import first_device, seed_everything, set_up_torch

REPEAT = 20


def main() -> None:
    opt = EditOptions().parse()
    set_up_torch(opt.deterministic, opt.tf32)
    seed_everything(opt.seed)
    device = first_device(opt)
    ui = create_model(opt, device)
    maps = create_dataset(opt, training=False, load_photos=False).read_maps(0)
    ui.open(maps["label"], maps.get("inst"))
    height, width = ui.shape
    print(f"{width}x{height} on {device}, {torch.get_num_threads()} threads")
    middle = ui.select(height // 2, width // 2).instance
    rng = np.random.default_rng(0)

    def paint() -> None:
        points = (rng.random((4, 2)) * ui.shape).tolist()
        ui.paint(points, int(rng.integers(opt.label_nc)), max(1, height // 32))
        ui.picture()

    def restyle() -> None:
        ui.set_style(middle, rng.normal(size=opt.feat_num))
        ui.picture()

    def dot() -> None:
        ui.paint([(9, 9)], int(rng.integers(opt.label_nc)), 3)

    report("select", lambda: ui.select(height // 3, width // 3))
    report("paint, without generating", dot)
    report("paint and generate", paint)
    ui.reset()
    if ui.has_features:
        report("style and generate", restyle)
        styles = rng.normal(size=(10, opt.feat_num)).astype(np.float32)
        report("gallery of 10 styles", lambda: ui.previews(middle, styles))


def report(what: str, work: Callable[[], object]) -> None:
    """Print the median and the longest time of REPEAT calls, and the mean processor time of a call.

    The images are copied to the host, so a GPU has finished by then. On a busy machine, processor
    time on one thread (OMP_NUM_THREADS=1) says more than the clock.
    """
    work()
    begin = time.process_time()
    times = alternate({what: work}, torch.device("cpu"), REPEAT, warm_up=0)[what]
    busy = (time.process_time() - begin) / REPEAT
    print(
        f"{what}: median {1000 * statistics.median(times):.1f} ms, most {1000 * max(times):.1f}, "
        f"processor {1000 * busy:.1f}"
    )


if __name__ == "__main__":
    run(main)
