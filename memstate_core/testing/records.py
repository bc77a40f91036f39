"""Records: opaque values beside the facts, and in their transactions."""

from __future__ import annotations

from typing import Any

import pytest

from memstate_core import Fact, ValidationFailed
from memstate_core.testing.face import Face, calls, case
from memstate_core.testing.factories import StoreTests

_KEYS = [
    "",
    *sorted(["a", "a\x01", "aa", "a/b", "a:b", "b", "B", "é", "z", "\uffff", "\U0001d11e", "0", "00", "1", " "]),
]


class TestRecords(StoreTests):
    """Bytes under a collection and a key."""

    async def test_a_record_is_put_got_replaced_and_deleted(self, store: Face) -> None:
        assert await store.get_record("c", "k") is None
        for value in (b"", b"one", bytes(range(256)), b"\0", b"x" * 1_000_000):
            await store.put_record("c", "k", value)
            kept = await store.get_record("c", "k")
            assert (kept, type(kept)) == (value, bytes)
        await store.put_record("c", "k", bytearray(b"array"))
        assert await store.get_record("c", "k") == b"array"
        await store.put_record("c", "k", memoryview(b"view")[1:])
        assert await store.get_record("c", "k") == b"iew"
        assert await store.get_record("d", "k") is None
        await store.delete_record("d", "k")
        await store.delete_record("c", "k")
        await store.delete_record("c", "k")
        assert await store.get_record("c", "k") is None
        assert await store.scanned("c") == []
        assert await store.history() == []

    async def test_a_scan_is_by_code_point(self, store: Face) -> None:
        keys = _KEYS[1:]
        for key in keys[::2] + keys[1::2]:
            await store.put_record("c", key, key.encode())
            await store.put_record("other", key, b"other")
        for start in [None, *_KEYS]:
            for end in [None, *_KEYS]:
                expected = [key for key in keys if (start is None or key >= start) and (end is None or key < end)]
                found = await store.scanned("c", start=start, end=end)
                assert [record.key for record in found] == expected, (start, end)
                assert all(record.value == record.key.encode() for record in found)
        for limit in (None, 0, 1, 5, 99, 2**70):
            page = await store.scanned("c", start="a", limit=limit)
            assert [record.key for record in page] == [key for key in keys if key >= "a"][:limit]
            page = await store.scanned("c", end="z", limit=limit, reverse=True)
            assert [record.key for record in page] == [key for key in keys if key < "z"][::-1][:limit]
        assert await store.scanned("nothing") == []

    async def test_names_are_identifiers(self, store: Face) -> None:
        for wrong in ("", "nul\0", "lone \ud800", "x" * 513, 5, None):
            for call in calls(
                lambda wrong: store.put_record(wrong, "k", b""),
                lambda wrong: store.put_record("c", wrong, b""),
                lambda wrong: store.delete_record("c", wrong),
                lambda wrong: store.get_record("c", wrong),
                lambda wrong: store.get_record(wrong, "k"),
                store.scan_records,
            ):
                with case(wrong), pytest.raises(ValidationFailed):
                    await call(wrong)

    async def test_senseless_arguments_are_errors(self, store: Face) -> None:
        for value in ("text", None, 5, [1]):
            with pytest.raises(ValidationFailed, match="bytes"):
                await store.put_record("c", "k", value)
        for limit in (-1, 1.0, True):
            with pytest.raises(ValueError, match="limit"):
                await store.scan_records("c", limit=limit)
        for bound in ("lone \ud800", 5):
            with pytest.raises(ValueError, match="start|end"):  # noqa: RUF043
                await store.scan_records("c", start=bound)
            with pytest.raises(ValueError, match="start|end"):  # noqa: RUF043
                await store.scan_records("c", end=bound)

    async def test_they_are_written_with_the_facts_of_a_block(self, store: Face) -> None:
        await store.put_record("c", "old", b"1")
        async with store.transaction() as tx:
            await tx.commit(Fact("note", {}, id="n"))
            await tx.put_record("c", "k", b"v")
            await tx.delete_record("c", "old")
            await tx.put_record("d", "k", b"v")
            assert await tx.get_record("c", "k") == b"v"
            assert await tx.get_record("c", "old") is None
            assert await tx.get_record("c", "nothing") is None
            assert await store.get_record("c", "k") is None
            assert await store.get_record("c", "old") == b"1"
        assert await store.get_record("c", "k") == b"v"
        assert await store.get_record("c", "old") is None
        assert await store.ids() == ["n"]

    async def test_a_block_of_records_alone(self, store: Face) -> None:
        async with store.transaction() as tx:
            await tx.put_record("c", "k", b"v")
        assert await store.get_record("c", "k") == b"v"
        assert (await store.history(), tx.transaction_id) == ([], None)

    async def test_a_block_scans_with_its_own_writes(self, store: Face) -> None:
        for key in "bdf":
            await store.put_record("c", key, b"old")
        async with store.transaction() as tx:
            await tx.put_record("c", "a", b"new")
            await tx.put_record("c", "d", b"new")
            await tx.put_record("c", "e", b"new")
            await tx.delete_record("c", "b")
            await tx.delete_record("c", "nothing")
            await tx.put_record("other", "c", b"new")

            async def keys(**options: Any) -> str:
                return "".join(record.key for record in await tx.scan_records("c", **options))

            assert await keys() == "adef"
            assert await keys(reverse=True) == "feda"
            assert await keys(start="b", end="f") == "de"
            assert await keys(limit=2) == "ad"
            assert await keys(limit=1, reverse=True) == "f"
            assert await keys(start="b", limit=1) == "d"
            assert await keys(limit=0) == ""
            assert [record.value for record in await tx.scan_records("c")] == [b"new", b"new", b"new", b"old"]
            with pytest.raises(ValueError, match="limit"):
                await tx.scan_records("c", limit=-1)
            with pytest.raises(ValidationFailed):
                await tx.put_record("c", "k", "text")
            with pytest.raises(ValidationFailed):
                await tx.get_record("c", "lone \ud800")
        assert [record.key for record in await store.scanned("c")] == list("adef")

    async def test_a_rollback_leaves_them(self, store: Face) -> None:
        async with store.transaction("s") as tx:
            await tx.commit(Fact("note", {}, id="n"))
            await tx.put_record("c", "k", b"v")
        await store.rollback("s")
        assert await store.get("n") is None
        assert await store.get_record("c", "k") == b"v"


__all__ = ["TestRecords"]
