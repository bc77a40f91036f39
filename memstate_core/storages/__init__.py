"""Where facts, journal, records and claims live. Each module carries its vendor's name; none is imported here."""
