"""Bundles that were changed on the way, or made to harm."""

from __future__ import annotations

import hashlib
import json
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bad_files.base import Bad, Good, predict

Members = dict[str, bytes]
WEIGHTS = "fold_0.safetensors"


def raw_bundle(name: str, what: str, change: Callable[[bytes], bytes]) -> Bad:
    """The good bundle with other bytes."""

    def make(folder: Path, good: Good) -> list[str]:
        (folder / "model.ctnet").write_bytes(change(good.bundle.read_bytes()))
        return predict(folder, good.scan, folder / "model.ctnet")

    return Bad(f"{name}.ctnet", what, make)


def bundle(
    name: str,
    what: str,
    edit: Callable[[Members], object],
    *,
    sealed: bool = True,
    compression: int = zipfile.ZIP_STORED,
    member: Callable[[zipfile.ZipInfo], object] | None = None,
    extra: Members | None = None,
) -> Bad:
    """The good bundle with other members; ``sealed``: with a manifest that fits them.

    ``member`` changes their entries in the archive, ``extra`` are added though the names may be there.
    """

    def make(folder: Path, good: Good) -> list[str]:
        with zipfile.ZipFile(good.bundle) as archive:
            members = {item.filename: archive.read(item) for item in archive.infolist()}
        edit(members)
        if sealed:
            seal(members)
        with zipfile.ZipFile(folder / "model.ctnet", "w", compression) as archive:
            for key, data in [*members.items(), *(extra or {}).items()]:
                info = zipfile.ZipInfo(key)
                info.compress_type = compression
                if member:
                    member(info)
                archive.writestr(info, data)
        return predict(folder, good.scan, folder / "model.ctnet")

    return Bad(f"{name}.ctnet", what, make)


def seal(members: Members) -> None:
    manifest = json.loads(members.pop("manifest.json"))
    manifest["members"] = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in members.items()
    }
    members["manifest.json"] = json.dumps(manifest).encode()


def edited(name: str, edit: Callable[[Any], object]) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        content = json.loads(members[name])
        edit(content)
        members[name] = json.dumps(content).encode()

    return change


def _add(name: str, data: bytes = b"x") -> Callable[[Members], object]:
    return lambda members: members.update({name: data})


def _nothing(members: Members) -> None:
    pass


def _link(info: zipfile.ZipInfo) -> None:
    if info.filename == "plans.json":
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16


def flagged_encrypted(data: bytes) -> bytes:
    """Mark the first member as encrypted, in both of its headers."""
    changed = bytearray(data)
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        changed[data.index(signature) + offset] |= 1
    return bytes(changed)


def _claims(data: bytes) -> bytes:
    """A central directory that gives a member 2 GB."""
    changed = bytearray(data)
    place = data.rindex(b"PK\x01\x02")
    struct.pack_into("<2I", changed, place + 20, 2**31, 2**31)
    return bytes(changed)


def _header(length: int, text: bytes = b"") -> bytes:
    return struct.pack("<Q", length) + text


def _tensors(header: dict[str, Any], data: bytes = bytes(64)) -> bytes:
    text = json.dumps(header).encode()
    return _header(len(text), text) + data


BUNDLES = [
    raw_bundle("half", "its first half", lambda data: data[: len(data) // 2]),
    raw_bundle("text", "a text", lambda _: b"no bundle at all"),
    raw_bundle("empty", "nothing in it", lambda _: b""),
    raw_bundle("flipped", "one byte of its weights changed",
               lambda d: (i := d.index(b"fold_0.safetensors") + 4000) and d[:i] + bytes([d[i] ^ 1]) + d[i + 1:]),
    raw_bundle("encrypted", "a member marked as encrypted", flagged_encrypted),
    raw_bundle("claims", "a member that claims 2 GB", _claims),
    bundle("traversal", "a member ../../plans.json", _add("../../plans.json")),
    bundle("absolute", "a member /etc/cron.d/evil", _add("/etc/cron.d/evil")),
    bundle("windows_path", "a member C:\\evil.exe", _add("C:\\evil.exe")),
    bundle("python", "a module that nnU-Net would import", _add("nnUNetTrainer.py")),
    bundle("pickle", "a checkpoint beside the weights", _add("fold_0/checkpoint_final.pth")),
    bundle("many_members", "300 members", lambda m: m.update({f"fold_{i}.safetensors": b"" for i in range(300)})),
    bundle("link", "plans.json is a symbolic link", _nothing, member=_link),
    bundle("bomb", "weights that unpack to 500 MB", _add(WEIGHTS, bytes(500 * 2**20)),
           compression=zipfile.ZIP_DEFLATED),
    bundle("twice", "plans.json twice, the second another", _nothing, extra={"plans.json": b"{}"}),
    bundle("overwritten", "weights of another model, the manifest as it was",
           _add(WEIGHTS, b"other"), sealed=False),
    bundle("not_in_manifest", "a fold that the manifest does not name",
           _add("fold_1.safetensors"), sealed=False),
    bundle("without_weights", "no weights, though the manifest names them", lambda m: m.pop(WEIGHTS), sealed=False),
    bundle("without_plans", "no plans.json", lambda m: m.pop("plans.json")),
    bundle("without_manifest", "no manifest", lambda m: m.pop("manifest.json"), sealed=False),
    bundle("newer", "format version 2", edited("manifest.json", lambda c: c.update(version=2)), sealed=False),
    bundle("version_text", "a version that is a text",
           edited("manifest.json", lambda c: c.update(version="1; rm -rf")), sealed=False),
    bundle("wrong_hash", "a hash that is none",
           edited("manifest.json", lambda c: c["members"]["plans.json"].update(sha256="0")), sealed=False),
    bundle("wrong_size", "another length than the manifest says",
           edited("manifest.json", lambda c: c["members"]["plans.json"].update(size=1)), sealed=False),
    bundle("foreign_key", "a key that model.json does not have",
           edited("model.json", lambda c: c.update(trainer_module="evil"))),
    bundle("fold_path", "a fold named ../0", edited("model.json", lambda c: c["folds"][0].update(name="../0"))),
    bundle("shared_with_none", "a tensor that shares one that is not there",
           edited("model.json", lambda c: c["folds"][0]["shared"].update(a="none"))),
    bundle("class_os_system", "network class os.system", edited("plans.json", lambda c: c["configurations"][
        "3d_fullres"]["architecture"].update(network_class_name="os.system"))),
    bundle("no_safetensors", "weights that are none", _add(WEIGHTS, b"\xff" * 100)),
    bundle("header_of_exabytes", "weights whose header has 10¹⁸ bytes", _add(WEIGHTS, _header(10**18))),
    bundle("tensor_of_terabytes", "a tensor of 10¹² values in 64 bytes", _add(WEIGHTS, _tensors(
        {"a": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 64]}}))),
    bundle("tensor_behind_the_end", "a tensor behind the end", _add(WEIGHTS, _tensors(
        {"a": {"dtype": "F32", "shape": [16], "data_offsets": [1000, 1064]}}))),
    bundle("other_tensors", "tensors of another network", _add(WEIGHTS, _tensors(
        {"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}}))),
]  # fmt: skip
