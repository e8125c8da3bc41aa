"""What a simulation must say in the cases whose answer is known."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geobatch.errors import UsageError
from geobatch.score.simulate import GETS_PER_S, PUTS_PER_S, Workload, scaling, simulate


@given(st.integers(1, 300), st.floats(0.1, 50), st.integers(1, 64))
def test_equal_blocks_take_as_many_rounds_as_there_are(blocks: int, seconds: float, replicas: int) -> None:
    work = Workload(
        blocks, (seconds,), startup_s=5, finish_s=1, dispatched_per_s=1e9, gets_per_block=0, puts_per_block=0
    )
    run = simulate(work, replicas)
    assert run.seconds == pytest.approx(6 + math.ceil(blocks / replicas) * seconds, rel=1e-3)


@given(st.integers(1, 8))
def test_more_replicas_are_never_slower(doublings: int) -> None:
    work = Workload(3000, (0.5, 1.0, 4.0), startup_s=10)
    seconds = [run["seconds"] for run in scaling(work, 2**doublings)["runs"]]
    assert seconds == sorted(seconds, reverse=True)


def test_limits_of_the_bucket_and_of_the_driver_stop_scaling_by_name() -> None:
    many = {"blocks": 200_000, "block_seconds": (1.0,)}
    reads = scaling(Workload(**many, gets_per_block=100, dispatched_per_s=1e6), 4096)
    writes = scaling(Workload(**many, puts_per_block=100, gets_per_block=1, dispatched_per_s=1e6), 4096)
    driver = scaling(Workload(**many, dispatched_per_s=50), 4096)
    assert (reads["stops_because"], writes["stops_because"], driver["stops_because"]) == (
        "reads from the bucket",
        "writes to the bucket",
        "dispatch",
    )
    # 55, 35 and 50 blocks a second pass: the doubling that comes to stand against that pays where it still gains 1.3.
    assert (GETS_PER_S / 100, PUTS_PER_S / 100) == (55, 35)
    assert [found["useful_replicas"] for found in (reads, writes, driver)] == [64, 32, 64]
    assert scaling(Workload(100, (5.0,)), 512)["stops_because"] == "too few blocks for so many replicas"


def test_preemption_costs_the_blocks_it_hits_and_the_wait_for_a_replacement() -> None:
    work = Workload(5000, (2.0,), dispatched_per_s=1e6)
    calm, rough = simulate(work, 16), simulate(work, 16, preemptions_per_hour=20, replacement_s=60)
    expected = 16 * 20 / 3600 * rough.seconds
    assert rough.lost == pytest.approx(expected, rel=0.4)
    assert calm.lost == 0
    assert rough.seconds > calm.seconds * 1.2


def test_replicas_that_never_finish_a_block_are_an_error() -> None:
    with pytest.raises(UsageError, match="taken away before they finish"):
        simulate(Workload(3, (3600.0,)), 2, preemptions_per_hour=60)
