"""What every refusal must look like: one clear line on stderr, exit status 2, no traceback, nothing half-written."""

from __future__ import annotations

from tests.end_to_end.commands import Finished
from tests.end_to_end.tiny import Tiny


def check_refused(finished: Finished, tiny: Tiny, *words: str) -> None:
    """One line with all of ``words``, exit status 2, and no checkpoint or model folder."""
    assert finished.status == 2, finished.stdout + finished.stderr
    (line,) = finished.error_lines
    for word in words:
        assert word in line
    assert "Traceback" not in finished.stdout + finished.stderr
    assert not list(tiny.env.results.rglob("*.pth"))
    assert not list(tiny.env.results.rglob("*.partial"))
    assert not list(tiny.env.results.rglob("plans.json"))
