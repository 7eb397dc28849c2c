"""Commands in processes of their own: as a user types them, or warmed up, where the import is not what is tested.

A warm command is the same entry point in a process forked from a server that has imported nnU-Net and nothing else:
it has its own exit status, its own stdout and stderr and can be killed, and it starts in a second instead of eight.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn
from unittest import mock

from ctnet_nnunet.shim_path import VARIABLE, with_shim
from tests.conftest import NnunetEnv
from tests.pools_of_threads import pools_of_threads

BIN = Path(sys.executable).parent  # not resolved: in a virtual environment python is a link, its folder is not
SECONDS = 300
PRELOADED = ["nnunetv2.run.run_training", "nnunetv2.inference.predict_from_raw_data", "ctnet_nnunet.trainers.pretrain"]


@dataclass(frozen=True)
class Finished:
    """A command that came to its end; ``status`` is negative for the signal that ended it."""

    command: str
    status: int
    stdout: str
    stderr: str

    def succeeded(self) -> Finished:
        """This, for a chain; fails with the command's own words if it failed."""
        output = f"{self.stdout[-3000:]}\n{self.stderr[-3000:]}"
        assert self.status == 0, f"{self.command}\nexit status {self.status}\n{output}"
        return self

    @property
    def error_lines(self) -> list[str]:
        """The lines of ours on stderr."""
        return [line for line in self.stderr.splitlines() if line.startswith("ctnet:")]


def environment(env: NnunetEnv, **extra: str) -> dict[str, str]:
    """What ``eval "$(ctnet env)"`` and nnU-Net's three exports give, with no worker processes for augmentation."""
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", "")])
    shim = {VARIABLE: with_shim(None)}
    # stdout of a pipe is a block buffer: what a killed command had printed would be lost. Threads that wait without
    # spinning keep tiny networks fast on a busy machine.
    calm = {"PYTHONUNBUFFERED": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return {**env.environ, **shim, **calm, "PATH": path, "nnUNet_n_proc_DA": "0", **extra}


def run(env: NnunetEnv, *words: str | Path | int, cwd: Path | None = None, **extra: str) -> Finished:
    """Run an installed command to its end, like a user; ``extra`` goes into its environment."""
    command = [str(word) for word in words]
    process = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        cwd=cwd, env=environment(env, **extra), timeout=SECONDS,
        capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return Finished(shlex.join(command), process.returncode, process.stdout, process.stderr)


def run_warm(env: NnunetEnv, *words: str | Path | int, **extra: str) -> Finished:
    """Run a command's entry point in a warmed-up process."""
    command = [str(word) for word in words]
    return run_function(env, functools.partial(call_entry_point, command), name=shlex.join(command), **extra)


def run_function(env: NnunetEnv, function: Callable[[], Any], name: str = "", **extra: str) -> Finished:
    """Run a picklable function in a warmed-up process; its exit status is that of a command that did the same."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)
    with TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        # The annotated type of a context's Process is not public.
        process: Any = server.Process(target=_child, args=(function, environment(env, **extra), out, err))
        process.start()
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
        return Finished(name or repr(function), process.exitcode, _text(out), _text(err))


def _child(function: Callable[[], Any], environ: Mapping[str, str], out: Path, err: Path) -> None:
    for stream, file in ((sys.stdout, out), (sys.stderr, err)):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND), {sys.stdout: 1, sys.stderr: 2}[stream])
    os.environ.clear()
    os.environ.update(environ)
    # One thread, too: threads of tiny networks wait for each other longer than they compute.
    with pools_of_threads(), no_progress_png(), mock.patch("multiprocessing.cpu_count", lambda: 1):
        function()


def no_progress_png() -> Any:
    """nnU-Net's picture of a training's curves costs more than a training of four steps; cold commands draw it."""
    picture = "nnunetv2.training.logging.nnunet_logger.LocalLogger.plot_progress_png"
    return mock.patch(picture, lambda self, folder: None)


def call_entry_point(command: list[str]) -> NoReturn:
    """What the installed script of a command does, in this process."""
    (script,) = entry_points(group="console_scripts", name=command[0])
    sys.argv = command
    sys.exit(script.load()())


def _text(file: Path) -> str:
    return file.read_text(errors="replace") if file.is_file() else ""
