"""The result of one check, and the run of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One line of ``ctnet doctor``.

    Attributes:
        name: what was looked at.
        found: what is there.
        remedy: what to do about it; empty when nothing has to be done.
    """

    name: str
    found: str
    remedy: str = ""

    @property
    def ok(self) -> bool:
        """True when nothing has to be fixed."""
        return not self.remedy

    def line(self) -> str:
        """``ok   name: found`` or ``fix  name: found -> remedy``, as plain text."""
        if self.ok:
            return f"ok   {self.name}: {self.found}"
        return f"fix  {self.name}: {self.found} -> {self.remedy}"


def all_checks() -> list[Callable[[], list[Check]]]:
    """The checks in the order in which a user would repair what they find."""
    from ctnet_nnunet.doctor import lookup, machine, nnunet

    return [
        nnunet.version,
        nnunet.train_command,
        nnunet.folders,
        lookup.shim,
        lookup.trainers,
        machine.torch_device,
        machine.memory,
        machine.disk,
    ]


def run_checks() -> Iterator[Check]:
    """Run everything, yielding each result as soon as it is known: the look-up of the trainers takes seconds."""
    for check in all_checks():
        yield from check()
