"""How a command ends when its input is wrong: one line on stderr and exit status 2."""

import errno
import importlib
import re
import sys
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from types import ModuleType

# a full disk, missing permissions: not a bug
_DISK_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM,
)  # fmt: skip
_PATH_ERRORS = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EEXIST)
# in torch's messages when memory runs out: on a GPU, in cuBLAS, on Linux, on Windows
_MEMORY_ERRORS = (
    "out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED", "can't allocate memory",
    "not enough memory",
)  # fmt: skip
# in torch's messages when a convolution lacks memory for all of cuDNN's algorithms or, rarely, when
# cuDNN has none for it
_NO_ALGORITHM = ("find an engine to execute", "find a valid cuDNN algorithm")

# phrases in the messages of RuntimeErrors -> what the user can do; {}: the line with the phrase
_REMEDIES = {
    # within a DataLoader worker's traceback; containers have 64 MB by default
    ("unable to allocate shared memory",): (
        "the processes that read images lack shared memory (/dev/shm); allow more (docker run "
        "--shm-size 2g), or read with fewer or by threads (--nThreads 1 or 0)"
    ),
    # Gloo's and NCCL's, when another process of the training is gone
    ("Connection reset by peer", "Connection closed by peer", "remote process exited"): (
        "another process is gone: it was killed, usually for lack of memory, or its machine "
        "failed; fix that and start again (resume training with --continue_train)"
    ),
    # a GPU that torch is not built for, that another program occupies, or whose driver is old
    (
        "no kernel image is available", "busy or unavailable", "driver on your system is too old",
    ): (
        "the GPU cannot be used ({}); install a PyTorch and a driver that support it, close the "
        "program that occupies it, or compute on the CPU (--gpu_ids -1; most benchmarks: --device "
        "cpu)"
    ),
    # torch.compile has no compiler, or none for this GPU, or the C++ compiler lacks Python's
    # headers, space or memory
    (
        "No working C++ compiler", "fatal error: ", "Failed to find C compiler",
        "Cannot find a working triton installation", "too old to be supported by the triton",
    ): "--compile: {}; install what it needs, or leave --compile out",
}  # fmt: skip

_NONDETERMINISTIC = " does not have a deterministic implementation"  # in torch's message


class UserError(Exception):
    """A wrong flag, file or value.

    The message says what is wrong, where, what was expected and what to do. Programming errors
    are not UserErrors: they keep their traceback.
    """


def optional_package(name: str, needs_it: str, install: str) -> ModuleType:
    """Import a package that not every command needs. Raises UserError, with pip's argument."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise UserError(
            f"{needs_it} the package {package}; pip install {install} ({error})"
        ) from error


def run(main: Callable[[], object]) -> None:
    """Call a command's main function; an integer that it returns becomes the exit status.

    Errors that a user can fix (see print_error) end in one line and exit status 2.
    """
    try:
        status = main()
    except BaseException as error:
        status = print_error(error)
        if status is None:
            raise
    sys.exit(status if isinstance(status, int) else 0)


def print_error(error: BaseException) -> int | None:
    """Print an error that the user can fix as one line, and return the exit status.

    Prints nothing and returns None for all others.
    """
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr, flush=True)
        return 130
    message = str(error) if isinstance(error, UserError) else _explained(error)
    if message is None:
        return None
    print(f"error: {one_line(message)}", file=sys.stderr, flush=True)
    return 2


def _explained(error: BaseException) -> str | None:
    """What the user can do about a full disk, missing permissions, a lack of memory, other
    processes that were killed or lack shared memory, operations that --deterministic rules out, a
    GPU that PyTorch cannot use, or a missing compiler; None for other errors."""
    inner = getattr(error, "inner_exception", None)
    if isinstance(inner, OSError):  # of torch.compile's cache
        error = inner
    if out_of_memory(error):
        size = re.search(r"allocate ([\d.]+ \w+)", str(error))
        tried = f" (tried to allocate {size[1]})" if size else ""
        if _line_with(_NO_ALGORITHM, error):
            tried = f", or cuDNN does not work here ({first_line(error)})"
        return (
            f"out of memory{tried}; use smaller images or batches (--loadSize, --fineSize, "
            "--batchSize; evaluate.py: --segmenter_width), --amp bf16 or, in training, "
            "--checkpoint_activations, or close other programs that use memory"
        )
    if isinstance(error, BrokenProcessPool) or str(error).startswith("DataLoader worker"):
        return (
            "a process that reads images was killed by the system, usually for lack of memory; use "
            "fewer (--nThreads or --workers, 0: none), --cache disk, or close other programs that "
            "use memory"
        )
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        where = "a file" if error.filename is None else error.filename
        return f"{where}: {error.strerror}; free space or fix the permissions there"
    if isinstance(error, OSError) and error.errno in _PATH_ERRORS:
        return f"{error.filename}: {error.strerror}; check the path that was given"
    if isinstance(error, FileNotFoundError) and "No usable temporary directory" in str(error):
        return f"{error.strerror}; name a folder that can be written to in TMPDIR"  # tempfile's
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):
        return f"{error}; check the path that was given"  # Path.resolve's before Python 3.13
    if isinstance(error, RuntimeError) and _NONDETERMINISTIC in str(error):
        operation = str(error).partition(_NONDETERMINISTIC)[0]
        return (
            f"--deterministic: {operation}{_NONDETERMINISTIC}; leave --deterministic out, or run "
            "on a CPU (--gpu_ids -1)"
        )
    for phrases, remedy in _REMEDIES.items():
        if line := _line_with(phrases, error):
            return remedy.format(line)
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, the GPU's or the machine's."""
    line = _line_with(_MEMORY_ERRORS + _NO_ALGORITHM, error)  # torch.OutOfMemoryError, too
    return bool(line) or isinstance(error, MemoryError)


def _line_with(phrases: tuple[str, ...], error: BaseException) -> str:
    """The line of one of PyTorch's errors that contains any of the phrases, or ""."""
    lines = str(error).splitlines() if isinstance(error, RuntimeError) else []
    return next((line.strip() for line in lines if any(some in line for some in phrases)), "")


def one_line(message: object) -> str:
    """The message without line breaks, which a file's name may contain."""
    return str(message).replace("\r", "\\r").replace("\n", "\\n")


def first_line(error: BaseException) -> str:
    """The first line of an error's text or, if it has none, the error's type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def brief(names: list[str], limit: int = 5) -> str:
    """Join names for a one-line message: all if they are few, else the first and a count."""
    shown = ", ".join(map(str, names[:limit]))
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown
