"""The documentation builds as a site, and a warning is an error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.snippets import ROOT


def test_the_site_builds(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "site" / "reference" / "stores" / "index.html").read_text(encoding="utf-8")
    # The reference is made of the docstrings, and their roles are gone.
    for name in ("commit_model", "rollback", "discard_session"):
        assert f"{name}</span>" in page
    assert ":meth:" not in page
    assert not (tmp_path / "site" / "_site.py").exists()
