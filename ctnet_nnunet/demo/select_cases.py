"""How the demo's cases were chosen, as a program: the first 40 case names of Task04, in three blocks.

``python -m ctnet_nnunet.demo.select_cases SOURCE TARGET`` with SOURCE holding ``images/`` and ``labels/`` makes
``ctnet_nnunet/demo/data`` again. The blocks follow the order of the names: where two volumes of one patient are
numbered next to each other (the source has no map), most such pairs stay within a block.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.files import sha256

ENDING = ".nii.gz"
BLOCKS = (("labelled", 10), ("unlabelled", 22), ("held_out", 8))


def choose(names: list[str]) -> dict[str, str]:
    """Case name → role for the first 40 of ``names`` in alphabetical order.

    Raises:
        DataError: if there are fewer.
    """
    roles = [role for role, count in BLOCKS for _ in range(count)]
    if len(names) < len(roles):
        raise DataError(f"found {len(names)} cases, the demo takes {len(roles)}; give the folder of the whole task")
    return dict(zip(sorted(names), roles, strict=False))


def copy_cases(source: Path, target: Path) -> None:
    """Copy the chosen images and labels unchanged, and write ``cases.json`` with roles and checksums."""
    found = [p.name[: -len(ENDING)] for p in (source / "images").glob(f"*{ENDING}")]
    cases = []
    for name, role in choose(found).items():
        entry = {"case": name, "role": role}
        for folder in ("images", "labels"):
            (target / folder).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / folder / f"{name}{ENDING}", target / folder / f"{name}{ENDING}")
            entry[f"{folder}_sha256"] = sha256(target / folder / f"{name}{ENDING}")
        cases.append(entry)
    (target / "cases.json").write_text(json.dumps({"cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Copy the demo's cases out of Medical Segmentation Decathlon Task04.")
    parser.add_argument("source", type=Path, help="folder with images/ and labels/")
    parser.add_argument("target", type=Path, help="folder to write, e.g. ctnet_nnunet/demo/data")
    arguments = parser.parse_args()
    copy_cases(arguments.source, arguments.target)
