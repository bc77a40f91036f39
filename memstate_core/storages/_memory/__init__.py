"""The parts of :mod:`memstate_core.storages.memory`."""
