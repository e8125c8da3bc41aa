"""Any order of runs, kills, damages and repairs, against a plain model of what is stored, proven and asked for.

Where the runs are, in plain processes or on a cluster, is for the subclasses to say.
"""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from line import Line
from scene import ARRAYS, BLOCKS, Scene, shard_key, state
from struck import Fault, Outcome, Run

from geobatch.errors import IncompleteError
from geobatch.proof import read_receipts
from geobatch.score.output import JOB, SCOPE
from geobatch.score.receipts import BATCHES, DEAD_LETTERS, MANIFEST, block_numbers
from geobatch.score.region import Region
from geobatch.score.spec import ScoreJob
from geobatch.score.verify import verify
from geobatch.storage import open_storage

Shard = tuple[str, int]
Part = tuple[dict[str, Any], frozenset[int]]
ABSENT, INTACT, SAME_SIZE, OTHER_SIZE = "absent", "intact", "same size", "other size"
EVERY = frozenset(range(BLOCKS))
# Blocks are numbered inline first: of 0 to 7, bit 2 says which half along the inlines, bit 0 along the samples.
REGIONS: list[Part] = [
    ({"inline": (100, 110), "sample": (0, 8)}, frozenset({0, 2})),
    ({"inline": (132, 150)}, frozenset({4, 5, 6, 7})),
    ({"sample": (100, 124)}, frozenset({1, 3, 5, 7})),
    ({}, EVERY),
]
REGION = st.sampled_from(REGIONS)
BLOCK = st.integers(0, BLOCKS - 1)
SHARD = st.tuples(st.sampled_from(ARRAYS), BLOCK)
POINT = st.integers(1, 140)


def where(condition: Callable[[Survey], Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A rule that does nothing unless the condition holds.

    A precondition would change what Hypothesis draws next, which must not depend on how far a killed run came.
    """

    def conditional(step: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(step)
        def stepped(self: Survey, *drawn: Any, **named: Any) -> None:
            if condition(self):
                step(self, *drawn, **named)

        return stepped

    return conditional


class Survey(RuleBasedStateMachine):
    """An output, and the model of it.

    Attributes:
        shards: Per shard, what is stored.
        receipts: Blocks with a receipt.
        dead: Blocks with a dead letter.
        asked: Blocks that some run was asked for.
        swapped: Shards that are sound but in the wrong place: only a receipt tells.
    """

    scene: Scene

    def open_line(self, folder: Path) -> Line:
        """What starts the drivers of this output, with their traces in an empty folder."""
        return Line(folder)

    def run(self, action: str, job: dict[str, Any]) -> IncompleteError | None:
        """Run it undisturbed; as `error`."""
        return self.error(self.line.start(job, action))

    def error(self, run: Run) -> IncompleteError | None:
        """The error that says that blocks died, of a run that ended by itself."""
        outcome = self.wait(run)
        assert outcome.summary or isinstance(outcome.error, IncompleteError), outcome
        return outcome.error

    def wait(self, run: Run) -> Outcome:
        """How a run ended, when none of its workers writes any more."""
        return run.wait()

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="geobatch-machine-"))
        (self.folder / "traces").mkdir()
        self.output, self.line = str(self.folder / "scored"), self.open_line(self.folder / "traces")
        self.storage = open_storage(self.output)
        self.shards: dict[Shard, str] = {(array, block): ABSENT for array in ARRAYS for block in range(BLOCKS)}
        self.receipts, self.dead, self.asked, self.swapped = set[int](), set[int](), set[int](), set[Shard]()

    @rule(part=REGION, memory_gib=st.integers(2, 6))
    def score(self, part: Part, memory_gib: int) -> None:
        job = self.job(part, memory_gib=memory_gib)
        self.require_figures(self.run("score", job), *self.expect_score(part))

    @rule(part=REGION, replicas=st.integers(1, 2), overlap=st.booleans())
    def score_with_replicas(self, part: Part, replicas: int, overlap: bool) -> None:
        job = self.job(part, replicas=replicas, overlap=overlap)
        self.require_figures(Survey.run(self, "score", job), *self.expect_score(part))

    @rule()
    @where(lambda self: self.storage.exists(JOB))
    def retry(self) -> None:
        self.asked |= self.asked_by_job()
        self.require_figures(self.run("retry", self.scene.job(self.output)), *self.expect_run(set(self.dead)))

    @rule()
    @where(lambda self: self.storage.exists(JOB))
    def repair(self) -> None:
        self.asked |= self.asked_by_job()
        damaged = {block for _, block in self.damaged()}
        for shard in [shard for shard in self.shards if shard[1] in damaged]:
            self.put(shard, INTACT)
        self.receipts |= damaged
        self.dead -= self.receipts
        self.require_figures(self.run("repair", self.scene.job(self.output)), len(damaged), 0, set())

    @rule(part=REGION, driver=POINT)
    def kill_driver(self, part: Part, driver: int) -> None:
        self.run_and_kill(part, driver=Fault(driver))

    @rule(driver=POINT)
    @where(lambda self: self.storage.exists(JOB) and self.damaged())
    def kill_repair(self, driver: int) -> None:
        before, damaged = dict(self.shards), self.damaged()
        outcome = self.wait(self.line.start(self.scene.job(self.output), "repair", driver=Fault(driver)))
        assert outcome.error is None
        self.look(may_replace=damaged)
        assert all(self.shards[shard] in (before[shard], INTACT) for shard in before)
        receipts, dead = self.stored_receipts(), self.stored_dead()
        assert self.receipts <= receipts <= self.receipts | {block for _, block in damaged}
        assert dead in (self.dead, self.dead - receipts)
        asked = self.stored_scope()
        assert asked in (self.asked, self.asked | self.asked_by_job())
        self.asked, self.dead, self.receipts = asked, dead, receipts

    @rule(shard=SHARD, how=st.sampled_from(["flip", "cut", "empty"]), byte=st.integers(0, 10**6), bit=st.integers(0, 7))
    def damage(self, shard: Shard, how: str, byte: int, bit: int) -> None:
        if self.shards[shard] != INTACT:
            return
        body = bytearray(self.storage.get(shard_key(*shard)))
        if how == "flip":
            body[byte % len(body)] ^= 1 << bit
        self.storage.put(shard_key(*shard), b"" if how == "empty" else bytes(body[: -1 if how == "cut" else None]))
        self.put(shard, SAME_SIZE if how == "flip" else OTHER_SIZE)

    @rule(array=st.sampled_from(ARRAYS), one=BLOCK, other=BLOCK)
    def swap(self, array: str, one: int, other: int) -> None:
        pair = [(array, one), (array, other)]
        if one == other or any(self.shards[s] != INTACT or s[1] not in self.receipts for s in pair):
            return
        keys = [shard_key(*shard) for shard in pair]
        bodies = [self.storage.get(key) for key in keys]
        for shard, key, body, own in zip(pair, keys, reversed(bodies), bodies, strict=True):
            self.storage.put(key, body)
            if body != own:
                self.put(shard, SAME_SIZE if len(body) == len(own) else OTHER_SIZE)
                self.swapped.add(shard)

    @rule(shard=SHARD)
    def delete_shard(self, shard: Shard) -> None:
        self.storage.delete(shard_key(*shard))
        self.put(shard, ABSENT)

    @rule(which=st.integers(0, 3))
    @where(lambda self: self.receipts and not self.swapped)
    def delete_receipts(self, which: int) -> None:
        stored = self.receipt_objects()
        self.storage.delete(stored[which % len(stored)])
        self.receipts = self.stored_receipts()

    @invariant()
    def verify_finds_what_is_damaged(self) -> None:
        if self.storage.exists("_geobatch/plan.json"):
            found = [finding for finding in verify(self.output).findings if finding.block >= 0]
            assert {(finding.array, finding.block) for finding in found} == self.damaged()

    def teardown(self) -> None:
        try:
            self.score(({}, EVERY), 4)
            self.repair()
            assert self.receipts == EVERY and not self.dead
            self.scene.require_finished(self.output)
        finally:
            self.line.close()
            shutil.rmtree(self.folder)

    def put(self, shard: Shard, what: str) -> None:
        self.shards[shard] = what
        self.swapped.discard(shard)

    def damaged(self) -> set[Shard]:
        """What verify finds: shards that are not as their receipt says, or that without one do not decode."""
        unsound = {shard for shard, what in self.shards.items() if what != INTACT}
        return {shard for shard in unsound if shard[1] in self.receipts or self.shards[shard] != ABSENT}

    def is_whole(self, block: int) -> bool:
        sized = all(self.shards[array, block] in (INTACT, SAME_SIZE) for array in ARRAYS)
        return sized and block in self.receipts and block not in self.dead

    def job(self, part: Part, **resources: Any) -> dict[str, Any]:
        return self.scene.job(self.output, region=part[0], resources={"memory_gib": 4, **resources})

    def expect_score(self, part: Part) -> tuple[int, int, set[int]]:
        """As `expect_run`, of a part that is asked for."""
        self.asked |= part[1]
        return self.expect_run(set(part[1]))

    def expect_run(self, blocks: set[int]) -> tuple[int, int, set[int]]:
        """Let the model score these blocks: how many it scored, how many of those it adopted, and which died."""
        adopted, computed, died = set[int](), set[int](), set[int]()
        for block in [block for block in blocks if not self.is_whole(block)]:
            stored = [self.shards[array, block] for array in ARRAYS]
            if ABSENT not in stored:
                (adopted if set(stored) == {INTACT} else died).add(block)
                continue
            computed.add(block)
            for array in ARRAYS:
                if self.shards[array, block] == ABSENT:
                    self.put((array, block), INTACT)
                elif self.shards[array, block] != INTACT:
                    computed.remove(block)
                    died.add(block)
                    break
        self.receipts |= adopted | computed
        self.dead = (self.dead - adopted - computed) | died
        return len(adopted | computed), len(adopted), died

    def require_figures(
        self, error: Any, scored: int, adopted: int, died: set[int], *, more_adopted: bool = False
    ) -> None:
        """The last run's summary, its error, its dead letters, its receipts and its state are what the model says.

        With `more_adopted`, it may have found more blocks stored than the model knows.
        """
        blocks = json.loads(self.storage.get("_geobatch/run.json"))["blocks"]
        assert (blocks["scored"], blocks["dead"]) == (scored, len(died))
        assert adopted <= blocks["adopted"] <= (scored if more_adopted else adopted)
        assert isinstance(error, IncompleteError) == bool(died)
        assert self.stored_dead() == self.dead
        assert self.stored_receipts() == self.receipts
        assert not list(self.storage.list(BATCHES))
        assert state(self.output) == ("complete" if all(map(self.is_whole, self.asked)) else "incomplete")
        self.look(may_replace=set())

    def run_and_kill(self, part: Part, replicas: int = 1, **faults: Any) -> None:
        outcome = self.wait(self.line.start(self.job(part, replicas=replicas), **faults))
        assert outcome.error is None or isinstance(outcome.error, IncompleteError), outcome
        self.take_up(part)

    def take_up(self, part: Part) -> None:
        """Let the model have what a run of this part has done, however far it came."""
        _, blocks = part
        asked = self.stored_scope()
        assert asked in (self.asked, self.asked | blocks)
        dead = self.stored_dead()
        assert dead <= self.dead | blocks
        receipts = self.stored_receipts()
        assert self.receipts <= receipts <= self.receipts | blocks
        before = dict(self.shards)
        self.look(may_replace=set())
        written = {shard for shard in before if before[shard] != self.shards[shard]}
        assert {block for _, block in written} <= blocks
        new = receipts - self.receipts
        assert all(self.shards[array, block] == INTACT for array in ARRAYS for block in new)
        self.asked, self.dead, self.receipts = asked, dead, receipts

    def look(self, may_replace: set[Shard]) -> None:
        """Compare every shard with the undisturbed one: what was absent may be there, and nothing else may differ."""
        for shard, what in self.shards.items():
            key = shard_key(*shard)
            stored = self.storage.get(key) if self.storage.exists(key) else None
            if stored == self.scene.reference[key]:
                assert what in (INTACT, ABSENT) or shard in may_replace
                self.put(shard, INTACT)
            else:
                assert what != INTACT and (stored is None) == (what == ABSENT), f"{key} is {what}"

    def asked_by_job(self) -> frozenset[int]:
        """The blocks of the stored job, which a run that was killed may have stored without its scope."""
        stored = ScoreJob.model_validate_json(self.storage.get(JOB)).region
        return next(blocks for region, blocks in REGIONS if Region(**region).absolute() == stored)

    def receipt_objects(self) -> list[str]:
        manifest = [MANIFEST] if self.storage.exists(MANIFEST) else []
        return manifest + [key for key, _ in self.storage.list(BATCHES)]

    def stored_receipts(self) -> set[int]:
        tables = [read_receipts(self.storage.get(key), key) for key in self.receipt_objects()]
        return {block for table in tables for block in block_numbers(table).tolist()}

    def stored_dead(self) -> set[int]:
        letters = json.loads(self.storage.get(DEAD_LETTERS)) if self.storage.exists(DEAD_LETTERS) else []
        return {letter["number"] for letter in letters}

    def stored_scope(self) -> set[int]:
        runs = json.loads(self.storage.get(SCOPE)) if self.storage.exists(SCOPE) else []
        return {block for first, stop in runs for block in range(first, stop)}


def require_clean(survey: type[Survey], scene: Scene, sequences: int, steps: int, **more: Any) -> None:
    """Run the machine through so many sequences, the same ones every time."""
    survey.scene = scene
    chosen = settings(
        max_examples=sequences,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        **more,
    )
    run_state_machine_as_test(survey, settings=chosen)
