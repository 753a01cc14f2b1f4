"""Runs the project's commands in forks of a process that has PyTorch imported: importing is most of
what a command on toy data takes."""

import atexit
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        *("torch", "torchvision", "torch.nn.parallel", "scipy.ndimage", "matplotlib.figure"),
        *("dominate", "sklearn.cluster", "torchmetrics", "train", "test", "evaluate", "trainer"),
    ]
)


def start_fork(target: Callable, *args: object) -> multiprocessing.Process:
    """Call target in a fork of the server."""
    own = [str(ROOT), str(ROOT / "tests")]  # Python 3.11's server does not get sys.path
    path = os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH")])])
    with patch.dict(os.environ, PYTHONPATH=path):
        forkserver.ensure_running()
    process = SERVER.Process(target=target, args=args)
    process.start()
    return process


def run_command(
    *args: object, timeout: float = 300, cwd: Path = ROOT
) -> subprocess.CompletedProcess:
    """Run python with these arguments ("train.py", "--name", ...) in the project's folder."""
    (done,) = run_all(args, [{}], timeout, cwd)
    return done


def run_ok(*args: object, **settings: object) -> str:
    """The same; it must not fail. Returns what it has printed."""
    done = run_command(*args, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_together(processes: int, *args: object) -> None:
    """run_ok in several processes, as torchrun would."""
    for done in run_ranks(processes, *args):
        assert done.returncode == 0, done.stderr


def run_ranks(processes: int, *args: object) -> list[subprocess.CompletedProcess]:
    """run_command in several processes; waits for all, as a job script would."""
    return run_all(args, ranks(processes), timeout=300, cwd=ROOT)


def ranks(processes: int) -> list[dict[str, str]]:
    """The environment variables that torchrun gives to each process of one machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [common | {"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(processes)]


def run_all(
    args: tuple, variables: list[dict[str, str]], timeout: float, cwd: Path
) -> list[subprocess.CompletedProcess]:
    """Run a command once for each set of additional environment variables, all at once."""
    command = [str(arg) for arg in args]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for number, own in enumerate(variables):
            files = [Path(folder) / f"{name}{number}" for name in ("stdout", "stderr")]
            started.append((start_fork(_run, command, env | own, files, cwd), files))
        try:
            return [_ended(process, files, command, timeout) for process, files in started]
        finally:
            for process, _ in started:
                process.kill()
                process.join()


def _ended(
    process: multiprocessing.Process, files: list[Path], command: list[str], timeout: float
) -> subprocess.CompletedProcess:
    process.join(timeout)
    if process.exitcode is None:
        raise subprocess.TimeoutExpired(command, timeout)
    output = [file.read_text() for file in files]
    return subprocess.CompletedProcess(command, process.exitcode, *output)


def _run(command: list[str], env: dict[str, str], files: list[Path], cwd: Path) -> None:
    """Run the command in a fork, as the interpreter does between its start and its end."""
    redirect(*files)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    tempfile.tempdir = None  # looked up again, in this environment
    is_module = command[0] == "-m"
    script, sys.argv = command[is_module], command[is_module:]
    own = {"", str(ROOT), str(ROOT / "tests")}
    sys.path[:] = [p for p in sys.path if p not in own]
    sys.path.insert(0, str(ROOT if is_module else (ROOT / script).parent))
    try:
        if is_module:
            runpy.run_module(script, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(script, run_name="__main__")
    finally:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()


def redirect(stdout: Path, stderr: Path) -> None:
    """Set up a process of the server: its output goes to files, its own processes are forked."""
    for number, file in ((1, stdout), (2, stderr)):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    multiprocessing.set_start_method(None, force=True)  # the default, not the server's
