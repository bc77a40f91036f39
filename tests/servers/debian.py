"""Programs from Debian's packages without installing them: no root is needed, and the system stays as it is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# Those that every Debian has; others are fetched if the program finds them missing.
PRESENT = {"libc6", "libgcc-s1"}
LEVELS = 4


def unpacked(package: str, file: str) -> Path:
    """The directory with the package's files and the libraries that it needs and this machine has not.

    It is kept in the environment that Python runs in, as long as that can be written.

    :param file: the program or library that is wanted, as a pattern from that directory.
    :raises RuntimeError: the package cannot be had.
    """
    cache = Path(sys.prefix) / "servers"
    kept = cache / package
    if kept.exists():
        return kept
    try:
        cache.mkdir(exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f"{package}-", dir=cache))
    except OSError:
        raise RuntimeError(_remedy(package, f"{cache} cannot be written")) from None
    try:
        made.chmod(0o755)
        _fill(made, package, file)
        made.rename(kept)
    except OSError:
        if not kept.exists():  # else another process was as fast
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return kept


def libraries(directory: Path) -> str:
    """Where the libraries below it lie, as ``LD_LIBRARY_PATH`` wants it."""
    return ":".join(sorted({str(one.parent) for one in directory.rglob("*.so*")}))


def _fill(directory: Path, package: str, file: str) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise RuntimeError(_remedy(package, "there is no apt-get"))
    wanted, seen = [package], set(PRESENT)
    with tempfile.TemporaryDirectory(prefix="memstate-apt-") as name:
        apt = _Apt(Path(name))
        for _ in range(LEVELS):
            seen.update(wanted)
            needed: list[str] = []
            for one in wanted:
                archive = apt.download(one)
                subprocess.run(["dpkg-deb", "--extract", archive, directory], check=True)
                needed += _libraries_named(archive)
            (program,) = directory.glob(file)
            wanted = [one for one in dict.fromkeys(needed) if one not in seen]
            if not wanted or not _missing(program, directory):
                break
        missing = _missing(program, directory)
    if missing:
        raise RuntimeError(_remedy(package, f"the libraries {', '.join(missing)} are missing"))


class _Apt:
    """apt-get with the machine's sources, and lists and files of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._own_lists = False

    def download(self, package: str) -> Path:
        before = set(self._directory.glob("*.deb"))
        done = self._run("download", package)
        if done.returncode != 0 and not self._own_lists:
            # The machine's lists are old, or there are none, as in most images of containers.
            (self._directory / "state/lists/partial").mkdir(parents=True)
            self._own_lists = True
            self._run("update")
            done = self._run("download", package)
        found = set(self._directory.glob("*.deb")) - before
        if done.returncode != 0 or len(found) != 1:
            raise RuntimeError(_remedy(package, f"apt-get could not download it:\n{done.stdout}{done.stderr}"))
        return found.pop()

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        options = {"Dir::Cache": f"{self._directory}/cache", "APT::Sandbox::User": "", "Debug::NoLocking": "true"}
        if self._own_lists:
            options |= {"Dir::State": f"{self._directory}/state", "Dir::State::status": "/var/lib/dpkg/status"}
        return subprocess.run(
            ["apt-get", *(f"-o{name}={value}" for name, value in options.items()), "--quiet", *arguments],
            cwd=self._directory,
            capture_output=True,
            text=True,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )


def _libraries_named(archive: Path) -> list[str]:
    fields = subprocess.run(
        ["dpkg-deb", "--field", archive, "Pre-Depends", "Depends"], check=True, capture_output=True, text=True
    ).stdout
    return re.findall(r"(?:^|[:,])\s*(lib[a-z0-9.+-]+)", fields, re.MULTILINE)


def _missing(program: Path, directory: Path) -> list[str]:
    answer = subprocess.run(
        ["ldd", program],
        capture_output=True,
        text=True,
        env={**os.environ, "LD_LIBRARY_PATH": libraries(directory)},
    ).stdout
    return re.findall(r"(\S+) => not found", answer)


def _remedy(package: str, fault: str) -> str:
    return f"the tests need Debian's package {package}, and {fault}; install it: apt-get install {package}"
