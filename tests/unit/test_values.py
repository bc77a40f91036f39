"""The time as text."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from memstate_core.values import timestamp, timestamp_now

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def test_the_time_now_is_that_of_the_system() -> None:
    for _ in range(1000):
        before, now, after = timestamp("", datetime.now(UTC)), timestamp_now(), timestamp("", datetime.now(UTC))
        assert before <= now <= after


def test_it_is_written_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = [
        datetime(2030, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
        datetime(2030, 1, 2, 3, 4, 5, 999_999, tzinfo=UTC),
        datetime(2030, 1, 2, 3, 4, 6, tzinfo=UTC),
        datetime(2030, 1, 2, 3, 4, 5, 7, tzinfo=UTC),  # clocks are set back at times
        datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        EPOCH,
    ]
    for moment in moments:
        nanoseconds = (moment - EPOCH) // timedelta(microseconds=1) * 1000 + 999
        monkeypatch.setattr("time.time_ns", lambda now=nanoseconds: now)
        assert timestamp_now() == timestamp("", moment)
