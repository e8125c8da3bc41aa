"""The sections of a scored survey that a report shows, read one by one: never the whole volume."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from geobatch.errors import GeobatchError, UsageError
from geobatch.report.figures import ClassStyle, class_styles
from geobatch.survey import INVALID_CLASS, VOLUME_AXES, mask_dead, open_survey, survey_info, valid_volume

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class SectionChoice:
    """Which sections to show, in inline and crossline numbers and in ms or m; the middle ones by default."""

    inline: float | None = None
    crossline: float | None = None
    sample: float | None = None


@dataclass(frozen=True)
class Section:
    """One plane of the survey and what is known on it.

    Attributes:
        axis: the axis that is fixed.
        value: its number, time or depth.
        axes: the two axes of the plane, in the order of the arrays.
        classes: predicted class per cell, uint8, 255 invalid.
        amplitude: float32 in the survey's unit, NaN invalid; None when the source survey is not at hand.
        probability: (class, ...) float32 in [0, 1], NaN invalid; None when it was not stored.
        truth: labelled class per cell, uint8, 255 unlabelled; None without labels.
    """

    axis: str
    value: float
    axes: tuple[str, str]
    classes: Array
    amplitude: Array | None
    probability: Array | None
    truth: Array | None


@dataclass(frozen=True)
class ScoredSurvey:
    """A scored survey with its source and labels cut to the same cells, all lazy.

    Attributes:
        scored: the scored survey.
        info: its `geobatch` attribute.
        styles: name and colour of each class.
        amplitude: the source's volume, or None.
        source_info: the source's `geobatch` attribute, empty when it is not at hand.
        source: the source survey, cut to the same lines; None when it is not at hand.
        truth: labelled classes, or None.
        notes: what could not be shown, and why.
    """

    scored: xr.Dataset
    info: dict[str, Any]
    styles: list[ClassStyle]
    amplitude: xr.DataArray | None
    source_info: dict[str, Any]
    source: xr.Dataset | None
    truth: xr.DataArray | None
    notes: list[str]

    def axis_values(self, axis: str) -> npt.NDArray[np.float64]:
        """Numbers, times or depths along an axis."""
        return np.asarray(self.scored[axis].values, dtype=np.float64)


def open_scored(output_url: str, labels: str | None = None) -> ScoredSurvey:
    """The scored survey at `output_url` with what belongs to it.

    Raises:
        UsageError: it is no scored survey, or the labels lie on other lines.
        NotFoundError: nothing is there.
    """
    scored = open_survey(output_url)
    info = survey_info(scored, output_url)
    if "class_map" not in scored:
        raise UsageError(
            "survey holds no prediction to report on",
            where=output_url,
            measured=f"kind {info.get('kind')}",
            limit="kind scored",
            remedy="Give the output of a scoring job.",
        )
    notes: list[str] = []
    amplitude, source, source_info = _open_source(info, scored, notes)
    truth = None
    if labels is not None:
        truth = _same_cells(open_survey(labels), scored, labels)["class_map"].transpose(*VOLUME_AXES)
    styles = class_styles(scored["class_map"].attrs)
    return ScoredSurvey(scored, info, styles, amplitude, source_info, source, truth, notes)


def read_sections(survey: ScoredSurvey, choice: SectionChoice) -> tuple[list[Section], list[str]]:
    """The sections that hold more than one cell per axis, and notes on those left out.

    Raises:
        UsageError: a chosen number lies outside the survey.
    """
    single = [axis for axis in VOLUME_AXES if survey.scored.sizes[axis] == 1]
    sections = []
    for axis in VOLUME_AXES:
        remaining = [other for other in VOLUME_AXES if other != axis]
        if not set(remaining) & set(single):
            sections.append(read_section(survey, axis, _nearest_index(survey, axis, getattr(choice, axis))))
    notes = [f"The survey is one {axis} thick, so sections across it are left out." for axis in single]
    return sections, notes


def read_section(survey: ScoredSurvey, axis: str, index: int) -> Section:
    """The section at a place along an axis."""
    plane = {axis: index}
    amplitude = None
    if survey.amplitude is not None:
        amplitude = np.asarray(mask_dead(survey.amplitude.isel(plane).load()).values, dtype=np.float32)
    probability = None
    if "probability" in survey.scored:
        lazy = survey.scored["probability"].transpose("class", *VOLUME_AXES)
        probability = np.asarray(lazy.isel(plane).values, dtype=np.float32)
    first, second = (other for other in VOLUME_AXES if other != axis)
    return Section(
        axis=axis,
        value=float(survey.axis_values(axis)[index]),
        axes=(first, second),
        classes=_classes(survey.scored["class_map"].transpose(*VOLUME_AXES).isel(plane)),
        amplitude=amplitude,
        probability=probability,
        truth=None if survey.truth is None else _classes(survey.truth.isel(plane)),
    )


def _classes(lazy: xr.DataArray) -> npt.NDArray[np.uint8]:
    # An array with a _FillValue attribute is decoded to float with NaN.
    return np.asarray(np.nan_to_num(lazy.values, nan=INVALID_CLASS)).astype(np.uint8)


def _nearest_index(survey: ScoredSurvey, axis: str, wanted: float | None) -> int:
    values = survey.axis_values(axis)
    if wanted is None:
        return values.size // 2
    if not values.min() <= wanted <= values.max():
        raise UsageError(
            f"the survey has no {axis} of that number",
            where=f"report, {axis}",
            measured=f"{wanted:g}",
            limit=f"{values.min():g} to {values.max():g}",
        )
    return int(np.abs(values - wanted).argmin())


def _open_source(
    info: dict[str, Any], scored: xr.Dataset, notes: list[str]
) -> tuple[xr.DataArray | None, xr.Dataset | None, dict[str, Any]]:
    url = info.get("source_survey")
    if not url:
        notes.append("The scored survey does not name its source, so amplitudes are not shown.")
        return None, None, {}
    try:
        whole = open_survey(url)
        source = _same_cells(whole, scored, url)
        return valid_volume(source, url), source, survey_info(whole, url)
    except GeobatchError as error:
        notes.append(f"Amplitudes are not shown: {error}")
        return None, None, {}


def _same_cells(other: xr.Dataset, scored: xr.Dataset, where: str) -> xr.Dataset:
    """`other` cut to the cells of the scored survey, lazily."""
    cells = {}
    for axis in VOLUME_AXES:
        ours, theirs = np.asarray(scored[axis].values), np.asarray(other[axis].values)
        start = int(np.abs(theirs - ours[0]).argmin())
        cells[axis] = slice(start, start + ours.size)
        if not np.array_equal(theirs[cells[axis]], ours):
            raise UsageError(
                f"its {axis}s are not those of the scored survey",
                where=where,
                measured=f"{theirs[0]:g} to {theirs[-1]:g}",
                limit=f"{ours[0]:g} to {ours[-1]:g} among them",
            )
    return other.isel(cells)
