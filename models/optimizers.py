"""Adam for the networks, the learning rate of an epoch, and optimizer states from other devices."""

import argparse
from collections.abc import Iterable

import torch
from torch import nn

FUSED = ("cuda", "cpu")  # not "meta", on which benchmarks.memory counts bytes


def adam(
    parameters: Iterable[nn.Parameter], opt: argparse.Namespace, device: torch.device
) -> torch.optim.Adam:
    """Adam as in the paper: --lr and --beta1, second beta 0.999.

    Fused: one pass over each weight, where torch's default on CPUs takes a dozen.
    """
    betas = (opt.beta1, 0.999)
    return torch.optim.Adam(parameters, lr=opt.lr, betas=betas, fused=device.type in FUSED)


def learning_rate(opt: argparse.Namespace, epoch: int) -> float:
    """The rate of an epoch (from 1): --lr for niter epochs, then linearly to 0 in niter_decay."""
    past = max(0, epoch - 1 - opt.niter)
    return opt.lr * (1 - past / max(1, opt.niter_decay))


def adapt_state(optimizer: torch.optim.Adam, opt: argparse.Namespace, device: torch.device) -> None:
    """Give a loaded state this run's --beta1, kind of Adam, device and memory format: it may have
    been saved on another device, without --compile, or by a version that was not fused on CPUs.
    Raises ValueError if it lacks a moment."""
    for group in optimizer.param_groups:
        group["betas"] = (opt.beta1, 0.999)
        group["fused"] = device.type in FUSED
        for weight in group["params"]:
            state = optimizer.state.get(weight)
            if not state:
                continue
            if missing := {"step", "exp_avg", "exp_avg_sq"} - state.keys():
                raise ValueError(f"Adam's {min(missing)} of a weight is missing")
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = torch.empty_like(weight).copy_(state[key])
            state["step"] = state["step"].to(device)
