"""What a SEG-Y file's numbers are: amplitude or velocity, in time or in depth, judged from what the file says.

SEG-Y has no field for either that writers fill. Velocity and depth are therefore taken only on two independent pieces
of evidence, none against; everything else is amplitude in two-way time, and the doubt is reported.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

from geobatch.errors import FormatError, UsageError
from geobatch.formats.segy_file import SegyFile
from geobatch.formats.segy_scan import TraceTable
from geobatch.storage import split_url

Quantity = Literal["amplitude", "velocity"]
Domain = Literal["time", "depth"]
SampleUnit = Literal["ms", "m", "ft"]

VELOCITY_UNIT_CODE = 6
# Rock and water, from weathered soil to ultramafic rock.
VELOCITY_RANGE_M_S = (200.0, 9000.0)
USUAL_INTERVALS_MS = (0.125, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
FEET_TO_M = 0.3048

VELOCITY_WORDS = re.compile(r"velocit|\bvel\b|\bv(?:int|rms|avg|ave)\b", re.IGNORECASE)
DEPTH_WORDS = re.compile(
    r"\bpsdm\b|\btvdss\b|depth[- ](?:migrat|domain|convert|step|interval|sampl|slice|imag)|\bin depth\b", re.IGNORECASE
)
TIME_WORDS = re.compile(
    r"\btwt\b|two[- ]way|\btime[- ](?:migrat|domain)|\bpstm\b|(?:scaled|back|to) (?:to )?time\b", re.I
)
DEPTH_NAMES = {"depth", "tvdss", "tvd", "psdm"}
TIME_NAMES = {"time", "twt", "pstm"}


@dataclass(frozen=True)
class Meaning:
    """Quantity and vertical axis of a volume, and why.

    Attributes:
        quantity: What the samples are.
        domain: What the vertical axis is.
        sample_interval: Step of the vertical axis in `sample_unit`.
        sample_unit: `ms` of two-way time or `m` of depth.
        unit_factor: What turns the file's or the option's sample unit into `sample_unit`: 1, or feet to metres.
        units: Unit of the samples, empty for amplitude.
        evidence: What decided quantity and domain, one sentence each.
        doubts: What speaks for another reading, and the option that settles it.
    """

    quantity: Quantity
    domain: Domain
    sample_interval: float
    sample_unit: Literal["ms", "m"]
    unit_factor: float
    units: str
    evidence: dict[str, list[str]]
    doubts: list[str]


def judge(
    file: SegyFile,
    table: TraceTable,
    *,
    quantity: str | None = None,
    domain: str | None = None,
    sample_interval: float | None = None,
    sample_unit: str | None = None,
) -> Meaning:
    """The meaning of a file's samples; the options given win over what the file says.

    Raises:
        UsageError: an option is unknown, or the options contradict each other.
        FormatError: the file gives no sample interval and neither does an option.
    """
    doubts: list[str] = []
    evidence: dict[str, list[str]] = {}
    what: Quantity | None = _known("quantity", quantity, Quantity)
    axis: Domain | None = _known("domain", domain, Domain)
    _known("sample unit", sample_unit, SampleUnit)
    if sample_unit is not None and axis is not None and (sample_unit == "ms") != (axis == "time"):
        raise UsageError("sample unit does not fit the domain", measured=f"{sample_unit} in {axis}")
    if sample_unit is not None and axis is None:
        axis = "time" if sample_unit == "ms" else "depth"
    interval = sample_interval if sample_interval is not None else file.interval_thousandths / 1000
    if interval <= 0:
        raise FormatError(
            "sample interval is zero",
            where=file.url,
            measured="0 in bytes 3217-3218 and in trace header bytes 117-118",
            remedy="Give it with --set sample_interval=…, in ms or in the depth unit.",
        )
    if what is None:
        what, evidence["quantity"], doubt = _judge_quantity(file, table)
        doubts += doubt
    else:
        evidence["quantity"] = ["given as an option"]
    if axis is None:
        axis, evidence["domain"], doubt = _judge_domain(file, interval)
        doubts += doubt
    else:
        evidence["domain"] = ["given as an option"]
    in_feet = axis == "depth" and (sample_unit == "ft" or (sample_unit is None and file.in_feet))
    factor = FEET_TO_M if in_feet else 1.0
    return Meaning(
        quantity=what,
        domain=axis,
        sample_interval=interval * factor,
        sample_unit="ms" if axis == "time" else "m",
        unit_factor=factor,
        units="m/s" if what == "velocity" else "",
        evidence=evidence,
        doubts=doubts,
    )


def _known(name: str, value: str | None, choices: Any) -> Any:
    """The value of an option, refused when it is none of its choices."""
    if value is not None and value not in get_args(choices):
        raise UsageError(f"unknown {name}", measured=value, limit=" or ".join(get_args(choices)))
    return value


def _judge_quantity(file: SegyFile, table: TraceTable) -> tuple[Quantity, list[str], list[str]]:
    said = []
    word = VELOCITY_WORDS.search(file.text)
    if word:
        said.append(f"textual header says {word.group()!r}")
    if table.fields["value_unit"] == (VELOCITY_UNIT_CODE, VELOCITY_UNIT_CODE):
        said.append("trace header bytes 203-204 give metres per second")
    low, high = VELOCITY_RANGE_M_S
    minimum, maximum = table.moments.minimum, table.moments.maximum
    plausible = table.moments.count > 0 and low <= minimum and maximum <= high
    values = f"live samples lie between {minimum:g} and {maximum:g}"
    if said and plausible:
        return "velocity", [*said, f"{values}, as velocities in m/s do"], []
    if plausible:
        doubt = f"{values}, as velocities in m/s do, but no header says velocity: --set quantity=velocity if it is"
        return "amplitude", ["nothing in the headers says otherwise"], [doubt]
    if said:
        return "amplitude", [f"{values}, which velocities in m/s do not"], []
    return "amplitude", ["nothing in the file says otherwise"], []


def _judge_domain(file: SegyFile, interval: float) -> tuple[Domain, list[str], list[str]]:
    name = split_url(file.url)[1]
    name_words = set(re.split(r"[^a-z]+", name.lower()))
    for_depth: list[str] = []
    for_time: list[str] = []
    for found, pattern, names in ((for_depth, DEPTH_WORDS, DEPTH_NAMES), (for_time, TIME_WORDS, TIME_NAMES)):
        if word := pattern.search(file.text):
            found.append(f"textual header says {word.group()!r}")
        if word_in_name := sorted(name_words & names):
            found.append(f"file name says {word_in_name[0]!r}")
    if interval not in USUAL_INTERVALS_MS:
        for_depth.append(f"sample interval {interval:g} is unusual in ms")
    if len(for_depth) >= 2 and not for_time:
        return "depth", for_depth, []
    if for_depth:
        against = "; ".join(for_time) or "a single piece of evidence is not enough"
        doubt = f"{'; '.join(for_depth)}, but {against}: --set domain=depth if the axis is depth"
        return "time", for_time or ["too little in the file says otherwise"], [doubt]
    return "time", for_time or ["nothing in the file says otherwise"], []
