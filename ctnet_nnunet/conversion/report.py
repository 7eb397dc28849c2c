"""What became of a source."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ctnet_nnunet.conversion.case import Outcome
from ctnet_nnunet.conversion.cases import Case
from ctnet_nnunet.conversion.labels import LabelMap
from ctnet_nnunet.conversion.splits import Split


@dataclass
class Report:
    """What became of a source: ``written`` and ``refused`` cases, ``notes`` on the whole, and where it all lies."""

    folder: Path
    page: Path | None = None
    written: list[Case] = field(default_factory=list)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    labels: LabelMap | None = None
    splits: list[Split] = field(default_factory=list)

    @property
    def exit_status(self) -> int:
        """0; 1 when something was refused; 2 when nothing could be converted."""
        return (1 if self.refused else 0) if self.written else 2
