"""PhaseNet: the U-Net of Zhu & Beroza (2019, doi:10.1093/gji/ggy423) that tells P, S and noise at every sample.

Tensor axes: B batch, C channel, K class, S sample.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from scipy.signal import resample_poly
from torch import Tensor, nn

from geobatch.models.layers import require_sizes

RATE_HZ, WINDOW = 100.0, 3001
PHASES = ("noise", "P", "S")
P, S = 1, 2
KERNEL = 7
STRIDE = 4
DEPTH = 5
_EPS = 1e-3
_CUT = slice(1, -2)
"""What a transposed convolution makes beyond `STRIDE` times its input lies before and after it."""
PADDING = ((3, 3), (2, 3), (1, 3), (2, 3))
"""Zeros before and after each level that goes down, as SeisBench pads a window of 3001 samples."""


class PhaseNet(nn.Module):
    """A 1-D U-Net of five levels, strides of four and kernels of seven, one answer per sample.

    Parameters bear the names and shapes of `seisbench.models.PhaseNet` of SeisBench (Woollam et al. 2022,
    doi:10.1785/0220210324), so that its state dicts load with `strict=True`, and it pads as that one does: right for
    windows of 3001 samples, and possible for any length here. It belongs to windows of the length it was trained on.

    Args:
        in_channels: Channels of the input; the original has E, N, Z, each less its mean and over its deviation.
        classes: Outputs K; the original has noise, P, S.
        filters: Of the first level; they double from level to level.

    Raises:
        UsageError: a size is below 1.
    """

    def __init__(self, in_channels: int = 3, classes: int = 3, filters: int = 8) -> None:
        super().__init__()
        require_sizes("PhaseNet", in_channels=in_channels, classes=classes, filters=filters)
        self.inc = nn.Conv1d(in_channels, filters, KERNEL, padding="same")
        self.in_bn = nn.BatchNorm1d(filters, eps=_EPS)
        widths = [filters * 2**level for level in range(DEPTH)]
        self.down_branch = nn.ModuleList(
            nn.ModuleList(_down(before, after, last=level == DEPTH - 1))
            for level, (before, after) in enumerate(zip([filters, *widths], widths, strict=False))
        )
        self.up_branch = nn.ModuleList(
            nn.ModuleList(_up(widths[level + 1], widths[level])) for level in reversed(range(DEPTH - 1))
        )
        self.out = nn.Conv1d(filters, classes, 1)

    def forward(self, x_BCS: Tensor) -> Tensor:
        """Logits `(batch, class, sample)` of windows `(batch, channel, sample)`."""
        made = torch.relu(self.in_bn(self.inc(x_BCS)))
        skipped: list[Tensor] = []
        for number, level in enumerate(self.down_branch):
            same, norm, *down = cast(nn.ModuleList, level)
            made = torch.relu(norm(same(made)))
            if down:
                skipped.append(made)
                made = torch.relu(down[1](down[0](_with_zeros(made, number))))
        for level, skip in zip(self.up_branch, reversed(skipped), strict=True):
            rise, norm, same, second = cast(nn.ModuleList, level)
            made = torch.relu(norm(rise(made)))[..., _CUT]
            made = torch.relu(second(same(_joined(skip, made))))
        logits_BKS: Tensor = self.out(made)
        return logits_BKS


def pick_phases(
    network: nn.Module, window: npt.NDArray[np.float32], rate_hz: float, threshold: float = 0.3
) -> tuple[float, float]:
    """Seconds from the first sample to the likeliest P, and to the likeliest S after it; NaN where it is none.

    The window is resampled to 100 Hz and seen in parts of 3001 samples, each component less its mean and over its
    deviation. A sample's probability is the largest of the parts that see it.

    Args:
        network: The original PhaseNet, or one with the same input and outputs.
        window: `(component, sample)`, E, N, Z; NaN counts as 0.
        rate_hz: Its samples per second.
        threshold: Smaller probabilities make no pick.
    """
    ratio = Fraction(RATE_HZ / rate_hz).limit_denominator(1000)
    lines = resample_poly(np.nan_to_num(window).astype(np.float64), ratio.numerator, ratio.denominator, axis=-1)
    samples = max(lines.shape[-1], WINDOW)
    lines = np.pad(lines, ((0, 0), (0, samples - lines.shape[-1])))
    starts = sorted({*range(0, samples - WINDOW, WINDOW // 4), samples - WINDOW})
    parts = np.stack([lines[:, start : start + WINDOW] for start in starts])
    parts -= parts.mean(axis=-1, keepdims=True)
    deviation = parts.std(axis=-1, keepdims=True)
    parts /= np.where(deviation > 0, deviation, 1)
    with torch.inference_mode():
        seen_BKS = network(torch.from_numpy(parts.astype(np.float32))).softmax(dim=1).numpy()
    likely = np.zeros((seen_BKS.shape[1], samples))
    for start, seen_KS in zip(starts, seen_BKS, strict=True):
        own = slice(start, start + WINDOW)
        likely[:, own] = np.maximum(likely[:, own], seen_KS)
    p_sample = int(likely[P].argmax())
    s_sample = p_sample + int(likely[S][p_sample:].argmax())
    return tuple(  # type: ignore[return-value]
        sample / RATE_HZ if likely[phase, sample] > threshold else math.nan
        for phase, sample in ((P, p_sample), (S, s_sample))
    )


def _down(before: int, after: int, *, last: bool) -> list[nn.Module]:
    """A level that goes down: a convolution, and one with strides where another level follows."""
    layers = [nn.Conv1d(before, after, KERNEL, padding="same", bias=False), nn.BatchNorm1d(after, eps=_EPS)]
    if last:
        return layers
    return [*layers, nn.Conv1d(after, after, KERNEL, STRIDE, bias=False), nn.BatchNorm1d(after, eps=_EPS)]


def _up(before: int, after: int) -> list[nn.Module]:
    """A level that comes up: a transposed convolution, and one of it and what was skipped."""
    return [
        nn.ConvTranspose1d(before, after, KERNEL, STRIDE, bias=False),
        nn.BatchNorm1d(after, eps=_EPS),
        nn.Conv1d(2 * after, after, KERNEL, padding="same", bias=False),
        nn.BatchNorm1d(after, eps=_EPS),
    ]


def _with_zeros(x_BCS: Tensor, level: int) -> Tensor:
    """The input of the convolution with strides of a level, padded as SeisBench does; at least one kernel long."""
    before, after = PADDING[level]
    return nn.functional.pad(x_BCS, (before, max(after, KERNEL - before - x_BCS.shape[-1])))


def _joined(skip_BCS: Tensor, risen_BCS: Tensor) -> Tensor:
    """What was skipped and what came up, of one length; some lengths come up shorter than they went down."""
    excess = risen_BCS.shape[-1] - skip_BCS.shape[-1]
    risen_BCS = nn.functional.pad(risen_BCS, (0, max(0, -excess)))
    first = max(0, excess // 2)
    return torch.cat([skip_BCS, risen_BCS[..., first : first + skip_BCS.shape[-1]]], dim=1)
