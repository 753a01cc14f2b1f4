"""Several processes, one per GPU: everything that involves torch.distributed."""

import argparse
import inspect
import math
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from util.errors import UserError, brief, first_line, print_error
from util.progress import log_main
from util.run.stop import PARENT, SIGNALS, Stop, exit_on_signals, leave

T = TypeVar("T")

GRACE_SECONDS = 4.0  # for the other processes to end once one has ended


def rank() -> int:
    """This process's number across all machines; process 0 writes files and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes across all machines."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def one_process_first() -> Iterator[None]:
    """Let one process per machine go first, so that the others find what it has downloaded."""
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    if not first:
        wait_for_all()
    try:
        yield
    finally:
        if first:
            wait_for_all()


def mean(values: Tensor) -> Tensor:
    """The mean of a tensor over the processes; the tensor becomes their sum."""
    return total(values) / world_size()


def total(values: Tensor) -> Tensor:
    """The sum of a tensor over the processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


class DelayedMaximum:
    """The maximum of a number over the processes, one call late: each call sends this process's
    number and returns the previous call's result, so that no process waits for the others."""

    def __init__(self) -> None:
        self._work, self._highest = None, torch.tensor(0)

    def __call__(self, value: int) -> int:
        """All processes must call it. The first call returns 0."""
        if not dist.is_initialized():
            return value
        before = self.finish()
        self._highest = torch.tensor(value)  # on the CPU, to avoid waiting for a GPU
        self._work = dist.all_reduce(self._highest, dist.ReduceOp.MAX, async_op=True)
        return before

    def finish(self) -> int:
        """The result of the last call."""
        if self._work:
            self._work.wait()
        return int(self._highest)


def gather(value: T, to_main: bool = False) -> list[T]:
    """One object from each process, in order of rank; with to_main, [] in all but the main one."""
    if not dist.is_initialized():
        return [value]
    values = [None] * world_size() if is_main() or not to_main else None
    if to_main:
        dist.gather_object(value, values)
    else:
        dist.all_gather_object(values, value)
    return values or []


def agree(mine: str, problem: str, remedy: str) -> None:
    """Raise UserError in all processes unless they all pass the same text: each machine reads its
    own disk. problem: what the processes would do; remedy: how to fix it."""
    found = gather(mine)
    if len(set(found)) > 1:
        listed = [f"process {found.index(text)}: {text}" for text in dict.fromkeys(found)]
        raise UserError(f"the processes {problem}: {brief(listed)}; {remedy}")


def launch(work: Callable, opt: argparse.Namespace) -> object:
    """Call work(opt, device) in this process or, with several GPUs, in one process per GPU.

    Under torchrun this process is one of them. --gpu_ids 0,1 in a single process, even one that a
    launcher has started, runs the command line once for each GPU. A UserError in any process ends
    all of them and is printed once.
    """
    if _is_one_of_several():
        return _work_together(work, opt)
    if len(opt.gpu_ids) > 1:
        return start_processes(len(opt.gpu_ids))
    return work(opt, _device(opt))


def _is_one_of_several() -> bool:
    """Whether torchrun, a job script or start_processes() has started several processes."""
    number, count = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise UserError(
            f"RANK is {number!r} and WORLD_SIZE is {count!r} in the environment; expected a "
            "process's number, from 0, and the number of processes; unset both for one process"
        )
    return int(count) > 1


def _device(opt: argparse.Namespace) -> torch.device:
    """The device of this process: the CPU, or a GPU that no other process on this machine uses."""
    if not opt.gpu_ids:
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", opt.local_rank))
    if _is_one_of_several() and opt.gpu_ids == [0]:
        index = local  # torchrun without --gpu_ids: the machine's GPUs in order
    else:
        index = opt.gpu_ids[local] if local < len(opt.gpu_ids) else torch.cuda.device_count()
    if index >= torch.cuda.device_count():
        raise UserError(
            f"process {local} on this machine has no GPU of its own: start only as many processes "
            "as there are GPUs, or as --gpu_ids lists, and let each see all GPUs (srun "
            "--gpu-bind=none)"
        )
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", len(opt.gpu_ids)))
    if local == 0 and processes < len(opt.gpu_ids):
        log_main(
            f"warning: only {processes} of the {len(opt.gpu_ids)} GPUs in --gpu_ids are used, one "
            "per process: start more processes (torchrun --nproc_per_node)"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def start_processes(processes: int) -> int:
    """Run this command line in several processes on this machine, as torchrun would.

    Returns 0, or the exit status of the process that failed. SIGINT and SIGTERM are passed on
    once: training saves and ends with 128 + the signal's number. (torch's own launcher, run from
    Python, waits for 30 s after a signal.)
    """
    stop = Stop()
    # hosted here, so that it outlives every process; port 0: any free port
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    env = {"OMP_NUM_THREADS": "1", **os.environ}
    env |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes))
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    env |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    command = [sys.executable, *sys.orig_argv[1:]]
    started: list[subprocess.Popen] = []
    try:
        # signals from here on reach the new processes once they can handle them
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        for number in map(str, range(processes)):
            own = {"RANK": number, "LOCAL_RANK": number}
            started.append(subprocess.Popen(command, env=env | own))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return _wait(started, stop)
    finally:
        for process in started:
            process.kill()
            process.wait()


def _wait(processes: list[subprocess.Popen], stop: Stop) -> int:
    """Wait for all and return the highest exit status. Once one has ended, the work is done or has
    failed, and the others have GRACE_SECONDS to end as well."""
    status, passed_on, deadline = 0, False, math.inf
    running = processes
    while running and time.monotonic() < deadline:
        time.sleep(0.05)
        for process in running:
            if process.poll() is not None:
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
                code = process.returncode
                status = max(status, code if code >= 0 else 128 - code)
                if code < 0 and not stop.signal:
                    message = f"process {processes.index(process)} was killed by signal {-code}"
                    if -code == signal.SIGKILL:
                        message += ", usually for lack of memory"
                    print(f"error: {message}", file=sys.stderr, flush=True)
        running = [process for process in running if process.returncode is None]
        if stop.signal and not passed_on:
            passed_on = True
            for process in running:
                process.send_signal(stop.signal)
    return status


def _work_together(work: Callable, opt: argparse.Namespace) -> object:
    """Call work as one of several processes."""
    exit_on_signals()
    _exit_without_launcher()  # connecting would hang for minutes
    store, number, count = _meet()
    alarm = _Alarm(number)
    try:
        device = _device(opt)
        on_gpus = device.type == "cuda"
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpus else "gloo",  # CPU tensors stay on the CPU
            store=store,
            rank=number,
            world_size=count,
            device_id=device if on_gpus else None,
            timeout=timedelta(hours=2),  # while one clusters or downloads, the others wait
        )
        wait_for_all()  # a process that ended at once would disturb the others as they connect
        if opt.is_train and opt.batchSize % count:  # in testing it is the batch of each process
            raise UserError(
                f"--batchSize {opt.batchSize} is the batch of all {count} processes together "
                "and must be a multiple of their number"
            )
        result = work(opt, device)
        wait_for_all()
    except BaseException as error:
        alarm.ring(error)
    alarm.switch_off()
    # PyTorch 2.6's threads briefly need the GIL to release their tensors. Destroying the group
    # holds the GIL, and would wait for them forever.
    time.sleep(0.1)
    dist.destroy_process_group()
    return result


def _meet() -> tuple[dist.Store, int, int]:
    """The store that all processes share, this process's number, and the number of processes."""
    for number in SIGNALS:  # Python's handlers do not run while torch's C++ waits for the others
        signal.signal(number, signal.SIG_DFL)
    try:
        store, number, count = next(dist.rendezvous("env://"))
        # torchrun keeps its store across restarts: hide the keys of the attempt that failed
        return dist.PrefixStore(_attempt(), store), number, count
    except (ValueError, RuntimeError) as error:  # PyTorch 2.6 has no class of its own for all
        raise UserError(
            f"this process cannot connect to the others: {first_line(error)}; start it with "
            "torchrun, or set its RANK, WORLD_SIZE and LOCAL_RANK in the environment, and the "
            "first process's MASTER_ADDR and a free MASTER_PORT there"
        ) from error
    finally:
        exit_on_signals()


def _attempt() -> str:
    """Which of torchrun's attempts this is (--max-restarts)."""
    return f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"


def _launcher_has_store() -> bool:
    """Whether torchrun or start_processes() hosts the store, not process 0."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _exit_without_launcher() -> None:
    """Exit if the launcher is gone, and the store with it. A launcher that hosts no store may end
    before its processes."""
    if _launcher_has_store() and os.getppid() != PARENT:
        if os.environ.get("LOCAL_RANK") == "0":
            reason = "the launcher of these processes was killed; start it again"
            print(f"error: {reason} (training: --continue_train)", file=sys.stderr, flush=True)
        leave(1)


class _Alarm:
    """Ends all processes when one fails, whatever they are doing.

    A process inside a collective would wait for the others forever, or lose its connection and
    crash with a traceback of its own. So the first to fail sets a key in the shared store, prints
    its error and exits with that error's status; in every other process a thread sees the key and
    exits with status 1, the lowest of all.
    """

    INTERVAL = 0.2  # seconds between two checks of the store

    def __init__(self, number: int) -> None:
        self._number = number
        self._key = f"failed in {_attempt()}"
        # a separate connection: the other one is busy while the processes join
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = dist.TCPStore(*address, is_master=False, wait_for_workers=False)
        self._hosts_store = number == 0 and not _launcher_has_store()
        self._off = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        while not self._off.wait(self.INTERVAL):
            _exit_without_launcher()
            try:
                failed = self._store.check([self._key])
            except RuntimeError:  # the store is gone, and with it the launcher or process 0
                time.sleep(self.INTERVAL)  # a killed launcher takes a moment to disappear
                _exit_without_launcher()
                failed = True
            if failed and not self._off.is_set():
                self._leave(1)

    def _leave(self, status: int) -> NoReturn:
        """Exit. A process that hosts the store first gives the others time to read the key, as
        they would report a lost connection."""
        if self._hosts_store:
            time.sleep(3 * self.INTERVAL)
        leave(status)

    def switch_off(self) -> None:
        self._off.set()
        self._watcher.join()

    def ring(self, error: BaseException) -> NoReturn:
        """Exit because of an error and make the others exit; only the first error is printed."""
        self._off.set()  # the watcher must not end this process before its error is printed
        mine = f"process {self._number}"
        try:
            first = self._store.compare_set(self._key, "", mine).decode() == mine
        except RuntimeError:  # no store: the launcher is gone, or process 0 failed earlier
            _exit_without_launcher()
            first = False
        if not first:
            self._leave(1)
        status = error.code if isinstance(error, SystemExit) else print_error(error)
        if status is None:
            traceback.print_exception(error)
        sys.stdout.flush()
        self._leave(status if isinstance(status, int) else 1)


# whether each forward pass copies the first process's buffers; renamed in PyTorch 2.15
_BUFFERS = "forward_sync_buffers"
if _BUFFERS not in inspect.signature(DistributedDataParallel).parameters:
    _BUFFERS = "broadcast_buffers"


def wrap(net: nn.Module, device: torch.device, in_bf16: bool = False) -> nn.Module:
    """Average a network's gradients over the processes, if there are several.

    in_bf16: send them in bfloat16, half the bytes.
    """
    if world_size() == 1 or not any(p.requires_grad for p in net.parameters()):
        return net
    devices = [device.index] if device.type == "cuda" else None
    wrapped = DistributedDataParallel(
        net, device_ids=devices, gradient_as_bucket_view=True, **{_BUFFERS: False}
    )
    if in_bf16:
        wrapped.register_comm_hook(None, _send_in_bf16)
    return wrapped


def _send_in_bf16(group: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """torch's hook under another name: under its own, DDP refuses it without NCCL, which gloo does
    not need."""
    return bf16_compress_hook(group, bucket)


def unsynced(net: nn.Module) -> AbstractContextManager:
    """A context in which a wrapped network's backward does not average the gradients."""
    return net.no_sync() if isinstance(net, DistributedDataParallel) else nullcontext()
