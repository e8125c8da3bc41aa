"""Preprocessing: pure steps with declared halo and statistics fitted over the whole survey."""

from geobatch.preprocess.chain import Chain, RawRegion, prepare, read_region
from geobatch.preprocess.statistics import Moments, moments, percentiles
from geobatch.preprocess.steps import STEPS, Clip, Crop, Fill, Scale, Step

__all__ = [
    "STEPS",
    "Chain",
    "Clip",
    "Crop",
    "Fill",
    "Moments",
    "RawRegion",
    "Scale",
    "Step",
    "moments",
    "percentiles",
    "prepare",
    "read_region",
]
