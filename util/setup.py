"""Random seeds and states, torch's settings, the device of single-process commands."""

import argparse
import ctypes
import os
import platform
import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (CUDA too)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def set_up_torch(deterministic: bool, tf32: bool, one_size: bool = True) -> None:
    """Choose between the fastest and the reproducible algorithms, and whether TF32 may be used.

    deterministic: an operation without a deterministic algorithm raises a RuntimeError, which
    util.errors.run prints in one line. one_size: all images have one size; cuDNN's search for the
    fastest algorithm takes seconds for each new size.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not deterministic and one_size
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    keep_freed_memory()


def first_device(opt: argparse.Namespace) -> torch.device:
    """The first GPU of --gpu_ids, or the CPU: for commands that run in one process."""
    return torch.device("cuda", opt.gpu_ids[0]) if opt.gpu_ids else torch.device("cpu")


def keep_freed_memory() -> None:
    """Let glibc keep up to 1 GiB of freed memory for what is allocated next.

    By default it returns large blocks to the system at once, which then clears every page for the
    next step's maps: 2500 pages and 7% of the time of a small training step on one CPU core.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 32 * 2**20)  # glibc's maximum
        libc.mallopt(trim_threshold, 2**30)


def set_up_compiler() -> None:
    """Configure torch.compile for the training step.

    D's graph of the generated image is traversed twice, so the first backward pass must not reuse
    its memory; and graphs are not split for DistributedDataParallel, which not all of our layers
    support.
    """
    import torch._dynamo  # takes seconds, and is needed only here
    import torch._functorch.config

    torch._functorch.config.donated_buffer = False
    torch._dynamo.config.optimize_ddp = False


def random_state() -> dict:
    """The state of every generator, in types that load without running code."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():  # by a run on a GPU
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict) -> None:
    """Restore a random_state()."""
    random.setstate(state["python"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
