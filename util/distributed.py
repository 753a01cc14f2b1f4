"""Several processes, one for each GPU: the only place that knows what "distributed" means."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.nn.parallel import DistributedDataParallel

from util.errors import UserError


def rank() -> int:
    """This process's number over all machines; 0 writes files and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """The number of processes over all machines."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def one_process_first() -> Iterator[None]:
    """Let one process of each machine go first: what it downloads, the others then find."""
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    if not first:
        wait_for_all()
    try:
        yield
    finally:
        if first:
            wait_for_all()


def mean(values: Tensor) -> Tensor:
    """The mean of a tensor over the processes."""
    if dist.is_initialized():
        dist.all_reduce(values)
        values /= world()
    return values


def total(values: Tensor) -> Tensor:
    """The sum of a tensor over the processes."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def maximum(value: Tensor) -> Tensor:
    """The largest of a number (on the CPU) over the processes."""
    if dist.is_initialized():
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return value


def gather(value: object) -> list:
    """One object of each process, in order of rank, in every process."""
    if not dist.is_initialized():
        return [value]
    values = [None] * world()
    dist.all_gather_object(values, value)
    return values


def launch(work: Callable, opt) -> object:
    """Call work(opt, device) in this process, or in one process for each of several GPUs.

    Under torchrun this process is one of them. --gpu_ids 0,1 without torchrun starts one process
    for each GPU through torch's own launcher. A UserError of any process ends all of them and is
    shown once.
    """
    if _processes() == 1 and not dist.is_torchelastic_launched() and len(opt.gpu_ids) > 1:
        return start(len(opt.gpu_ids), work, opt)
    return _process(work, opt)


def start(processes: int, work: Callable, opt) -> object:
    """Call work(opt, device) in so many processes of this machine; the answer of the first.

    work and opt must be picklable. Ends with exit status 2 where a process had a UserError, which
    it has shown by then, and with 128 + the signal's number where one asked to end.
    """
    for name in ("torch.distributed.elastic", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # how processes end is said below
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=str(os.getpid()),
        max_restarts=0,
    )
    try:
        return elastic_launch(config, _launched)(work, opt)[0]
    except ChildFailedError as error:
        if any(failure.exitcode == 2 for failure in error.failures.values()):
            sys.exit(2)
        raise
    except SignalException as stopped:
        return 128 + stopped.sigval


def _launched(work: Callable, opt) -> object:
    """In a launched process: an error that a user can mend is one line here as well."""
    try:
        return _process(work, opt)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


def _processes() -> int:
    """The number of processes over all machines, as torchrun or a job's script has set it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def _process(work: Callable, opt) -> object:
    local = int(os.environ.get("LOCAL_RANK", opt.local_rank))
    device = torch.device("cpu")
    if opt.gpu_ids:
        if _processes() > 1 and len(opt.gpu_ids) == 1:
            index = local  # torchrun without --gpu_ids: the machine's GPUs in order
        else:
            index = opt.gpu_ids[local] if local < len(opt.gpu_ids) else torch.cuda.device_count()
        if index >= torch.cuda.device_count():
            raise UserError(
                f"process {local} of this machine has no GPU of its own: start as many processes "
                "as there are GPUs, or in --gpu_ids"
            )
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    if _processes() == 1:
        return work(opt, device)
    return _joined(work, opt, device)


def _joined(work: Callable, opt, device: torch.device) -> object:
    """Do the work as one of several processes. Of their UserErrors the first one is raised, the
    others end in silence: most often all found the same."""
    on_gpus = device.type == "cuda"
    backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"  # what is on a CPU stays there
    store, number, count = next(dist.rendezvous("env://"))
    dist.init_process_group(
        backend,
        store=store,
        rank=number,
        world_size=count,
        device_id=device if on_gpus else None,
        timeout=timedelta(hours=2),  # while one clusters or downloads, the others wait
    )
    wait_for_all()  # a process that ended at once would break the others' connecting
    try:
        if opt.is_train and opt.batchSize % count:  # at test time it is each process's own
            raise UserError(
                f"--batchSize {opt.batchSize} is the batch of all {count} processes together "
                "and must be a multiple of their number"
            )
        answer = work(opt, device)
    except UserError:
        if store.add("user_errors", 1) > 1:
            sys.exit(2)
        raise
    wait_for_all()
    # PyTorch 2.6's threads need Python for a moment to drop their tensors. Destroying the group
    # does not let go of it, and would wait for them for ever.
    time.sleep(0.1)
    dist.destroy_process_group()
    return answer


def wrap(net: nn.Module, device: torch.device) -> nn.Module:
    """Let the gradients of a network be averaged over the processes, if there are several."""
    if world() == 1 or not any(p.requires_grad for p in net.parameters()):
        return net
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(
        net, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
    )


def unsynced(net: nn.Module):
    """A context in which a wrapped network's backward keeps its gradients to this process."""
    if isinstance(net, DistributedDataParallel):
        return net.no_sync()
    return nullcontext()
