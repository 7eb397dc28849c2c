"""docs/reference/options.md names every key of the ctnet block, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from ctnet_nnunet.architectures.transformer import TransformerOptions
from ctnet_nnunet.planning.cross_modality import CrossModality
from ctnet_nnunet.planning.options import CTNetOptions, preset_block
from ctnet_nnunet.planning.semi_supervised import SEMI_SUPERVISED_PRESETS, SemiSupervised

DOCUMENT = Path(__file__).parents[1] / "docs" / "reference" / "options.md"


def _documented() -> set[str]:
    rows = [line.split("|")[1] for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    names: set[str] = set()
    for row in rows:
        for name in re.findall(r"`([\w.]+)`", row):
            names.add("transformer" + name if name.startswith(".") else name)
    return names


def test_every_key_is_documented() -> None:
    nested = {f"transformer.{name}" for name in TransformerOptions.__dataclass_fields__}
    nested |= {f"semi_supervised.{name}" for name in SemiSupervised.model_fields}
    nested |= {f"cross_modality.{name}" for name in CrossModality.model_fields}
    assert _documented() == (set(CTNetOptions.model_fields) - {"transformer"}) | nested


def test_the_table_quotes_preset_m() -> None:
    text = DOCUMENT.read_text()
    block = preset_block("m")
    assert f"| `epochs` | {block['epochs']} (`pretrain`: {block['pretrain']['epochs']}) |" in text
    assert f"| `mask_ratio` | {block['mask_ratio']} |" in text
    assert block["learning_rate"] == 3e-4 and "| `learning_rate` | 3e-4 (`pretrain`: 1e-4) |" in text
    assert block["pretrain"]["learning_rate"] == 1e-4


def test_the_table_quotes_the_semi_supervised_presets() -> None:
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in DOCUMENT.read_text().splitlines()]
    rows = {row[0].strip("`"): row[1:3] for row in cells if len(row) == 4}
    for column, preset in enumerate(SEMI_SUPERVISED_PRESETS):
        values = SemiSupervised(preset=preset).model_dump()
        quoted = {
            name: text
            for names, cells in rows.items()
            for name, text in zip(re.findall(r"semi_supervised\.(\w+)", names), cells[column].split(", "), strict=False)
        }
        assert set(SEMI_SUPERVISED_PRESETS[preset]) <= set(quoted)
        for name, text in quoted.items():
            wanted = values[name]
            number = isinstance(wanted, float)
            assert text in ("", "null") or (float(text) == wanted if number else text == str(wanted).lower()), name


def test_the_table_quotes_the_cross_modality_defaults() -> None:
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in DOCUMENT.read_text().splitlines()]
    quoted: dict[str, str] = {}
    for row in (row for row in cells if row[:1] and row[0].startswith("`cross_modality.")):
        names = re.findall(r"cross_modality\.(\w+)", row[0])
        quoted |= dict(zip(names, row[1].split(", "), strict=True))
    values = CrossModality().model_dump()
    assert quoted.keys() == values.keys()
    for name, text in quoted.items():
        wanted = "null" if values[name] is None else values[name]
        assert float(text) == wanted if isinstance(wanted, float) else text == str(wanted), name
