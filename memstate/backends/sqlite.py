"""Storage in an SQLite file, by the standard library's ``sqlite3``."""

from memstate_core.storages.sqlite import AsyncSQLiteStorage, SQLiteStorage

__all__ = ["AsyncSQLiteStorage", "SQLiteStorage"]
