"""What quickstart.sh calls, with a python that only records its arguments: training runs side by
side, and what becomes of the one in the background."""

import os
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
from commands import ROOT

PYTHON = """#!/usr/bin/env bash
case "$*" in
  *sys.prefix*) echo .; exit ;;
  *available_cores*) echo 6; exit ;;
esac
echo "threads=${OMP_NUM_THREADS:-all} $*" >> calls
case "$*" in
  *"train.py --name toy_labels"*) eval "$BACKGROUND" ;;
  *"train.py --name toy_features"*) eval "$FOREGROUND" ;;
  *"train.py --name toy_local"*) eval "$NEXT" ;;
esac
"""


@pytest.fixture
def start(tmp_path: Path):
    """Start the script in its own folder; keyword arguments: what the training runs do."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "requirements.txt").touch()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(PYTHON)
    (tmp_path / "bin" / "python").chmod(0o755)
    started = []

    def run(
        *arguments: str, background: str = "", foreground: str = "", next_stage: str = ""
    ) -> subprocess.Popen:
        env = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "VIRTUAL_ENV": "."}
        env |= {"BACKGROUND": background, "FOREGROUND": foreground, "NEXT": next_stage}
        env.pop("OMP_NUM_THREADS", None)
        command = ["bash", str(tmp_path / "scripts" / "quickstart.sh"), *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        reset = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # tests may run behind "&"
        process = subprocess.Popen(
            command, env=env, start_new_session=True, preexec_fn=reset, **pipes
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def training_runs(folder: Path) -> list[str]:
    """Threads and name of each training, in the order of their names."""
    calls = [line.split() for line in (folder / "calls").read_text().splitlines()]
    return sorted(f"{call[3]} {call[0]}" for call in calls if call[1] == "train.py")


def wait_for(path: Path) -> None:
    until = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < until, path
        time.sleep(0.02)


def test_training_runs_share_the_cores(start, tmp_path: Path) -> None:
    """Labels train in the background, then the next stage while pages of the first are made."""
    process = start(
        background="touch labels; until grep -q toy_local calls; do sleep 0.02; done; echo trained",
        foreground="until [ -e labels ]; do sleep 0.02; done",
        next_stage="echo epoch 1; until grep -q style_control calls; do sleep 0.02; done; sleep 1",
    )
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and "toy_local/test_latest/index.html" in output
    assert "epoch 1\n" in output
    expected = ["toy_features threads=3", "toy_labels threads=3", "toy_local threads=3"]
    assert training_runs(tmp_path) == expected
    assert (tmp_path / "checkpoints" / "toy_labels.log").read_text() == "trained\n"


def test_a_second_run_has_nothing_to_wait_for(start, tmp_path: Path) -> None:
    process = start()  # all training runs end at once
    assert "toy_local/test_latest/index.html" in process.communicate(timeout=60)[0]
    assert process.returncode == 0 and len(training_runs(tmp_path)) == 3


def test_labels_only(start, tmp_path: Path) -> None:
    process = start("--labels-only")
    assert "toy_labels/test_latest/index.html" in process.communicate(timeout=60)[0]
    assert process.returncode == 0 and training_runs(tmp_path) == ["toy_labels threads=6"]


@pytest.mark.parametrize("early", [True, False])
def test_an_error_in_the_background_is_shown(start, tmp_path: Path, early: bool) -> None:
    """Before the next step, or where the script waits for the background."""
    until = "failed" if early else "calls"
    process = start(
        background=f"{'' if early else 'sleep 3;'} echo 'a disk is full'; touch failed; exit 2",
        foreground=f"until [ -e {until} ]; do sleep 0.02; done; sleep 1",
    )
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 2 and output.endswith("a disk is full\n")
    calls = (tmp_path / "calls").read_text()
    assert "test.py --name toy_labels" not in calls
    assert early == ("precompute_feature_maps.py" not in calls)


@pytest.mark.parametrize("seconds", [0, 2])
def test_an_error_in_the_next_stage_is_shown(start, tmp_path: Path, seconds: int) -> None:
    """Before the next step, or where the script waits for it."""
    process = start(
        background="until [ -e failed ] || grep -q style_control calls; do sleep 0.02; done",
        next_stage=f"sleep {seconds}; echo 'no memory is left'; touch failed; exit 2",
    )
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 2 and output.endswith("no memory is left\n")
    assert "test.py --name toy_local" not in (tmp_path / "calls").read_text()


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_stopped_while_the_next_stage_trains_in_the_background(start, tmp_path, how) -> None:
    loop = "while :; do sleep 0.05; done"
    process = start(next_stage=f"trap 'touch saved; exit 143' TERM; touch runs; {loop}")
    wait_for(tmp_path / "runs")
    time.sleep(0.5)
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode in (130, 143, -signal.SIGINT, -signal.SIGTERM)
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM", "an error"])
def test_the_background_ends_with_the_script(start, tmp_path: Path, how: str) -> None:
    """It gets the time to save, and the script waits for that. SIGTERM reaches only the script,
    which passes it on to the foreground too."""
    loop = "while :; do sleep 0.05; done"
    saves = f"trap 'sleep 0.3; touch saved; exit 143' TERM; touch runs; {loop}"
    until = "trap 'exit 130' INT; trap 'touch ended; exit 143' TERM"
    until += "; until [ -e runs ]; do sleep 0.02; done; touch both"
    end = "exit 2" if how == "an error" else loop
    process = start(background=saves, foreground=f"{until}; {end}")
    wait_for(tmp_path / "both")
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    if how == "SIGTERM":
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == {"Ctrl-C": 130, "SIGTERM": -15, "an error": 2}[how]
    if how == "SIGTERM" and shutil.which("pkill"):
        wait_for(tmp_path / "ended")
    assert (tmp_path / "saved").exists()
