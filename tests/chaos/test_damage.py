"""Damaged outputs: whatever is done to a stored shard, `verify` names that shard, and `repair` rewrites it alone."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scene import ARRAYS, BLOCKS, Scene, in_process, shard_key, shards, state

from geobatch.errors import IncompleteError
from geobatch.score.run import repair, score
from geobatch.score.verify import verify
from geobatch.storage import join_url

SHARDS = [(array, block) for array in ARRAYS for block in range(BLOCKS)]
Shard = tuple[str, int]


@pytest.fixture
def output(scene: Scene, tmp_path: Path) -> Iterator[str]:
    shutil.copytree(join_url(scene.url, "undisturbed"), tmp_path / "scored")
    yield str(tmp_path / "scored")


def path_of(output: str, shard: Shard) -> Path:
    return Path(output, shard_key(*shard))


def flip(path: Path, chance: random.Random) -> None:
    """Change one byte in place, whatever it is."""
    body = bytearray(path.read_bytes())
    body[chance.randrange(len(body))] ^= chance.randint(1, 255)
    path.write_bytes(body)


def cut(path: Path, chance: random.Random) -> None:
    body = path.read_bytes()
    path.write_bytes(body[: chance.randrange(1, len(body))])


def empty(path: Path, chance: random.Random) -> None:
    path.write_bytes(b"")


def delete(path: Path, chance: random.Random) -> None:
    path.unlink()


def lengthen(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes() + chance.randbytes(chance.randint(1, 20)))


def require_found(output: str, damaged: set[Shard]) -> None:
    """Verify names these shards and no others."""
    findings = verify(output).findings
    assert {(found.array, found.block) for found in findings} == damaged
    assert len(findings) == len(damaged)


def require_repaired(scene: Scene, output: str, damaged: set[Shard]) -> None:
    """Repair makes the output as it was, and no other shard is written."""
    kept = {shard: told for shard, told in shards(output).items() if shard not in damaged}
    summary = repair(output, open_pool=in_process)
    assert summary["blocks"]["scored"] == len({block for _, block in damaged})
    assert {shard: told for shard, told in shards(output).items() if shard in kept} == kept
    scene.require_finished(output)


def flip_bytes(scene: Scene, output: str, samples: int, repaired: int) -> None:
    """Flip a byte of a shard, `samples` times; each is found, and every so often repaired instead of put back."""
    chance = random.Random(samples)
    for sample in range(samples):
        shard = chance.choice(SHARDS)
        path, before = path_of(output, shard), path_of(output, shard).read_bytes()
        flip(path, chance)
        require_found(output, {shard})
        if sample % (samples // repaired) == 0:
            require_repaired(scene, output, {shard})
        else:
            path.write_bytes(before)


def test_every_flipped_byte_is_found_and_its_shard_alone_repaired(scene: Scene, output: str) -> None:
    flip_bytes(scene, output, samples=60, repaired=3)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_2000_flipped_bytes_are_found_and_their_shards_alone_repaired(scene: Scene, output: str) -> None:
    flip_bytes(scene, output, samples=2000, repaired=50)


@pytest.mark.parametrize("damage", [cut, empty, delete, lengthen])
def test_shards_of_another_size_are_found_and_repaired(
    scene: Scene, output: str, damage: Callable[[Path, random.Random], None]
) -> None:
    chance = random.Random(0)
    damaged = set(chance.sample(SHARDS, 3))
    for shard in damaged:
        damage(path_of(output, shard), chance)
    require_found(output, damaged)
    require_repaired(scene, output, damaged)


def test_swapped_shards_are_found_and_repaired(scene: Scene, output: str) -> None:
    swapped = {("class_map", 0), ("class_map", 5)}
    swap(output, *swapped)
    require_found(output, swapped)
    require_repaired(scene, output, swapped)


def test_resume_does_not_adopt_what_contradicts_its_receipt(scene: Scene, output: str) -> None:
    swapped = {("class_map", 0), ("class_map", 5)}
    swap(output, *swapped)
    with pytest.raises(IncompleteError, match=r"2 of 8 blocks.*damaged shard"):
        score(scene.parsed(output), open_pool=in_process)
    assert state(output) == "incomplete"
    require_found(output, swapped)
    with pytest.raises(IncompleteError):
        score(scene.parsed(output), open_pool=in_process)
    require_repaired(scene, output, swapped)


def swap(output: str, one: Shard, other: Shard) -> None:
    first, second = path_of(output, one), path_of(output, other)
    body = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(body)
