"""The kinds of data that training takes."""

from __future__ import annotations

from collections.abc import Callable

from geobatch.train.rasters import RasterTask
from geobatch.train.source import Task
from geobatch.train.spec import TrainJob
from geobatch.train.volumes import VolumeTask
from geobatch.train.wells import WellsTask
from geobatch.train.windows import WindowsTask

TASKS: dict[str, Callable[[TrainJob], Task]] = {
    "raster": RasterTask,
    "volume": VolumeTask,
    "wells": WellsTask,
    "windows": WindowsTask,
}


def open_task(job: TrainJob) -> Task:
    """What the job's data are to training.

    Raises:
        NotFoundError: a survey is not there.
        MismatchError: surveys and labels do not fit together.
        DataError: one of them is not complete.
        UsageError: what is to be held out leaves nothing, or is not there.
    """
    return TASKS[job.data[0].kind](job)
