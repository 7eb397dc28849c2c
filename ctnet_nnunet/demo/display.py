"""Progress for people: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

from ctnet_nnunet.training_log import clock

LINE_EVERY_SECONDS = 20.0


class Display(Protocol):
    """What the pipeline tells as it goes."""

    def start(self, number: int, total: int, title: str, line: str) -> None:
        """A command starts."""

    def update(self, share: float, detail: str, remaining: float) -> None:
        """The whole is ``share`` done and will take ``remaining`` seconds more."""

    def end(self, seconds: float, ok: bool) -> None:
        """The command has ended."""

    def skip(self, number: int, total: int, title: str) -> None:
        """The command was run before."""


class PlainDisplay:
    """A line for each start and end, and one now and then in between."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next = 0.0
        self._detail = ""

    def start(self, number: int, total: int, title: str, line: str) -> None:
        self._console.print(f"[{number}/{total}] {title}\n    $ {line}", markup=False, highlight=False, soft_wrap=True)
        self._next = time.monotonic() + LINE_EVERY_SECONDS

    def update(self, share: float, detail: str, remaining: float) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + LINE_EVERY_SECONDS
        text = f"    {detail + ', ' if detail else ''}{share:.0%} of all, about {clock(remaining)} left"
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def end(self, seconds: float, ok: bool) -> None:
        self._console.print(f"    {'done' if ok else 'FAILED'} after {clock(seconds)}", markup=False, highlight=False)

    def skip(self, number: int, total: int, title: str) -> None:
        self._console.print(f"[{number}/{total}] {title}: done before", markup=False, highlight=False)


class LiveDisplay:
    """A bar over the whole way below the list of finished commands; a context manager."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]} left"),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("", total=1.0, left="…")
        self._title = ""

    def __enter__(self) -> LiveDisplay:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def start(self, number: int, total: int, title: str, line: str) -> None:
        self._title = f"{number}/{total} {title}"
        self._progress.update(self._task, description=escape(self._title))
        self._progress.console.print(f"[dim]$ {escape(line)}[/dim]", highlight=False, soft_wrap=True)

    def update(self, share: float, detail: str, remaining: float) -> None:
        text = f"{self._title} · {detail}" if detail else self._title
        self._progress.update(self._task, completed=share, description=escape(text), left=clock(remaining))

    def end(self, seconds: float, ok: bool) -> None:
        mark = "[green]✓[/green]" if ok else "[red]✗[/red]"
        self._progress.console.print(f"{mark} {escape(self._title)} [dim]{clock(seconds)}[/dim]", highlight=False)

    def skip(self, number: int, total: int, title: str) -> None:
        text = f"[green]✓[/green] {number}/{total} {escape(title)} [dim]done before[/dim]"
        self._progress.console.print(text, highlight=False)
