"""Installed commands that start at once, for pages and pipelines of many commands.

A folder of scripts with the commands' names; each hands its words, folder, environment and streams to a server that has
imported nnU-Net and nothing else, which forks and calls the command's entry point. The script ends as that process ends
and passes signals on to it. How a command starts from nothing is tested elsewhere, with the real scripts.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from tests.end_to_end.commands import PRELOADED, call_entry_point
from tests.pools_of_threads import pools_of_threads

PACKAGES = ("ctnet_nnunet", "nnunetv2")
SECONDS_TO_START = 120
# -S: without site-packages, whose start-up files take as long as all the rest of it.
CLIENT = """#!{python} -S
import json, os, signal, socket, sys

signals = signal.SIGTERM, signal.SIGINT, signal.SIGUSR1
signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # until there is a process to pass them on to
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
words = json.dumps([[{name!r}, *sys.argv[1:]], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(words).to_bytes(8, "big")], [0, 1, 2])
server.sendall(words)
process = int.from_bytes(server.recv(8), "big")
for number in signals:
    signal.signal(number, lambda number, frame: os.kill(process, number))
signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
ended = server.recv(8)
status = os.waitstatus_to_exitcode(int.from_bytes(ended, "big")) if ended else 1
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


@contextmanager
def warm_commands(folder: Path) -> Iterator[Path]:
    """Serve the commands while the context is open.

    Args:
        folder: An empty one, of a short path: a socket's address has room for 100 characters.

    Yields:
        The folder of scripts, to be the first on a PATH; ``python`` in it is this Python.
    """
    scripts = folder / "bin"
    scripts.mkdir()
    address = str(folder / "s")
    for name in _names():
        _write(scripts / name, CLIENT.format(python=sys.executable, address=address, name=name))
    _write(scripts / "python", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    server = subprocess.Popen([sys.executable, "-m", __name__, address, str(scripts)], cwd=Path(__file__).parents[1])
    try:
        _wait_for(Path(address), server)
        yield scripts
    finally:
        server.kill()
        server.wait()


def _names() -> list[str]:
    points = [point for package in PACKAGES for point in distribution(package).entry_points]
    return [point.name for point in points if point.group == "console_scripts"]


def _write(script: Path, text: str) -> None:
    script.write_text(text)
    script.chmod(0o755)


def _wait_for(address: Path, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while not address.exists():
        assert server.poll() is None and time.monotonic() < end, "the server of warm commands did not start"
        time.sleep(0.05)


def serve(address: str, scripts: Path) -> NoReturn:
    """Fork for every command until killed."""
    for module in (*PRELOADED, "ctnet_nnunet.cli.main"):
        import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for what is forked here
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address + "~")
    listening.listen(16)
    Path(address + "~").rename(address)
    while True:
        client, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            os._exit(_answer(client, scripts))
        client.close()


def _answer(client: socket.socket, scripts: Path) -> int:
    """Start one command, say its process and how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, streams, _, _ = socket.recv_fds(client, 8, 3)
    words, folder, environ = json.loads(_received(client, int.from_bytes(size, "big")))
    process = os.fork()
    if process == 0:
        client.close()
        os.setsid()
        for stream, number in zip(streams, (0, 1, 2), strict=True):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environ)
        _run(words, scripts)
    for stream in streams:
        os.close(stream)
    with suppress(BrokenPipeError):
        client.sendall(process.to_bytes(8, "big"))
    status = _status(process, client)
    with suppress(BrokenPipeError):
        client.sendall(status.to_bytes(8, "big"))
    return 0


def _status(process: int, client: socket.socket) -> int:
    """Wait for a command; if its script is gone, it and its children are killed."""
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return status
        if select.select([client], [], [], 0.02)[0]:  # the script says nothing more, so it has ended
            with suppress(ProcessLookupError):  # it has no group of its own yet
                os.killpg(process, signal.SIGKILL)
            os.kill(process, signal.SIGKILL)
            return os.waitpid(process, 0)[1]


def _received(client: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size and (part := client.recv(size - len(received))):
        received += part
    return received


def _run(command: list[str], scripts: Path) -> NoReturn:
    """The command's entry point; commands that it starts are warm, too."""
    status: Any = 1
    try:
        # find_program looks beside the interpreter.
        with pools_of_threads(), mock.patch.object(sys, "executable", str(scripts / "python")):
            call_entry_point(command)
    except SystemExit as end:
        status = end.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type] # there is one
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(status or 0))


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]))
