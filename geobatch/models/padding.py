"""Sequences of several lengths in one batch: which samples are padding.

Tensor axes: B batch, C channel, S sample.
"""

from __future__ import annotations

import torch
from torch import Tensor


def padded(lengths_B: Tensor, samples: int) -> Tensor:
    """`(batch, sample)` bool, true beyond the length of each sequence."""
    return torch.arange(samples, device=lengths_B.device) >= lengths_B[:, None]


def without_padding(x_BCS: Tensor, lengths_B: Tensor | None) -> Tensor:
    """The sequences with zeros beyond their lengths; as they are where no length is given."""
    if lengths_B is None:
        return x_BCS
    return x_BCS.masked_fill(padded(lengths_B, x_BCS.shape[-1])[:, None], 0.0)
