"""The order in which a replica reads, computes and writes its blocks."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from geobatch.score.deployment import Turns

Log = list[tuple[str, int]]


async def _line(turns: Turns, blocks: int, pauses: list[int], log: Log) -> None:
    """Blocks through a replica's stages, each of which takes some turns of the event loop."""
    room, reading = asyncio.Semaphore(2), asyncio.Lock()

    async def stage(name: str, block: int) -> None:
        log.append((f"{name} begins", block))
        for _ in range(pauses[(3 * block + len(name)) % len(pauses)]):
            await asyncio.sleep(0)
        log.append((f"{name} ends", block))

    async def one(block: int) -> None:
        async with room:
            async with reading, turns.moving():
                await stage("read", block)
            async with turns.computing():
                await stage("compute", block)
            async with turns.moving():
                await stage("write", block)

    await asyncio.gather(*(one(block) for block in range(blocks)))


@given(st.integers(1, 9), st.lists(st.integers(0, 7), min_size=1, max_size=9))
def test_nothing_runs_beside_computing_and_every_block_is_done(blocks: int, pauses: list[int]) -> None:
    log: Log = []
    asyncio.run(_line(Turns(together=False), blocks, pauses, log))
    running: set[tuple[str, int]] = set()
    for entry, block in log:
        stage, _, edge = entry.partition(" ")
        if edge == "begins":
            running.add((stage, block))
            assert (stage == "compute" and len(running) == 1) or not any(name == "compute" for name, _ in running)
        else:
            running.remove((stage, block))
    assert not running
    assert sorted(block for entry, block in log if entry == "write ends") == list(range(blocks))


def test_next_block_is_read_while_the_last_is_written() -> None:
    log: Log = []
    asyncio.run(_line(Turns(together=False), 3, [5], log))
    assert log[:4] == [("read begins", 0), ("read ends", 0), ("compute begins", 0), ("compute ends", 0)]
    assert set(log[4:6]) == {("write begins", 0), ("read begins", 1)}
    assert log.index(("compute begins", 1)) > log.index(("write ends", 0))
