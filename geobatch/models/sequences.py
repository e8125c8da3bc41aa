"""A network of sequences over whole sequences: windows of the length it was trained on, blended.

Tensor axes: C channel, K class, S sample.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

SOFTMAX = partial(torch.softmax, dim=1)
OVERLAP = 2
"""Windows that see each sample, but for those at the ends."""


@torch.inference_mode()
def sequence_answer(
    network: nn.Module, x_CS: Tensor, window: int, activation: Callable[[Tensor], Tensor] = SOFTMAX
) -> Tensor:
    """Probabilities `(class, sample)` float32 of a sequence, the mean over the windows that see each sample.

    A window counts the less towards its ends, where it sees least around. A sequence no longer than one is seen whole.

    Args:
        network: Gives logits `(batch, class, sample)` of `(batch, channel, sample)`.
        x_CS: The sequence.
        window: Samples of a window.
        activation: What makes probabilities of logits.
    """
    samples = x_CS.shape[-1]
    window = min(window, samples)
    steps = max(1, window // OVERLAP)
    starts = [*range(0, samples - window, steps), samples - window]
    weight_S = 1 - (torch.arange(window, device=x_CS.device) - (window - 1) / 2).abs() / (window / 2 + 0.5)
    total_KS: Tensor | None = None
    weights_S = torch.zeros(samples, device=x_CS.device)
    for start in starts:
        own = slice(start, start + window)
        made_KS = activation(network(x_CS[None, :, own]))[0] * weight_S
        if total_KS is None:
            total_KS = torch.zeros(made_KS.shape[0], samples, device=x_CS.device)
        total_KS[:, own] += made_KS
        weights_S[own] += weight_S
    assert total_KS is not None
    return total_KS / weights_S
