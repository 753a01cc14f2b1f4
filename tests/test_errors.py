"""How commands end: wrong input and full disks in one line, bugs with a traceback."""

import errno
import os
import subprocess
import sys
import tempfile
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ROOT

from util.errors import UserError, out_of_memory, run
from util.files import make_folder, replacing, write_bytes
from util.run.checkpoints import load_file


def end(error: BaseException, capsys: pytest.CaptureFixture) -> tuple[int, str]:
    """Exit status and stderr of a command that raises an error."""

    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ending:
        run(main)
    return ending.value.code, capsys.readouterr().err


def test_wrong_input_ends_in_one_line(capsys: pytest.CaptureFixture) -> None:
    assert end(UserError("a\nb: wrong"), capsys) == (2, "error: a\\nb: wrong\n")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
        BrokenProcessPool("A process in the process pool was terminated abruptly"),
    ],
)
def test_a_killed_reading_process_ends_in_one_line(
    error: RuntimeError, capsys: pytest.CaptureFixture
) -> None:
    status, line = end(error, capsys)
    assert status == 2 and "--nThreads" in line and line.count("\n") == 1


def test_a_lack_of_shared_memory_ends_in_one_line(capsys: pytest.CaptureFixture) -> None:
    """In torch's words, which it raises again in the main process with the worker's traceback."""
    text = "unable to allocate shared memory(shm) for file </torch_7>: No space left on device (28)"
    caught = "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent"
    status, line = end(RuntimeError(f"{caught} call last):\nRuntimeError: {text}\n"), capsys)
    assert status == 2 and line.count("\n") == 1
    assert "--shm-size" in line and "--nThreads" in line


@pytest.mark.thorough
@pytest.mark.parametrize("end_of_stdout", ["| head -1", "> /dev/full"])
def test_output_that_nobody_can_read_stops_nothing(end_of_stdout: str) -> None:
    code = "from util.progress import log; [log('x' * 999) for _ in range(999)]"
    code += "; import sys; print('done', file=sys.stderr)"
    command = f'{sys.executable} -c "{code}" {end_of_stdout}'
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.splitlines()[0] == "done" and "Traceback" not in done.stderr


def test_no_temporary_folder_ends_in_one_line(monkeypatch, capsys) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
    with pytest.raises(FileNotFoundError) as caught:
        tempfile.gettempdir()
    status, line = end(caught.value, capsys)
    assert status == 2 and "TMPDIR" in line and line.count("\n") == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_disk_errors_end_in_one_line(number: int, capsys: pytest.CaptureFixture) -> None:
    status, line = end(OSError(number, os.strerror(number), "/there/file"), capsys)
    assert status == 2
    assert line.startswith(f"error: /there/file: {os.strerror(number)}; ")
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    ("allocate", "amount"),
    [
        (lambda: torch.empty(10**15), "4000000000000000 bytes"),
        (lambda: np.empty(10**15), "7.11 PiB"),
        (lambda: bytearray(2**62), None),
    ],
    ids=["torch", "numpy", "python"],
)
def test_out_of_memory_ends_in_one_line(allocate, amount, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ending:
        run(allocate)
    line = capsys.readouterr().err
    assert ending.value.code == 2 and line.count("\n") == 1
    assert line.startswith("error: out of memory") and "--batchSize" in line
    assert amount is None or f"(tried to allocate {amount})" in line


def test_a_full_gpu_ends_in_one_line(capsys: pytest.CaptureFixture) -> None:
    """In torch's words; the exception is a subclass of RuntimeError."""
    full = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB"
    status, line = end(torch.OutOfMemoryError(full), capsys)
    assert status == 2 and "out of memory (tried to allocate 2.00 GiB)" in line
    cudnn = "FIND was unable to find an engine to execute this computation"
    status, line = end(RuntimeError(cudnn), capsys)
    assert status == 2 and line.startswith("error: out of memory, or cuDNN") and cudnn in line
    assert out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))
    cudnn = "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"
    assert out_of_memory(RuntimeError(cudnn))
    assert not out_of_memory(RuntimeError("shapes cannot be multiplied"))


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: no kernel image is available for execution on the device",
        "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
        "The NVIDIA driver on your system is too old (found version 11040). Please update it.",
    ],
)
def test_a_gpu_that_pytorch_cannot_use_ends_in_one_line(text: str, capsys) -> None:
    """In torch's words, which continue on more lines."""
    status, line = end(RuntimeError(f"{text}\nFor debugging consider CUDA_LAUNCH_BLOCKING"), capsys)
    assert status == 2 and line.startswith(f"error: the GPU cannot be used ({text})")
    assert "--gpu_ids -1" in line and "--device cpu" in line and line.count("\n") == 1


@pytest.mark.parametrize(
    "text",
    [
        "InvalidCxxCompiler: No working C++ compiler found in cpp.cxx: (None, 'g++')",
        "RuntimeError: Failed to find C compiler. Please specify via CC environment variable.",
        "TritonMissing: Cannot find a working triton installation. Either the package is not ...",
        "GPUTooOldForTriton: Found GTX 1080 which is too old to be supported by the triton GPU ...",
        "/tmp/a.main.cpp:3689:10: fatal error: Python.h: No such file or directory",
    ],
)
def test_a_missing_compiler_ends_in_one_line(text: str, capsys) -> None:
    """In the words of PyTorch 2.6, after a line that names the backend."""
    status, line = end(RuntimeError(f"backend='inductor' raised:\n{text}\n\nSet TORCH"), capsys)
    assert status == 2 and line.startswith(f"error: --compile: {text}; ") and line.count("\n") == 1


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
def test_a_compiler_cache_that_cannot_be_written_ends_in_one_line(number: int, capsys) -> None:
    """PyTorch wraps the error in one of its own."""
    from torch._inductor import exc  # takes seconds

    if not hasattr(exc, "InductorError"):
        pytest.skip("needs PyTorch 2.7")
    cause = OSError(number, os.strerror(number), "/tmp/torchinductor_me/hq")
    status, line = end(exc.InductorError(cause, None), capsys)
    assert status == 2 and line.startswith(f"error: /tmp/torchinductor_me/hq: {cause.strerror}; ")


def test_bugs_keep_their_traceback() -> None:
    with pytest.raises(FileNotFoundError):
        run(lambda: Path("/nothing/here").read_text())


def test_a_folder_that_cannot_be_made_is_named_with_its_flag(tmp_path: Path) -> None:
    assert make_folder(tmp_path / "a" / "b", "--out").is_dir()
    assert not any((tmp_path / "a" / "b").iterdir())
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=f"{folder}: cannot be written to .*--out"):
            make_folder(folder, "--out")


def test_a_folder_that_is_deleted_during_a_command_is_named(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as ending:
        run(lambda: write_bytes(tmp_path / "results" / "a.png", b""))
    line = capsys.readouterr().err
    assert ending.value.code == 2 and line.count("\n") == 1
    assert line.startswith(f"error: {tmp_path}/results/a.png: its folder was moved or deleted")


def test_a_file_where_a_folder_is_expected(tmp_path: Path) -> None:
    """--load_pretrain with a file of weights in place of its folder."""
    weights = tmp_path / "latest_net_G.pth"
    weights.touch()
    with pytest.raises(UserError, match=r"latest_net_G\.pth: no such run folder"):
        load_file(weights / "latest_net_G.pth")


@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.ELOOP])
def test_an_impossible_path_ends_in_one_line(number: int, capsys: pytest.CaptureFixture) -> None:
    status, line = end(OSError(number, os.strerror(number), "some/path"), capsys)
    assert status == 2 and line.startswith("error: some/path: ") and line.count("\n") == 1


def test_a_link_to_itself_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(SystemExit) as ending:
        run(lambda: make_folder((tmp_path / "link").resolve(), "--out"))
    line = capsys.readouterr().err
    assert ending.value.code == 2 and line.startswith("error: ") and line.count("\n") == 1
    assert str(tmp_path / "link") in line


def test_write_errors_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for error, part in ((OSError(errno.ENOSPC, "full"), "a.png"), (OSError("no format"), "no for")):
        with pytest.raises(OSError, match=part), replacing(tmp_path / "a.png"):
            raise error
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as found:
        write_bytes(tmp_path / "folder", b"1")
    assert found.value.filename == str(tmp_path / "folder")  # not the temporary name
    (tmp_path / "folder").rmdir()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"b'$"):
        write_bytes(tmp_path / "b", b"1")
    assert not list(tmp_path.iterdir())


def test_a_read_only_disk_is_reported_with_the_files_own_name(tmp_path: Path, monkeypatch) -> None:
    """There, deleting a file fails even if it does not exist."""

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OSError, match="Read-only") as error, replacing(tmp_path / "a.onnx") as new:
        refuse(new)
    assert error.value.filename == str(tmp_path / "a.onnx")


def test_two_processes_may_write_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """evaluate.py twice, say: neither fails, and the file is that of the last one."""
    path, fsync = tmp_path / ("x" * 255), os.fsync  # no name can be longer

    def meanwhile(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        write_bytes(path, b"another's")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", meanwhile)
    write_bytes(path, b"own")
    assert path.read_bytes() == b"own" and list(tmp_path.iterdir()) == [path]
