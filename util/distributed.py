"""Several processes, one for each GPU: the only place that knows what "distributed" means."""

import os
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
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


def mean(values: Tensor) -> Tensor:
    """The mean of a tensor over the processes."""
    if dist.is_initialized():
        dist.all_reduce(values)
        values /= world()
    return values


def maximum(value: Tensor) -> Tensor:
    """The largest of a number (on the CPU) over the processes."""
    if dist.is_initialized():
        value = value.cuda() if dist.get_backend() == "nccl" else value
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return value


def gather(value: object) -> list:
    """One object of each process, in order of rank, in every process."""
    if not dist.is_initialized():
        return [value]
    values = [None] * world()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: object) -> object:
    """Process 0's object in every process."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def launch(work: Callable, opt) -> object:
    """Call work(opt, device) in this process, or in one process for each of several GPUs.

    Under torchrun this process is one of them. --gpu_ids 0,1 without torchrun starts one process
    for each GPU through torch's own launcher. A UserError of process 0 is raised here.
    """
    if "WORLD_SIZE" not in os.environ and len(opt.gpu_ids) > 1:
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=len(opt.gpu_ids),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            run_id=str(os.getpid()),
            max_restarts=0,
        )
        answer = elastic_launch(config, _launched)(work, opt)[0]
        if isinstance(answer, UserError):
            raise answer
        return answer
    return _process(work, opt)


def _launched(work: Callable, opt) -> object:
    """In a launched process: an error that a user can mend goes home as an answer."""
    try:
        return _process(work, opt)
    except UserError as error:
        return error


def _process(work: Callable, opt) -> object:
    local = int(os.environ.get("LOCAL_RANK", opt.local_rank))
    device = torch.device("cpu")
    if opt.gpu_ids:
        if "WORLD_SIZE" in os.environ and len(opt.gpu_ids) == 1:
            index = local  # torchrun without --gpu_ids: the machine's GPUs in order
        else:
            index = opt.gpu_ids[min(local, len(opt.gpu_ids) - 1)]
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return work(opt, device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        if opt.batchSize % world():
            raise UserError(
                f"--batchSize {opt.batchSize} is the batch of all {world()} processes together "
                "and must be a multiple of their number"
            )
        return work(opt, device)
    finally:
        dist.destroy_process_group()


def wrap(net: nn.Module, device: torch.device) -> nn.Module:
    """Let the gradients of a network be averaged over the processes, if there are several."""
    if world() == 1 or not any(p.requires_grad for p in net.parameters()):
        return net
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(net, device_ids=devices, broadcast_buffers=False)


def unsynced(net: nn.Module):
    """A context in which a wrapped network's backward keeps its gradients to this process."""
    if isinstance(net, DistributedDataParallel):
        return net.no_sync()
    return nullcontext()
