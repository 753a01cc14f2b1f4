"""Several processes on the CPU (gloo): the same weights as one, one-line errors, the launcher."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest.mock import Mock, patch

import numpy as np
import pytest
import torch
from commands import ranks, run_all, run_ranks, run_together
from conftest import thorough
from PIL import Image

from util import distributed
from util.errors import UserError, run
from util.run.stop import SIGNALS, Stop

ROOT = Path(__file__).parents[1]
WORK = ROOT / "tests" / "distributed_work.py"
TRAIN_ON_TWO = ROOT / "tests" / "train_on_two.py"
SCENES = 9  # with --batchSize 4: batches of 4, 4 and 1, fewer than there are processes
COUNTS = [2, *thorough(4)]  # of processes


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("scenes"), np.random.default_rng(1)
    for kind in ("label", "inst", "img"):
        (root / f"train_{kind}").mkdir()
    for number in range(SCENES):
        label = rng.integers(0, 6, (4, 8), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        maps = {
            "label": label,
            "inst": label.astype(np.uint16) * 1000,
            "img": rng.integers(0, 256, (16, 32, 3), dtype=np.uint8),
        }
        for kind, array in maps.items():
            Image.fromarray(array).save(root / f"train_{kind}" / f"{number}.png")
    return root


def start(processes: int, *words: object) -> subprocess.CompletedProcess:
    """Run a Python script in this many processes; a single one without a launcher."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), *map(str, words)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env, timeout=300)


def only_line(all_done: list[subprocess.CompletedProcess]) -> str:
    """The one line that several processes, all of which failed, have printed."""
    assert {done.returncode for done in all_done} <= {1, 2}
    (line,) = [line for done in all_done for line in done.stderr.splitlines()]
    return line


def error_lines(done: subprocess.CompletedProcess) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="module")
def results(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], dict]:
    """Weights and losses after two epochs of a case, with this many processes."""
    out = tmp_path_factory.mktemp("weights")

    def result(case: str, processes: int) -> dict:
        file = out / f"{case}_{processes}.pth"
        if not file.exists():
            run_together(processes, WORK, "equality", data, out)
        return torch.load(file, weights_only=True)

    return result


@pytest.mark.parametrize("processes", COUNTS)
@pytest.mark.parametrize("case", ["instance", "batch", "recompute", "stages", "latent"])
def test_the_same_batch_gives_the_same_weights(
    results: Callable[[str, int], dict], case: str, processes: int
) -> None:
    alone, together = results(case, 1), results(case, processes)
    assert together["losses"] == pytest.approx(alone["losses"], rel=1e-12)
    for name, net in alone["weights"].items():
        for key, expected in net.items():
            found = together["weights"][name][key]
            torch.testing.assert_close(
                found, expected, rtol=0, atol=1e-12, msg=lambda m, n=f"{name}.{key}": f"{n}: {m}"
            )


@pytest.mark.parametrize("processes", COUNTS)
@pytest.mark.parametrize("case", ["pool", "bf16"])
def test_processes_agree_where_a_single_one_would_differ(
    results: Callable[[str, int], dict], case: str, processes: int
) -> None:
    """Each has its own pool and rounding; equality() checks that all processes agree."""
    alone, together = results(case, 1), results(case, processes)
    assert together["losses"] == pytest.approx(alone["losses"], rel=0.2)


def test_stages_train_all_of_the_generator(results: Callable[[str, int], dict]) -> None:
    first, second = results("stages", 2), results("instance", 2)
    assert any(key.startswith("model1_1") for key in first["weights"]["G"])
    assert "E" in second["weights"] and "E" not in first["weights"]


@pytest.mark.slow
def test_compiled_gradients_are_the_same(data: Path, tmp_path: Path) -> None:
    """Batch normalization over processes is not compiled: that would make them wrong."""
    flags = ["--norm", "batch", "--ngf", 2, "--ndf", 2, "--num_D", 1, "--n_layers_D", 1]
    flags += ["--no_ganFeat_loss"]
    run_together(1, WORK, "gradients", data, tmp_path, *flags)
    run_together(2, WORK, "gradients", data, tmp_path, *flags, "--compile")
    alone, together = (torch.load(tmp_path / f"gradients_{count}.pth") for count in (1, 2))
    for name, grad in alone.items():
        difference = (together[name] - grad).abs().max()
        assert difference <= 1e-4 * grad.abs().max(), name


def test_a_batch_that_does_not_divide_ends_in_one_line(data: Path, tmp_path: Path) -> None:
    flags = f"--dataroot {data} --label_nc 6 --batchSize 3 --gpu_ids -1 --no_vgg_loss".split()
    all_done = run_ranks(2, "train.py", *flags, "--checkpoints_dir", tmp_path / "runs")
    line = only_line(all_done)
    assert "--batchSize 3" in line and "2 processes" in line
    assert not (tmp_path / "runs").exists()


@contextmanager
def restored_handlers() -> Iterator[None]:
    """Restore the signal handlers afterwards."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    "variables, part",
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is '2'"),
        ({"RANK": "1"}, "WORLD_SIZE is '1'"),
        ({"WORLD_SIZE": "2"}, "variable RANK expected"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "variable MASTER_ADDR expected"),
    ],
)
def test_bad_environment_ends_in_one_line(variables: dict, part: str, monkeypatch, capsys) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with restored_handlers(), pytest.raises(SystemExit, match="2"):
        run(lambda: distributed.launch(print, Namespace(gpu_ids=[])))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and part in line


def first_of_two(port: int) -> dict[str, str]:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", **address}


def test_a_port_in_use_ends_in_one_line(data: Path, tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as other:
        variables = first_of_two(other.getsockname()[1])
        (done,) = run_all((WORK, "exit_statuses", data, tmp_path), [variables], 60, ROOT)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("[W")]
    assert line.startswith("error: ") and "in use" in line and "MASTER_PORT" in line


def test_a_restart_does_not_see_the_earlier_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun --max-restarts keeps one store, with the addresses of dead processes."""
    agent = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    variables = first_of_two(agent.port) | {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in (variables | {"WORLD_SIZE": "1"}).items():
        monkeypatch.setenv(name, value)
    seen = []
    for attempt in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        with restored_handlers():
            store, _, _ = distributed._meet()
        seen.append(store.check(["an address"]))
        store.set("an address", attempt)
    assert seen == [False, False]


@pytest.mark.thorough
@pytest.mark.parametrize("number", SIGNALS)
def test_ctrl_c_while_waiting_for_the_others(
    number: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process is never started; torch waits for it for half an hour."""
    port = int(ranks(1)[0]["MASTER_PORT"])
    for name, value in first_of_two(port).items():
        monkeypatch.setenv(name, value)
    with Session(tmp_path, WORK, "exit_statuses", data, tmp_path) as session:
        until = time.monotonic() + 60
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert time.monotonic() < until
            time.sleep(0.05)
        session.process.send_signal(number)
        assert session.process.wait(timeout=20) in (-number, 128 + number)
    assert "Traceback" not in session.stderr()


SITUATIONS = ("waiting", "collective", "compute", "loading", "startup")


def check_one_error(processes: int, what: str, data: Path, out: Path) -> None:
    done = start(processes, WORK, what, data, out)
    (line,) = error_lines(done)
    assert "found a bad" in line or "out of memory" in line
    if processes == 1:  # the launcher's own status and stderr; torchrun adds a report
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    else:  # in the report; torchrun's own status is 1
        assert "exitcode  : 2" in done.stderr
    assert done.returncode and "terminate" not in done.stderr, done.stderr


@pytest.mark.thorough
def test_the_launcher_prints_an_error_once_and_stops_all(data: Path, tmp_path: Path) -> None:
    check_one_error(1, "start:error_in_collective", data, tmp_path)


@pytest.mark.parametrize("what", ["error_in_waiting", "error_in_all", "out_of_memory_in_one"])
def test_an_error_is_printed_once_and_stops_all(data: Path, tmp_path: Path, what: str) -> None:
    """Without a launcher, as a job script starts them."""
    all_done = run_ranks(2, WORK, what, data, tmp_path)
    line = only_line(all_done)
    assert line.startswith("error: ") and ("found a bad" in line or "out of memory" in line)


@pytest.mark.thorough
def test_an_error_under_torchrun_is_printed_once_and_stops_all(data: Path, tmp_path: Path) -> None:
    check_one_error(2, "error_in_compute", data, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("what", SITUATIONS)
def test_an_error_in_one_stops_all_every_time(data: Path, tmp_path: Path, what: str) -> None:
    for _ in range(20):
        check_one_error(1, f"start:error_in_{what}", data, tmp_path)


def test_a_bug_keeps_its_traceback(data: Path, tmp_path: Path) -> None:
    all_done = run_ranks(2, WORK, "bug_in_one", data, tmp_path)
    assert [done.returncode for done in all_done] == [1, 1]
    output = "".join(done.stderr for done in all_done)
    assert output.count("Traceback") == 1 and "ZeroDivisionError" in output


def test_processes_agree_on_the_best_when_it_cannot_be_saved(data: Path, tmp_path: Path) -> None:
    """The second validation is then the best, which process 1 would not know."""
    flags = ["--val_phase", "train", "--val_freq", 1, "--val_max", 2, "--best_metric", "ssim"]
    flags += ["--niter", 3, "--niter_decay", 0, "--save_latest_freq", 5, "--no_html"]
    flags += ["--checkpoints_dir", tmp_path]
    run_together(2, WORK, "unsaved_best", data, tmp_path, *flags)
    state = torch.load(tmp_path / "label2city" / "latest_state.pth", weights_only=True)
    assert (state["position"]["best_epoch"], state["position"]["best"]) == (2, 2.0)


@pytest.mark.thorough
@pytest.mark.parametrize("metric", ["lpips", "ssim"])
def test_a_measure_one_lacks_is_dropped_by_all(metric: str, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    flags = ["--val_phase", "train", "--val_freq", 1, "--val_max", 4, "--best_metric", metric]
    flags += ["--niter", 1, "--niter_decay", 0, "--no_html", "--checkpoints_dir", tmp_path]
    flags += ["--loadSize", 64]
    all_done = run_ranks(2, WORK, "one_lacks_weights", data, tmp_path, *flags)
    assert [done.returncode for done in all_done] == [0, 0], all_done
    output = "".join(done.stdout for done in all_done)
    failed = "validation failed and is turned off: lpips: alexnet-owt-7be5be79.pth is missing"
    assert (failed in output) == (metric == "lpips") and "done: weights in" in output


def test_a_validation_that_fails_in_one_process_ends_in_all(data: Path, tmp_path: Path) -> None:
    flags = ["--val_phase", "train", "--val_freq", 1, "--val_max", 4, "--niter", 2]
    flags += ["--niter_decay", 0, "--no_html", "--checkpoints_dir", tmp_path]
    all_done = run_ranks(2, WORK, "one_cannot_validate", data, tmp_path, *flags)
    assert [done.returncode for done in all_done] == [0, 0]
    output = "".join(done.stdout for done in all_done)
    assert output.count("validation failed") == 1 and "no memory for the segmenter" in output
    assert "done: weights in" in output


@pytest.mark.parametrize(
    "what, expected",
    [("other_scenes", "different scenes"), ("other_validation", "validate differently")],
)
def test_machines_with_different_files_are_refused(
    what: str, expected: str, data: Path, tmp_path: Path
) -> None:
    flags = ["--niter", 1, "--niter_decay", 0, "--no_html", "--checkpoints_dir", tmp_path]
    all_done = run_ranks(2, WORK, what, data, tmp_path, *flags)
    line = only_line(all_done)
    assert expected in line and "process 1: " in line


def test_each_process_draws_its_own_dropout_masks(data: Path, tmp_path: Path) -> None:
    flags = ["--niter", 1, "--niter_decay", 0, "--no_html", "--use_dropout", "--val_phase", "none"]
    run_together(2, WORK, "random_states", data, tmp_path, *flags, "--checkpoints_dir", tmp_path)
    first, second = (torch.load(tmp_path / f"random{rank}.pth") for rank in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.slow
def test_the_launcher_gives_the_exit_status(data: Path, tmp_path: Path) -> None:
    """--gpu_ids 0,1 starts its processes through this function."""
    done = start(1, WORK, "start:exit_statuses", data, tmp_path)
    assert done.returncode == 42, done.stderr


class Session:
    """A command in its own terminal session, with stderr in a file."""

    def __init__(self, out: Path, *words: object) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.out = out / "stderr"
        with self.out.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, words)],
                **{"cwd": ROOT, "env": env, "stderr": stderr, "start_new_session": True},
            )

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        """Leave no process behind that would occupy the cores in later tests."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def press_ctrl_c(self) -> None:
        """As a terminal does: to the whole group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> tuple[int, float]:
        """Exit status, and the seconds that it took to end."""
        began = time.monotonic()
        return self.process.wait(timeout=60), time.monotonic() - began

    def stderr(self) -> str:
        return self.out.read_text()


def wait_for(*paths: Path) -> None:
    until = time.monotonic() + 180
    while not all(path.exists() for path in paths):
        assert time.monotonic() < until
        time.sleep(0.01)


def stopped_at_work(data: Path, out: Path, number: int, presses: int = 1) -> None:
    """Both processes save once and end in time, whoever is signalled and however often."""
    out.mkdir()
    with Session(out, WORK, "start:until_stopped", data, out) as session:
        wait_for(out / "ready0", out / "ready1")
        time.sleep(random.uniform(0, 0.3))
        for _ in range(presses):
            if number == signal.SIGINT:
                session.press_ctrl_c()
            else:
                session.process.send_signal(number)
            time.sleep(0.1)
        status, seconds = session.end()
    assert (status, session.stderr()) == (128 + number, "")
    assert seconds < 25  # a busy machine takes a dozen; torch's launcher waits for 30
    assert (out / "saved0").exists() and (out / "saved1").exists()


@pytest.mark.thorough
def test_sigterm_to_the_launcher_stops_all_processes(data: Path, tmp_path: Path) -> None:
    stopped_at_work(data, tmp_path / "out", signal.SIGTERM)


@pytest.mark.slow
def test_twenty_times_ctrl_c(data: Path, tmp_path: Path) -> None:
    for i in range(20):
        stopped_at_work(data, tmp_path / str(i), signal.SIGINT, presses=1 + i % 3)


def stopped_at_the_start(data: Path, out: Path, after: float, *words: object) -> None:
    out.mkdir()
    with Session(out, *words, "--dataroot", data, "--checkpoints_dir", out) as session:
        time.sleep(after)
        session.press_ctrl_c()
        status, seconds = session.end()
    # the second: by the signal itself, before Python handles any; a shell shows 130 as well
    assert status in (130, -signal.SIGINT), after
    assert "Traceback" not in session.stderr() and "terminate" not in session.stderr(), after
    assert seconds < 25


FLAGS = ["--label_nc", 6, "--ngf", 4, "--ndf", 4, "--no_vgg_loss", "--loadSize", 32]
FLAGS += ["--n_downsample_global", 1, "--n_blocks_global", 1, "--niter", 500, "--print_freq", 1]
FLAGS += ["--gpu_ids", -1, "--batchSize", 2]


@pytest.mark.thorough
def test_a_killed_process_is_reported_without_a_traceback(data: Path, tmp_path: Path) -> None:
    flags = [*FLAGS, "--dataroot", data, "--checkpoints_dir", tmp_path, "--no_html"]
    with Session(tmp_path, TRAIN_ON_TWO, *flags, "--val_phase", "none") as session:
        wait_for(tmp_path / "label2city" / "metrics.jsonl")
        children = Path(f"/proc/{session.process.pid}/task/{session.process.pid}/children")
        os.kill(int(children.read_text().split()[1]), signal.SIGKILL)
        status, _ = session.end()
    assert status == 128 + signal.SIGKILL
    lines = set(session.stderr().splitlines())
    gone = {line for line in lines if line.startswith("error: another process is gone")}
    assert lines - gone == {"error: process 1 was killed by signal 9, usually for lack of memory"}


@pytest.mark.thorough
def test_processes_end_with_a_killed_launcher(data: Path, tmp_path: Path) -> None:
    flags = [*FLAGS, "--dataroot", data, "--checkpoints_dir", tmp_path, "--no_html"]
    with Session(tmp_path, TRAIN_ON_TWO, *flags, "--val_phase", "none") as session:
        wait_for(tmp_path / "label2city" / "metrics.jsonl")
        session.process.kill()
        session.process.wait()
        until = time.monotonic() + 30
        with suppress(ProcessLookupError):
            while time.monotonic() < until:
                os.killpg(session.process.pid, 0)  # is any process left?
                time.sleep(0.05)
            pytest.fail("processes outlive their launcher")
    output = session.stderr()  # PyTorch may have warned of the lost connection
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "the launcher of these processes was killed" in line and "Traceback" not in output


def test_a_process_whose_launcher_is_gone_does_not_wait(monkeypatch, capsys) -> None:
    values = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in (values | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "PARENT", -1)
    monkeypatch.setattr(distributed, "leave", sys.exit)
    monkeypatch.setattr(distributed, "exit_on_signals", lambda: None)
    with pytest.raises(SystemExit, match="1"):
        distributed.launch(print, Namespace(gpu_ids=[]))
    assert "launcher of these processes was killed" in capsys.readouterr().err


@pytest.mark.thorough
def test_ctrl_c_while_torch_is_imported(data: Path, tmp_path: Path) -> None:
    for i in range(4):
        stopped_at_the_start(data, tmp_path / str(i), 0.3 + 0.2 * i, "train.py", *FLAGS)


@pytest.mark.slow
@pytest.mark.parametrize("words", [["train.py", *FLAGS], [TRAIN_ON_TWO, *FLAGS]])
def test_ctrl_c_at_any_moment(data: Path, tmp_path: Path, words: list) -> None:
    """From the first lines of Python to the first epochs; having nothing to save is no error."""
    for i in range(20):
        stopped_at_the_start(data, tmp_path / str(i), 0.1 + 0.4 * i, *words)


def test_a_later_ctrl_c_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with restored_handlers():
        stop, now = Stop(), time.monotonic()
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr(time, "monotonic", lambda: now + Stop.REPEATS + 1)
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("launched", [False, True])
def test_several_gpus_get_one_process_each(launched: bool, monkeypatch) -> None:
    """Also under python -m torch.distributed.launch train.py, as in the 2018 code's scripts, which
    starts one process."""
    asked = []
    monkeypatch.setattr(distributed, "start_processes", lambda *args: asked.append(args) or 7)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if launched:
        monkeypatch.setenv("WORLD_SIZE", "1")
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert distributed.launch(print, Namespace(gpu_ids=[0, 2, 3], local_rank=0)) == 7
    assert asked == [(3,)]


@pytest.mark.parametrize(
    "gpus, local, count, index",
    [("0", 1, 2, 1), ("3", 0, 1, 3), ("3", 0, 2, 3), ("2,3", 1, 2, 3), ("0", 0, 1, 0)],
)
def test_the_gpu_of_a_process(gpus: str, local: int, count: int, index: int, monkeypatch) -> None:
    """torchrun's processes of a machine take its GPUs in order, or as listed; a single one takes
    the named one."""
    assert gpu_of_process(gpus, local, count, monkeypatch) == torch.device("cuda", index)


def test_more_processes_than_named_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """None takes a GPU that was not named."""
    for gpus, processes in (("3", 2), ("2,3", 3)):
        with pytest.raises(UserError, match="has no GPU of its own"):
            gpu_of_process(gpus, processes - 1, processes, monkeypatch)


def test_fewer_processes_than_named_gpus_get_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    gpu_of_process("1,2,3", 0, 2, monkeypatch)
    assert "warning: only 2 of the 3 GPUs in --gpu_ids are used" in capsys.readouterr().out
    gpu_of_process("1,2", 0, 2, monkeypatch)
    assert not capsys.readouterr().out


def test_all_named_gpus_are_used_under_a_launcher_of_one_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The count of processes that torchrun gave that one is not true of those that it starts."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    ended = Mock(returncode=0)
    with restored_handlers(), patch("util.distributed.subprocess.Popen", return_value=ended) as run:
        assert distributed.start_processes(2) == 0
    count = int(run.call_args.kwargs["env"]["LOCAL_WORLD_SIZE"])
    gpu_of_process("0,1", 0, count, monkeypatch)
    assert not capsys.readouterr().out


def gpu_of_process(gpus: str, local: int, count: int, monkeypatch) -> torch.device:
    """The device of process `local` of `count` on a machine with four GPUs."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.set_device", lambda index: None)
    values = {"WORLD_SIZE": 4, "LOCAL_RANK": local, "LOCAL_WORLD_SIZE": count}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    opt = Namespace(gpu_ids=[int(gpu) for gpu in gpus.split(",")], local_rank=0)
    return distributed._device(opt)
