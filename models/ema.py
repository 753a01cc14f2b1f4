"""The exponential moving average of a network's weights, which generates steadier images than the
weights of the last step.

Source: Yazici et al., "The Unusual Effectiveness of Averaging in GAN Training", ICLR 2019.
"""

import copy

import torch
from torch import nn


def averaged(net: nn.Module) -> nn.Module:
    """A copy of a network, to be the average of what it will be."""
    return copy.deepcopy(net).requires_grad_(False)


@torch.no_grad()
def update_average(average: nn.Module, net: nn.Module, decay: float) -> None:
    """average = decay * average + (1 - decay) * net; statistics of batch norm are copied."""
    weights = list(average.parameters()), list(net.parameters())
    torch._foreach_lerp_(*weights, 1 - decay)
    for mine, its in zip(average.buffers(), net.buffers()):
        mine.copy_(its)
