"""Preprocessing: pure steps with declared halo and statistics fitted over the whole survey."""

from geobatch.preprocess.amplitude import Agc, Balance, Clip, Scale
from geobatch.preprocess.attributes import Envelope, Frequency, Phase
from geobatch.preprocess.chain import Chain, RawRegion, prepare, read_region
from geobatch.preprocess.despike import Despike
from geobatch.preprocess.filters import Bandpass, Detrend, Whiten
from geobatch.preprocess.grid import Crop
from geobatch.preprocess.missing import Fill
from geobatch.preprocess.statistics import Moments, moments, percentiles
from geobatch.preprocess.steps import STEPS, Step

__all__ = [
    "STEPS",
    "Agc",
    "Balance",
    "Bandpass",
    "Chain",
    "Clip",
    "Crop",
    "Despike",
    "Detrend",
    "Envelope",
    "Fill",
    "Frequency",
    "Moments",
    "Phase",
    "RawRegion",
    "Scale",
    "Step",
    "Whiten",
    "moments",
    "percentiles",
    "prepare",
    "read_region",
]
