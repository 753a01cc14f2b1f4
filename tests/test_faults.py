"""Kills and full disks: what is on disk stays whole, and training continues from it."""

import contextlib
import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from trainer import Training, assert_same, outcome, train

from util.files import link_or_copy, write_bytes
from util.run import checkpoints
from util.run.checkpoints import load_file, recover, save_set
from util.run.visualizer import _append, read_rows

# every step is logged, shown and saved: most of the time is spent on saving
FLAGS = ["--print_freq", 1, "--display_freq", 1, "--save_latest_freq", 1, "--save_epoch_freq", 1]
FLAGS += ["--niter", 1, "--niter_decay", 2, "--pool_size", 2, "--use_dropout"]

# Kills at every file operation of a save ---------------------------------------------------------

OPERATIONS = ("replace", "link", "fsync", "unlink", "open")
NAMES = ("a.pth", "b.pth", "c.txt")
COPIES = {"7_a.pth": "a.pth"}


def save_generation(folder: Path, number: int) -> None:
    tensors = {name: {"x": torch.full((100,), float(number))} for name in NAMES[:2]}
    save_set(folder, {**tensors, "c.txt": str(number)}, COPIES if number > 1 else None)


def generation(folder: Path) -> set[int]:
    """The numbers found in the files, as seen by a reader who changes nothing."""
    found = {int(load_file(folder / name)["x"][0]) for name in NAMES[:2]}
    assert all(load_file(folder / name)["x"].unique().numel() == 1 for name in NAMES[:2])
    return found


def save_until_killed(folder: str, number: int, operation: int) -> None:
    """Save, but die by SIGKILL before the n-th file operation; a write just before is truncated."""
    left = operation

    def dying(original):
        def call(*args, **more):
            nonlocal left
            if left == 0:
                if original is fsync:  # the file's content has not all arrived
                    with contextlib.suppress(OSError):
                        os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return original(*args, **more)

        return call

    fsync = os.fsync
    for name in OPERATIONS:
        setattr(os, name, dying(getattr(os, name)))
    save_generation(Path(folder), number)


def in_child(work, *args: object) -> int:
    process = multiprocessing.get_context("fork").Process(target=work, args=args)
    process.start()
    process.join(60)
    return process.exitcode


def test_a_kill_before_any_file_operation_leaves_one_whole_set(tmp_path):
    outcomes = []
    for operation in range(100):
        folder = tmp_path / str(operation)
        folder.mkdir()
        save_generation(folder, 1)
        status = in_child(save_until_killed, str(folder), 2, operation)
        seen = generation(folder)
        recover(folder)
        assert generation(folder) == seen and len(seen) == 1, (operation, seen)
        assert {int((folder / "c.txt").read_text())} == seen
        assert (folder / "7_a.pth").exists() == (seen == {2})
        outcomes.append(seen.pop())
        save_generation(folder, 3)  # leftovers are not in the way
        assert generation(folder) == {3}
        expected = {*NAMES, *COPIES}
        assert {p.name for p in folder.iterdir() if p.suffix not in (".part", ".tmp")} == expected
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert status == 0 and operation > 10
    assert outcomes == sorted(outcomes) and set(outcomes) == {1, 2}  # old, and from then on new


def test_a_damaged_marker_renames_nothing_outside_the_folder(tmp_path) -> None:
    folder = tmp_path / "run"
    (folder / "below").mkdir(parents=True)
    precious, own = tmp_path / "precious", folder / "x.new"
    names = [*("../precious", str(precious), "below/../../precious"), *("..", ".", "")]
    for text in [f"{name}\tx" for name in names] + [f"x.new\t{name}" for name in names]:
        precious.write_text("precious")
        own.write_text("new")
        (folder / "save_complete.txt").write_text(text)
        recover(folder)
        assert (precious.read_text(), own.read_text()) == ("precious", "new")
        assert not (folder / "save_complete.txt").exists() and not (folder / "x").exists()


def test_a_save_may_end_while_a_reader_opens_its_file(tmp_path, monkeypatch):
    """The temporary name that the reader found is gone by the time it opens the file."""
    save_generation(tmp_path, 1)
    newest = checkpoints.newest

    def then_renamed(path: Path) -> Path:
        found = newest(path)
        recover(tmp_path)
        return found

    monkeypatch.setattr(checkpoints, "recover", lambda folder: None)  # the save stops before it
    save_generation(tmp_path, 2)
    monkeypatch.setattr(checkpoints, "is_saved", lambda path: True)
    monkeypatch.setattr(checkpoints, "newest", then_renamed)
    assert int(load_file(tmp_path / "a.pth")["x"][0]) == 2
    assert not (tmp_path / "a.pth.new").exists()


def test_readers_see_a_finished_save_and_change_nothing(tmp_path):
    """test.py may read while training writes, and where it has no write permission."""
    save_generation(tmp_path, 1)
    for operation in range(100):
        in_child(save_until_killed, str(tmp_path), 2, operation)
        if (tmp_path / "save_complete.txt").exists():
            break
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert generation(tmp_path) == {2} and "a.pth.new" in before
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_save_set_raises_and_keeps_the_old_set(tmp_path, monkeypatch):
    """An error at any file operation before the marker."""
    save_generation(tmp_path, 1)
    for operation in range(7):
        calls = [operation]

        def failing(descriptor, calls=calls):
            calls[0] -= 1
            if calls[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(checkpoints.os, "fsync", failing)
        try:
            save_generation(tmp_path, 2)
            raised = False
        except OSError:
            raised = True
        monkeypatch.undo()
        recover(tmp_path)
        found = generation(tmp_path)
        assert found == ({1} if operation < 5 else {2}), operation
        assert raised == (operation < 7)
        if operation < 5:  # three files, their names, the marker
            assert not list(tmp_path.glob("*.new"))


def test_link_or_copy_where_links_are_not_possible(tmp_path, monkeypatch):
    write_bytes(tmp_path / "a", b"1")

    def refuse(*args):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    link_or_copy(tmp_path / "a", tmp_path / "b")
    write_bytes(tmp_path / "a", b"2")
    assert (tmp_path / "b").read_bytes() == b"1"


# Kills of training at random moments --------------------------------------------------------------


PLACES = ("before the first save", "between saves", "while writing", "while renaming")


def kill_at_random(folder: Path, data: Path, step: float, seed: int, kills: int) -> dict[str, int]:
    """Train with this many kills on the way, then to the end; returns where the kills hit.

    Of every four kills, one comes at a random moment in the first six steps, two within a few
    milliseconds of the start of one of the first saves, and one within two steps of it.
    """
    rng = random.Random(seed)
    hits = dict.fromkeys(PLACES, 0)
    flags = ["--dataroot", data, *FLAGS, "--continue_train"]
    while sum(hits.values()) < kills:
        leftovers = unfinished(folder)
        training = Training(folder, *flags)
        training.wait_for(" scenes, ")
        turn = sum(hits.values()) % 4
        if turn == 0:
            pass_time(rng.uniform(0, 6 * step))
        else:
            for _ in range(rng.randint(1, 3)):
                wait_for_save(folder, training)
            pass_time(rng.uniform(0, 2 * step if turn == 2 else 0.01))
        training.process.kill()
        if training.end() == 0:
            break  # it ended before the kill
        hits[where(folder, leftovers)] += 1
        consistent(folder)
    train(folder, *flags)
    return hits


def wait_for_save(folder: Path, training: Training) -> None:
    """Wait until the next save begins."""
    leftovers = unfinished(folder)
    while unfinished(folder) <= leftovers and training.process.is_alive():
        pass


def pass_time(seconds: float) -> None:
    """time.sleep, but exact."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def unfinished(folder: Path) -> set[tuple[str, int]]:
    """The files of a save in progress: name and time."""
    found = set()
    for path in folder.glob("*.new"):
        with contextlib.suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_mtime_ns))
    return found


def where(folder: Path, leftovers: set[tuple[str, int]]) -> str:
    """What a kill interrupted, from the files that it left in addition to earlier kills'."""
    if (folder / "save_complete.txt").exists():
        return "while renaming"
    if unfinished(folder) - leftovers:
        return "while writing"
    return "between saves" if (folder / "latest_state.pth").exists() else "before the first save"


def consistent(folder: Path) -> None:
    """All files of the newest save can be read and are those of one save."""
    if (folder / "latest_state.pth").exists() or (folder / "save_complete.txt").exists():
        step = load_file(folder / "latest_state.pth")["position"]["step"]
        assert step > 0
        for net in "GD":
            load_file(folder / f"latest_net_{net}.pth")


@pytest.fixture(scope="module")
def whole(toy_data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "whole"
    train(folder, "--dataroot", toy_data, *FLAGS)
    return folder


def many_kills(total: int, whole: Path, data: Path, tmp_path: Path, each: int) -> dict[str, int]:
    rows = read_rows(whole / "metrics.jsonl")
    step = sum(row["time"] for row in rows) / len(rows)
    hits = dict.fromkeys(PLACES, 0)
    run = 0
    while sum(hits.values()) < total:
        folder = tmp_path / f"run{run}"
        for place, count in kill_at_random(folder, data, step, seed=run, kills=each).items():
            hits[place] += count
        assert_same(whole, folder)
        shutil.rmtree(folder)
        run += 1
    print(f"{sum(hits.values())} kills in {run} runs: {json.dumps(hits)}")
    return hits


@pytest.mark.thorough
def test_twelve_kills_change_nothing(whole, toy_data, tmp_path):
    hits = many_kills(12, whole, toy_data, tmp_path, each=12)
    assert hits["while writing"] + hits["while renaming"] >= 2


@pytest.mark.slow
def test_two_hundred_kills_change_nothing(whole, toy_data, tmp_path):
    hits = many_kills(200, whole, toy_data, tmp_path, each=10)
    assert min(hits["while writing"], hits["between saves"]) >= 20


# Full disks ---------------------------------------------------------------------------------------


class AfterFirstSave:
    """Run an action in a training process right after its first save."""

    def __init__(self, action: Callable[..., None], *args: object) -> None:
        self.action, self.args = action, args

    def __call__(self) -> None:
        import util.run.training_run as module

        original = module.save

        def save(*args, **more):
            module.save = original
            done = original(*args, **more)
            self.action(*self.args)
            return done

        module.save = save


def limit_files(size: int) -> None:
    """No file may grow beyond a size: saves fail, the logs do not."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.npy", "a.tif"])
def test_a_full_disk_leaves_no_half_image_or_array(name: str, tmp_path: Path) -> None:
    """Not all libraries notice that only a part was written."""
    pytest.importorskip("tifffile")
    program = (
        "import resource, sys; from pathlib import Path; import numpy as np\n"
        "from data.arrays import write_array; from util.pages.colours import save_image\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))\n"
        "path = Path(sys.argv[1])\n"
        "image = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)\n"
        "write = save_image if path.suffix in ('.jpg', '.png') else write_array\n"
        "try: write(image, path)\n"
        "except OSError as error: print(error.strerror)"
    )
    command = [sys.executable, "-c", program, tmp_path / name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "File too large\n", done.stderr
    assert list(tmp_path.iterdir()) == []


def fill(filler: Path) -> None:
    """Leave no byte of a disk free."""
    with filler.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size) == size:
                    pass


def test_a_failed_save_is_one_line_and_training_continues(whole, toy_data, tmp_path):
    flags = ["--dataroot", toy_data, *FLAGS, "--no_html"]
    training = Training(tmp_path / "run", *flags, prepare=AfterFirstSave(limit_files, 20_000))
    assert training.end() == 2
    lines = training.output().splitlines()
    warnings = [line for line in lines if line.startswith("warning: saving after")]
    assert len(warnings) == 11 and "File too large" in warnings[0] and "is kept" in warnings[0]
    assert lines[-1].startswith("error: ") and "--continue_train" in lines[-1]
    assert "Traceback" not in training.output()
    assert load_file(tmp_path / "run" / "latest_state.pth")["position"]["step"] == 1
    assert not list((tmp_path / "run").glob("*.new"))
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 12  # training went on
    train(tmp_path / "run", *flags, "--continue_train")
    same = outcome(whole)
    found = outcome(tmp_path / "run")
    assert all(found[name] == same[name] for name in found)


def append_without_room(path: Path) -> None:
    limit_files(path.stat().st_size + 5)
    try:
        _append(path, '{"step": 2, "loss": 0.5}')
    except OSError:
        os._exit(7)


def test_a_log_never_keeps_half_a_line(tmp_path):
    """A line that does not fit leaves the file as it was, so that the next one stays readable."""
    path = tmp_path / "metrics.jsonl"
    _append(path, '{"epoch": 1, "step": 1}')
    assert in_child(append_without_room, path) == 7
    _append(path, '{"epoch": 1, "step": 3}')
    assert [row["step"] for row in read_rows(path)] == [1, 3]


def test_stopping_on_a_full_disk_says_where_training_continues(toy_data, tmp_path):
    flags = ["--dataroot", toy_data, *FLAGS, "--niter", 500]
    training = Training(tmp_path / "run", *flags, prepare=AfterFirstSave(limit_files, 20_000))
    training.wait_for("warning: saving after")
    os.kill(training.process.pid, signal.SIGTERM)
    assert training.end() == 143
    assert "resumes from the last checkpoint" in training.output().splitlines()[-1]
    assert load_file(tmp_path / "run" / "latest_state.pth")["position"]["step"] == 1


@pytest.fixture
def small_disk(tmp_path):
    """A separate file system of 6 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.thorough
def test_a_full_disk(whole, toy_data, small_disk):
    """Images, logs and saves all fail; existing files stay, and with room training continues."""
    flags = ["--dataroot", toy_data, *FLAGS]
    folder, filler, out = small_disk / "run", small_disk / "filler", whole.parent / "out"
    training = Training(folder, *flags, prepare=AfterFirstSave(fill, filler), out=out)
    assert training.end() == 2
    output = training.output()
    assert "warning: saving after 2 images failed" in output
    assert "warning: the images could not be written" in output
    assert "No space left on device" in output and "Traceback" not in output
    assert output.splitlines()[-1].startswith("error: ")
    assert load_file(folder / "latest_state.pth")["position"]["step"] == 1

    training = Training(folder, *flags, "--continue_train", out=out)
    assert training.end() == 2
    assert "No space left" in training.output().splitlines()[-1], training.output()
    assert training.output().count("error") == 1 and "Traceback" not in training.output()
    consistent(folder)

    filler.unlink()
    training = Training(folder, *flags, "--continue_train", out=out)
    assert training.end() == 0, training.output()
    assert_same(whole, folder)
