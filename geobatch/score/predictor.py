"""The network on its device: patches in, class maps and probabilities out. Uses torch and NumPy alone, no Ray.

Tensor axes: B batch, C channel, K class; the rest are the survey's axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from geobatch.blocks import Patch, Region
from geobatch.errors import DataError

Probabilities = Literal["none", "uint8", "float32"]
INVALID = 255
PROBABILITY_STEPS = 254


@dataclass(frozen=True)
class Prediction:
    """What the network says of one region.

    Attributes:
        class_map: `(*axes)` uint8, the most probable class; 255 where the input is invalid.
        probability: `(class, *axes)`: uint8 `round(254 p)`, 255 invalid; or float32 in 0..1, NaN invalid; or None.
    """

    class_map: npt.NDArray[np.uint8]
    probability: npt.NDArray[np.uint8] | npt.NDArray[np.float32] | None


class Predictor:
    """A network in evaluation mode on one device.

    Args:
        network: Takes `(batch, 1, *axes)`, returns logits `(batch, class, *axes)`.
        classes: Number of classes.
        probabilities: Whether and how class probabilities are returned.
        batch: Patches of equal shape per forward pass.
        device: Torch device.
        dtype: Floating-point type of the network and its input.
    """

    def __init__(
        self,
        network: nn.Module,
        classes: int,
        *,
        probabilities: Probabilities = "none",
        batch: int = 1,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        # TF32 keeps 10 bits of a float32's 23, and the fastest kernel of the day need not be the same tomorrow.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        self.network = network.to(device=device, dtype=dtype).eval()
        self.classes = classes
        self.probabilities = probabilities
        self.batch = batch
        self.device = torch.device(device)
        self.dtype = dtype

    def predict(self, values: npt.NDArray[np.float32], patches: Sequence[Patch], origin: Sequence[int]) -> Prediction:
        """Classes and probabilities of the patches' kept parts, which tile one region.

        Invalid cells (NaN) enter the network as 0, the mean after scaling, and come out as invalid.

        Args:
            values: `(*axes)` float32, prepared; covers what the patches see.
            patches: Patches in survey cells.
            origin: Survey cell of `values[0, 0, ...]`.

        Raises:
            DataError: the network returns NaN or infinity for finite input.
        """
        write = _hull(patches)
        shape = tuple(cells.stop - cells.start for cells in write)
        class_map = np.empty(shape, np.uint8)
        probability = self._empty_probability(shape)

        def keep(logits_K: torch.Tensor, part: Region) -> None:
            target = _shifted(part, [cells.start for cells in write])
            class_map[target] = _most_probable(logits_K).cpu().numpy()
            if probability is not None:
                probability[(slice(None), *target)] = self._quantised(logits_K).cpu().numpy()

        self._run(values, patches, origin, keep)
        invalid = ~np.isfinite(values[_shifted(write, origin)])
        class_map[invalid] = INVALID
        if probability is not None:
            probability[:, invalid] = INVALID if probability.dtype == np.uint8 else np.nan
        return Prediction(class_map, probability)

    def logits(
        self, values: npt.NDArray[np.floating], patches: Sequence[Patch], origin: Sequence[int]
    ) -> npt.NDArray[np.floating]:
        """The raw outputs `(class, *axes)` of the patches' kept parts, in the predictor's dtype."""
        write = _hull(patches)
        result = torch.empty((self.classes, *(cells.stop - cells.start for cells in write)), dtype=self.dtype)

        def keep(logits_K: torch.Tensor, part: Region) -> None:
            result[(slice(None), *_shifted(part, [cells.start for cells in write]))] = logits_K.cpu()

        self._run(values, patches, origin, keep)
        return np.asarray(result.numpy())

    @torch.inference_mode()
    def _run(
        self,
        values: npt.NDArray[np.floating],
        patches: Sequence[Patch],
        origin: Sequence[int],
        keep: Callable[[torch.Tensor, Region], None],
    ) -> None:
        """Forward passes over batches of equal shape; `keep` receives each patch's trimmed logits."""
        source = torch.from_numpy(values)
        for group in _batches(patches, self.batch):
            seen = [source[_shifted(patch.see, origin)] for patch in group]
            x_BC = torch.stack(seen).unsqueeze(1).to(device=self.device, dtype=self.dtype)
            x_BC = torch.where(torch.isfinite(x_BC), x_BC, 0)
            logits_BK = self.network(x_BC)
            for logits_K, patch in zip(logits_BK, group, strict=True):
                inside = _shifted(patch.keep, [cells.start for cells in patch.see])
                kept_K = logits_K[(slice(None), *inside)]
                if not torch.isfinite(kept_K.sum()):
                    raise DataError("the network returns no finite number", where=f"cells {patch.keep}")
                keep(kept_K, patch.keep)

    def _empty_probability(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint8] | npt.NDArray[np.float32] | None:
        if self.probabilities == "none":
            return None
        shape = (self.classes, *shape)
        return np.empty(shape, np.uint8) if self.probabilities == "uint8" else np.empty(shape, np.float32)

    def _quantised(self, logits_K: torch.Tensor) -> torch.Tensor:
        p_K = torch.softmax(logits_K.float(), dim=0)
        return (p_K * PROBABILITY_STEPS).round().to(torch.uint8) if self.probabilities == "uint8" else p_K


def _most_probable(logits_K: torch.Tensor) -> torch.Tensor:
    """The index of the largest logit, the first of equals: a running maximum, faster than argmax on a CPU."""
    best = logits_K[0]
    index = torch.zeros(best.shape, dtype=torch.uint8, device=best.device)
    for k in range(1, logits_K.shape[0]):
        larger = logits_K[k] > best
        best = torch.where(larger, logits_K[k], best)
        index.masked_fill_(larger, k)
    return index


def _batches(patches: Sequence[Patch], batch: int) -> list[list[Patch]]:
    """Patches of equal shape, `batch` at a time."""
    by_shape: dict[tuple[int, ...], list[Patch]] = {}
    for patch in patches:
        by_shape.setdefault(tuple(cells.stop - cells.start for cells in patch.see), []).append(patch)
    return [group[i : i + batch] for group in by_shape.values() for i in range(0, len(group), batch)]


def _hull(patches: Sequence[Patch]) -> Region:
    """The region the kept parts tile."""
    axes = range(len(patches[0].keep))
    return tuple(slice(min(p.keep[a].start for p in patches), max(p.keep[a].stop for p in patches)) for a in axes)


def _shifted(region: Region, origin: Sequence[int]) -> Region:
    return tuple(slice(cells.start - o, cells.stop - o) for cells, o in zip(region, origin, strict=True))
