"""Several processes on the CPU (gloo): the same weights as one, one-line errors, the launcher."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed_work import CASES
from PIL import Image

ROOT = Path(__file__).parents[1]
WORK = ROOT / "tests" / "distributed_work.py"
SCENES = 10  # with --batchSize 4: batches of 4, 4 and 2, fewer than four processes


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("scenes"), np.random.default_rng(1)
    for kind in ("label", "inst", "img"):
        (root / f"train_{kind}").mkdir()
    for number in range(SCENES):
        label = rng.integers(0, 6, (4, 8), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        pictures = {
            "label": label,
            "inst": label.astype(np.uint16) * 1000,
            "img": rng.integers(0, 256, (16, 32, 3), dtype=np.uint8),
        }
        for kind, array in pictures.items():
            Image.fromarray(array).save(root / f"train_{kind}" / f"{number}.png")
    return root


def start(processes: int, *words: object) -> subprocess.CompletedProcess:
    """Run a Python script in so many processes; one: without a launcher."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), *map(str, words)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env, timeout=300)


def error_lines(done: subprocess.CompletedProcess) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="module")
def results(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """(case, processes) -> weights and losses after ten steps."""
    out = tmp_path_factory.mktemp("weights")
    for processes in (1, 2, 4):
        done = start(processes, WORK, "equality", data, out)
        assert done.returncode == 0, done.stderr
    return {
        (case, processes): torch.load(out / f"{case}_{processes}.pth", weights_only=True)
        for case in CASES
        for processes in (1, 2, 4)
    }


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("case", ["instance", "batch", "recompute", "stages"])
def test_the_same_batch_gives_the_same_weights(results: dict, case: str, processes: int) -> None:
    alone, together = results[case, 1], results[case, processes]
    assert together["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    for name, net in alone["weights"].items():
        for key, expected in net.items():
            found = together["weights"][name][key]
            torch.testing.assert_close(
                found, expected, rtol=0, atol=1e-5, msg=lambda m, n=f"{name}.{key}": f"{n}: {m}"
            )


@pytest.mark.parametrize("case", ["pool", "bf16"])
def test_processes_agree_where_one_would_differ(results: dict, case: str) -> None:
    """Each has its own pool and rounding; that all processes agree was checked as they ran."""
    for processes in (2, 4):
        assert results[case, processes]["losses"] == pytest.approx(
            results[case, 1]["losses"], rel=0.2
        )


def test_stages_train_all_of_the_generator(results: dict) -> None:
    first, second = results["stages", 2], results["instance", 2]
    assert any(key.startswith("model1_1") for key in first["weights"]["G"])
    assert "E" in second["weights"] and "E" not in first["weights"]


def test_a_batch_that_does_not_divide_is_one_line(data: Path, tmp_path: Path) -> None:
    flags = f"--dataroot {data} --label_nc 6 --batchSize 3 --gpu_ids -1 --no_vgg_loss".split()
    done = start(2, "train.py", *flags, "--checkpoints_dir", tmp_path / "runs")
    (line,) = error_lines(done)
    assert "--batchSize 3" in line and "2 processes" in line
    assert "exitcode  : 2" in done.stderr  # torchrun's own account; its own status is 1
    assert done.returncode != 0 and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("launcher", "what"), [("torchrun", "error_of_one"), ("own", "error_of_all")]
)
def test_an_error_is_shown_once_and_ends_all(
    data: Path, tmp_path: Path, what: str, launcher: str
) -> None:
    if launcher == "torchrun":
        done = start(2, WORK, what, data, tmp_path)
        assert done.returncode != 0
    else:
        done = start(1, WORK, f"start:{what}", data, tmp_path)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1, done.stderr
    assert len(error_lines(done)) == 1 and "found a bad" in error_lines(done)[0], done.stderr


def test_the_launcher_gives_the_first_answer(data: Path, tmp_path: Path) -> None:
    """--gpu_ids 0,1 starts its processes by this function."""
    done = start(1, WORK, "start:answers", data, tmp_path)
    assert done.returncode == 42, done.stderr


@pytest.mark.slow  # the launcher takes half a minute to end
def test_a_signal_to_the_launcher_reaches_all(data: Path, tmp_path: Path) -> None:
    command = [sys.executable, WORK, "start:until_stopped", data, tmp_path]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launcher = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=env)
    ready = [tmp_path / "ready0", tmp_path / "ready1"]
    for _ in range(1200):
        if all(path.exists() for path in ready) or launcher.poll() is not None:
            break
        time.sleep(0.1)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(timeout=120) == 128 + signal.SIGTERM
    assert (tmp_path / "saved0").exists() and (tmp_path / "saved1").exists()


def test_several_gpus_are_started_one_process_each(monkeypatch: pytest.MonkeyPatch) -> None:
    from argparse import Namespace

    from util import distributed

    asked = []
    monkeypatch.setattr(distributed, "start", lambda *args: asked.append(args) or 7)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    opt = Namespace(gpu_ids=[0, 2, 3], local_rank=0)
    assert distributed.launch(print, opt) == 7
    assert asked == [(3, print, opt)]
