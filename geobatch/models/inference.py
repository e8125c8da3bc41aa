"""A network as it is run: the same function in fewer passes over memory."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
_NORMS_OF_PATCHES = (nn.InstanceNorm3d, nn.GroupNorm, nn.LayerNorm)


def for_inference(network: nn.Module, device: str = "cpu") -> nn.Module:
    """A copy of a network in evaluation mode, with batch norms folded into the convolutions before them.

    On a CPU the weights of convolutions over volumes lie channels last, which spares oneDNN the reordering of every
    result; norms over patches are slower that way, and a network that has one is left as it is.

    Args:
        network: Any network; pairs of convolution and batch norm are found in `nn.Sequential`s.
        device: Where it will run.
    """
    network = copy.deepcopy(network).eval()
    for sequence in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        _fold(sequence)
    if torch.device(device).type == "cpu" and not any(isinstance(m, _NORMS_OF_PATCHES) for m in network.modules()):
        for module in network.modules():
            if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
    return network


def _fold(sequence: nn.Sequential) -> None:
    """Fold each batch norm of a sequence into the convolution right before it."""
    for (name, convolution), (next_name, norm) in pairwise(list(sequence.named_children())):
        if isinstance(convolution, _Convolution) and isinstance(norm, _BatchNorm):
            setattr(sequence, name, fuse_conv_bn_eval(convolution, norm))
            delattr(sequence, next_name)
