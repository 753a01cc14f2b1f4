"""What the tests share: toy data, the commands by their command lines, small networks."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts: tiny images, few cores

import pytest
from commands import ROOT, run_command, run_ok  # noqa: F401 (tests import them from here)
from PIL import Image

from util.errors import run

SHARED = ROOT.parent / "shared"  # real and golden data, if present

TINY = [
    *("--ngf", "4", "--ndf", "4", "--n_layers_D", "1"),
    *("--n_downsample_global", "1", "--n_blocks_global", "1"),
    *("--loadSize", "64", "--no_vgg_loss", "--nThreads", "0", "--gpu_ids", "-1"),
]

# minutes each: they come first, so that no worker is left with one of them while the others idle
LONGEST = (
    *("test_export", "test_distributed", "test_validation", "test_resume", "test_step"),
    *("test_golden", "test_benchmarks", "test_recipe", "test_faults", "test_editor_browser"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)


def needs(package: str, file: str) -> pytest.MarkDecorator:
    """Skip where this package of a requirements file is missing; importing it would take long."""
    return pytest.mark.skipif(find_spec(package) is None, reason=f"needs {file}")


def thorough(*cases: object) -> list:
    """Cases that only the thorough tests run; each is a tuple if there are several parameters."""
    values = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*value, marks=pytest.mark.thorough) for value in values]


def one_line(done: subprocess.CompletedProcess) -> str:
    """The one line that a refused command ends in."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64x32 toy scenes as train.py reads them: 4 to train on, 2 to test on. Do not change them."""
    from data.toy_cityscapes import write_dataset

    folder = tmp_path_factory.mktemp("toy")
    write_dataset(folder / "raw", 4, 2, (64, 32), 0)
    raw, out = folder / "raw", folder / "data"
    run_ok("prepare_cityscapes.py", "--raw", raw, "--out", out)
    return out


@pytest.fixture(scope="session")
def browser():
    """A playwright context of headless Chromium."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright (requirements-test.txt) is missing"
    )
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("chromium is not installed")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync"]
    with playwright.sync_playwright() as p, tempfile.TemporaryDirectory() as profile:
        context = p.chromium.launch_persistent_context(
            profile,
            executable_path=chromium,
            headless=True,
            args=flags,
            viewport={"width": 1200, "height": 1000},
        )
        context.set_default_timeout(20000)
        playwright.expect.set_options(timeout=20000)
        yield context
        context.close()


@pytest.fixture(scope="session")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VGG19 with random features, without the half gigabyte of its unused classifier."""
    from benchmarks.scene import vgg_flags

    return Path(vgg_flags(str(tmp_path_factory.mktemp("vgg")))[1])


@pytest.fixture
def own_data(toy_data: Path, tmp_path: Path) -> Path:
    """A copy of the toy scenes that a test may change."""
    for path in toy_data.rglob("*.png"):
        copy = tmp_path / "data" / path.relative_to(toy_data)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return tmp_path / "data"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """call(main, *args): a command's main in this process, as its command line would call it."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def call_main(main: Callable[[], object], *args: object) -> object:
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, args)])
        return main()

    yield call_main
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def refused(call: Callable[..., object], capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """refused(main, *args): the one line in which a command refuses its flags or data."""

    def refuse(main: Callable[[], object], *args: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ending:
            run(lambda: call(main, *args))
        done = subprocess.CompletedProcess(args, ending.value.code, *capsys.readouterr())
        return one_line(done)

    return refuse


def save_png(path: Path, array) -> Path:
    """Write an array as a PNG, making its folder: uint8, uint16, or (H, W, 3) uint8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path
