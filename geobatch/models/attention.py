"""Self-attention over sequences: traces, waveforms and logs.

Tensor axes: B batch, C channel, K class, S sample, T token, F feature.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from geobatch.errors import UsageError
from geobatch.models.layers import require_sizes
from geobatch.models.padding import padded, without_padding


class Attention(nn.Module):
    """A transformer encoder (Vaswani et al. 2017, arXiv 1706.03762), norms first (Xiong et al. 2020, arXiv 2002.04745).

    Each token is a run of `step` samples (Dosovitskiy et al. 2021, arXiv 2010.11929) after a convolution, which tells
    it of its neighbours (Xiao et al. 2021, arXiv 2106.14881), with a positional encoding of sines and cosines. One
    answer per sample, or one per sequence from the mean of its tokens.

    Args:
        in_channels: Channels of the input.
        classes: Outputs K: one per class, or 1 for a number.
        width: Features of a token, even.
        heads: Of attention; they share the width.
        layers: One upon the other.
        step: Samples of a token; attention costs the square of the number of tokens.
        kernel: Samples of the convolution, odd; 1 for none.
        dropout: Share of features dropped, in training.
        output: `dense` per sample, `one` per sequence.

    Raises:
        UsageError: a size is below 1, or the width is odd or no multiple of the heads.
    """

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 2,
        width: int = 64,
        heads: int = 4,
        layers: int = 3,
        step: int = 1,
        kernel: int = 3,
        dropout: float = 0.1,
        output: Literal["dense", "one"] = "dense",
    ) -> None:
        super().__init__()
        require_sizes("attention", in_channels=in_channels, classes=classes, width=width, heads=heads)
        require_sizes("attention", layers=layers, step=step, kernel=kernel)
        if width % heads or width % 2 or kernel % 2 == 0:
            raise UsageError(
                "the width of attention is even and a multiple of its heads, its kernel odd",
                where="model",
                measured=f"width {width} for {heads} heads, kernel {kernel}",
            )
        self.output, self.step = output, step
        self.local = nn.Identity() if kernel == 1 else nn.Conv1d(in_channels, width, kernel, padding=kernel // 2)
        self.embed = nn.Conv1d(in_channels if kernel == 1 else width, width, kernel_size=step, stride=step)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, classes * (step if output == "dense" else 1))

    def forward(self, x_BCS: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Logits `(batch, class, sample)`, or `(batch, class)`, of an input `(batch, channel, sample)`.

        Args:
            x_BCS: The input.
            lengths_B: Samples of each before its padding, at least 1: no token looks at one that is padding alone.
        """
        samples = x_BCS.shape[-1]
        tokens = -(-samples // self.step)
        local_BFS = without_padding(self.local(without_padding(x_BCS, lengths_B)), lengths_B)
        features_BFT = self.embed(nn.functional.pad(local_BFS, (0, tokens * self.step - samples)))
        features_BTF = features_BFT.transpose(1, 2) + positions(tokens, features_BFT.shape[1]).to(x_BCS)
        hidden_BT = None if lengths_B is None else padded(-(-lengths_B // self.step), tokens)
        features_BTF = self.encoder(features_BTF, src_key_padding_mask=hidden_BT)
        if self.output == "one":
            return self.head(_mean(features_BTF, hidden_BT))  # type: ignore[no-any-return]
        logits_BSK = self.head(features_BTF).reshape(len(x_BCS), tokens * self.step, -1)
        return logits_BSK[:, :samples].transpose(1, 2)  # type: ignore[no-any-return]


def positions(tokens: int, width: int) -> Tensor:
    """The positional encoding `(token, feature)` of Vaswani et al. (2017), section 3.5, float32."""
    place_T = torch.arange(tokens, dtype=torch.float32)
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10_000.0) / width))
    angle = place_T[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=2).reshape(tokens, width)


def _mean(features_BTF: Tensor, hidden_BT: Tensor | None) -> Tensor:
    """The mean over the tokens that are not padding."""
    if hidden_BT is None:
        return features_BTF.mean(dim=1)
    seen_BT1 = (~hidden_BT)[:, :, None].to(features_BTF)
    return (features_BTF * seen_BT1).sum(dim=1) / seen_BT1.sum(dim=1)
