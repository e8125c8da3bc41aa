"""Storage behind a network that fails, cuts, flips, stalls and forgets to answer: a plain dict says what is true."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from proxy import KINDS, ChaosProxy, chaos_proxy

from geobatch.errors import FormatError, IntegrityError, NotFoundError, TransientError
from geobatch.local_s3 import LocalS3, environment, local_s3
from geobatch.shards import ArraySpec, create_arrays, encode_shard, finish_group, shard_indices, shard_key, shard_region
from geobatch.storage import Storage, open_storage, patience
from geobatch.survey import VOLUME_AXES, open_survey

BUCKET = "surveys"
THREADS = 8
SPEC = ArraySpec("amplitude", VOLUME_AXES, (40, 40, 40), "float32", (8, 8, 8), (16, 16, 16), math.nan)
KEYS = [*(f"control/{number}" for number in range(6)), *(f"raw/{number}" for number in range(4))]
# No checksum covers a part of a raw file: its bytes are as good as the connection, TLS on a real one.
UNVERIFIABLE = "/raw/"


@pytest.fixture(scope="module")
def server() -> Iterator[LocalS3]:
    with local_s3(BUCKET) as running:
        yield running


@pytest.fixture(scope="module")
def proxy_process(server: LocalS3) -> Iterator[ChaosProxy]:
    with chaos_proxy(server.endpoint) as running:
        yield running


@pytest.fixture
def proxy(server: LocalS3, proxy_process: ChaosProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[ChaosProxy]:
    """A proxy in front of a bucket, in the AWS environment, and time-outs in proportion to its stalls."""
    monkeypatch.setattr(patience, "READ_TIMEOUT_S", 1.0)
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.02)
    with environment({**server.environment, "AWS_ENDPOINT_URL": proxy_process.endpoint}):
        proxy_process.set()
        yield proxy_process
        proxy_process.set()


class Caller:
    """One thread that uses a prefix of its own, and knows what must be there.

    Args:
        url: Its prefix.
        seed: Of its choices.
        survey: A survey that all callers read, and its samples.
    """

    def __init__(self, url: str, seed: int, survey: tuple[str, npt.NDArray[np.float32]]) -> None:
        self.storage = open_storage(url)
        self.random = random.Random(seed)
        self.truth: dict[str, bytes] = {}
        self.survey = survey
        self.volume = open_survey(survey[0])["amplitude"]
        self.acts = [
            *(2 * [self.put, self.get, self.get_range, self.put_if_absent, self.put_if_match, self.region]),
            *(self.list, self.delete, self.size),
        ]

    def call(self, count: int) -> None:
        for _ in range(count):
            self.random.choice(self.acts)(self.random.choice(KEYS))

    def data(self) -> bytes:
        return self.random.randbytes(self.random.choice([0, 1, 100, 5000]))

    def put(self, key: str) -> None:
        self.truth[key] = self.data()
        self.storage.put(key, self.truth[key])

    def get(self, key: str) -> None:
        if key in self.truth:
            assert self.storage.get(key) == self.truth[key]
        else:
            with pytest.raises(NotFoundError):
                self.storage.get(key)

    def get_range(self, _: str) -> None:
        key = self.random.choice([key for key in KEYS if key.startswith("raw")])
        whole = self.truth.get(key, b"")
        if not whole:
            return self.put(key)
        start = self.random.randrange(len(whole))
        length = self.random.randrange(1, len(whole) + 10)
        if start + length <= len(whole):
            assert self.storage.get_range(key, start, length) == whole[start : start + length]
        else:
            with pytest.raises(FormatError, match="ends too early"):
                self.storage.get_range(key, start, length)
        return None

    def put_if_absent(self, key: str) -> None:
        data = self.data()
        assert self.storage.put_if_absent(key, data) == (self.truth.setdefault(key, data) == data)

    def put_if_match(self, key: str) -> None:
        data = self.data() + b"new"
        if key not in self.truth:
            assert self.storage.put_if_match(key, data, "0" * 32) is None
            return
        before, version = self.storage.read(key)
        assert before == self.truth[key]
        new = self.storage.put_if_match(key, data, version)
        assert new is not None
        self.truth[key] = data
        if data != before:
            assert self.storage.put_if_match(key, b"late", version) is None
        assert self.storage.read(key) == (data, new)

    def list(self, _: str) -> None:
        assert dict(self.storage.list()) == {key: len(data) for key, data in self.truth.items()}

    def delete(self, key: str) -> None:
        self.storage.delete(key)
        self.truth.pop(key, None)

    def size(self, key: str) -> None:
        assert self.storage.exists(key) == (key in self.truth)

    def region(self, _: str) -> None:
        cells = [sorted(self.random.sample(range(n + 1), 2)) for n in SPEC.shape]
        where = tuple(slice(first, stop) for first, stop in cells)
        np.testing.assert_array_equal(self.volume[where].values, self.survey[1][where])


def write_survey(url: str, kind: str = "volume") -> npt.NDArray[np.float32]:
    samples = np.random.default_rng(0).normal(size=SPEC.shape).astype(np.float32)
    create_arrays(url, [SPEC])
    for index in shard_indices(SPEC):
        open_storage(url).put(shard_key(SPEC, index), encode_shard(SPEC, samples[shard_region(SPEC, index)]))
    finish_group(url, [SPEC], {"geobatch": {"schema": 1, "kind": kind, "variable": "amplitude"}})
    return samples


def in_threads(calls: list[Callable[[], object]]) -> list[object]:
    with ThreadPoolExecutor(THREADS) as threads:
        return [future.result() for future in [threads.submit(call) for call in calls]]


@pytest.mark.parametrize(
    "operations", [320, pytest.param(10_000, marks=[pytest.mark.chaos, pytest.mark.timeout(1800)])]
)
def test_a_fifth_of_requests_struck_and_no_wrong_byte(proxy: ChaosProxy, operations: int) -> None:
    root = f"s3://{BUCKET}/mixed-{operations}"
    survey = f"{root}/survey", write_survey(f"{root}/survey")
    callers = [Caller(f"{root}/{number}", number, survey) for number in range(THREADS)]
    proxy.set(rate=0.2, seed=1, stall_s=3, unverifiable=UNVERIFIABLE)
    in_threads([lambda caller=caller: caller.call(operations // THREADS) for caller in callers])
    struck = proxy.statistics()
    print(operations, "operations:", struck)
    assert sum(struck["faults"].values()) > 0.15 * sum(struck["requests"].values()) > 0.15 * operations
    assert set(struck["faults"]) == set(KINDS)


def race(storages: list[Storage], key: str) -> tuple[list[bytes], bytes]:
    """What the winners among racers wrote, and what is stored."""
    start = threading.Barrier(len(storages))

    def run(number: int) -> bytes | None:
        start.wait()
        data = b"racer %d" % number
        return data if storages[number].put_if_absent(key, data) else None

    winners = in_threads([lambda number=number: run(number) for number in range(len(storages))])
    return [data for data in winners if data], storages[0].get(key)


@pytest.mark.parametrize("races", [4, pytest.param(200, marks=[pytest.mark.chaos, pytest.mark.timeout(900)])])
def test_each_race_has_one_winner_and_it_is_stored(proxy: ChaosProxy, races: int) -> None:
    storages = [open_storage(f"s3://{BUCKET}/races-{races}") for _ in range(THREADS)]
    proxy.set(rate=0.5, seed=2, stall_s=3, kinds=["lost_acknowledgement", "reset", "stall"])
    for number in range(races):
        winners, stored = race(storages, f"lease-{number}")
        assert winners == [stored]
    assert proxy.statistics()["faults"]["lost_acknowledgement"] > 0


@pytest.mark.parametrize("writes", [8, pytest.param(250, marks=[pytest.mark.chaos, pytest.mark.timeout(900)])])
def test_no_two_writers_replace_the_same_version(proxy: ChaosProxy, writes: int) -> None:
    storage = open_storage(f"s3://{BUCKET}/chain-{writes}")
    storage.put("count", b"0 nobody")
    proxy.set(rate=0.2, seed=3, stall_s=3)

    def count_up(writer: int) -> list[int]:
        acknowledged: list[int] = []
        while len(acknowledged) < writes:
            data, version = storage.read("count")
            number = int(data.split()[0]) + 1
            if storage.put_if_match("count", b"%d writer %d" % (number, writer), version):
                acknowledged.append(number)
        return acknowledged

    counted = in_threads([lambda writer=writer: count_up(writer) for writer in range(4)])
    numbers = [number for acknowledged in counted for number in acknowledged]
    assert len(set(numbers)) == len(numbers) == 4 * writes
    assert all(first < second for acknowledged in counted for first, second in pairwise(acknowledged))
    assert int(storage.get("count").split()[0]) >= max(numbers)


@pytest.mark.parametrize("writes", [60, pytest.param(1000, marks=[pytest.mark.chaos, pytest.mark.timeout(900)])])
def test_lost_acknowledgements_are_no_conflicts(proxy: ChaosProxy, writes: int) -> None:
    storage = open_storage(f"s3://{BUCKET}/lost-{writes}")
    storage.put("warm", b"")
    proxy.set(rate=0.5, seed=4, kinds=["lost_acknowledgement"])

    def write_twice(key: str) -> bool:
        created = storage.put_if_absent(key, key.encode())
        _, version = storage.read(key)
        return created and storage.put_if_match(key, b"second", version) is not None

    assert all(in_threads([lambda number=number: write_twice(f"{number}") for number in range(writes // 2)]))
    assert proxy.statistics()["struck"]["PUT lost_acknowledgement"] > writes // 3


@pytest.mark.parametrize("outage_s", [2, pytest.param(60, marks=pytest.mark.chaos)])
@pytest.mark.parametrize("kind", ["slow_down", "reset"])
def test_an_outage_is_waited_out(proxy: ChaosProxy, kind: str, outage_s: int) -> None:
    url = f"s3://{BUCKET}/outage"
    samples = write_survey(url)
    volume = open_survey(url)["amplitude"]
    storage = open_storage(url)
    proxy.set(rate=1, kinds=[kind])
    end = threading.Timer(outage_s, proxy.set)
    end.start()
    read, stored = in_threads(
        [lambda: volume[3:20, :9].values, lambda: storage.put_if_absent(f"{kind}{outage_s}", b"x")]
    )
    end.join()
    np.testing.assert_array_equal(read, samples[3:20, :9])
    assert stored


def test_patience_ends_in_a_transient_error(proxy: ChaosProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"s3://{BUCKET}/impatient"
    write_survey(url)
    volume = open_survey(url)["amplitude"]
    monkeypatch.setattr(patience, "PATIENCE_S", 0.5)
    proxy.set(rate=1, kinds=["slow_down"])
    with pytest.raises(TransientError, match=r"impatient/zarr.json: storage does not answer"):
        open_storage(url).get("zarr.json")
    with pytest.raises(TransientError, match=r"impatient/amplitude/c/0/0/0: storage does not answer"):
        _ = volume[:3, :3, :3].values


def test_an_address_that_never_answered_is_given_up_sooner(monkeypatch: pytest.MonkeyPatch, server: LocalS3) -> None:
    monkeypatch.setattr(patience, "FIRST_CONTACT_S", 0.5)
    nobody = {**server.environment, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    with environment(nobody), pytest.raises(TransientError, match=r"an answer within 0\.5 s"):
        open_storage(f"s3://{BUCKET}").get("key")


@pytest.mark.parametrize("part", [slice(0, 3), slice(0, 16)], ids=["some chunks", "whole shard"])
@pytest.mark.parametrize("place", ["file", "s3"])
def test_damage_at_rest_names_the_object(
    place: str, part: slice, server: LocalS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.001)
    url = f"s3://{BUCKET}/damaged" if place == "s3" else f"{tmp_path}/damaged"
    with environment(server.environment):
        write_survey(url)
        storage, key = open_storage(url), shard_key(SPEC, (0, 0, 0))
        stored = storage.get(key)
        damages = {
            "chunk": stored[:40] + bytes([stored[40] ^ 1]) + stored[41:],
            "index": stored[:-1] + bytes([stored[-1] ^ 1]),
            "cut": stored[:-30],
            "empty": b"",
        }
        volume = open_survey(url)["amplitude"]
        for name, damaged in damages.items():
            storage.put(key, damaged)
            with pytest.raises(IntegrityError, match=r"damaged/amplitude/c/0/0/0: stored object is damaged"):
                print(name, volume[part, :16, :16].values)
        storage.delete(key)
        with pytest.raises(IntegrityError, match=r"damaged/amplitude/c/0/0/0: stored object is missing"):
            _ = volume[part, :16, :16].values
        storage.put(key, stored)
        assert np.isfinite(volume[part, :16, :16].values).all()


def test_what_was_never_scored_reads_as_fill(server: LocalS3) -> None:
    with environment(server.environment):
        url = f"s3://{BUCKET}/scored"
        write_survey(url, kind="scored")
        open_storage(url).delete(shard_key(SPEC, (0, 0, 0)))
        assert np.isnan(open_survey(url)["amplitude"][:3, :3, :3].values).all()


def test_objects_of_other_writers_are_compared_with_their_md5(proxy: ChaosProxy) -> None:
    import boto3

    plain = boto3.client("s3", config=boto3.session.Config(request_checksum_calculation="when_required"))
    plain.put_object(Bucket=BUCKET, Key="others/file", Body=b"as it was" * 100)
    storage = open_storage(f"s3://{BUCKET}/others")
    assert storage.get("file") == b"as it was" * 100
    proxy.set(rate=0.5, seed=5, kinds=["flip_response", "short_body"])
    assert all(storage.get("file") == b"as it was" * 100 for _ in range(20))
    proxy.set(rate=1, kinds=["flip_response"])
    with pytest.raises(IntegrityError, match="MD5 is not the ETag"):
        storage.get("file")
