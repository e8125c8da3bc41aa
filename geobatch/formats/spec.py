"""What an ingest is told: the job, the options of every format, who hears of its progress; what an inspection gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import xarray as xr


class IngestOptions(BaseModel):
    """Options of every format; each format adds its own in a subclass, which `geobatch formats` lists.

    Attributes:
        crs: Coordinate reference system of the coordinates, such as `EPSG:23031`; from the file when not given.
        attribution: Whom to name, and under which licence, wherever the data are shown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    crs: str | None = None
    attribution: str | None = None

    def decisive(self) -> dict[str, Any]:
        """The options as JSON: they decide what is written."""
        return self.model_dump(mode="json")


@dataclass(frozen=True)
class IngestRun:
    """How an ingest runs; nothing here decides a byte of the survey.

    Attributes:
        overwrite: Replace another survey that is complete.
        num_cpus: CPUs of the local Ray cluster when this process is connected to none.
        on_progress: Called with how much is done and how much there is, in the format's own unit.
    """

    overwrite: bool = False
    num_cpus: int | None = None
    on_progress: Callable[[int, int], None] = lambda done, total: None


class IngestJob(BaseModel):
    """A raw source into a survey.

    Attributes:
        job: `ingest`.
        name: Of the job.
        source: URL of a file or a folder, on S3 or a file system.
        output: URL of the survey.
        format: Name of the format; found by the suffix of the source when not given.
        options: Those of the format, see `geobatch formats`.
        overwrite: Replace another survey that is complete.
        num_cpus: CPUs of the local Ray cluster when no cluster is joined.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: Literal["ingest"]
    name: str = "ingest"
    source: str
    output: str
    format: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    overwrite: bool = False
    num_cpus: int | None = Field(default=None, ge=1)


class Inspected(NamedTuple):
    """A survey or a raw source that was looked at.

    Attributes:
        told: Its description as JSON, suspicious things first.
        dataset: Its variables, named and laid out as those of its survey; large ones are read on demand.
        sample: What spectrum and clipping were taken from: of seismic data a `TraceSample`, of waveforms the
            `ChannelSample`s of each sampling rate.
    """

    told: dict[str, Any]
    dataset: xr.Dataset
    sample: Any = None
