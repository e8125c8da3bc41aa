"""Networks of sections and traces as networks of volumes, so that one grid, planner and predictor serve them all.

                        crossline                                  along inline sections, every inline is an item
    volume  (B, C, I, X, S)  ──▶  (B·I, C, X, S)  ──▶ network ──▶  (B·I, K, X, S)  ──▶  (B, K, I, X, S)  of the batch

Along the axes that go into the batch nothing is pooled and nothing is looked at: stride 1, no halo.

Tensor axes: B batch, C channel, K class, I inline, X crossline, S sample.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import reduce
from typing import Final, Literal

import torch
from torch import Tensor, nn

from geobatch.blocks import Halo
from geobatch.errors import MismatchError, UsageError
from geobatch.models.bundle import Bundle, ReachInfo
from geobatch.survey import VOLUME_AXES

SectionAxis = Literal["inline", "crossline", "sample"]
Combine = Literal["mean", "vote"]
Plane = tuple[int, ...]
"""The survey axes, by number, on which a network's own axes lie, in the network's order."""

STANDS_FOR: Final[dict[str, tuple[str, ...]]] = {
    **{axis: (axis,) for axis in VOLUME_AXES},
    "trace": ("inline", "crossline"),
    "row": VOLUME_AXES,
    "column": VOLUME_AXES,
}
"""Axis names a bundle of sections or traces may use, and the survey axes on which each may lie."""

CELLS_AT_ONCE = 2**20
"""Cells of sections or traces in one forward pass, so that a large patch does not hold all activations at once."""


class SectionNetwork(nn.Module):
    """A network of sections or traces that takes and gives volumes.

    Args:
        network: Takes `(batch, channel, *axes)`, returns logits `(batch, class, *axes)`, of one or two axes.
        planes: Where its axes lie, once for each set of sections it runs along.
        combine: How the results of several sets become one, of `COMBINATIONS`.
        cells_at_once: Cells in one forward pass; a section is never divided.
    """

    def __init__(
        self,
        network: nn.Module,
        planes: tuple[Plane, ...],
        combine: Combine = "mean",
        cells_at_once: int = CELLS_AT_ONCE,
    ) -> None:
        super().__init__()
        self.network = network
        self.planes = planes
        self.combination: Callable[[Iterator[Tensor], int], Tensor] = COMBINATIONS[combine]
        self.cells_at_once = cells_at_once

    def forward(self, x_BCIXS: Tensor) -> Tensor:
        """Logits `(batch, class, inline, crossline, sample)`."""
        if len(self.planes) == 1:
            return self._along(x_BCIXS, self.planes[0])
        return self.combination((self._along(x_BCIXS, plane) for plane in self.planes), len(self.planes))

    def _along(self, x_BCIXS: Tensor, plane: Plane) -> Tensor:
        """Logits of the volume from one set of sections or traces."""
        batched = tuple(axis for axis in range(len(VOLUME_AXES)) if axis not in plane)
        order = (0, *(axis + 2 for axis in batched), 1, *(axis + 2 for axis in plane))
        x = x_BCIXS.permute(order)
        items, item = x.shape[: len(batched) + 1], x.shape[len(batched) + 1 :]
        at_once = max(1, self.cells_at_once // math.prod(item[1:]))
        logits = torch.cat([self.network(part) for part in torch.split(x.reshape(-1, *item), at_once)])
        back = sorted(range(len(order)), key=order.__getitem__)
        return logits.reshape(*items, *logits.shape[1:]).permute(back)


def _mean(members: Iterator[Tensor], count: int) -> Tensor:
    """Logits whose softmax is the mean of the members' class probabilities: its logarithm."""
    log_p = (torch.log_softmax(_at_least_float32(logits_BK), dim=1) for logits_BK in members)
    return reduce(torch.logaddexp, log_p) - math.log(count)


def _vote(members: Iterator[Tensor], count: int) -> Tensor:
    """Logits whose largest is the class that most members find most probable, of equals the one of larger mean.

    Each member has one ballot for its class, and one more ballot is divided by mean probability. That decides between
    equals and nothing else: a class with fewer ballots cannot get all of it. The softmax of the logits is each class's
    share of the ballots.
    """
    share_BK = reduce(torch.add, (_ballots(_at_least_float32(logits_BK), count) for logits_BK in members)) / (count + 1)
    return share_BK.clamp_min(torch.finfo(share_BK.dtype).tiny).log()


def _ballots(logits_BK: Tensor, count: int) -> Tensor:
    """One ballot for the most probable class, and the part of a `count`-th one that each class has by probability."""
    p_BK = torch.softmax(logits_BK, dim=1)
    return (p_BK / count).scatter_add_(1, p_BK.argmax(dim=1, keepdim=True), torch.ones_like(p_BK[:, :1]))


COMBINATIONS: Final[dict[Combine, Callable[[Iterator[Tensor], int], Tensor]]] = {"mean": _mean, "vote": _vote}


def _at_least_float32(logits_BK: Tensor) -> Tensor:
    return logits_BK.float() if logits_BK.dtype.itemsize < 4 else logits_BK


def volume_network(
    bundle: Bundle, sections: tuple[SectionAxis, ...] = (), combine: Combine | None = None
) -> tuple[nn.Module, ReachInfo]:
    """A bundle's network as one that takes `(batch, channel, inline, crossline, sample)`, and its reach there.

    Args:
        bundle: Of volumes, sections or traces.
        sections: Survey axes across which the sections lie, as `resolve_sections` gives them.
        combine: How several sets of sections become one result, `mean` when left out.

    Raises:
        MismatchError: the bundle's axes do not fit a volume.
        UsageError: its axes do not lie in the sections asked for.
    """
    planes = _planes(bundle.spec.axes, resolve_sections(bundle.spec.axes, sections))
    if len(planes[0]) == len(VOLUME_AXES):
        return bundle.network(), bundle.spec.reach
    return SectionNetwork(bundle.network(), planes, combine or "mean"), section_reach(bundle.spec.reach, planes)


def resolve_sections(axes: tuple[str, ...], sections: tuple[SectionAxis, ...]) -> tuple[SectionAxis, ...]:
    """The sections along which a bundle of these axes runs, in survey order; of volumes and traces none.

    Raises:
        MismatchError: the axes do not fit a volume.
        UsageError: sections are missing, superfluous or not those of the axes.
    """
    if len(axes) != 2:
        _require_no_sections(axes, sections)
        return ()
    candidates: tuple[SectionAxis, ...] = ("inline", "crossline", "sample")
    fitting = tuple(section for section in candidates if _plane(axes, _axes_of(section)))
    if not fitting:
        raise _unfit(axes)
    strangers = [section for section in sections if section not in fitting]
    if strangers or (not sections and len(fitting) > 1):
        raise UsageError(
            "the bundle's axes do not lie in these sections" if strangers else "the bundle runs along several sections",
            where="sections",
            measured=f"{', '.join(strangers) or 'none given'}; axes of the bundle {', '.join(axes)}",
            limit=f"{' or '.join(fitting)}{' or a list of them' if len(fitting) > 1 else ''}",
            remedy="Name the axis across which the sections lie: on inline sections lie crossline and sample.",
        )
    return tuple(section for section in fitting if section in (sections or fitting))


def section_reach(reach: ReachInfo, planes: tuple[Plane, ...]) -> ReachInfo:
    """The reach in the survey's axes of a network that runs along these planes.

    Per survey axis the stride is the least common multiple and the halo the largest of the planes that hold it: an
    edge on a multiple of a multiple of the stride is aligned for each of them.
    """
    stride: list[int] = []
    by_phase: list[Halo] = []
    halo: list[tuple[int, int]] = []
    for axis in range(len(VOLUME_AXES)):
        own = [plane.index(axis) for plane in planes if axis in plane]
        period = math.lcm(*(reach.stride[a] for a in own))
        phases = [[reach.by_phase[a][phase % reach.stride[a]] for a in own] for phase in range(period)]
        stride.append(period)
        by_phase.append(tuple(_furthest(pairs) for pairs in phases))
        halo.append(_furthest([reach.halo[a] for a in own]))
    unbounded = tuple(sorted({plane[axis] for plane in planes for axis in reach.unbounded}))
    figures = {"stride": tuple(stride), "by_phase": tuple(by_phase), "halo": tuple(halo), "unbounded": unbounded}
    return reach.model_copy(update=figures)


def _furthest(pairs: list[tuple[int, int]]) -> tuple[int, int]:
    return max((before for before, _ in pairs), default=0), max((after for _, after in pairs), default=0)


def _planes(axes: tuple[str, ...], sections: tuple[SectionAxis, ...]) -> tuple[Plane, ...]:
    spaces = [_axes_of(section) for section in sections] or [VOLUME_AXES if len(axes) == 3 else ("sample",)]
    return tuple(plane for space in spaces if (plane := _plane(axes, space)))


def _plane(axes: tuple[str, ...], space: tuple[str, ...]) -> Plane:
    """Where the bundle's axes lie in a section, a trace or the volume; nothing where they do not fit."""
    for places in itertools.permutations(space):
        if len(axes) == len(places) and all(p in STANDS_FOR.get(a, ()) for a, p in zip(axes, places, strict=True)):
            return tuple(VOLUME_AXES.index(place) for place in places)
    return ()


def _axes_of(section: SectionAxis) -> tuple[str, ...]:
    return tuple(axis for axis in VOLUME_AXES if axis != section)


def _require_no_sections(axes: tuple[str, ...], sections: tuple[SectionAxis, ...]) -> None:
    if axes != VOLUME_AXES and not (len(axes) == 1 and _plane(axes, ("sample",))):
        raise _unfit(axes)
    if sections:
        raise UsageError(
            "only networks of sections run along sections",
            where="sections",
            measured=f"{', '.join(sections)}; axes of the bundle {', '.join(axes)}",
            remedy="Leave sections out, or use a bundle of two axes.",
        )


def _unfit(axes: tuple[str, ...]) -> MismatchError:
    return MismatchError(
        "the bundle's axes do not fit a volume",
        where="axes of the bundle",
        measured=", ".join(axes) or "none",
        limit=f"{', '.join(VOLUME_AXES)}; two axes of a section; or sample",
        remedy=f"Make the bundle with axis names of {', '.join(STANDS_FOR)}.",
    )
