"""Memory of the editor at full size: one image, a gallery of ten styles, 64 open windows.

    python -m benchmarks.editor_memory

Random weights of the 1024p architecture (--netG local, --ngf 32, features) and 2048x1024 maps with
20 objects, on the CPU of a Linux machine. --windows skips generation: each window then holds a
random image.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.scene import random_generator
from models.ui_model import UIModel
from util.errors import run
from util.parser import Parser

HEIGHT, WIDTH, WINDOWS = 1024, 2048, 64


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", action="store_true", help="only the open windows")
    only_windows = parser.parse_args().windows
    networks = random_generator(torch.device("cpu"), "--netG local --ngf 32 --instance_feat")
    ui = UIModel(networks, styles={26: np.random.randn(10, 3).astype(np.float32)})
    ui.open(*maps())
    before = resident()
    print(f"with networks and one scene: {before} MB resident")
    if not only_windows:
        report("one image", ui.picture, before)
        report("gallery of 10 styles", lambda: ui.previews(26000, ui.styles[26]), before)
    before = resident()
    windows = [opened(ui) for _ in range(WINDOWS)]
    print(f"{len(windows)} windows: {resident() - before} MB more")


def maps() -> tuple[np.ndarray, np.ndarray]:
    """Sky above road, and 20 cars."""
    label = np.full((HEIGHT, WIDTH), 23, np.uint8)
    label[HEIGHT // 2 :] = 7
    inst = label.astype(np.int32)
    for number in range(20):
        place = slice(500, 600), slice(100 * number, 100 * number + 90)
        label[place], inst[place] = 26, 26000 + number
    return label, inst


def opened(ui: UIModel) -> tuple[UIModel, object]:
    """A window's scene with an image, and its selected object."""
    window = ui.another()
    window.open(*maps())
    window.last_picture = np.random.randint(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    return window, window.select(HEIGHT // 2, 50)


def report(what: str, work: Callable[[], object], before: int) -> None:
    """Call work; print the peak resident memory so far, minus before."""
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    print(f"{what}: {resident('VmHWM') - before} MB more at most, {seconds:.1f} s", flush=True)


def resident(key: str = "VmRSS") -> int:
    """Resident memory of this process in MB, as reported by Linux; VmHWM: its peak so far."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{key}:")[2].split()[0]) // 1024


if __name__ == "__main__":
    run(main)
