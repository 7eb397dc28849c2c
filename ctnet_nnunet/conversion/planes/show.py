"""What ``ctnet convert planes`` prints."""

from __future__ import annotations

import sys

from ctnet_nnunet.conversion.planes.write import PlanesReport

_MOST_LINES = 20


def show(report: PlanesReport) -> None:
    """The studies, the notes, and on stderr what was refused."""
    print(
        f"{report.dataset}: {len(report.written)} studies, {report.images} images in imagesUn, "
        f"{len(report.refused)} refused"
    )
    lines = [f"  {study}: {text}" for study, text in report.written.items()]
    for line in _shortened(lines):
        print(line)
    for note in _shortened(report.notes):
        print(f"note: {note}")
    for name, reason in report.refused.items():
        print(f"ctnet: refused {name}: {reason}", file=sys.stderr)


def _shortened(lines: list[str]) -> list[str]:
    more = [f"  … and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
    return lines[:_MOST_LINES] + more
