"""The order in which facts were made, as one number."""

from __future__ import annotations

from typing import Final

from memstate_core.errors import ConflictError

# A transaction may make a million facts, and a storage eight million million transactions.
_BITS: Final = 20
LARGEST_TRANSACTION: Final = 1 << _BITS


def ordinal(seq: int, place: int) -> int:
    """The ordinal of the fact at ``place`` in the transaction ``seq``.

    :raises ValueError: a transaction changes at most 2**20 facts.
    """
    if place >= LARGEST_TRANSACTION:
        raise ValueError(
            f"a transaction can change at most {LARGEST_TRANSACTION} facts; commit in smaller transactions"
        )
    return seq << _BITS | place


def taken_seq(seq: int) -> ConflictError:
    """The error of an entry that asks for a seq that it cannot have."""
    return ConflictError(
        f"transaction {seq} is taken: transactions keep their numbers, and here they are, or were, another one's; "
        "use a database, or a schema in it, of its own"
    )


def transaction_of(ordinal: int) -> int:
    """The seq of the transaction that made the fact with an ordinal."""
    return ordinal >> _BITS
