"""A small survey with its bundle and its undisturbed output, and what must hold of any other output of the same job."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from surveys import random_volume, write_bundle, write_survey

from geobatch.blocks import Grid
from geobatch.score.deployment import describe_failure
from geobatch.score.dispatch import Answer
from geobatch.score.run import score
from geobatch.score.spec import ScoreJob, ScorePlan, ScoreResources
from geobatch.score.verify import verify
from geobatch.score.worker import BlockScorer, Task
from geobatch.storage import join_url, open_storage

SHAPE = (24, 20, 32)
BLOCKS = 8
ARRAYS = ("class_map", "probability")
SETTINGS = {
    "shard": (16, 16, 16),
    "chunk": (8, 16, 8),
    "patch": (24, 24, 24),
    "statistics": "bundle",
    "attempts": 1,
    "resources": {"memory_gib": 4},
}


@dataclass(frozen=True)
class Scene:
    """Where survey and bundle lie, and the objects of the output that nothing disturbed."""

    url: str
    reference: Mapping[str, bytes]

    def job(self, output: str, **changes: Any) -> dict[str, Any]:
        """The job that every run of this scene has, but for its output and what does not decide voxels."""
        places = {"survey": join_url(self.url, "survey"), "bundle": join_url(self.url, "bundle"), "output": output}
        return {"job": "score", **places, **SETTINGS, **changes}

    def parsed(self, output: str, **changes: Any) -> ScoreJob:
        """The same as the schema of a job."""
        return ScoreJob.model_validate(self.job(output, **changes))

    def require_finished(self, output: str) -> None:
        """Raise AssertionError unless the output equals the undisturbed one, is complete, and its receipts hold."""
        assert without_fence(data_objects(output)) == without_fence(self.reference)
        assert state(output) == "complete"
        found = verify(output)
        assert (found.shards, found.findings) == (BLOCKS * len(ARRAYS), ())
        storage = open_storage(output)
        assert json.loads(storage.get("_geobatch/lease.json"))["released"]
        assert not list(storage.list("_geobatch/receipts")), "all receipts are in the manifest"


def make_scene(url: str) -> Scene:
    """Write survey and bundle, and score them once."""
    write_bundle(join_url(url, "bundle"), write_survey(join_url(url, "survey"), random_volume(SHAPE)))
    scene = Scene(url, {})
    output = join_url(url, "undisturbed")
    score(scene.parsed(output), open_pool=in_process)
    return Scene(url, data_objects(output))


class InProcess:
    """A pool that scores in the calling thread, one task after the other."""

    def __init__(self, scorer: BlockScorer) -> None:
        self.scorer = scorer

    def score(self, tasks: Sequence[Task]) -> list[Answer]:
        return [self._one(task) for task in tasks]

    def window(self) -> int:
        return 1

    def _one(self, task: Task) -> Answer:
        try:
            return self.scorer.score_block(task)
        except Exception as error:
            return describe_failure(error)


@contextlib.contextmanager
def in_process(plan: ScorePlan, url: str, resources: ScoreResources) -> Iterator[InProcess]:
    yield InProcess(BlockScorer(plan, url))


def data_objects(output: str) -> dict[str, bytes]:
    """Every stored object but control state."""
    storage = open_storage(output)
    keys = [key for key, _ in storage.list() if not key.startswith("_geobatch/")]
    return {key: storage.get(key) for key in keys}


def without_fence(objects: Mapping[str, bytes]) -> dict[str, bytes]:
    """The objects, without the fencing number that the group carries."""
    group = json.loads(objects["zarr.json"])
    del group["attributes"]["geobatch"]["fence"]
    return {**objects, "zarr.json": json.dumps(group).encode()}


def state(output: str) -> str:
    """`writing`, `incomplete` or `complete`."""
    return str(json.loads(open_storage(output).get("zarr.json"))["attributes"]["geobatch"]["state"])


def shard_key(array: str, block: int) -> str:
    """The object of a block of this scene's output."""
    index = "/".join(map(str, _grid().index(block)))
    return f"{array}/c/0/{index}" if array == "probability" else f"{array}/c/{index}"


def shards(output: str) -> dict[tuple[str, int], tuple[Any, ...]]:
    """What tells a stored shard from one written later: inode and time of a file, ETag and time of an object."""
    keys = {shard_key(array, block): (array, block) for array in ARRAYS for block in range(BLOCKS)}
    if output.startswith("s3://"):
        bucket, _, prefix = output.removeprefix("s3://").partition("/")
        listed = boto3.client("s3").list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
        found = {item["Key"].removeprefix(f"{prefix}/"): (item["ETag"], item["LastModified"]) for item in listed}
        return {keys[key]: told for key, told in found.items() if key in keys}
    paths = {shard: Path(output, key) for key, shard in keys.items()}
    return {shard: (s.st_ino, s.st_mtime_ns) for shard, path in paths.items() if path.exists() and (s := path.stat())}


def durable_blocks(stored: Mapping[tuple[str, int], Any]) -> set[int]:
    """The blocks of which every array's shard is stored."""
    return {block for block in range(BLOCKS) if all((array, block) in stored for array in ARRAYS)}


def _grid() -> Grid:
    nothing = ((0, 0),) * 3
    return Grid(SHAPE, SETTINGS["shard"], SETTINGS["patch"], (1, 1, 1), nothing, nothing)
