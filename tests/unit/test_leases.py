"""A renewal that is under way when the transaction ends is let finish; one that is not due is called off."""

from __future__ import annotations

import asyncio

from memstate_core._async_bridge import AsyncRuntime


async def _renew_while(block: asyncio.Event, log: list[str]) -> None:
    log.append("begun")
    try:
        await block.wait()
    except asyncio.CancelledError:
        log.append("cancelled")
        raise
    log.append("ended")


def test_a_renewal_under_way_is_not_cut_off() -> None:
    log: list[str] = []

    async def run() -> None:
        block = asyncio.Event()
        with AsyncRuntime().keep_alive(lambda: _renew_while(block, log), 0.001):
            while not log:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        assert log == ["begun"]
        block.set()
        await asyncio.sleep(0.02)  # it ends, and no other one begins

    asyncio.run(run())
    assert log == ["begun", "ended"]


def test_a_renewal_not_yet_due_is_called_off() -> None:
    log: list[str] = []

    async def run() -> set[str]:
        with AsyncRuntime().keep_alive(lambda: _renew_while(asyncio.Event(), log), 60.0):
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        return {task.get_name() for task in asyncio.all_tasks()} - {asyncio.current_task().get_name()}  # type: ignore[union-attr]

    assert asyncio.run(run()) == set()
    assert log == []
