"""The command as it is run: to its end, with bad input, and where a promise is not kept."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from memstate_core import MemoryStore, StorageError
from memstate_core.cli.main import main
from memstate_core.demo import acts, kills
from memstate_core.facts import Moved
from memstate_core.hooks._vector_hook import VectorBatch
from memstate_core.hooks.chroma import ChromaSyncHook
from memstate_core.recovery import Recovered, Recovery
from tests.demo.samples import Write, sample


def memstate(*arguments: str, program: str = "-m memstate_core.demo", **environment: str) -> Any:
    return subprocess.run(
        [sys.executable, *program.split(), *arguments],
        capture_output=True,
        encoding="utf-8",
        timeout=100,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
    )


def words(text: str) -> str:
    """The text as if the screen were endlessly wide."""
    return " ".join(text.split())


class TestWholeDemo:
    def test_it_runs_to_the_end(self) -> None:
        ended = memstate()
        assert ended.stderr == ""
        assert ended.returncode == 0
        assert re.search(r"^all 9 checks passed, drift 0 \(.* s\)$", ended.stdout, re.MULTILINE)
        assert "FAILED" not in ended.stdout
        assert len(re.findall(r"^ok  drift: 0, as ", ended.stdout, re.MULTILINE)) == 2
        assert re.search(
            r"^Recall over 25 questions with evidence: @1 \d+%, @5 \d+%, @10 \d+%$", ended.stdout, re.MULTILINE
        )
        # Nothing but text, in lines that fit.
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", ended.stdout)
        assert max(map(len, ended.stdout.splitlines())) <= 80


@pytest.fixture
def small(write: Write) -> list[str]:
    return ["demo", "--conversation", str(write(sample()))]


@pytest.fixture
def no_kills(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acts, "_kill", lambda *arguments: None)


@pytest.mark.usefixtures("no_kills")
def test_a_conversation_of_ones_own_is_kept_in_a_directory(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    directory = tmp_path / "new" / "directory"
    path = write([sample(sample_id="other"), sample()])
    options = ["demo", "--conversation", str(path), "--sample", "small", "--directory", str(directory)]
    assert main([*options, "--questions", "1"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    out = words(printed.out)
    assert "small: Ann and Bo in 2 sessions with 3 turns." in out
    assert "(Conversation 2 of 2 in the file; --sample chooses another.)" in out
    assert "What does Ann keep?" in out
    assert "How often was Bo stung?" not in out
    assert "The database is " in out
    assert {path.name for path in directory.iterdir()} == {"chroma", "memory.db"}
    assert main(options) == 2
    assert capsys.readouterr().err == (
        f"memstate demo: --directory {directory} is not empty; empty it, or name one that is empty or does not exist\n"
    )


@pytest.mark.usefixtures("no_kills")
class TestBrokenPromises:
    """The demo checks; it does not only show."""

    def test_unbroken_it_passes(self, small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(small) == 0
        assert "all 5 checks passed, drift 0" in capsys.readouterr().out

    def test_quiet_prints_the_verdict(self, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["demo", "--conversation", str(write(sample(qa=[]))), "--quiet"]) == 0
        assert re.fullmatch(r"all 5 checks passed, drift 0 \(.* s\)\n", capsys.readouterr().out)

    def test_a_rollback_that_does_nothing(
        self, small: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(MemoryStore, "rollback", lambda *arguments, **options: Moved())
        assert main([*small, "--quiet"]) == 1
        out = words(capsys.readouterr().out)
        assert "FAILED 6 facts compared with before: 6 differed after the mistake, 6 differ after the rollback" in out
        assert "FAILED 6 vectors compared with before: 6 differed after the mistake, 6 differ after the rollback" in out
        assert "2 of 5 checks FAILED" in out

    def test_a_hook_that_forgets_to_delete(
        self, small: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        apply = ChromaSyncHook.apply

        def forgetful(hook: ChromaSyncHook, batch: VectorBatch) -> None:
            batch.deleted.clear()
            apply(hook, batch)

        monkeypatch.setattr(ChromaSyncHook, "apply", forgetful)
        assert main(small) == 1
        out = words(capsys.readouterr().out)
        assert "FAILED drift: 2, as the store finds" in out
        assert "FAILED drift: 2, as an independent comparison" in out

    def test_a_drift_that_the_store_does_not_see(
        self, small: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        prepare = ChromaSyncHook.prepare

        def distracted(hook: ChromaSyncHook, changes: Any) -> VectorBatch:
            batch = prepare(hook, changes)
            batch.texts[:] = ["something else"] * len(batch.texts)
            return batch

        monkeypatch.setattr(ChromaSyncHook, "prepare", distracted)
        assert main(small) == 1
        out = words(capsys.readouterr().out)
        assert "ok drift: 0, as the store finds" in out
        assert "FAILED drift: 6, as an independent comparison" in out


def test_a_recovery_that_does_nothing_fails(
    small: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def nothing(self: Recovery) -> Recovered:
        return Recovered()

    monkeypatch.setattr(Recovery, "heal_abandoned", nothing)
    monkeypatch.setattr(kills, "LEASE", 0.01)
    assert main([*small, "--quiet"]) == 1
    out = words(capsys.readouterr().out)
    assert "FAILED recovered: nothing is in doubt, and the drift is 0; not so when the index has not been told" in out
    assert "not so when half of the index is written" in out


def test_a_victim_that_does_not_start_fails(
    small: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho nothing works >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    assert main([*small, "--quiet"]) == 1
    out = words(capsys.readouterr().out)
    assert out.count("ended: nothing works") == 4
    assert "4 of 13 checks FAILED" in out


class TestMisuse:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (
                ["--conversation", "missing.json"],
                "missing.json cannot be read: No such file or directory; --conversation",
            ),
            (["--conversation", __file__], f"{__file__} is not JSON"),
            (["--sample", "nobody"], "has no sample 'nobody'; it has noor-and-felix"),
            (["--directory", __file__], f"--directory {__file__} cannot be used: File exists; name another one"),
            (["--directory", str(Path(__file__).parent)], f"--directory {Path(__file__).parent} is not empty"),
        ],
    )
    def test_it_is_one_clear_line(self, options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["demo", *options]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("memstate demo: ")
        assert captured.err.count("\n") == 1
        assert said in captured.err

    def test_another_format_is_one_too(self, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["demo", "--conversation", str(write({"messages": []}))]) == 2
        assert re.fullmatch(r"memstate demo: .* is not in LoCoMo's format: .*\n", capsys.readouterr().err)

    @pytest.mark.parametrize(
        "options", [["--questions", "-1"], ["--questions", "some"], ["--seed", "x"], ["--unknown"], ["more"]]
    )
    def test_options_are_checked(self, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["demo", *options]) == 2
        assert options[-1] in capsys.readouterr().err

    def test_an_unknown_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["forget"]) == 2
        assert "No such command 'forget'" in capsys.readouterr().err

    def test_no_command_shows_which_there_are(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([]) == 2
        assert "demo" in capsys.readouterr().err

    @pytest.mark.parametrize("missing", ["rich", "chromadb"])
    def test_a_missing_extra_is_named(self, missing: str) -> None:
        code = f"import sys; sys.modules[{missing!r}] = None; from memstate_core.cli.main import main; "
        ended = memstate(code + "sys.exit(main(['demo']))", program="-c")
        assert (ended.returncode, ended.stdout) == (2, "")
        assert re.fullmatch(
            rf'memstate demo: {missing}\S* is not installed; .*: pip install "memstate\[demo\]"\n', ended.stderr
        )


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"memstate {version('memstate')}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert "memstate" in capsys.readouterr().out


def test_help_needs_no_extra() -> None:
    ended = memstate(
        "import sys; sys.modules.update(rich=None, chromadb=None, numpy=None)\n"
        "from memstate_core.cli.main import main; sys.exit(main(['demo', '--help']))",
        program="-c",
    )
    assert ended.returncode == 0
    assert "--conversation FILE" in ended.stdout


def test_a_reader_that_goes_away_is_no_error() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "memstate_core.demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "memstate demo: interrupted\n"),
        (StorageError("the disk is full"), 1, "memstate demo: StorageError: the disk is full\n"),
        (OSError(28, "No space left on device"), 1, "memstate demo: OSError: [Errno 28] No space left on device\n"),
    ],
)
def test_what_comes_between_is_said_in_one_line(
    small: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    said: str,
) -> None:
    def fail(*arguments: Any, **options: Any) -> bool:
        raise error

    monkeypatch.setattr(acts, "play", fail)
    assert main(small) == code
    assert capsys.readouterr().err == said


def test_a_long_conversation_is_shortened(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(acts, "_kill", lambda *arguments: None)
    data = sample()
    for number in range(3, 21):
        data["conversation"][f"session_{number}"] = [{"speaker": "Ann", "dia_id": f"D{number}:1", "text": "Hello."}]
    assert main(["demo", "--conversation", str(write(data)), "--questions", "0"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines() if re.match(r" +(\d+|…) ", line)] == [
        *("1", "2", "3", "4", "5", "6", "…", "16", "17", "18", "19", "20")
    ]
    assert "… 9 more" in words(out)
    assert "What does Ann keep?" not in out.partition("3  Get it wrong")[0]
