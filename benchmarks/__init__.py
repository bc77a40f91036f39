"""How fast the store is, as ratios against the least that the same result takes.

``python -m benchmarks`` measures each operation in turn with its *floor*: the least work on the bare driver that gives
the same durable result in one transaction, with the same settings of the driver. What each floor does, and what it
leaves out, is said where it stands (:mod:`benchmarks.storages`).

======================  ============================================================================================
:mod:`.facts`           every operation against its floor; 16 writers at once
:mod:`.asynchronous`    the same through the async store
:mod:`.growth`          every operation in a small store and in a large one, and after a short and a long journal
:mod:`.hooks`           what the store adds to Chroma's own time (needs ``memstate[chroma]``)
:mod:`.peer`            another package of the same name, in a process of its own (``--peer DIR``)
======================  ============================================================================================

``python -m benchmarks.faults`` measures something else: what survives which fault (:mod:`benchmarks.faults`).
"""
