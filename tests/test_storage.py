from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import botocore.exceptions as aws
import pytest

import geobatch.storage.s3 as storage_module
from geobatch.errors import FormatError, NotFoundError, StorageError, TransientError, UsageError
from geobatch.local_s3 import environment, local_s3
from geobatch.storage import absolute_url, join_url, open_storage, split_url
from geobatch.storage.files import ABANDONED_S


@pytest.fixture(params=["file", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "root") if request.param == "file" else str(request.getfixturevalue("s3"))


def test_what_is_put_is_read_back_whole_and_by_range(root: str) -> None:
    storage = pickle.loads(pickle.dumps(open_storage(root)))
    storage.put("a/b.bin", bytes(range(100)))
    assert storage.get("a/b.bin") == bytes(range(100))
    assert storage.get_range("a/b.bin", 10, 5) == bytes(range(10, 15))
    assert storage.size("a/b.bin") == 100
    assert list(storage.list()) == [("a/b.bin", 100)]


def test_second_conditional_write_changes_nothing(root: str) -> None:
    storage = open_storage(root)
    assert storage.put_if_absent("shard", b"first")
    assert storage.put_if_absent("shard", b"first"), "the same bytes are adopted"
    assert not storage.put_if_absent("shard", b"second")
    assert storage.get("shard") == b"first"


def test_replacing_by_version_lets_one_writer_through(root: str) -> None:
    storage = open_storage(root)
    storage.put("lease", b"first")
    data, version = storage.read("lease")
    assert data == b"first"
    second = storage.put_if_match("lease", b"second", version)
    assert second is not None
    assert storage.read("lease") == (b"second", second)
    assert storage.put_if_match("lease", b"late", version) is None
    assert storage.put_if_match("lease", b"second", version) == second, "a lost acknowledgement is no conflict"
    assert storage.get("lease") == b"second"
    assert [key for key, _ in storage.list()] == ["lease"]


def test_what_is_gone_is_not_replaced(root: str) -> None:
    storage = open_storage(root)
    assert storage.put_if_match("leases/1", b"x", "any") is None
    storage.put("leases/1", b"first")
    _, version = storage.read("leases/1")
    storage.delete("leases/1")
    assert storage.put_if_match("leases/1", b"second", version) is None
    assert not storage.exists("leases/1")


def test_counting_writers_in_processes_lose_no_count(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    storage.put("count", b"0 nobody")
    counting = (
        "import os, sys; from geobatch.storage import open_storage; storage = open_storage(sys.argv[1]); done = 0\n"
        "while done < 50:\n"
        "    count, version = storage.read('count')\n"
        "    data = b'%d %d' % (int(count.split()[0]) + 1, os.getpid())\n"
        "    done += storage.put_if_match('count', data, version) is not None\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", counting, str(tmp_path)]) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert int(storage.get("count").split()[0]) == 150


def test_writer_that_fails_publishes_nothing(root: str) -> None:
    storage = open_storage(root)
    with pytest.raises(RuntimeError), storage.open_writer("big") as write:
        write(b"x" * (17 * 2**20))
        raise RuntimeError
    assert not storage.exists("big")
    assert list(storage.list()) == []
    with storage.open_writer("big") as write:
        write(b"x" * (17 * 2**20))
        write(b"end")
    assert storage.size("big") == 17 * 2**20 + 3


def test_missing_object_is_not_found(root: str) -> None:
    with pytest.raises(NotFoundError, match="nothing-here"):
        open_storage(root).get("nothing-here")


def test_range_beyond_the_end_is_a_format_error(root: str) -> None:
    storage = open_storage(root)
    storage.put("short", b"12345")
    with pytest.raises(FormatError, match="ends too early"):
        storage.get_range("short", 3, 10)


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=16777210-16777225", slice(16777210, 16777226)),
        ("bytes=17000000-", slice(17_000_000, None)),
        ("bytes=-7", slice(-7, None)),
        ("bytes=0-99999999", slice(0, None)),
        ("bytes=7-3", slice(0, None)),
        ("bytes=0-1,4-5", slice(0, None)),
    ],
)
def test_local_server_answers_every_form_of_range(s3: str, asked: str, part: slice) -> None:
    body = bytes(range(256)) * (2**16 + 2**12)
    bucket, _, prefix = s3.removeprefix("s3://").partition("/")
    open_storage(s3).put("large", body)
    client = storage_module.boto3.client("s3")
    answer = client.get_object(Bucket=bucket, Key=f"{prefix}/large", Range=asked)
    assert answer["Body"].read() == body[part]
    assert client.head_object(Bucket=bucket, Key=f"{prefix}/large", Range="bytes=3-9")["ContentLength"] == 7


def test_key_cannot_leave_its_root(root: str) -> None:
    for key in ("../other", "/etc/passwd", "a/../../b"):
        with pytest.raises(UsageError, match="leaves its root"):
            open_storage(root).put(key, b"")


def test_mark_characters_belong_to_the_key(s3: str) -> None:
    open_storage(f"{s3}/run#2").put("a", b"second")
    open_storage(f"{s3}/run?3").put("a", b"third")
    assert open_storage(f"{s3}/run#2").get("a") == b"second"
    assert [key for key, _ in open_storage(s3).list()] == ["run#2/a", "run?3/a"]


def test_error_between_pages_of_a_listing_loses_nothing(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(s3)
    for number in range(5):
        storage.put(f"key-{number}", b"")
    client = storage_module._s3_client()
    answer, calls = client.list_objects_v2, []

    def two_at_a_time(**question: object) -> object:
        calls.append(question)
        if len(calls) == 2:
            raise aws.ClientError({"ResponseMetadata": {"HTTPStatusCode": 503}}, "ListObjectsV2")
        return answer(**question, MaxKeys=2)

    monkeypatch.setattr(client, "list_objects_v2", two_at_a_time)
    assert [key for key, _ in storage.list()] == [f"key-{number}" for number in range(5)]
    assert len(calls) == 4


def test_write_beside_another_is_tried_again(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(s3)
    client = storage_module._s3_client()
    put, calls = client.put_object, []

    def conflict_first(**arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 1:
            raise aws.ClientError({"ResponseMetadata": {"HTTPStatusCode": 409}}, "PutObject")
        return put(**arguments)

    monkeypatch.setattr(client, "put_object", conflict_first)
    assert storage.put_if_absent("shard", b"mine")
    assert (len(calls), storage.get("shard")) == (2, b"mine")


def test_unknown_scheme_is_refused() -> None:
    with pytest.raises(UsageError, match="s3://bucket/key"):
        open_storage("http://example.org/volume")


def test_missing_bucket_names_the_bucket(s3: str) -> None:
    with pytest.raises(StorageError, match="bucket does not exist; found no-such-bucket"):
        open_storage("s3://no-such-bucket/x").get("key")
    with pytest.raises(StorageError, match="bucket does not exist"):
        open_storage("s3://no-such-bucket/x").put("key", b"")
    with pytest.raises(StorageError, match="bucket does not exist"):
        open_storage("s3://no-such-bucket/x").size("key")


def test_wrong_credentials_are_named() -> None:
    with (
        local_s3(require_credentials=True) as server,
        environment(server.environment),
        pytest.raises(StorageError, match="refused the credentials"),
    ):
        open_storage("s3://bucket/x").get("key")


def test_unwritable_folder_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write"):
        open_storage(str(tmp_path / "file" / "below")).put("key", b"")


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.EIO, TransientError), (errno.ESTALE, TransientError), (errno.ENOSPC, StorageError)],
)
def test_file_server_that_fails_for_a_while_is_no_wrong_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    storage = open_storage(str(tmp_path))
    storage.put("key", b"first")

    def fails(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "read_bytes", fails)
    monkeypatch.setattr(os, "fsync", fails)
    for call in (
        lambda: storage.get("key"),
        lambda: storage.put_if_absent("new", b""),
        lambda: storage.put("key", b""),
    ):
        with pytest.raises(kind, match=f"cannot (read|write): {os.strerror(number)}"):
            call()
    monkeypatch.undo()
    assert [(key, storage.get(key)) for key, _ in storage.list()] == [("key", b"first")]


def test_sweep_takes_what_killed_writers_left_and_leaves_what_is_being_written(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    storage.put("a/b/shard", b"x")
    os.utime(tmp_path / "a/b/shard", (0, 0))
    abandoned, fresh = (tmp_path / f"a/b/.shard.{name}.partial" for name in ("old", "new"))
    with storage.open_writer("big") as write:
        for path in (abandoned, fresh):
            path.write_bytes(b"half")
        os.utime(abandoned, (0, fresh.stat().st_mtime - ABANDONED_S - 1))
        storage.sweep()
        write(b"whole")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [fresh.name, "big", "shard"]


def test_urls_split_and_join() -> None:
    assert split_url("s3://bucket/raw/f3.sgy") == ("s3://bucket/raw", "f3.sgy")
    assert split_url("f3.sgy") == (".", "f3.sgy")
    assert join_url("s3://bucket/raw/", "a", "b") == "s3://bucket/raw/a/b"
    assert absolute_url("s3://bucket/raw/") == "s3://bucket/raw"
    assert Path(absolute_url("x")).is_absolute()
    with pytest.raises(UsageError):
        split_url("s3://bucket")
