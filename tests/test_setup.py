"""--deterministic: operations that have no deterministic algorithm are errors, in one line; and
freed memory is kept."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, run_ok

from benchmarks import scene
from util.errors import run
from util.setup import set_up_torch

FLAGS = [
    "--instance_feat --pool_size 3",
    "--netG local --norm batch",
    "--amp bf16 --checkpoint_activations",
    "--no_lsgan --use_dropout",
]


def test_deterministic_raises_and_does_not_warn() -> None:
    try:
        set_up_torch(deterministic=True, tf32=False)
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("flags", FLAGS)
def test_training_on_a_cpu_is_deterministic(tmp_path: Path, flags: str) -> None:
    scene.write_scenes(tmp_path / "data", 1, 64, 32)
    run_ok(
        *("train.py", "--name", "run", "--dataroot", tmp_path / "data", *TINY),
        *("--checkpoints_dir", tmp_path, "--niter", 1, "--niter_decay", 0),
        *("--deterministic", *flags.split()),
    )


def test_a_nondeterministic_operation_is_named(capsys: pytest.CaptureFixture) -> None:
    def main() -> None:
        message = "pad_cuda does not have a deterministic implementation, but you set ..."
        raise RuntimeError(message)

    with pytest.raises(SystemExit) as ending:
        run(main)
    assert ending.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("error: --deterministic: pad_cuda does not have") and "--gpu_ids" in line


PAGES = """
import resource, sys, torch
from util.setup import set_up_torch
if sys.argv[1] == "kept":
    set_up_torch(deterministic=False, tf32=False)
def maps(): return [torch.ones(2**20) for _ in range(10)]
maps(), maps()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10): maps()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.thorough
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_reused() -> None:
    """Ten times 40 MB: 100,000 pages to clear, or none."""
    pages = {
        way: int(subprocess.check_output([sys.executable, "-c", PAGES, way], cwd=ROOT, text=True))
        for way in ("left", "kept")
    }
    assert pages["kept"] < 1000 < pages["left"]
