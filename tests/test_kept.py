from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from geobatch.storage.kept import Kept


def test_what_was_not_used_for_longest_makes_room() -> None:
    kept: Kept[bytes] = Kept(10)
    for name in "abc":
        kept.put(name, b"...")
    assert kept.get("a") == b"..."
    kept.put("d", b"....")
    assert (kept.get("b"), kept.get("a"), kept.get("c"), kept.get("d")) == (None, b"...", b"...", b"....")
    kept.put("e", b"more than all")
    assert kept.get("e") is None and kept.held_bytes == 10


def test_nothing_is_kept_without_a_limit() -> None:
    kept: Kept[bytes] = Kept()
    kept.put("a", b".")
    assert kept.get("a") is None and kept.held_bytes == 0
    kept.limit(2)
    kept.put("a", b".")
    kept.limit(0)
    assert kept.get("a") is None and kept.held_bytes == 0


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 40)), max_size=60), st.integers(0, 100))
def test_limit_holds_and_bytes_are_counted(puts: list[tuple[int, int]], limit: int) -> None:
    kept: Kept[bytes] = Kept(limit)
    for name, size in puts:
        kept.put(name, bytes(size))
        assert kept.held_bytes <= limit
    assert kept.held_bytes == sum(len(kept.get(name) or b"") for name in range(10))


def test_threads_find_what_they_ask_for() -> None:
    kept: Kept[bytes] = Kept(500)

    def work(thread: int) -> None:
        for turn in range(2000):
            name = (turn * 7 + thread) % 40
            found = kept.get(name)
            assert found is None or found == bytes([name]) * 30
            kept.put(name, bytes([name]) * 30)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert kept.held_bytes == 480
