"""The corpus of bad files: every way of being wrong that the package promises to refuse in one line.

Write all of them into a folder, with the commands that must refuse them:  python -m tests.bad_files.generate FOLDER
Run them and write docs/reference/bad-files.md anew:                       python -m tests.bad_files.generate --docs
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.bad_files.base import Bad, make_good
from tests.bad_files.bundles import BUNDLES
from tests.bad_files.dicom import DICOM
from tests.bad_files.images import IMAGES
from tests.bad_files.models import CHECKPOINTS, DATASETS, PLANS
from tests.bad_files.zips import ZIPS

GROUPS: dict[str, tuple[str, list[Bad]]] = {
    "scans": ("Scans", IMAGES),
    "dicom": ("DICOM series", DICOM),
    "zips": ("Zipped series", ZIPS),
    "plans": ("plans.json of a model", PLANS),
    "dataset": ("dataset.json of a model", DATASETS),
    "checkpoints": ("Checkpoints", CHECKPOINTS),
    "bundles": ("Bundles", BUNDLES),
}
DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "bad-files.md"
JOBS, RESULTS = "jobs.json", "results.json"
_INTRODUCTION = """# Bad files

What `ctnet` says of files that are broken or made to harm. `tests/bad_files/generate.py` makes each of them,
`tests/bad_files/test_bad_files.py` gives them to the real `ctnet predict`: exit status 2, one line and no traceback,
within 10 s and with 200 MB more memory than the program has anyway, with nothing written and nothing run. This page is
written by `python -m tests.bad_files.generate --docs`, and the same test holds it to what the command says. File names
are shortened, and "no case could be predicted; the first, NAME" is left out.
"""


def identifiers() -> list[str]:
    """``group/name`` of each bad file, each once."""
    return [f"{group}/{bad.name}" for group, (_, members) in GROUPS.items() for bad in members]


def write_corpus(folder: Path) -> Path:
    """Write every bad file into a folder of its own; returns the file that lists them with their commands."""
    good = make_good(folder / "good")
    fine = folder / "fine"
    fine.mkdir()
    words = ["predict", "-i", str(good.scan), "-o", str(fine / "out"), "-m", str(good.bundle)]
    jobs: list[dict[str, Any]] = [{"name": "fine", "folder": str(fine), "words": words}]
    for group, (_, members) in GROUPS.items():
        for number, bad in enumerate(members):
            place = folder / f"{group}_{number:03d}"
            place.mkdir()
            command = bad.make(place, good)
            jobs.append({"name": f"{group}/{bad.name}", "folder": str(place), "words": command})
    file = folder / JOBS
    file.write_text(json.dumps(jobs))
    return file


def run_corpus(folder: Path, timeout: float = 600.0) -> dict[str, dict[str, Any]]:
    """Give every file of a written corpus to its command, all in one process; returns the results by name."""
    command = [sys.executable, "-m", "tests.bad_files.worker", str(folder / JOBS), str(folder / RESULTS)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise RuntimeError(f"the worker ended with {done.returncode}: {done.stderr[-2000:]}")
    results: dict[str, dict[str, Any]] = json.loads((folder / RESULTS).read_text())
    return results


def shortened(text: str, folder: str, root: str) -> str:
    """A message without the corpus' own folder and without numbers that differ from run to run."""
    text = text.replace("ctnet: error: ", "").replace(f"{folder}/", "").replace(f"{root}/good/", "").strip()
    text = re.sub(r"^no case could be predicted; the first, [^:]*: ", "", text)
    return re.sub(r"0x[0-9a-f]{6,}", "0x…", text)


def page(results: dict[str, dict[str, Any]]) -> str:
    """The document, from what the commands said."""
    lines = [_INTRODUCTION]
    for group, (title, members) in GROUPS.items():
        lines += [f"## {title}", "", "| file | what is wrong with it | what `ctnet` says |", "|---|---|---|"]
        for bad in members:
            said = results[f"{group}/{bad.name}"]["said"].replace("|", "\\|")
            lines.append(f"| `{bad.name}` | {bad.what} | {said} |")
        lines.append("")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    if arguments and arguments != ["--docs"]:
        print(f"wrote {len(identifiers())} bad files, listed in {write_corpus(Path(arguments[0]))}")
        return
    folder = Path(tempfile.mkdtemp(prefix="ctnet-bad-files-"))
    try:
        write_corpus(folder)
        DOCUMENT.write_text(page(run_corpus(folder)), encoding="utf-8")
        print(f"wrote {DOCUMENT}")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
