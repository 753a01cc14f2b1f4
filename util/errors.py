"""How a command ends when its input is wrong: one line on stderr and exit status 2."""

import errno
import sys
from collections.abc import Callable

# what a disk or its owner says: no mistake of the program
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_NONDETERMINISTIC = " does not have a deterministic implementation"  # in torch's message


class UserError(Exception):
    """A wrong flag, file or value.

    The message says what is wrong, where, what was expected and what to do. Programming errors
    are not UserErrors: they keep their traceback.
    """


def run(main: Callable[[], object]) -> None:
    """Call a command's main function; a UserError ends in its message and exit status 2.

    So does a disk that is full or a file without rights, wherever it is met, and an operation that
    --deterministic rules out.
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
    except RuntimeError as error:
        operation, found, _ = str(error).partition(_NONDETERMINISTIC)
        if not found:
            raise
        advice = "leave --deterministic out, or run on a CPU (--gpu_ids -1)"
        print(f"error: --deterministic: {operation}{found}; {advice}", file=sys.stderr)
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
