"""What the site needs beside Markdown: links into the repository, and the roles in docstrings."""

from __future__ import annotations

import re
from typing import Any

import griffe

_OUT_OF_THE_DOCS = re.compile(r"\[([^\]]+)\]\(\.\./(?!\.)([^)]+)\)")
_ROLE = re.compile(r":(?:class|meth|func|mod|data|attr|exc):`~?([^`]+)`")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to files that are in the repository, and not on the site, name them."""
    return _OUT_OF_THE_DOCS.sub(r"\1 (`\2`)", markdown)


class Roles(griffe.Extension):
    """Sphinx's roles become code, and what is said behind a list of parameters comes before it, or it would be read as
    a part of the last one.
    """

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = _ROLE.sub(lambda role: f"`{role[1].rpartition('.')[2] or role[1]}`", obj.docstring.value)
            obj.docstring.value = "\n\n".join(sorted(text.split("\n\n"), key=lambda one: one.startswith(":")))
