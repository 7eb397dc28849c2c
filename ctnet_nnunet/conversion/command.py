"""A source's listing function as a command: its own options, those of every source, progress, and the summary."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_type_hints

import typer

from ctnet_nnunet.conversion.cases import TEST, TRAINING, UNLABELLED
from ctnet_nnunet.conversion.settings import Settings
from ctnet_nnunet.errors import CTNetError

if TYPE_CHECKING:
    from ctnet_nnunet.conversion.cases import Listing
    from ctnet_nnunet.conversion.labels import LabelMap
    from ctnet_nnunet.conversion.report import Report

_MOST_LINES = 20


def source_command(list_cases: Callable[..., Listing]) -> Callable[..., None]:
    """Turn a function that lists a source into a command.

    The command takes the function's parameters and one option for every field of :class:`Settings`; its help is the
    function's docstring. It exits with 0, with 1 when something was refused, with 2 when nothing could be converted.
    """

    @functools.wraps(list_cases)
    def command(**options: Any) -> None:
        common = {field.name: options.pop(field.name) for field in dataclasses.fields(Settings)}
        status = _run(lambda: list_cases(**options), Settings(**common))
        if status:
            raise typer.Exit(status)

    command.__signature__ = _signature(list_cases)  # type: ignore[attr-defined]
    command.__annotations__ = {name: p.annotation for name, p in _signature(list_cases).parameters.items()}
    return command


def run_script(command: Callable[..., None]) -> None:
    """Run a command as a plain script, with user errors as one line."""
    try:
        typer.run(command)
    except CTNetError as error:
        print(f"ctnet: error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)


def _signature(list_cases: Callable[..., Listing]) -> inspect.Signature:
    hints = {**get_type_hints(Settings, include_extras=True), **get_type_hints(list_cases, include_extras=True)}
    own = [p.replace(annotation=hints[p.name]) for p in inspect.signature(list_cases).parameters.values()]
    common = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(Settings)
    ]
    return inspect.Signature([p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + common)


def _run(list_cases: Callable[[], Listing], settings: Settings) -> int:
    from ctnet_nnunet.conversion.convert import convert
    from ctnet_nnunet.conversion.display import Display

    with Display() as display:
        listing = list_cases()
        report = convert(listing, settings, display.show)
    _print(report, listing, settings.dry_run)
    return report.exit_status


def _print(report: Report, listing: Listing, dry_run: bool) -> None:
    parts = Counter(case.destination for case in report.written)
    order = (TRAINING, UNLABELLED, TEST)
    counts = ", ".join(f"{parts[part]} in images{part}" for part in order if parts[part]) or "no case"
    print(f"{'dry run, nothing written: ' if dry_run else ''}{report.folder}: {counts}, {len(report.refused)} refused")
    if dry_run:
        for case in report.written[:_MOST_LINES]:
            files = [image.path.name for image in (*case.images, *([case.label] if case.label else []))]
            print(f"  images{case.destination}/{case.name}: {', '.join(files)}")
        if len(report.written) > _MOST_LINES:
            print(f"  … and {len(report.written) - _MOST_LINES} more")
    print(f"channels: {', '.join(listing.channels)}")
    if report.labels and report.labels.names:
        print(f"labels: {_label_line(report.labels)}")
    if report.splits:
        print(f"folds: {len(report.splits)}, validating {', '.join(str(len(s['val'])) for s in report.splits)} cases")
    notes = [*report.notes, *_repeated(report)]
    for note in notes:
        print(f"note: {note}")
    for name, reason in report.refused.items():
        print(f"ctnet: refused {name}: {reason}", file=sys.stderr)
    if report.page:
        print(f"look at every case: {report.page}")


def _label_line(labels: LabelMap) -> str:
    inverse = labels.inverse()
    shown = [
        f"{label} {name} (was {'+'.join(map(str, inverse[str(label)]))})"
        for label, name in enumerate(labels.names[:_MOST_LINES], start=1)
    ]
    more = [f"… and {len(labels.names) - _MOST_LINES} more"] if len(labels.names) > _MOST_LINES else []
    return ", ".join(shown + more)


def _repeated(report: Report) -> list[str]:
    """The notes on single cases; the page has all of them."""
    found = [f"{name}: {note}" for name, outcome in report.outcomes.items() for note in outcome.notes]
    more = [f"… and {len(found) - _MOST_LINES} more, on the page"] if len(found) > _MOST_LINES else []
    return found[:_MOST_LINES] + more
