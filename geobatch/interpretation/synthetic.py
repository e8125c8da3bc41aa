"""Labelled synthetic surveys of any size.

Layered reflectivity is folded, faulted, convolved with a Ricker wavelet and covered with noise, after Wu et al. 2019
(FaultSeg3D, doi:10.1190/geo2018-0646.1) and Wu et al. 2020 (doi:10.1190/geo2019-0375.1). Here every step is a function
of position and seed, evaluated backwards from the voxel to its layer, so a block costs the memory of a block and the
same seed gives the same voxels however the survey is cut.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from geobatch.errors import UsageError
from geobatch.interpretation.hashing import between, hash_keys, normal, uniform, value_noise
from geobatch.interpretation.structure import FaultNetwork, Folds, Region

CLASSES: Final = (
    {"name": "layered", "color": "#e8c468"},
    {"name": "transparent", "color": "#8fb8de"},
    {"name": "chaotic", "color": "#7a9e5f"},
    {"name": "fault", "color": "#c0392b"},
)
FAULT_CLASS: Final = 3

Block = dict[str, NDArray[Any]]
Indices = NDArray[np.int64]
Levels = NDArray[np.float64]

_LAYER_BOUNDARY, _LAYER, _UNIT_BOUNDARY, _UNIT_ORDER, _CHAOS, _NOISE, _VARIED = range(1, 8)
_ORDERS: Final = np.array([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
# Contrast of the layers and of the chaotic texture, per facies.
_LAYER_CONTRAST: Final = np.array([1.0, 0.4, 0.6])
_CHAOS_CONTRAST: Final = np.array([0.0, 0.0, 0.8])
_RMS_AMPLITUDE: Final = 1000.0


@dataclass(frozen=True)
class SyntheticSurvey:
    """A survey (inline, crossline, sample) with known facies and faults.

    Facies differ as seismic facies do: `layered` is strong and parallel, `transparent` weak, `chaotic` laterally
    incoherent.

    Args:
        shape: cells along inline, crossline and sample.
        seed: decides every voxel together with the fields below.
        sample_interval_ms: two-way time between samples.
        peak_frequency_hz: of the Ricker wavelet.
        layer_thickness: mean thickness of layers, samples.
        unit_thickness: mean thickness of stratigraphic units, each of one facies, samples.
        noise: RMS of the noise over RMS of the layered facies.
        folds: factor on the slopes of the folds.
        fault_spacing: mean lateral distance between faults, cells.
        largest_throw: of a fault, samples.
    """

    shape: tuple[int, int, int]
    seed: int
    sample_interval_ms: float = 4.0
    peak_frequency_hz: float = 30.0
    layer_thickness: float = 6.0
    unit_thickness: float = 36.0
    noise: float = 0.1
    folds: float = 1.0
    fault_spacing: int = 64
    largest_throw: float = 20.0

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise UsageError("a synthetic survey has three axes of at least one cell", measured=str(self.shape))
        nyquist_hz = 500.0 / self.sample_interval_ms
        if not 0 < self.peak_frequency_hz < nyquist_hz / 2:
            raise UsageError(
                "the wavelet is not sampled finely enough",
                measured=f"peak frequency {self.peak_frequency_hz} Hz",
                limit=f"between 0 and {nyquist_hz / 2} Hz, half the Nyquist frequency",
            )
        if self.layer_thickness < 4:
            raise UsageError("layers are too thin", measured=f"{self.layer_thickness} samples", limit="4 samples")

    @classmethod
    def varied(cls, shape: tuple[int, int, int], seed: int) -> Self:
        """Return a survey whose wavelet (25 to 40 Hz) and noise (0.05 to 0.25) are drawn from the seed too.

        A network trained on surveys of one noise and one wavelet calls everything a fault where there is more noise.
        """
        return cls(
            shape,
            seed,
            peak_frequency_hz=round(float(between(25.0, 40.0, seed, _VARIED, 0)), 1),
            noise=round(float(between(0.05, 0.25, seed, _VARIED, 1)), 3),
        )

    def block(self, region: Region) -> Block:
        """Return the voxels of a region, the same for any way of cutting the survey.

        Args:
            region: index ranges along inline, crossline and sample, inside the survey.

        Returns:
            `amplitude` float32, RMS about 1000 in layered facies; `facies` uint8, an index into the first three
            of `CLASSES`; `fault` uint8, 1 on fault surfaces; `class_map` uint8, facies with faults over them.
        """
        inlines, crosslines, samples = self._indices(region)
        margin = self._wavelet.size // 2
        wide = np.arange(samples[0] - margin, samples[-1] + margin + 1)
        network = FaultNetwork(self.seed, self.fault_spacing, self.largest_throw)
        unfaulted, on_fault = network.undo(inlines, crosslines, wide)
        level = Folds(self.seed, self.folds).level(inlines, crosslines, unfaulted)
        inner = slice(margin, margin + samples.size)
        fault = on_fault[:, :, inner]
        facies = self._facies(level[:, :, inner])
        return {
            "amplitude": self._amplitude(self._reflectivity(inlines, crosslines, wide, level), samples.size),
            "facies": facies,
            "fault": fault.astype(np.uint8),
            "class_map": np.where(fault, np.uint8(FAULT_CLASS), facies),
        }

    def _indices(self, region: Region) -> tuple[Indices, Indices, Indices]:
        for axis, size in zip(region, self.shape, strict=True):
            if not 0 <= axis.start < axis.stop <= size:
                raise UsageError("the region leaves the survey", measured=str(region), limit=f"shape {self.shape}")
        inline, crossline, sample = (np.arange(axis.start, axis.stop, dtype=np.int64) for axis in region)
        return inline, crossline, sample

    def _facies(self, level: Levels) -> NDArray[np.uint8]:
        cell, weight = _cells(level, self.unit_thickness, self.seed, _UNIT_BOUNDARY)
        units = np.arange(cell.min() - 1, cell.max() + 1)
        facies: NDArray[np.uint8] = self._unit_facies(units).astype(np.uint8)[cell - units[0] - (weight < 0.5)]
        return facies

    def _unit_facies(self, units: Indices) -> Indices:
        # Units come in threes, each three a permutation: no survey of a few units lacks a facies.
        orders = _ORDERS[hash_keys(self.seed, _UNIT_ORDER, units // 3) % np.uint64(6)]
        facies: Indices = orders[np.arange(units.size), units % 3]
        return facies

    def _amplitude(self, reflectivity: NDArray[np.float32], size: int) -> NDArray[np.float32]:
        amplitude = np.zeros((*reflectivity.shape[:2], size), np.float32)
        # A sum over taps in fixed order: library convolutions change their order with the length.
        for tap, factor in enumerate(self._wavelet):
            amplitude += factor * reflectivity[:, :, tap : tap + size]
        return amplitude

    def _reflectivity(
        self, inlines: Indices, crosslines: Indices, samples: Indices, level: Levels
    ) -> NDArray[np.float32]:
        """Return reflectivity, of about unit RMS in layered facies, plus noise, half-way between the samples."""
        impedance = self._impedance(inlines, crosslines, level)
        # One interface per layer; alternating impedances of magnitude 0.5 to 1.5 differ by 2 on average.
        unit_rms = np.float32(math.sqrt(self.layer_thickness) / 2)
        noise = normal(self.seed, _NOISE, inlines[:, None, None], crosslines[None, :, None], samples[None, None, :-1])
        reflectivity: NDArray[np.float32] = np.diff(impedance, axis=2) * unit_rms
        reflectivity += np.float32(self.noise) * noise
        return reflectivity

    def _impedance(self, inlines: Indices, crosslines: Indices, level: Levels) -> NDArray[np.float32]:
        cell, weight = _cells(level, self.unit_thickness, self.seed, _UNIT_BOUNDARY)
        units = np.arange(cell.min() - 1, cell.max() + 1)
        facies = self._unit_facies(units)
        impedance = _interpolate(_LAYER_CONTRAST[facies], cell, weight, units[0]) * self._layers(level)
        chaos = _interpolate(_CHAOS_CONTRAST[facies], cell, weight, units[0])
        inside = np.nonzero(chaos)
        texture = value_noise(
            inlines[inside[0]] / 3.0, crosslines[inside[1]] / 3.0, level[inside] / 3.0, self.seed, _CHAOS
        )
        impedance[inside] += chaos[inside] * texture
        return impedance

    def _layers(self, level: Levels) -> NDArray[np.float32]:
        cell, weight = _cells(level, self.layer_thickness, self.seed, _LAYER_BOUNDARY)
        layers = np.arange(cell.min() - 1, cell.max() + 1)
        magnitudes = np.float32(0.5) + uniform(self.seed, _LAYER, layers)
        return _interpolate(np.where(layers % 2, magnitudes, -magnitudes), cell, weight, layers[0])

    @cached_property
    def _wavelet(self) -> NDArray[np.float32]:
        """Ricker wavelet (Ricker 1953, doi:10.1190/1.1437843) of unit energy, scaled to the survey's amplitude."""
        half = math.ceil(1.2e3 / (self.peak_frequency_hz * self.sample_interval_ms))
        times_s = 1e-3 * self.sample_interval_ms * (np.arange(-half, half) + 0.5)
        phase = (math.pi * self.peak_frequency_hz * times_s) ** 2
        wavelet = (1 - 2 * phase) * np.exp(-phase)
        scaled: NDArray[np.float32] = (wavelet * (_RMS_AMPLITUDE / np.sqrt((wavelet**2).sum()))).astype(np.float32)
        return scaled


def _cells(level: Levels, thickness: float, seed: int, stream: int) -> tuple[Indices, NDArray[np.float32]]:
    """Return the lattice cell of each level and how far it lies below the one boundary inside that cell, 0 to 1.

    The step is one sample wide: sharper ones would jump between samples where layers dip.
    """
    cell = np.floor(level / thickness).astype(np.int64)
    cells = np.arange(cell.min(), cell.max() + 1)
    boundaries = (cells + 0.2 + 0.6 * uniform(seed, stream, cells).astype(np.float64)) * thickness
    below = level - boundaries[cell - cells[0]] + 0.5
    return cell, np.clip(below, 0.0, 1.0).astype(np.float32)


def _interpolate(
    values: NDArray[Any], cell: Indices, weight: NDArray[np.float32], first: np.int64
) -> NDArray[np.float32]:
    """Return values above and below the boundary of each cell, blended by weight."""
    table = values.astype(np.float32)
    above = table[cell - first - 1]
    blended: NDArray[np.float32] = above + (table[cell - first] - above) * weight
    return blended
