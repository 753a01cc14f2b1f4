"""Runs the project's commands in forks of a process that has PyTorch imported: importing is most of
what a command on toy data takes."""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["torch", "torchvision", "torch.nn.parallel", "scipy.ndimage", "matplotlib.figure", "dominate"]
)


def run_command(
    *args: object, timeout: float = 300, cwd: Path = ROOT
) -> subprocess.CompletedProcess:
    """Run python with these arguments ("train.py", "--name", ...) in the project's folder."""
    command = [str(arg) for arg in args]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("stdout", "stderr")]
        process = SERVER.Process(target=_run, args=(command, env, files, cwd))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, timeout)
        output = [file.read_text() for file in files]
        return subprocess.CompletedProcess(command, process.exitcode, *output)


def _run(command: list[str], env: dict[str, str], files: list[Path], cwd: Path) -> None:
    """What the interpreter does between its start and its end, in a fork."""
    redirect(*files)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    tempfile.tempdir = None  # found again, for this environment
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
    """Begin a process of the server: its output goes to files, its own processes are forked."""
    for number, file in ((1, stdout), (2, stderr)):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    multiprocessing.set_start_method(None, force=True)  # the default, not the server's
