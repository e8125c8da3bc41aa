"""Recurrent networks of sequences: traces, waveforms and logs.

Tensor axes: B batch, C channel, K class, S sample, H hidden unit.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from geobatch.models.layers import require_sizes

_CELLS = {"lstm": nn.LSTM, "gru": nn.GRU}


class RNN(nn.Module):
    """An LSTM or a GRU; one answer per sample, or one per sequence from what each direction holds at its end.

    LSTM: Hochreiter & Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735. GRU: Cho et al. 2014, doi:10.3115/v1/D14-1179.
    Both directions: Schuster & Paliwal 1997, doi:10.1109/78.650093.

    Args:
        in_channels: Channels of the input.
        classes: Outputs K: one per class, or 1 for a number.
        cell: `lstm` or `gru`.
        hidden: Units of each layer and direction.
        layers: One upon the other.
        bidirectional: Both directions.
        dropout: Share of features dropped between layers and before the last, in training.
        output: `dense` per sample, `one` per sequence.

    Raises:
        UsageError: a size is below 1.
    """

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 2,
        cell: Literal["lstm", "gru"] = "lstm",
        hidden: int = 64,
        layers: int = 2,
        bidirectional: bool = True,
        dropout: float = 0.0,
        output: Literal["dense", "one"] = "dense",
    ) -> None:
        super().__init__()
        require_sizes("an RNN", in_channels=in_channels, classes=classes, hidden=hidden, layers=layers)
        self.output = output
        self.directions = 1 + bidirectional
        self.recurrent = _CELLS[cell](
            in_channels,
            hidden,
            layers,
            batch_first=True,
            bidirectional=bidirectional,
            dropout=dropout if layers > 1 else 0.0,
        )
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(self.directions * hidden, classes))

    def forward(self, x_BCS: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Logits `(batch, class, sample)`, or `(batch, class)`, of an input `(batch, channel, sample)`.

        Args:
            x_BCS: The input.
            lengths_B: Samples of each before its padding, at least 1: what is padded is not seen.
        """
        x_BSC = x_BCS.transpose(1, 2)
        if lengths_B is None:
            made_BSH, state = self.recurrent(x_BSC)
        else:
            packed = pack_padded_sequence(x_BSC, lengths_B.cpu(), batch_first=True, enforce_sorted=False)
            made, state = self.recurrent(packed)
            made_BSH, _ = pad_packed_sequence(made, batch_first=True, total_length=x_BSC.shape[1])
        if self.output == "dense":
            return self.head(made_BSH).transpose(1, 2)  # type: ignore[no-any-return]
        last_LBH = state[0] if isinstance(state, tuple) else state
        ends_BH = torch.cat(list(last_LBH[-self.directions :]), dim=1)
        return self.head(ends_BH)  # type: ignore[no-any-return]
