"""What a checkpoint asks for, read before anything loads it: the archive's layout and the names in its pickle.

``weights_only=True`` refuses foreign classes, but its own list is longer than what checkpoints need and holds functions
that allocate whatever the file says (``bytearray(10**11)``, codecs that double their input). The list here is what
checkpoints of nnU-Net and of ours really hold. Opcodes are read with ``pickletools``, which runs none of them.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ctnet_nnunet.errors import CheckpointError

MAX_PICKLE_BYTES = 32 * 2**20
MAX_OPCODES = 5_000_000
"""A thousand epochs of a hundred classes take less than a fifth of it."""
_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool", "Untyped")
_NUMPY_TYPES = ("Float64DType", "Float32DType", "Float16DType", "Int64DType", "Int32DType", "BoolDType")
ALLOWED = frozenset(
    {"collections OrderedDict", "_codecs encode", "numpy dtype", "numpy ndarray", "torch device", "torch Size"}
    | {"torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
    | {f"torch {kind}Storage" for kind in _STORAGES}
    | {f"numpy.{core}.multiarray {name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")}
    | {f"numpy.dtypes {name}" for name in _NUMPY_TYPES}
)
"""``module name`` of everything that a checkpoint may name."""
_PUTS, _GETS = {"BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}
# Tensors are persistent ids; these opcodes name or make objects in ways that torch does not write.
_REFUSED = frozenset(
    "STACK_GLOBAL INST OBJ NEWOBJ NEWOBJ_EX EXT1 EXT2 EXT4 PERSID PUT GET MEMOIZE POP DUP".split()  # noqa: SIM905
)

_Opcode = tuple[pickletools.OpcodeInfo, Any, int | None]


def scan_checkpoint(file: Path) -> None:
    """Judge a checkpoint by its layout and its names; nothing is unpickled and no tensor is read.

    Raises:
        CheckpointError: no archive as torch writes them (also: compressed, with a member twice, larger inside than
            outside), or a pickle that names or does more than tensors and plain values need.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            data = archive.read(_pickle_of(archive, file))
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise _unreadable(file, _what_else(file)) from error
    try:
        _refuse_foreign(islice(pickletools.genops(data), MAX_OPCODES + 1), file)
    except (ValueError, UnicodeDecodeError, IndexError) as error:
        raise _unreadable(file, "its pickle is broken") from error


def _pickle_of(archive: zipfile.ZipFile, file: Path) -> zipfile.ZipInfo:
    members = archive.infolist()
    if len({member.filename for member in members}) != len(members):
        raise _unreadable(file, "a member of its archive is there twice")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise _unreadable(file, "its archive is compressed, which torch never writes")
    if sum(member.file_size for member in members) > file.stat().st_size:
        raise _unreadable(file, "its archive promises more bytes than the file has")
    pickles = [member for member in members if member.filename.endswith("/data.pkl")]
    if len(pickles) != 1 or any("constants.pkl" in member.filename for member in members):
        raise _unreadable(file, "it is another kind of archive than torch.save writes")
    if pickles[0].file_size > MAX_PICKLE_BYTES:
        raise _unreadable(file, f"its pickle is larger than {MAX_PICKLE_BYTES >> 20} MB")
    return pickles[0]


def _refuse_foreign(opcodes: Iterable[_Opcode], file: Path) -> None:
    resolved = _without_memo(opcodes)
    for count, (name, argument) in enumerate(resolved):
        if count >= MAX_OPCODES:
            raise _unreadable(file, f"its pickle has more than {MAX_OPCODES} instructions")
        if name in _REFUSED or (name == "GLOBAL" and argument not in ALLOWED):
            what = str(argument).replace(" ", ".") if name == "GLOBAL" else name
            raise _unreadable(file, f"it holds Python objects: {what}")
        if (name, argument) == ("GLOBAL", "_codecs encode"):
            # Bytes are stored as encode(text, "latin1"); another codec, or a chain of them, could multiply them.
            (first, _), *rest = [*islice(resolved, 4), ("", None)]
            if first != "BINUNICODE" or rest[:3] != [("BINUNICODE", "latin1"), ("TUPLE2", None), ("REDUCE", None)]:
                raise _unreadable(file, "it holds Python objects: _codecs.encode for more than bytes")


def _without_memo(opcodes: Iterable[_Opcode]) -> Iterator[tuple[str, object]]:
    """Opcodes with their arguments; what is fetched from the memo stands for itself where it is a name or a text."""
    memo: dict[object, tuple[str, object]] = {}
    last: tuple[str, object] = ("", None)
    for opcode, argument, _ in opcodes:
        if opcode.name in _PUTS:
            memo[argument] = last if last[0] in ("GLOBAL", "BINUNICODE") else ("", None)
            continue
        last = (opcode.name, argument)
        if opcode.name in _GETS:
            last = memo.get(argument, ("", None))
        yield last


def _what_else(file: Path) -> str:
    """A file that is no readable archive: cut off, empty, or torch's format of before 2020."""
    with file.open("rb") as stream:
        start = stream.read(4)
    if not start or start.startswith(b"PK"):
        return "broken or cut off"
    # A pickle of protocol 2 and later begins with its version; torch's old format is several of them.
    if start[0] == 0x80:
        return "a bare pickle, which may hold Python objects, and no torch archive"
    return "no torch archive"


def _unreadable(file: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{file}: cannot be read as a checkpoint ({reason}); take another, or train it again")
