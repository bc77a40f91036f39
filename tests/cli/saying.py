"""What a command comes to."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from memstate_core.cli.main import main

URL: Final = "sqlite:///memory.db"


class Said:
    """What a command came to."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        self.code = main(list(arguments))
        self.out, self.err = capsys.readouterr()

    @property
    def data(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)

    @property
    def words(self) -> list[list[str]]:
        return [line.split() for line in self.out.splitlines()]
