"""Options that take several values in a row, as nnU-Net's own commands do."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


class ListsAfterOptions(TyperCommand):
    """Takes ``--labels 1 5 10`` for ``--labels 1 --labels 5 --labels 10``, as nnU-Net's own commands do."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        lists = {name for p in self.params if getattr(p, "multiple", False) for name in p.opts}
        spread: list[str] = []
        current: str | None = None
        for word in args:
            if word.startswith("-") and not word.lstrip("-").isdigit():
                current = word if word in lists else None
                spread.append(word)
            elif current is not None and spread[-1] != current:
                spread += [current, word]
            else:
                spread.append(word)
        return super().parse_args(ctx, spread)
