"""Records of events: which of them can be asked, where windows may lie in them, and to which group each belongs."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt
import xarray as xr

from geobatch.errors import DataError, MismatchError, UsageError
from geobatch.preprocess.base import Float32Array
from geobatch.preprocess.resample import Resample
from geobatch.survey import open_survey, require_complete, survey_info
from geobatch.train.spec import Validation
from geobatch.train.windows_spec import Grouping, WindowsData


class Records:
    """The records of a survey of windows, at one sampling rate.

    Attributes:
        names: Of each record.
        groups: Of each: its station (network.station), network, or event (place of the source).
        usable: Numbers of those that can be asked.
        left_out: How many cannot, by reason.
        rate_hz: Samples per second.
        picked: Whether they are asked for noise and event, around their P picks; otherwise for magnitudes.
        identity: Of the survey.
        quantity: What moves.

    Raises:
        NotFoundError: the survey is not there.
        DataError: it is not complete, no record can be asked, or one names no group or sampling rate.
        MismatchError: it is of another kind, or has no such component.
        UsageError: records have several sampling rates and none is given.
    """

    def __init__(self, data: WindowsData, by: Grouping, cache_bytes: int) -> None:
        survey = open_survey(data.survey)
        require_complete(survey, data.survey)
        info = survey_info(survey, data.survey)
        if info.get("kind") != "windows":
            raise MismatchError(
                "the survey holds no event windows", where=data.survey, measured=f"kind {info.get('kind')}"
            )
        self.picked = data.ask == "event"
        self.identity, self.quantity = str(info["identity"]), str(info["quantity"])
        self.names = [str(name) for name in survey["name"].values.tolist()]
        self._own_rates = survey["sampling_rate_hz"].values.astype(float)
        self.rate_hz = _common_rate(self._own_rates, data)
        self._data, self._samples = data, round(data.input.window_s * self.rate_hz)
        ratio = self.rate_hz / self._own_rates
        self._own_lengths = survey["length"].values.astype(int)
        self._lengths = np.floor((self._own_lengths - 1) * ratio).astype(int) + 1
        self._p_samples = survey["p_sample"].values * ratio
        self._s_samples = survey["s_sample"].values * ratio
        self._labels = survey["magnitude"].values.astype(float)
        self._waveform = _components(survey, data)
        self._small = self._waveform.nbytes <= cache_bytes
        if self._small:
            self._waveform = self._waveform.load()
        self._resampled: dict[int, Float32Array] = {}
        self.usable, self.left_out = self._usable()
        self.groups = _groups(survey, by)
        if unnamed := next((self.names[k] for k in self.usable if not self.groups[k]), None):
            raise DataError(
                f"a window names no {by}, so that it cannot be held apart", where=data.survey, measured=unnamed
            )

    @property
    def kept_bytes(self) -> int:
        """Of what is kept in memory: every record, and again where it is resampled."""
        return 2 * int(self._waveform.nbytes) if self._small else 0

    def label(self, record: int) -> float:
        """The magnitude of a record."""
        return float(self._labels[record])

    def read(self, record: int, start: int) -> Float32Array:
        """The window `(component, sample)` of a record that begins at a sample."""
        window = self._record(record)[:, start : start + self._samples]
        short = self._samples - window.shape[1]
        return np.pad(window, ((0, 0), (0, short)), constant_values=np.nan) if short else window

    def noise_starts(self, record: int) -> tuple[int, int]:
        """The first and last sample at which noise before P may begin; there is none where the last comes first."""
        end = self._p_samples[record] - self._data.noise_margin_s * self.rate_hz
        return 0, math.floor(end) - self._samples if math.isfinite(end) else -1

    def starts(self, record: int) -> tuple[int, int]:
        """Likewise of a window with the event in it."""
        first, last = 0, int(self._lengths[record]) - self._samples
        p_sample = float(self._p_samples[record])
        if math.isfinite(p_sample):
            low, high = (part * self._samples for part in self._data.p_between)
            first, last = max(first, math.ceil(p_sample - high)), min(last, math.floor(p_sample - low))
        return first, last

    def s_minus_p_s(self, record: int) -> float:
        """Seconds from the P pick of a record to its S pick; NaN where one of them is not there."""
        return float(self._s_samples[record] - self._p_samples[record]) / self.rate_hz

    def _record(self, record: int) -> Float32Array:
        """A whole record `(component, sample)` at the common rate."""
        if record in self._resampled:
            return self._resampled[record]
        own = float(self._own_rates[record])
        lines = self._waveform.isel(window=record, sample=slice(0, self._own_lengths[record]))
        if own == self.rate_hz:
            return lines.values
        made = Resample(interval_ms=1e3 / self.rate_hz).apply(lines.assign_attrs(sampling_rate_hz=own)).values
        if self._small:
            self._resampled[record] = made
        return made

    def _usable(self) -> tuple[list[int], dict[str, int]]:
        reasons = [self._why_not(record) for record in range(len(self.names))]
        usable = [record for record, reason in enumerate(reasons) if not reason]
        left_out = {reason: reasons.count(reason) for reason in sorted({reason for reason in reasons if reason})}
        if not usable:
            told = ", ".join(f"{count} with {reason}" for reason, count in left_out.items())
            raise DataError(
                f"no window can be asked for its {self._data.ask}",
                where=self._data.survey,
                measured=told,
                remedy="Give a survey with picks or magnitudes, or a shorter window_s.",
            )
        return usable, left_out

    def _why_not(self, record: int) -> str:
        """Why a record cannot be asked; an empty text where it can."""
        if self.picked and not math.isfinite(self._p_samples[record]):
            return "no P pick"
        if not self.picked and not math.isfinite(self._labels[record]):
            return "no magnitude"
        if self.picked and self.noise_starts(record)[1] < 0:
            return "too few samples before P"
        first, last = self.starts(record)
        if last < first:
            return "too few samples"
        if self._data.input.missing == "drop":
            lacking = ~np.isfinite(self._waveform.isel(window=record).values).any(axis=1)
            return "a component missing" if lacking.any() else ""
        return ""


def held_out_groups(records: Records, validation: Validation, where: str) -> tuple[str, ...]:
    """The groups that train nothing: those named, or a share of them that their names decide as if by chance.

    Of a share at least one group is held out, and one trains.

    Raises:
        UsageError: a group is not there, none is left for training, or there is one alone.
    """
    groups = sorted({records.groups[k] for k in records.usable})
    for name in validation.groups or ():
        if name not in groups:
            raise UsageError(
                f"no such {validation.by}", where=where, measured=name, limit=f"one of {', '.join(groups)}"
            )
    chosen = validation.groups
    if chosen is None and validation.fraction and len(groups) == 1:
        raise UsageError(
            f"windows of one {validation.by} alone cannot be split",
            where=where,
            measured=groups[0],
            remedy="Give another validation.by, or fraction 0 to validate nothing.",
        )
    if chosen is None:
        mixed = sorted(groups, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
        wanted = max(1, round(validation.fraction * len(groups))) if validation.fraction else 0
        chosen = tuple(sorted(mixed[: min(wanted, len(groups) - 1)]))
    if len(set(chosen)) == len(groups):
        raise UsageError(
            f"no {validation.by} is left for training", where=where, measured=f"{len(groups)} of them held out"
        )
    return chosen


def _common_rate(rates: npt.NDArray[np.float64], data: WindowsData) -> float:
    """Samples per second of all windows.

    Raises:
        DataError: a window does not tell its own.
        UsageError: they differ, and none is given.
    """
    found = np.unique(rates[np.isfinite(rates)])
    if not np.isfinite(rates).all() or not found.size or found[0] <= 0:
        raise DataError("some windows do not tell their sampling rate", where=data.survey)
    if data.input.sampling_rate_hz is not None:
        return data.input.sampling_rate_hz
    if len(found) > 1:
        raise UsageError(
            "windows have several sampling rates",
            where=data.survey,
            measured=", ".join(f"{rate:g} Hz" for rate in found[:5]),
            limit="one",
            remedy="Give data.input.sampling_rate_hz: all are resampled to it.",
        )
    return float(found[0])


def _components(survey: xr.Dataset, data: WindowsData) -> xr.DataArray:
    known = [str(code) for code in survey["component"].values.tolist()]
    if unknown := [code for code in data.input.components if code not in known]:
        raise MismatchError(
            "the windows have no such component", where=data.survey, measured=unknown[0], limit=f"of {', '.join(known)}"
        )
    order = [known.index(code) for code in data.input.components]
    waveform: xr.DataArray = survey["waveform"].transpose("window", "component", "sample")
    return waveform.isel(component=order)


def _groups(survey: xr.Dataset, by: Grouping) -> list[str]:
    """Name of the group of each record; empty where it is not known."""
    if by != "event":
        codes = [str(station).split(".") for station in survey["station"].values.tolist()]
        return [".".join(parts[: 1 if by == "network" else 2]) for parts in codes]
    place = zip(*(survey[f"source_{name}"].values for name in ("latitude", "longitude", "depth_km")), strict=True)
    return [
        f"{latitude:.4f} {longitude:.4f} {depth:g} km" if np.isfinite([latitude, longitude]).all() else ""
        for latitude, longitude, depth in place
    ]
