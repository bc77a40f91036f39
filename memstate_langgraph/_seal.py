"""The outermost layer of a record: plain, or encrypted and bound to its place.

A ciphertext contains the place for which it was made (collection and key, so thread, namespace, id and channel), which
is compared when it is read: moved to another place it is refused. So is a plain record where encrypted ones are
expected.
"""

from __future__ import annotations

from typing import Any, Final

import ormsgpack
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer

from memstate_core.errors import StorageError

_PLAIN: Final = b"\x01"
_ENCRYPTED: Final = b"\x02"


class Seal:
    """Seals the records of a checkpointer whose serializer is ``serde``."""

    def __init__(self, serde: Any) -> None:
        self._cipher = serde.cipher if isinstance(serde, EncryptedSerializer) else None
        self.encrypts = self._cipher is not None

    def close(self, collection: str, key: str, content: Any) -> bytes:
        """``content`` is plain msgpack data."""
        if self._cipher is None:
            return _PLAIN + ormsgpack.packb(content, option=ormsgpack.OPT_NON_STR_KEYS)
        name, ciphertext = self._cipher.encrypt(
            ormsgpack.packb((collection, key, content), option=ormsgpack.OPT_NON_STR_KEYS)
        )
        return _ENCRYPTED + ormsgpack.packb((name, ciphertext))

    def open(self, collection: str, key: str, record: bytes) -> Any:
        """:raises StorageError: it was not sealed like this, for this place, with this key."""
        kind, body = record[:1], record[1:]
        if self._cipher is None:
            if kind != _PLAIN:
                raise StorageError(
                    f"record {key!r} of {collection!r} is encrypted; make the checkpointer with the "
                    "EncryptedSerializer that wrote it"
                )
            return ormsgpack.unpackb(body, option=ormsgpack.OPT_NON_STR_KEYS)
        if kind != _ENCRYPTED:
            raise StorageError(
                f"record {key!r} of {collection!r} is not encrypted, and this checkpointer reads encrypted ones only"
            )
        try:
            name, ciphertext = ormsgpack.unpackb(body)
            plain = self._cipher.decrypt(name, ciphertext)
            made_for = ormsgpack.unpackb(plain, option=ormsgpack.OPT_NON_STR_KEYS)
            place, content = tuple(made_for[:2]), made_for[2]
        except Exception as error:
            raise StorageError(
                f"record {key!r} of {collection!r} cannot be decrypted ({error}); was it written with another key?"
            ) from error
        if place != (collection, key):
            raise StorageError(
                f"record {key!r} of {collection!r} was written for another place ({place[1]!r} of {place[0]!r}); "
                "somebody has moved it"
            )
        return content
