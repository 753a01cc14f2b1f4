"""The exponential moving average of a network's weights, which generates steadier images than the
weights of the last step.

Source: Yazici et al., "The Unusual Effectiveness of Averaging in GAN Training", ICLR 2019. That the
average begins short is TensorFlow's (ExponentialMovingAverage, num_updates): otherwise the weights
from before training would keep a share, 0.14 after 1000 steps with a decay of 0.998.
"""

import copy

import torch
from torch import nn


def averaged(net: nn.Module) -> nn.Module:
    """A copy of a network, to be the average of what it will be."""
    return copy.deepcopy(net).requires_grad_(False)


@torch.no_grad()
def update_average(average: nn.Module, net: nn.Module, decay: float, updates: int) -> None:
    """average = d * average + (1 - d) * net, d = min(decay, (1 + updates) / (10 + updates)).

    updates: how many there have been before. Statistics of batch norm are copied.
    """
    decay = min(decay, (1 + updates) / (10 + updates))
    weights = list(average.parameters()), list(net.parameters())
    torch._foreach_lerp_(*weights, 1 - decay)
    for mine, its in zip(average.buffers(), net.buffers()):
        mine.copy_(its)
