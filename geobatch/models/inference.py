"""A network as it is run: the same function in fewer passes over memory, and what one pass of it holds."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SCRATCH = 2.1
"""Resident memory over what tensors hold: 1.4 to 1.95 was seen channels last, 2.06 otherwise, at 152 to 216 cells."""

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
    if torch.device(device).type == "cpu" and _gains_channels_last(network):
        for module in network.modules():
            if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
    return network


@torch.inference_mode()
def held_bytes(network: nn.Module, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> int:
    """The most bytes that one pass of a network holds at once, in the form of `for_inference`; nothing is computed.

    Tensors are counted as they come and go; a measured factor stands for what convolutions and the allocator hold
    beside them.

    Args:
        network: As trained.
        shape: Of its input `(batch, channel, *axes)`.
        dtype: What it computes in.
    """
    running = for_inference(network).to(device="meta", dtype=dtype)
    inputs = torch.empty(shape, device="meta", dtype=dtype)
    return int(tensor_bytes(lambda: running(inputs)) * SCRATCH)


def tensor_bytes(work: Callable[[], object]) -> int:
    """The most bytes that tensors made by some work hold at once; those of the device `meta` count as if real."""
    held = _Held()
    with held:
        work()
    return held.most


class _Held(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that are alive: `most` of them at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._now = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self._alive:
                storage = tensor.untyped_storage()
                self._alive.add(storage._cdata)
                self._now += storage.nbytes()
                self.most = max(self.most, self._now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return result

    def _gone(self, storage: int, size_bytes: int) -> None:
        self._alive.discard(storage)
        self._now -= size_bytes


def _gains_channels_last(network: nn.Module) -> bool:
    """Whether a network of volumes runs faster channels last."""
    volumes = any(isinstance(module, nn.Conv3d) for module in network.modules())
    return volumes and not any(isinstance(module, _NORMS_OF_PATCHES) for module in network.modules())


def _fold(sequence: nn.Sequential) -> None:
    """Fold each batch norm of a sequence into the convolution right before it."""
    for (name, convolution), (next_name, norm) in pairwise(list(sequence.named_children())):
        if isinstance(convolution, _Convolution) and isinstance(norm, _BatchNorm):
            setattr(sequence, name, fuse_conv_bn_eval(convolution, norm))
            delattr(sequence, next_name)
