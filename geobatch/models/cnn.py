"""Convolutional classifiers of traces, sections, images and volumes.

Tensor axes: B batch, C channel, K class; then the network's own axes, of which the last is S, the samples.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from geobatch.errors import UsageError
from geobatch.models.layers import LAYERS, Layers, require_sizes
from geobatch.models.padding import without_padding

Output = Literal["dense", "one"]


class CNN(nn.Module):
    """Convolutions, then dense layers: one answer per input, or one per cell.

    With `output="one"` it is the classic classifier (LeCun et al. 1998, doi:10.1109/5.726791): stages of convolutions
    with batch norm and ReLU, each followed by max-pooling, then an average over a few parts of each axis (Lin et al.
    2014, arXiv 1312.4400), then dense layers. With `output="dense"` nothing is pooled: each stage is a residual block
    (He et al. 2016, doi:10.1109/CVPR.2016.90) whose convolutions are dilated twice as far as those of the stage before
    (Yu & Koltun 2016, arXiv 1511.07122), so that it sees `(kernel - 1) * convolutions * (2 ** stages - 1) + 1` cells.

    Args:
        in_channels: Channels of the input.
        classes: Outputs K: one per class, or 1 for a number.
        dims: Axes of its input: 3 of a volume, 2 of a section, an image or a spectrogram, 1 of a trace or a log.
        channels: Feature channels of the first stage; with `one` they double from stage to stage.
        stages: See above.
        convolutions: In each stage.
        kernel: Cells of a convolution along each axis, odd.
        pooled: With `one`: parts of each axis that the dense layers see apart; 1 makes it blind to place.
        hidden: Units of a dense layer before the last one; 0 for none.
        dropout: Share of features dropped before the last layer, in training.
        output: See above.

    Raises:
        UsageError: a size is below 1, the kernel is even, or `dims` is none of 1, 2 and 3.
    """

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 2,
        dims: int = 2,
        channels: int = 16,
        stages: int = 4,
        convolutions: int = 1,
        kernel: int = 3,
        pooled: int = 1,
        hidden: int = 0,
        dropout: float = 0.0,
        output: Output = "one",
    ) -> None:
        super().__init__()
        require_sizes(
            "a CNN", in_channels=in_channels, classes=classes, channels=channels, stages=stages, pooled=pooled
        )
        require_sizes("a CNN", convolutions=convolutions, kernel=kernel)
        if dims not in LAYERS or kernel % 2 == 0:
            raise UsageError(
                "a CNN has 1, 2 or 3 dims and an odd kernel", where="model", measured=f"dims {dims}, kernel {kernel}"
            )
        layers = LAYERS[dims]
        dense = output == "dense"
        widths = [channels if dense else channels * 2**stage for stage in range(stages)]
        self.output = output
        self.stages = nn.ModuleList(
            _Stage(layers, before, after, convolutions, kernel, dilation=2**stage if dense else 1)
            for stage, (before, after) in enumerate(zip([in_channels, *widths], widths, strict=False))
        )
        self.pool = nn.Identity() if dense else layers.pool(2, ceil_mode=True)
        self.gather = nn.Identity() if dense else nn.Sequential(layers.average(pooled), nn.Flatten())
        features = widths[-1] * (1 if dense else pooled**dims)
        self.head = _head(layers if dense else None, features, hidden, classes, dropout)

    def forward(self, x_BC: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Logits `(batch, class, *axes)`, or `(batch, class)`, of an input `(batch, channel, *axes)`.

        Args:
            x_BC: The input.
            lengths_B: Samples of each before its padding, with `dense`: what is padded changes no other sample.
        """
        lengths_B = lengths_B if self.output == "dense" else None
        for stage in self.stages:
            x_BC = self.pool(stage(x_BC, lengths_B))
        logits_BK: Tensor = self.head(self.gather(x_BC))
        return logits_BK


class _Stage(nn.Module):
    """Convolutions with batch norm and ReLU; where they are dilated, their input is added to what they make."""

    def __init__(self, layers: Layers, before: int, after: int, convolutions: int, kernel: int, dilation: int) -> None:
        super().__init__()
        reach = dilation * (kernel // 2)
        # No bias: the batch norm that follows would take it out again.
        self.body = nn.ModuleList(
            nn.Sequential(
                layers.convolution(
                    after if number else before, after, kernel, padding=reach, dilation=dilation, bias=False
                ),
                layers.norm(after),
                nn.ReLU(inplace=True),
            )
            for number in range(convolutions)
        )
        self.residual = dilation > 1 and before == after

    def forward(self, x_BC: Tensor, lengths_B: Tensor | None) -> Tensor:
        made = x_BC
        for part in self.body:
            # Every convolution would carry what is padded into the samples before it.
            made = part(without_padding(made, lengths_B))
        return made + x_BC if self.residual else made


def _head(layers: Layers | None, features: int, hidden: int, classes: int, dropout: float) -> nn.Sequential:
    """Dense layers, per cell as convolutions of one cell."""

    def dense(before: int, after: int) -> nn.Module:
        return nn.Linear(before, after) if layers is None else layers.convolution(before, after, 1)

    middle = [dense(features, hidden), nn.ReLU(inplace=True)] if hidden else []
    return nn.Sequential(*middle, nn.Dropout(dropout), dense(hidden or features, classes))
