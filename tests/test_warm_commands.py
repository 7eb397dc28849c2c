"""Warm commands say and end like the installed ones, and get their signals."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.warm_commands import warm_commands


@pytest.fixture(scope="module")
def warm() -> Iterator[Path]:
    with TemporaryDirectory() as folder, warm_commands(Path(folder)) as commands:
        yield commands


def ended(folder: Path, *words: str) -> tuple[int, str, str]:
    command = [str(folder / words[0]), *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    return done.returncode, done.stdout, done.stderr


def wait_for(condition: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def running(folder: str) -> list[str]:
    """Processes that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            found += [str(place)] if (place := (process / "cwd").readlink()).is_relative_to(folder) else []
    return found


@pytest.mark.parametrize("words", [("ctnet", "--version"), ("ctnet", "plan", "-d", "999"), ("nnUNetv2_train", "999")])
def test_a_warm_command_says_and_ends_like_the_installed_one(warm: Path, words: tuple[str, ...]) -> None:
    assert ended(warm, *words) == ended(Path(sys.executable).parent, *words)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes through /proc")
def test_a_command_ends_with_its_script(warm: Path, tmp_path: Path) -> None:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([str(warm / "ctnet"), "benchmark", "speed"], cwd=tmp_path, **quiet)  # takes minutes
    wait_for(lambda: len(running(str(tmp_path))) > 1)
    process.kill()
    process.wait()
    wait_for(lambda: not running(str(tmp_path)), 10)


def test_a_signal_reaches_the_command_and_ends_the_script(warm: Path, tmp_path: Path) -> None:
    words = [str(warm / "ctnet"), "demo", "--quick", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (tmp_path / "out" / "logs" / "preprocess.txt").exists())
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    assert "the same command goes on" in process.communicate()[1]
