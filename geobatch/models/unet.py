"""U-Net for volumes.

Tensor axes: B batch, C channel, K class, I inline, X crossline, S sample.
"""

from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor, nn

from geobatch.errors import UsageError

FAULTSEG3D: Final[dict[str, Any]] = {"name": "unet", "classes": 2, "channels": 16, "levels": 4}
"""The size of FaultSeg3D (Wu et al. 2019, doi:10.1190/geo2018-0646.1): 16 channels at the top, three poolings."""


class UNet(nn.Module):
    """A U-Net (Ronneberger et al. 2015, doi:10.1007/978-3-319-24574-4_28) that accepts any volume size.

    Each level holds two 3x3x3 convolutions with batch norm and ReLU; channels double from level to level. Max-pooling
    rounds up and each upsampled tensor is cut to its skip connection, so sizes need not divide by the total stride.

    Args:
        in_channels: channels of the input, 1 for amplitude alone.
        classes: number of classes K.
        channels: feature channels of the finest level.
        levels: resolutions; the total stride is `2 ** (levels - 1)`.
    """

    def __init__(self, in_channels: int = 1, classes: int = 2, channels: int = 8, levels: int = 3) -> None:
        super().__init__()
        _check_sizes(in_channels=in_channels, classes=classes, channels=channels, levels=levels)
        widths = [channels * 2**level for level in range(levels)]
        self.encoders = nn.ModuleList(
            _double_convolution(before, after) for before, after in zip([in_channels, *widths], widths, strict=False)
        )
        self.pool = nn.MaxPool3d(2, ceil_mode=True)
        self.upsamplers = nn.ModuleList(
            nn.ConvTranspose3d(coarse, fine, kernel_size=2, stride=2) for fine, coarse in pairwise(widths)
        )
        self.decoders = nn.ModuleList(_double_convolution(2 * width, width) for width in widths[:-1])
        self.head = nn.Conv3d(channels, classes, kernel_size=1)

    def forward(self, x_BCIXS: Tensor) -> Tensor:
        """Return logits (batch, class, inline, crossline, sample), of the input's size."""
        skips: list[Tensor] = []
        x = self.encoders[0](x_BCIXS)
        for encoder in list(self.encoders)[1:]:
            skips.append(x)
            x = encoder(self.pool(x))
        for level in reversed(range(len(skips))):
            skip = skips[level]
            inlines, crosslines, samples = skip.shape[2:]
            upsampled = self.upsamplers[level](x)[:, :, :inlines, :crosslines, :samples]
            x = self.decoders[level](torch.cat([skip, upsampled], dim=1))
        logits_BKIXS: Tensor = self.head(x)
        return logits_BKIXS


def _double_convolution(before: int, after: int) -> nn.Sequential:
    # No bias: the batch norm that follows would take it out again.
    return nn.Sequential(
        nn.Conv3d(before, after, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm3d(after),
        nn.ReLU(inplace=True),
        nn.Conv3d(after, after, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm3d(after),
        nn.ReLU(inplace=True),
    )


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise UsageError(f"a U-Net needs {name} of at least 1", measured=str(value), limit="1")
