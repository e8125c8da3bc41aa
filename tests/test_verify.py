"""What `verify` tells of outputs whose description is damaged. Damaged shards: `tests/chaos/test_damage.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
from surveys import plan_of

from geobatch.errors import IntegrityError, NotFoundError
from geobatch.score.planning import PLAN
from geobatch.score.verify import verify
from geobatch.shards import create_arrays
from geobatch.storage import open_storage
from geobatch.storage.files import FileStorage


@pytest.fixture
def output(tmp_path: Path) -> str:
    """An output that was begun, of which no block is scored."""
    plan = plan_of((16, 16, 16), (8, 8, 8))
    create_arrays(str(tmp_path), plan.arrays())
    open_storage(str(tmp_path)).put(PLAN, plan.model_dump_json().encode())
    return str(tmp_path)


def test_plan_that_does_not_read_is_named(output: str) -> None:
    assert verify(output).findings == ()
    open_storage(output).put(PLAN, b'{"grid": ')
    with pytest.raises(IntegrityError, match=r"plan.json of the output does not read.*Restore it"):
        verify(output)
    open_storage(output).delete(PLAN)
    with pytest.raises(NotFoundError, match="no scoring run there"):
        verify(output)


def test_metadata_that_storage_refuses_as_damaged_are_a_finding(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    open_storage(output).put("class_map/zarr.json", b"{")
    open_storage(output).delete("probability/zarr.json")
    found = [(finding.key, finding.what) for finding in verify(output).findings]
    assert found == [("class_map/zarr.json", "damaged"), ("probability/zarr.json", "missing")]
    read = FileStorage.read

    def refused(storage: FileStorage, key: str) -> tuple[bytes, str]:
        if key == "class_map/zarr.json":
            raise IntegrityError("stored object is damaged", where=key, measured="another checksum")
        return read(storage, key)

    monkeypatch.setattr(FileStorage, "read", refused)
    first = verify(output).findings[0]
    assert (first.key, first.what, first.measured) == ("class_map/zarr.json", "damaged", "another checksum")


def test_files_that_are_no_shards_are_passed_over(output: str) -> None:
    storage = open_storage(output)
    for name in ("0/0/.nfs0000001", "0/0/7", "0/readme.txt", "0/0/1"):
        storage.put(f"class_map/c/{name}", b"not a shard")
    assert [(finding.block, finding.key) for finding in verify(output).findings] == [(1, "class_map/c/0/0/1")]
