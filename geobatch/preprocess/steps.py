"""The registry of preprocessing steps.

Every step takes and returns a Dask-backed float32 DataArray and leaves coordinates, attributes and chunks as they
are. NaN marks an invalid sample and stays NaN, unless the step fills it. Figures that describe the survey
(percentiles, mean, the sample interval) are fitted once over the whole of it and kept in the step, so that a block is
treated exactly as the survey is. What a sample becomes depends on its own axis neighbours within `halo`, on its
whole line along `whole_axes`, and on nothing else.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from geobatch.preprocess.amplitude import Agc, Balance, Clip, Scale
from geobatch.preprocess.attributes import Envelope, Frequency, Phase
from geobatch.preprocess.base import StepBase
from geobatch.preprocess.despike import Despike
from geobatch.preprocess.filters import Bandpass, Detrend, Whiten
from geobatch.preprocess.grid import Crop
from geobatch.preprocess.missing import Fill

Step = Annotated[
    Crop | Fill | Clip | Scale | Balance | Agc | Despike | Bandpass | Detrend | Whiten | Envelope | Phase | Frequency,
    Field(discriminator="step"),
]
STEPS: dict[str, type[StepBase]] = {
    "crop": Crop,
    "fill": Fill,
    "clip": Clip,
    "scale": Scale,
    "balance": Balance,
    "agc": Agc,
    "despike": Despike,
    "bandpass": Bandpass,
    "detrend": Detrend,
    "whiten": Whiten,
    "envelope": Envelope,
    "phase": Phase,
    "frequency": Frequency,
}
