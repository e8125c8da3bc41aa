"""The network on its device: patches in, class maps and probabilities out. Uses torch and NumPy alone, no Ray.

Classes and probabilities are reduced on the device, and only they leave it. Tensor axes: B batch, C channel, K class;
the rest are the survey's axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from geobatch.blocks import Blend, Patch, Region
from geobatch.errors import DataError
from geobatch.models.inference import for_inference

if TYPE_CHECKING:
    from geobatch.score.spec import ScorePlan

Probabilities = Literal["none", "uint8", "float32"]
Precision = Literal["float32", "bfloat16", "float16"]
INVALID = 255
PROBABILITY_STEPS = 254
BELL_WIDTH = 1 / 8
"""Standard deviation of the Gaussian weights over the patch length, as MONAI's sliding window has it by default."""
LEAST_WEIGHT = 1e-3
CACHED_CELLS = 2**16
"""Cells reduced at once on a CPU."""


@dataclass(frozen=True)
class Prediction:
    """What the network says of one region.

    Attributes:
        class_map: `(*axes)` uint8, the most probable class; 255 where the input is invalid.
        probability: `(class, *axes)`: uint8 `round(254 p)`, 255 invalid; or float32 in 0..1, NaN invalid; or None.
    """

    class_map: npt.NDArray[np.uint8]
    probability: npt.NDArray[np.uint8] | npt.NDArray[np.float32] | None


def build_predictor(plan: ScorePlan, network: nn.Module) -> Predictor:
    """The predictor that a plan asks for."""
    return Predictor(
        for_inference(network, plan.device),
        len(plan.classes),
        probabilities=plan.probabilities,
        batch=plan.batch,
        device=plan.device,
        precision=plan.precision,
        blend=plan.grid.blend,
    )


class Predictor:
    """A network in evaluation mode on one device.

    Args:
        network: Takes `(batch, 1, *axes)`, returns logits `(batch, class, *axes)`.
        classes: Number of classes.
        probabilities: Whether and how class probabilities are returned.
        batch: Patches of equal shape per forward pass.
        device: Torch device.
        dtype: Floating-point type of the network and its input.
        precision: What the network computes in by autocast; logits are reduced in `dtype` all the same.
        blend: How overlapping patches share cells; None when kept parts tile.
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
        precision: Precision = "float32",
        blend: Blend | None = None,
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
        self.precision = precision
        self.blend = blend
        self._uploads: Any = None
        if self.device.type == "cuda":
            self._uploads = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._weights: dict[tuple[int, ...], torch.Tensor] = {}

    @torch.inference_mode()
    def predict(self, values: npt.NDArray[np.float32], patches: Sequence[Patch], origin: Sequence[int]) -> Prediction:
        """Classes and probabilities of the region that the patches' kept parts cover.

        Invalid cells (NaN) enter the network as 0, the mean after scaling, and come out as invalid. A patch without a
        valid cell in its kept part is left out.

        Args:
            values: `(*axes)` float32, prepared; covers what the patches see.
            patches: Patches in survey cells.
            origin: Survey cell of `values[0, 0, ...]`.

        Raises:
            DataError: the network returns NaN or infinity for finite input.
        """
        write = _hull(patches)
        x, valid = self._staged(values)
        output = _Reduced(self, _lengths(write))
        self._run(x, valid, patches, origin, output if self.blend is None else _Blended(self, write, output))
        return output.finished(None if valid is None else valid[_shifted(write, origin)])

    @torch.inference_mode()
    def logits(
        self, values: npt.NDArray[np.floating[Any]], patches: Sequence[Patch], origin: Sequence[int]
    ) -> npt.NDArray[np.floating[Any]]:
        """The raw outputs `(class, *axes)` of the region that kept parts cover, in the predictor's dtype.

        Zero where a patch was left out.
        """
        write = _hull(patches)
        x, valid = self._staged(values)
        output = _Logits(self, _lengths(write))
        self._run(x, valid, patches, origin, output if self.blend is None else _Blended(self, write, output))
        return np.asarray(output.logits.cpu().numpy())

    @torch.inference_mode()
    def warm_up(self, shape: tuple[int, ...]) -> None:
        """Run the network on a whole batch of zeros, patches of this shape."""
        self._forward(torch.zeros((self.batch, 1, *shape), dtype=self.dtype, device=self.device))

    def weights(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Weights `(*axes)` of a patch in blend mode, on the device: 1 at its centre, nowhere zero."""
        if shape not in self._weights:
            weights = torch.ones(shape, dtype=self.dtype, device=self.device)
            if self.blend is not None and self.blend.weights == "gaussian":
                for axis, length in enumerate(shape):
                    place = torch.arange(length, dtype=self.dtype, device=self.device) - (length - 1) / 2
                    bell = torch.exp(-0.5 * (place / (BELL_WIDTH * length)) ** 2)
                    weights *= bell.reshape([-1 if a == axis else 1 for a in range(len(shape))])
            self._weights[shape] = weights.clamp_(min=LEAST_WEIGHT)
        return self._weights[shape]

    def _staged(self, values: npt.NDArray[np.floating[Any]]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Values with invalid cells at 0, and which are valid, both on the device; None when all are known to be.

        On a GPU they are copied once from pinned memory, in a stream of their own.
        """
        source = torch.from_numpy(values)
        if self._uploads is None:
            x = source.to(device=self.device, dtype=self.dtype)
            # NumPy looks at a cell in a tenth of the time that torch takes on a CPU.
            finite = np.isfinite(values)
            if finite.all():
                return x, None
            valid = torch.from_numpy(finite).to(self.device)
            return torch.where(valid, x, 0), valid
        with torch.cuda.stream(self._uploads):
            x = source.pin_memory().to(self.device, non_blocking=True).to(self.dtype)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self._uploads)
        x.record_stream(computing)
        valid = torch.isfinite(x)
        return torch.where(valid, x, 0), valid

    def _run(
        self,
        x: torch.Tensor,
        valid: torch.Tensor | None,
        patches: Sequence[Patch],
        origin: Sequence[int],
        output: _Reduced | _Logits | _Blended,
    ) -> None:
        """Forward passes over batches of equal shape; `output` receives each patch's logits inside its kept part."""
        start = [cells.start for cells in _hull(patches)]
        wanted = [patch for patch in patches if valid is None or valid[_shifted(patch.keep, origin)].any()]
        for group in _batches(wanted, self.batch):
            seen = [x[_shifted(patch.see, origin)][None, None] for patch in group]
            x_BC = seen[0] if len(seen) == 1 else torch.cat(seen)
            logits_BK = self._forward(x_BC)
            for logits_K, patch in zip(logits_BK, group, strict=True):
                inside = _shifted(patch.keep, [cells.start for cells in patch.see])
                kept_K = logits_K[(slice(None), *inside)]
                if not torch.isfinite(kept_K.sum()):
                    raise DataError("the network returns no finite number", where=f"cells {patch.keep}")
                output.add(kept_K, patch, inside, _shifted(patch.keep, start))
        if isinstance(output, _Blended):
            output.finish()

    def _forward(self, x_BC: torch.Tensor) -> torch.Tensor:
        if self.precision == "float32":
            logits: torch.Tensor = self.network(x_BC)
            return logits
        with torch.autocast(self.device.type, dtype=getattr(torch, self.precision)):
            logits = self.network(x_BC)
        return logits.to(self.dtype)


class _Reduced:
    """Class map and probabilities of a region, filled on the device patch by patch."""

    def __init__(self, predictor: Predictor, shape: tuple[int, ...]) -> None:
        self.kind, device = predictor.probabilities, predictor.device
        self.class_map = torch.full(shape, INVALID, dtype=torch.uint8, device=device)
        self.probability: torch.Tensor | None = None
        if self.kind != "none":
            dtype = torch.uint8 if self.kind == "uint8" else torch.float32
            self.probability = torch.zeros((predictor.classes, *shape), dtype=dtype, device=device)

    def add(self, logits_K: torch.Tensor, _patch: Patch, _inside: Region, target: Region) -> None:
        """Reduce one patch's kept logits to their place."""
        self.class_map[target] = _most_probable(logits_K)
        if self.probability is not None:
            p_K = torch.softmax(logits_K.float(), dim=0)
            self.probability[(slice(None), *target)] = (
                (p_K * PROBABILITY_STEPS).round().to(torch.uint8) if self.kind == "uint8" else p_K
            )

    def finished(self, valid: torch.Tensor | None) -> Prediction:
        """Everything in host memory, invalid cells marked."""
        if valid is not None:
            self.class_map.masked_fill_(~valid, INVALID)
            if self.probability is not None:
                self.probability.masked_fill_(~valid, INVALID if self.kind == "uint8" else float("nan"))
        probability = None if self.probability is None else self.probability.cpu().numpy()
        return Prediction(self.class_map.cpu().numpy(), probability)


class _Logits:
    """The logits of a region."""

    def __init__(self, predictor: Predictor, shape: tuple[int, ...]) -> None:
        self.logits = torch.zeros((predictor.classes, *shape), dtype=predictor.dtype, device=predictor.device)

    def add(self, logits_K: torch.Tensor, _patch: Patch, _inside: Region, target: Region) -> None:
        """Put one patch's kept logits in their place."""
        self.logits[(slice(None), *target)] = logits_K


class _Blended:
    """The weighted mean of overlapping patches, accumulated on the device and handed on as one."""

    def __init__(self, predictor: Predictor, write: Region, output: _Reduced | _Logits) -> None:
        self.predictor, self.write, self.output = predictor, write, output
        shape = _lengths(write)
        self.sum = torch.zeros((predictor.classes, *shape), dtype=predictor.dtype, device=predictor.device)
        self.weight = torch.zeros(shape, dtype=predictor.dtype, device=predictor.device)

    def add(self, logits_K: torch.Tensor, patch: Patch, inside: Region, target: Region) -> None:
        """Add one patch's logits, weighted by their place in the patch."""
        weights = self.predictor.weights(_lengths(patch.see))[inside]
        self.sum[(slice(None), *target)].addcmul_(logits_K, weights)
        self.weight[target] += weights

    def finish(self) -> None:
        """Hand on the mean. Cells that no patch covers are invalid, since their patches were left out."""
        self.sum /= self.weight.clamp_(min=torch.finfo(self.weight.dtype).tiny)
        whole = Patch(self.write, self.write)
        region = tuple(slice(0, n) for n in _lengths(self.write))
        self.output.add(self.sum, whole, region, region)


def _most_probable(logits_K: torch.Tensor) -> torch.Tensor:
    """The index of the largest logit `(class, *axes)`, the first of equals, uint8."""
    index = torch.zeros(logits_K.shape[1:], dtype=torch.uint8, device=logits_K.device)
    # On a CPU a few planes at a time, so that they stay in its cache.
    planes = len(index) if logits_K.is_cuda else max(1, CACHED_CELLS * len(index) // max(index.numel(), 1))
    for first in range(0, len(index), planes):
        _running_maximum(logits_K[:, first : first + planes], index[first : first + planes])
    return index


def _running_maximum(logits_K: torch.Tensor, index: torch.Tensor) -> None:
    """Fill `index`, which is 0, with the class of the largest logit."""
    best = logits_K[0]
    for k in range(1, len(logits_K)):
        larger = (logits_K[k] > best).view(torch.uint8)
        # Masked fills go cell by cell on a CPU, and k is above every index so far.
        torch.maximum(index, larger.mul_(k) if k > 1 else larger, out=index)
        if k + 1 < len(logits_K):
            best = torch.maximum(best, logits_K[k])


def _batches(patches: Sequence[Patch], batch: int) -> list[list[Patch]]:
    """Patches of equal shape, `batch` at a time."""
    by_shape: dict[tuple[int, ...], list[Patch]] = {}
    for patch in patches:
        by_shape.setdefault(_lengths(patch.see), []).append(patch)
    return [group[i : i + batch] for group in by_shape.values() for i in range(0, len(group), batch)]


def _lengths(region: Region) -> tuple[int, ...]:
    return tuple(cells.stop - cells.start for cells in region)


def _hull(patches: Sequence[Patch]) -> Region:
    """The region the kept parts cover."""
    axes = range(len(patches[0].keep))
    return tuple(slice(min(p.keep[a].start for p in patches), max(p.keep[a].stop for p in patches)) for a in axes)


def _shifted(region: Region, origin: Sequence[int]) -> Region:
    return tuple(slice(cells.start - o, cells.stop - o) for cells, o in zip(region, origin, strict=True))
