"""How far outputs depend on inputs, and along which axes on all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from surveys import strong_network
from torch import Tensor, nn
from torch.nn import functional

from geobatch.errors import MismatchError
from geobatch.models.reach import TOLERANCE, measure_reach, tiling_deviations, verified_reach

PLAIN = (1, 1, 1)


class Function(nn.Module):
    """A network whose `forward` is a function of the input and some modules."""

    def __init__(self, function: Callable[..., Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)


def conv(before: int, after: int, kernel: int = 3, **settings: object) -> nn.Conv3d:
    return nn.Conv3d(before, after, kernel, **{"padding": kernel // 2, **settings})


def cut(y: Tensor, x: Tensor) -> Tensor:
    return y[:, :, : x.shape[2], : x.shape[3], : x.shape[4]]


def along_samples(x: Tensor, layer: Callable[[Tensor], Tensor]) -> Tensor:
    """`layer` on sequences `(trace, sample, channel)`."""
    inlines, crosslines, samples = x.shape[2:]
    y = layer(x.permute(0, 2, 3, 4, 1).reshape(-1, samples, x.shape[1]))
    return y.reshape(len(x), inlines, crosslines, samples, -1).permute(0, 4, 1, 2, 3)


def filled_by_parts(x: Tensor, layer: nn.Module) -> Tensor:
    parts = torch.zeros_like(x)
    parts[:, :, ::2] = x[:, :, ::2]
    parts[:, :, 1::2] += x[:, :, 1::2]
    return layer(parts)


def silent(x: Tensor, first: nn.Module, second: nn.Module, rectify: Callable[[Tensor], Tensor]) -> Tensor:
    """A rectifier that is off everywhere between two convolutions."""
    return second(rectify(first(x) - 1e9))


RECTIFIERS = {
    "module": nn.ReLU(),
    "in place": nn.ReLU(inplace=True),
    "functional": functional.relu,
    "method": Tensor.relu,
    "clamp": lambda x: x.clamp(min=0),
    "where": lambda x: torch.where(x > 0, x, torch.zeros(())),
    "product": lambda x: x * (x > 0),
    "hardtanh": nn.Hardtanh(0, 6),
}
POOLS = {
    "module": nn.MaxPool3d(2, ceil_mode=True),
    "functional": lambda x: functional.max_pool3d(x, 2, ceil_mode=True),
    "average": nn.AvgPool3d(2, ceil_mode=True),
}
BOUNDED = {
    "dilation": (nn.Sequential(conv(1, 2, padding=4, dilation=4), conv(2, 2, padding=2, dilation=2)), 1, (6, 6)),
    "grouped": (nn.Sequential(conv(1, 4), conv(4, 4, groups=4), nn.PReLU(4), nn.Dropout3d()), 1, (2, 2)),
    "stride and transpose": (
        Function(
            lambda x, down, up: cut(up(down(x)), x),
            conv(1, 2, stride=2),
            nn.ConvTranspose3d(2, 2, 3, stride=2, padding=1, output_padding=1),
        ),
        2,
        (2, 1),
    ),
    "nearest": (
        Function(lambda x, down: cut(functional.interpolate(down(x), scale_factor=2), x), conv(1, 2, stride=2)),
        2,
        (2, 0),
    ),
    "reflection": (
        Function(
            lambda x, net: cut(net(x), x),
            nn.Sequential(
                conv(1, 2, padding_mode="reflect"), nn.MaxPool3d(2, ceil_mode=True), nn.Upsample(scale_factor=2)
            ),
        ),
        2,
        (2, 2),
    ),
    "channel softmax": (Function(lambda x, c: c(x).softmax(1), conv(1, 2)), 1, (1, 1)),
    "channel layer norm": (
        Function(lambda x, c, n: n(c(x).movedim(1, -1)).movedim(-1, 1), conv(1, 4), nn.LayerNorm(4)),
        1,
        (1, 1),
    ),
    "linear in channels": (Function(lambda x, n: n(x.movedim(1, -1)).movedim(-1, 1), nn.Linear(1, 2)), 1, (0, 0)),
    "filled by parts": (Function(filled_by_parts, conv(1, 2)), 1, (1, 1)),
    "instance norm with stored statistics": (
        nn.Sequential(conv(1, 2), nn.InstanceNorm3d(2, track_running_stats=True)),
        1,
        (1, 1),
    ),
}
ALL = (0, 1, 2)
UNBOUNDED = {
    "instance norm": (nn.Sequential(conv(1, 2), nn.InstanceNorm3d(2)), ALL),
    "group norm": (nn.Sequential(conv(1, 4), nn.GroupNorm(2, 4)), ALL),
    "batch norm of the batch": (nn.Sequential(conv(1, 2), nn.BatchNorm3d(2, track_running_stats=False)), ALL),
    "squeeze and excitation": (
        Function(lambda x, c: c(x) * functional.adaptive_avg_pool3d(c(x), 1).sigmoid(), conv(1, 2)),
        ALL,
    ),
    "scaled by its own deviation": (Function(lambda x, c: c(x) / c(x).std(4, keepdim=True), conv(1, 2)), (2,)),
    "softmax over samples": (Function(lambda x, c: c(x).softmax(4), conv(1, 2)), (2,)),
    "spectrum": (Function(lambda x, c: torch.fft.rfft(c(x), dim=4).abs().mean(4, True) + x, conv(1, 2)), ALL),
    "a number read out": (Function(lambda x, c: c(x) * (1 if x.max() > 0 else 2), conv(1, 2)), ALL),
    "through numpy": (Function(lambda x, c: torch.from_numpy(np.cumsum(c(x).numpy(), 2)), conv(1, 2)), ALL),
    "attention": (
        Function(lambda x, a: along_samples(x, lambda t: a(t, t, t)[0]), nn.MultiheadAttention(1, 1, batch_first=True)),
        (2,),
    ),
    "fused attention": (
        Function(lambda x: along_samples(x, lambda t: functional.scaled_dot_product_attention(t, t, t))),
        (2,),
    ),
    "lstm": (Function(lambda x, r: along_samples(x, lambda t: r(t)[0]), nn.LSTM(1, 2, batch_first=True)), (2,)),
    "resized to a given size": (
        Function(
            lambda x, c: functional.interpolate(
                functional.max_pool3d(c(x), 2), size=x.shape[2:], mode="trilinear", align_corners=True
            ),
            conv(1, 2),
        ),
        ALL,
    ),
}


@pytest.mark.parametrize("name", RECTIFIERS)
def test_a_rectifier_that_is_off_hides_no_path(name: str) -> None:
    network = Function(lambda x, a, b: silent(x, a, b, RECTIFIERS[name]), conv(1, 2), conv(2, 2))
    assert measure_reach(network, 1, PLAIN).halo == ((2, 2),) * 3


@pytest.mark.parametrize("name", POOLS)
def test_a_pooling_that_chose_another_cell_hides_no_path(name: str) -> None:
    def pooled(x: Tensor) -> Tensor:
        # One cell of each window always wins.
        favoured = x + torch.arange(2).repeat(x.shape[4])[: x.shape[4]] * 1e9
        return cut(functional.interpolate(POOLS[name](favoured), scale_factor=2), x)

    network = Function(pooled)
    assert measure_reach(network, 1, (2, 2, 2)).by_phase == (((0, 1), (1, 0)),) * 3


@pytest.mark.parametrize("name", BOUNDED)
def test_a_bounded_network_tiles_with_its_measured_halo(name: str) -> None:
    network, stride, halo = BOUNDED[name]
    reach = measure_reach(network, 1, (stride,) * 3)
    assert reach.halo == (halo,) * 3
    assert reach.unbounded == ()
    assert max(tiling_deviations(network, 1, reach)) <= TOLERANCE


@pytest.mark.parametrize("name", UNBOUNDED)
def test_dependence_on_the_whole_patch_is_recorded_per_axis(name: str) -> None:
    network, axes = UNBOUNDED[name]
    stride = (2, 2, 2) if name.startswith("resized") else PLAIN
    reach, deviation = verified_reach(network.eval(), 1, stride)
    assert reach.unbounded == axes
    assert all(reach.halo[axis] == (0, 0) for axis in axes)
    assert deviation <= TOLERANCE


def test_reach_of_a_three_level_unet_is_22_cells_from_an_aligned_edge() -> None:
    network = strong_network(levels=3)
    reach, deviation = verified_reach(network, 1, (4, 4, 4))
    assert reach.halo == ((22, 22),) * 3
    assert reach.by_phase[0] == ((22, 21), (23, 20), (20, 23), (21, 22))
    assert deviation < 1e-13


class Lopsided(nn.Module):
    """Strides 1, 2 and 3, and another reach to each side of each axis, so that none can be taken for another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv3d(1, 2, (2, 3, 4))
        self.down = nn.Conv3d(2, 2, (1, 2, 3), stride=(1, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        wide = functional.pad(x, (0, 3, 2, 0, 0, 1))
        missing = [(-n) % s for n, s in zip(x.shape[2:], (1, 2, 3), strict=True)]
        coarse = self.down(functional.pad(self.first(wide), (0, missing[2], 0, missing[1])))
        return cut(functional.interpolate(coarse, scale_factor=(1.0, 2.0, 3.0)), x)


def test_axes_and_sides_are_not_taken_for_one_another() -> None:
    reach, deviation = verified_reach(Lopsided(), 1, (1, 2, 3))
    # Of a window of 1, 2 or 3 cells every output sees all, and what the first convolution sees around them.
    assert reach.by_phase == (((0, 1),), ((2, 1), (3, 0)), ((0, 5), (1, 4), (2, 3)))
    assert reach.halo == ((0, 1), (2, 0), (0, 3))
    assert reach.unbounded == ()
    assert deviation <= TOLERANCE


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_halo_one_cell_short_is_noticed_where_it_is(axis: int, side: int) -> None:
    network = strong_network(levels=2)
    reach = measure_reach(network, 1, (2, 2, 2))
    halo = [list(pair) for pair in reach.halo]
    halo[axis][side] -= 1
    deviations = tiling_deviations(network, 1, replace(reach, halo=tuple(map(tuple, halo))))
    assert [deviation > TOLERANCE for deviation in deviations] == [a == axis for a in range(3)]


def test_a_network_of_other_output_size_is_refused() -> None:
    with pytest.raises(MismatchError, match="another size"):
        measure_reach(conv(1, 2, padding=0), 1, PLAIN)
    with pytest.raises(MismatchError, match="no patch"):
        measure_reach(nn.Linear(7, 2), 1, PLAIN)
