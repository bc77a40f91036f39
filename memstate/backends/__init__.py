"""Storages, one module each; a module imports its vendor, this package imports none."""
