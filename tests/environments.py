"""Clean environments that have some distributions and no others: linked from the one that runs, as pip would install
them anew.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import sysconfig
import venv
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import Distribution, PathDistribution, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


class Environment:
    """A virtual environment in a directory, without pip."""

    def __init__(self, directory: Path) -> None:
        venv.EnvBuilder(symlinks=True).create(directory)
        self.scripts = directory / "bin"
        self.site = Path(sysconfig.get_path("purelib", "venv", {"base": str(directory)}))

    def link(self, found: Iterable[Distribution]) -> None:
        """Put distributions here."""
        for one in found:
            for file, whole in _places(one).items():
                place = self.site / file
                place.parent.mkdir(parents=True, exist_ok=True)
                if not place.exists():
                    place.symlink_to(Path(str(one.locate_file(file))), target_is_directory=whole)

    def install(self, file: Path) -> None:
        """Let pip install a distribution, whose requirements are here already."""
        pip = [sys.executable, "-m", "pip", "--python", str(self.scripts / "python")]
        options = ["--no-index", "--no-build-isolation", "--disable-pip-version-check", "--no-cache-dir"]
        environment = {**os.environ, "PIP_CONFIG_FILE": os.devnull}
        done = _run([*pip, "install", *options, str(file)], environment)
        assert done.returncode == 0, done.stdout + done.stderr

    def metadata(self, name: str) -> Distribution:
        """What is installed here under a name."""
        (path,) = self.site.glob(f"{name}-*.dist-info")
        return PathDistribution(path)

    def requirements(self, name: str) -> list[str]:
        """What that requires, for all of its extras."""
        return list(self.metadata(name).requires or ())

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run Python here, with nothing of what is around it."""
        return _run([str(self.scripts / "python"), "-I", *map(str, arguments)], {"HOME": str(self.site), "PATH": ""})


def _run(command: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=100)


def closure(requirements: Iterable[str], extra: str = "") -> dict[str, Distribution]:
    """What pip installs for these requirements of an extra, as it is installed where this runs.

    :raises PackageNotFoundError: it is not.
    """
    found: dict[str, Distribution] = {}
    todo = [(Requirement(text), extra) for text in requirements]
    seen = set()
    while todo:
        one, wanted_by = todo.pop()
        if one.marker is not None and not one.marker.evaluate({"extra": wanted_by}):
            continue
        name = canonicalize_name(one.name)
        for inner in ("", *one.extras):
            if (name, inner) not in seen:
                seen.add((name, inner))
                found[name] = distribution(name)
                todo += [(Requirement(text), inner) for text in found[name].requires or ()]
    return found


def _places(one: Distribution) -> dict[str, bool]:
    """Where a distribution's files are, each folder that is all its own in place of what is in it (True)."""
    places = {}
    for file in _files(one):
        top, slash, _ = file.partition("/")
        if top not in ("", ".."):  # where scripts are
            whole = bool(slash) and len(_owners()[top]) == 1
            places[top if whole else file] = whole
    return places


@cache
def _owners() -> Mapping[str, set[str]]:
    """Which distributions have files in each folder."""
    owners: dict[str, set[str]] = defaultdict(set)
    for one in distributions():
        for top in {file.partition("/")[0] for file in _files(one)}:
            owners[top].add(one.metadata["Name"])
    return owners


def _files(one: Distribution) -> list[str]:
    """A distribution's files; of ten thousands of them the standard library's own way makes objects for seconds."""
    return [row[0] for row in csv.reader((one.read_text("RECORD") or "").splitlines())]
