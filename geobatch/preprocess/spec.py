"""`job: preprocess`: a survey prepared once, into a survey of its own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from geobatch.preprocess.base import Frozen
from geobatch.preprocess.chain import Chain
from geobatch.preprocess.resample import Resample


class PreprocessJob(Frozen):
    """`job: preprocess`: a survey and a chain in, the prepared survey out, stored once and read like any other.

    It pays when a chain costs more than the network, or needs an axis whole that blocks or patches cut: training reads
    each patch anew, and with it all that the chain needs around it.

    Attributes:
        job: `preprocess`.
        name: Of the job.
        survey: URL of the survey.
        output: URL of the prepared survey.
        preprocess: The steps, fitted to the whole survey; a crop comes first.
        resample: Another sample interval, after the crop and before all other steps.
        chunk: Unit of reading per axis; that of the survey when not given.
        shard: Unit of writing per axis, a multiple of `chunk`; that of the survey when not given.
        overwrite: Replace another survey that is complete.
        num_cpus: CPUs of the local Ray cluster when no cluster is joined.
    """

    job: Literal["preprocess"] = "preprocess"
    name: str = "preprocess"
    survey: str = Field(min_length=1)
    output: str = Field(min_length=1)
    preprocess: Chain = Chain()
    resample: Resample | None = None
    chunk: tuple[int, ...] | None = None
    shard: tuple[int, ...] | None = None
    overwrite: bool = False
    num_cpus: int | None = Field(default=None, ge=1)
