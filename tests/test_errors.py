"""How commands end: wrong input and full disks in one line, mistakes of the program in a trace."""

import errno
import os
from pathlib import Path

import pytest

from util.errors import UserError, run
from util.files import make_folder


def end(error: BaseException, capsys: pytest.CaptureFixture) -> tuple[int, str]:
    """Exit status and stderr of a command that raises an error."""

    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ending:
        run(main)
    return ending.value.code, capsys.readouterr().err


def test_a_wrong_input_is_one_line(capsys: pytest.CaptureFixture) -> None:
    assert end(UserError("a\nb: wrong"), capsys) == (2, "error: a\\nb: wrong\n")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_disk_is_no_mistake_of_the_program(number: int, capsys: pytest.CaptureFixture) -> None:
    status, line = end(OSError(number, os.strerror(number), "/there/file"), capsys)
    assert status == 2
    assert line.startswith(f"error: /there/file: {os.strerror(number)}; ")
    assert line.count("\n") == 1


def test_mistakes_keep_their_traceback() -> None:
    with pytest.raises(FileNotFoundError):
        run(lambda: Path("/nothing/here").read_text())


def test_a_folder_that_cannot_be_is_named_with_its_flag(tmp_path: Path) -> None:
    assert make_folder(tmp_path / "a" / "b", "--out").is_dir()
    assert not any((tmp_path / "a" / "b").iterdir())
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=f"{folder}: cannot be written to .*--out"):
            make_folder(folder, "--out")
