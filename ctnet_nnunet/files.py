"""Text files that appear whole or not at all, nnU-Net's JSON files, and the hash of a file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ctnet_nnunet.errors import CTNetError, SetupError


def write_text(file: Path, text: str, error: type[CTNetError] = SetupError) -> None:
    """Write under a temporary name and rename, so that readers see the old file or the whole new one.

    Raises:
        CTNetError: Of the given type, if it cannot be written; the old file is intact then.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, file)
    except OSError as reason:
        temporary.unlink(missing_ok=True)
        said = reason.strerror or type(reason).__name__
        raise error(f"{file}: could not be written ({said}); free disk space or fix the rights") from reason


def read_planned(file: Path, error: type[CTNetError]) -> dict[str, Any]:
    """A JSON object that nnU-Net's planning reads or writes: plans, dataset.json.

    Raises:
        CTNetError: Of the given type, if there is none.
    """
    if not file.is_file():
        raise error(f"{file}: missing; run nnUNetv2_plan_and_preprocess first")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as reason:
        raise error(f"{file}: cannot be read as JSON ({reason}); plan the dataset again") from reason
    if not isinstance(content, dict):
        raise error(f"{file}: holds no JSON object; plan the dataset again")
    return content


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Say in one line what the system refuses on the way, such as a full disk.

    Raises:
        SetupError: In place of an OSError.
    """
    try:
        yield
    except OSError as reason:
        said = reason.strerror or type(reason).__name__
        raise SetupError(f"{reason.filename or folder}: {said}; free disk space or fix the rights") from reason


def sha256(file: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def text_hash(text: str) -> str:
    """The first 16 hexadecimal digits of a text's SHA-256: the same text is known again, and cannot be read back."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
