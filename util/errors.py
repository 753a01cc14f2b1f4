"""How a command ends when its input is wrong: one line on stderr and exit status 2."""

import errno
import sys
from collections.abc import Callable

# what a disk or its owner says: no mistake of the program
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


class UserError(Exception):
    """A wrong flag, file or value.

    The message says what is wrong, where, what was expected and what to do. Programming errors
    are not UserErrors: they keep their traceback.
    """


def run(main: Callable[[], object]) -> None:
    """Call a command's main function; a UserError ends in its message and exit status 2.

    So does a disk that is full or a file without rights, wherever it is met.
    An integer that main returns becomes the exit status.
    """
    try:
        status = main()
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        where = "a file" if error.filename is None else error.filename
        advice = "make room or give rights there"
        print(f"error: {one_line(where)}: {error.strerror}; {advice}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


def one_line(message: object) -> str:
    """The message without line breaks: a file's name may hold some."""
    return str(message).replace("\r", "\\r").replace("\n", "\\n")


def brief(names: list[str], most: int = 5) -> str:
    """Join names for a one-line message: all of a few, the first ones and a count of many."""
    shown = ", ".join(str(name) for name in names[:most])
    rest = len(names) - most
    return f"{shown} and {rest} more" if rest > 0 else shown


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, of the device or of the machine.

    PyTorch's CPU allocator raises a plain RuntimeError for it.
    """
    import torch  # here, because commands that need no networks start without it

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    messages = ("can't allocate memory", "DefaultCPUAllocator")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in messages)
