"""The editor's time and memory: open windows, edits with their images, a gallery of ten styles.

    python -m benchmarks.editor
    python -m benchmarks.editor --size 256x128 --repeat 20 --instance_feat --ngf 16

Random weights and maps with 20 objects. Further flags are test.py's; without them, it is the 1024p
architecture with features. "more MB" is by how much the work raised the process's peak memory.
"""

from collections.abc import Callable

import numpy as np
import torch

from benchmarks import scene
from benchmarks.measure import alternate, benchmark_parser, report, summary
from models.ui_model import UIModel
from util.errors import run
from util.parser import integer, size
from util.progress import peak_memory
from util.setup import set_up_torch

LARGE = "--netG local --ngf 32 --instance_feat"
ROAD, SKY, CAR = 7, 23, 26
CPU = torch.device("cpu")


def main() -> None:
    parser = benchmark_parser(__doc__, repeat=1)
    parser.add_argument("--size", type=size, metavar=size.metavar, default="2048x1024")
    parser.add_argument("--windows", type=integer(1), default=64, help="open at the same time")
    given, flags = parser.parse_known_args()
    set_up_torch(deterministic=False, tf32=False)
    networks = scene.random_generator(given.device, " ".join(flags) or LARGE)
    rng = np.random.default_rng(0)
    styles = rng.normal(size=(10, networks.opt.feat_num)).astype(np.float32)
    ui = UIModel(networks, styles={CAR: styles})
    ui.open(*maps(*given.size))
    height, width = ui.shape
    car = CAR * 1000
    rows = []

    def measure(what: str, work: Callable[[], object], repeat: int = given.repeat) -> None:
        before = peak_memory(CPU)
        (times,) = alternate({what: work}, given.device, repeat, warm_up=int(repeat > 1)).values()
        more = 1000 * (peak_memory(CPU) - before)
        rows.append({"what": what, **summary(times), "more MB": more})

    def stroke() -> None:
        ui.paint((rng.random((4, 2)) * ui.shape).tolist(), SKY, max(1, height // 32))
        ui.reset()

    def paint() -> None:
        stroke()
        ui.picture()

    def restyle() -> None:
        ui.set_style(car, rng.normal(size=networks.opt.feat_num))
        ui.picture()

    windows = []
    all_windows = range(given.windows)
    measure(f"{given.windows} windows", lambda: windows.extend(opened(ui) for _ in all_windows), 1)
    measure("select", lambda: ui.select(height // 3, width // 3))
    measure("paint and reset", stroke)
    measure("the same, and generate", paint)
    if ui.has_features:
        measure("style and generate", restyle)
        measure("gallery of 10 styles", lambda: ui.previews(car, styles))
    report("editor", rows, given, flags=" ".join(flags) or LARGE, size=f"{width}x{height}")


def maps(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Sky above road, and 20 cars."""
    label = np.full((height, width), SKY, np.uint8)
    label[height // 2 :] = ROAD
    inst = label.astype(np.int32)
    for number in range(20):
        left = width * number // 20
        place = slice(height // 2 - 1, height * 3 // 5), slice(left, left + max(1, width // 25))
        label[place], inst[place] = CAR, 1000 * CAR + number
    return label, inst


def opened(ui: UIModel) -> tuple[UIModel, object]:
    """A window's scene with an image, and its selected object."""
    window = ui.another()
    window.open(*maps(*ui.shape[::-1]))
    window.last_picture = np.random.randint(0, 256, (*ui.shape, 3), np.uint8)
    return window, window.selection(1000 * CAR)


if __name__ == "__main__":
    run(main)
