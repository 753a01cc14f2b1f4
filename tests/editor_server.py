"""A running editor for tests: toy scenes, a tiny network with random weights, a free port."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from conftest import ROOT, run_ok
from tiny_run import write_run

from data.toy_cityscapes import write_dataset
from editor.library import FILE, LibraryObject, thumbnail, write_library

CAR = 26
# only the norms see the whole image: an edit shows where it is made
LOCAL = {"n_downsample_global": 0, "n_blocks_global": 0}


def write_project(folder: Path) -> None:
    """128x64 toy scenes, a run "tiny" with a library of one car, below folder."""
    write_dataset(folder / "raw", 1, 3, (128, 64), 0)
    run_ok("prepare_cityscapes.py", "--raw", folder / "raw", "--out", folder / "toy")
    run = write_run(folder / "checkpoints", "tiny", dataroot=str(folder / "toy"), **LOCAL)
    mask = np.ones((6, 10), bool)
    red = np.broadcast_to(np.uint8([200, 30, 30]), (6, 10, 3))
    feature = np.array([1, -1, 1], np.float32)
    write_library(run / FILE, [LibraryObject(CAR, mask, feature, thumbnail(red, mask))])


@contextmanager
def running(folder: Path, *flags: str, stop: signal.Signals = signal.SIGTERM) -> Iterator[str]:
    """The address of an editor on the run "tiny" below folder; the end of the block stops it by a
    signal, and deletes what was uploaded to it."""
    uploads = Path(tempfile.mkdtemp(prefix="uploads_", dir=folder))
    command = [sys.executable, "edit.py", "--name", "tiny", "--gpu_ids", "-1", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--checkpoints_dir", str(folder / "checkpoints"), *flags],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(uploads)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=lambda: read(process, lines), daemon=True).start()
    try:
        yield address(lines)
    finally:
        process.send_signal(stop)
        process.wait(20)
    assert not list(uploads.glob("editor_*"))


def read(process: subprocess.Popen, lines: queue.Queue) -> None:
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def address(lines: queue.Queue) -> str:
    printed = []
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            line = lines.get(timeout=1)
        except queue.Empty:
            continue
        if line is None:
            break
        printed.append(line)
        if "the editor is open at " in line:
            return line.split("open at ")[1].split()[0]
    raise AssertionError("the editor did not open: " + "".join(printed))


class Client:
    """One browser window's conversation with the server, without the browser."""

    def __init__(self, url: str, session: str) -> None:
        self.url = url.rstrip("/")
        self.session = session
        self.sent: dict[str, dict] = {}
        config = json.loads(self._get("/config"))
        self.actions = {d["api_name"]: d for d in config["dependencies"]}
        self.names = {c["id"]: c["props"].get("elem_id") for c in config["components"]}

    def call(self, action: str, *inputs: object, event: dict | None = None) -> dict:
        """Send an event; returns the new content of the page's parts, by their elem_id."""
        number = self.send(action, *inputs, event=event)
        return self.answers([number])[number]

    def send(self, action: str, *inputs: object, event: dict | None = None) -> str:
        """Send an event and do not wait; returns its number."""
        dependency = self.actions[action]
        body = {
            "data": [None, *inputs],  # first the window's name or, later, its session
            "event_data": event,
            "fn_index": dependency["id"],
            "session_hash": self.session,
        }
        request = urllib.request.Request(
            f"{self.url}/gradio_api/queue/join?__theme=system",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        number = json.loads(urllib.request.urlopen(request, timeout=60).read())["event_id"]
        self.sent[number] = dependency
        return number

    def answers(self, numbers: list[str]) -> dict[str, dict]:
        """Wait for the answers to events, by their number."""
        found: dict[str, dict] = {}
        listen = f"{self.url}/gradio_api/queue/data?session_hash={self.session}"
        with urllib.request.urlopen(listen, timeout=60) as stream:
            for line in stream:
                message = json.loads(line[5:]) if line.startswith(b"data:") else {}
                number = message.get("event_id")
                if message.get("msg") != "process_completed" or number not in numbers:
                    continue
                assert message["success"], message
                parts = [self.names[part] for part in self.sent[number]["outputs"]]
                found[number] = dict(zip(parts, message["output"]["data"]))
                if len(found) == len(numbers):
                    return found
        raise AssertionError(f"{len(found)} answers to {len(numbers)} events")

    def _get(self, path: str) -> bytes:
        return urllib.request.urlopen(self.url + path, timeout=60).read()
