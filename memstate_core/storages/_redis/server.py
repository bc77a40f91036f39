"""What a server must be, as far as it lets one ask."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from redis import exceptions

from memstate_core.errors import StorageError, UnavailableError

logger = logging.getLogger("memstate.redis")

_OLDEST: Final = (6, 2)


async def check_server(where: str, ask: Callable[..., Awaitable[Any]]) -> None:
    """Refuse a server that is too old, or that would forget facts to make room.

    :raises StorageError: it is one of these, and says so. A server that forbids INFO is taken as it is.
    """
    try:
        info = await ask()
    except UnavailableError:
        raise
    except StorageError as error:
        if isinstance(error.__cause__, exceptions.AuthenticationError) and not _forbidden(error.__cause__):
            raise
        logger.info("%s does not say what it is: %s", where, error)
        return
    for one in _nodes(info):
        version = str(one.get("redis_version", "")).split(".")
        if len(version) > 1 and all(part.isdigit() for part in version[:2]) and tuple(map(int, version[:2])) < _OLDEST:
            raise StorageError(f"{where} is Redis {'.'.join(version)}; memstate needs 6.2 or newer")
        policy = str(one.get("maxmemory_policy", "noeviction"))
        if policy != "noeviction" and int(one.get("maxmemory", 0) or 0):
            _judge(where, policy)


def _judge(where: str, policy: str) -> None:
    if policy.startswith("allkeys"):
        raise StorageError(
            f"{where} has maxmemory-policy {policy}, which deletes facts when memory is short; "
            "set it to noeviction (CONFIG SET maxmemory-policy noeviction)"
        )
    logger.warning(
        "%s has maxmemory-policy %s, which forgets what a retried write came to; set it to noeviction",
        where,
        policy,
    )


def _forbidden(error: BaseException) -> bool:
    return isinstance(error, exceptions.NoPermissionError)


def _nodes(info: Any) -> list[dict[str, Any]]:
    """The answer of one server, or of each node of a cluster."""
    if not isinstance(info, dict):
        return []
    if info and all(isinstance(one, dict) for one in info.values()):
        return list(info.values())
    return [info]
