"""Checkpoints: plain types, an atomic write that a full disk cannot spoil, and a reading that runs nothing."""

from __future__ import annotations

import codecs
import collections
import errno
import io
import os
import pickle
import random
import subprocess
import sys
import zipfile
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ctnet_nnunet.checkpoints import (
    compare_weights,
    plain,
    random_state,
    read_checkpoint,
    remove_partial,
    restore_random_state,
    write_checkpoint,
)
from ctnet_nnunet.errors import CheckpointError
from ctnet_nnunet.trainers.stock_hooks import difference_table


class Colour(str, Enum):
    RED = "red"


@pytest.mark.parametrize(("value", "expected"), [
    (None, None), (True, True), (3, 3), (0.5, 0.5), ("text", "text"), (np.float32(0.5), 0.5), (np.float64(0.1), 0.1),
    (np.int64(7), 7), (np.bool_(True), True), (np.str_("a"), "a"), (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    ((1, np.int8(2)), (1, 2)), ([np.float16(1.0)], [1.0]), ({np.int64(1): np.float32(2)}, {1: 2.0}),
    (Path("/a/b"), "/a/b"),
    (torch.device("cpu"), "cpu"), (collections.OrderedDict(a=1), {"a": 1}),
    (collections.defaultdict(list, a=[1]), {"a": [1]}),
    ({1}, [1]), (torch.Size([2, 3]), (2, 3)), (np.array(3.0), 3.0),
])  # fmt: skip
def test_plain_types(value: Any, expected: Any) -> None:
    result = plain(value)
    assert result == expected
    assert type(result) is type(expected)


def test_a_text_that_is_also_something_else_becomes_text() -> None:
    assert type(plain(Colour.RED)) is str


def test_tensors_are_detached_and_parameters_lose_their_class() -> None:
    parameter = nn.Parameter(torch.ones(2))
    assert type(plain(parameter)) is torch.Tensor
    assert not plain(parameter).requires_grad
    assert torch.equal(plain({"a": [parameter]})["a"][0], parameter)


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        network(torch.randn(2, 1, 8, 8)).square().mean().backward()
        optimizer.step()
    return network, optimizer


def test_a_training_comes_back_with_weights_only(tmp_path: Path) -> None:
    network, optimizer = trained()
    file = tmp_path / "checkpoint_latest.pth"
    content = {
        "network_weights": network.state_dict(), "optimizer_state": optimizer.state_dict(), "grad_scaler_state": None,
        "logging": {"train_losses": [np.float32(0.5)]}, "_best_ema": np.float64(0.25), "random_state": random_state(),
        "init_args": {"device": torch.device("cpu"), "fold": 0},
    }  # fmt: skip
    write_checkpoint(content, file)
    loaded = torch.load(file, weights_only=True)
    assert loaded.keys() == read_checkpoint(file).keys() == content.keys()
    assert (loaded["logging"], loaded["_best_ema"]) == ({"train_losses": [0.5]}, 0.25)
    again, other = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)), trained()[1]
    again.load_state_dict(loaded["network_weights"], strict=True)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in again.state_dict().items())
    other.load_state_dict(loaded["optimizer_state"])
    for mine, theirs in zip(
        other.state_dict()["state"].values(), optimizer.state_dict()["state"].values(), strict=True
    ):
        assert all(torch.equal(torch.as_tensor(mine[key]), torch.as_tensor(theirs[key])) for key in theirs)


def test_tensors_that_share_memory_are_stored_once(tmp_path: Path) -> None:
    """nnU-Net's decoder holds the encoder, so state dicts name each of its tensors twice."""
    weight = torch.randn(256, 256)
    write_checkpoint({"network_weights": {"encoder.w": weight, "decoder.encoder.w": weight}}, tmp_path / "a.pth")
    assert (tmp_path / "a.pth").stat().st_size < 1.5 * weight.nbytes


def test_restored_generators_draw_the_same_again(tmp_path: Path) -> None:
    def draws() -> tuple[Any, ...]:
        return (
            torch.rand(3).tolist(),
            np.random.rand(3).tolist(),
            np.random.randn(),
            random.random(),
            random.gauss(0, 1),
        )

    draws()
    write_checkpoint({"network_weights": {}, "random_state": random_state()}, tmp_path / "a.pth")
    first = draws()
    assert draws() != first
    restore_random_state(torch.load(tmp_path / "a.pth", weights_only=True)["random_state"])
    assert draws() == first


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    file = tmp_path / "checkpoint_latest.pth"
    write_checkpoint({"network_weights": {"w": torch.arange(5.0)}}, file)
    return file


def holds_the_old(file: Path) -> bool:
    whole = torch.equal(read_checkpoint(file)["network_weights"]["w"], torch.arange(5.0))
    return whole and [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("unexpected pos"), RuntimeError("")]
)
def test_a_write_that_fails_in_the_middle_leaves_the_old_file(
    saved: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(content: Any, stream: Any) -> None:
        stream.write(b"half of a file")
        raise error

    monkeypatch.setattr("ctnet_nnunet.checkpoints.torch.save", half)
    with pytest.raises(CheckpointError, match="could not be written") as caught:
        write_checkpoint({"network_weights": {"w": torch.zeros(5)}}, saved)
    assert "\n" not in str(caught.value)
    assert str(saved) in str(caught.value)
    monkeypatch.undo()
    assert holds_the_old(saved)


@pytest.mark.skipif(os.name == "nt", reason="no file size limits")
def test_a_disk_that_is_really_full_leaves_the_old_file(saved: Path) -> None:
    """A process that may write 100 kB a file; the kernel refuses the rest, as a full disk would."""
    code = (
        "import resource, sys, torch\nfrom pathlib import Path\n"
        "from ctnet_nnunet.checkpoints import write_checkpoint\nfrom ctnet_nnunet.errors import CheckpointError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    write_checkpoint({'network_weights': {'w': torch.zeros(1_000_000)}}, Path(sys.argv[1]))\n"
        "except CheckpointError as error:\n    print(error)\n    sys.exit(error.exit_status)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, text=True, check=False)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout.count("\n") == 1
    assert f"{saved}: could not be written" in ended.stdout
    assert holds_the_old(saved)


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        write_checkpoint({"network_weights": {}}, tmp_path / "gone" / "a.pth")


def test_leftovers_of_killed_writes_are_removed_and_nothing_else(saved: Path) -> None:
    leftover = saved.parent / f".{saved.name}.12345.partial"
    leftover.write_bytes(b"half")
    (saved.parent / "notes.partial").write_text("mine")
    remove_partial(saved.parent)
    assert not leftover.exists()
    assert saved.exists()
    assert (saved.parent / "notes.partial").exists()


class Runs:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle"])
def test_a_hostile_pickle_is_refused_and_not_run(form: str, tmp_path: Path) -> None:
    file, canary = tmp_path / "checkpoint_final.pth", tmp_path / "canary"
    content = {"network_weights": {"w": torch.zeros(1)}, "extra": Runs(canary)}
    if form == "bare pickle":
        file.write_bytes(pickle.dumps({"network_weights": {}, "extra": Runs(canary)}))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError, match="Python objects") as caught:
        read_checkpoint(file)
    assert "\n" not in str(caught.value)
    assert not canary.exists()


class Calls:
    """Pickled as a call, for what torch's own weights_only would carry out."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (Calls(bytearray, 10**11), "bytearray"),
        (Calls(codecs.encode, Calls(codecs.encode, "x" * 9, "latin1"), "hex"), "_codecs.encode"),
        ([b"bytes", Calls(codecs.encode, "text", "idna")], "_codecs.encode"),
    ],
    ids=["100 GB of zeros", "codecs that double", "a slow codec"],
)
def test_what_weights_only_would_let_pass(content: Any, words: str, tmp_path: Path) -> None:
    torch.save({"network_weights": {}, "x": content}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=f"Python objects: .*{words}"):
        read_checkpoint(tmp_path / "a.pth")


def test_bytes_are_plain(tmp_path: Path) -> None:
    torch.save({"network_weights": {}, "x": [b"a", b"b", b"a" * 300, np.float64(1)]}, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth")["x"][:2] == [b"a", b"b"]


def rezipped(file: Path, compression: int, copies: int = 1) -> None:
    with zipfile.ZipFile(file) as archive:
        members = [(item.filename, archive.read(item)) for item in archive.infolist()]
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members * copies:
            archive.writestr(name, data)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_torch_does_not_write(saved: Path) -> None:
    rezipped(saved, zipfile.ZIP_STORED)
    assert read_checkpoint(saved)
    rezipped(saved, zipfile.ZIP_STORED, 2)
    with pytest.raises(CheckpointError, match="there twice"):
        read_checkpoint(saved)
    write_checkpoint({"network_weights": {"w": torch.zeros(10**6)}}, saved)
    rezipped(saved, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed"):
        read_checkpoint(saved)


@pytest.mark.parametrize(("content", "words"), [
    (b"", "broken"), (b"no checkpoint at all", "cannot be read"), (b"PK\x03\x04 half a zip", "cannot be read"),
])  # fmt: skip
def test_files_that_are_no_checkpoint(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(saved: Path, share: float) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(saved)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(CheckpointError, match="no such checkpoint"):
            read_checkpoint(path)


@pytest.mark.parametrize("content", [{"state_dict": {}}, {"w": torch.zeros(2)}, [1, 2], torch.zeros(3)])
def test_other_contents_are_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="no network_weights"):
        read_checkpoint(tmp_path / "a.pth")


def stock_content() -> dict[str, Any]:
    """What stock nnU-Net saves: numpy scalars among the logs."""
    return {
        "network_weights": {"w": torch.ones(2)}, "_best_ema": np.float64(0.5), "current_epoch": 3,
        "logging": {"dice_per_class_or_region": [[np.float64(0.1), np.float32(0.2)]], "epochs": [np.int64(1)],
                    "ok": [np.bool_(True)]},
        "init_args": {"fold": 0, "plans": {"a": (1, 2)}},
    }  # fmt: skip


def test_a_stock_checkpoint_is_read(tmp_path: Path) -> None:
    torch.save(stock_content(), tmp_path / "a.pth")
    loaded = read_checkpoint(tmp_path / "a.pth")
    assert float(loaded["_best_ema"]) == 0.5
    assert float(loaded["logging"]["dice_per_class_or_region"][0][1]) == pytest.approx(0.2)


@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_a_stock_checkpoint_of_either_numpy_is_read(module: str, tmp_path: Path) -> None:
    """numpy 2 moved its scalars' module; published models were saved with both."""
    buffer = io.BytesIO()
    torch.save(stock_content(), buffer)
    here = type(np.float64(1)).__reduce__(np.float64(1))[0].__module__.encode()
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_STORED) as target:
        for item in source.infolist():
            data = source.read(item)
            if item.filename.endswith("data.pkl"):
                assert here in data
                data = renamed(data, here.decode(), f"{module}.multiarray")
            target.writestr(item, data)
    assert float(read_checkpoint(tmp_path / "a.pth")["_best_ema"]) == 0.5


def renamed(data: bytes, old: str, new: str) -> bytes:
    """A protocol-2 pickle names globals as ``c<module>\\n<name>\\n``."""
    return data.replace(f"c{old}\n".encode(), f"c{new}\n".encode())


def test_differences_name_keys_and_shapes_and_leave_heads_out() -> None:
    wanted = {
        "a": torch.zeros(2, 3),
        "b": torch.zeros(4),
        "decoder.seg_layers.0.weight": torch.zeros(5),
        "same": torch.ones(1),
    }
    found = {
        "a": torch.full((2, 4), 777.0),
        "c": torch.zeros(()),
        "decoder.seg_layers.0.weight": torch.zeros(9),
        "same": torch.ones(1),
    }
    differences = compare_weights(wanted, found)
    assert [(item.key, item.wanted, item.found, item.action) for item in differences] == [
        ("a", (2, 3), (2, 4), "shape differs"), ("b", (4,), None, "missing in the file"),
        ("c", None, (), "not in this network"),
    ]  # fmt: skip
    table = difference_table(differences)
    assert [line.split() for line in table.splitlines()] == [
        ["key", "wanted", "found", "action"], ["a", "2x3", "2x4", "shape", "differs"],
        ["b", "4", "-", "missing", "in", "the", "file"], ["c", "-", "scalar", "not", "in", "this", "network"],
    ]  # fmt: skip
    assert "777" not in table
    assert compare_weights(wanted, wanted) == []


def test_a_long_table_ends_in_a_count() -> None:
    table = difference_table(compare_weights({f"layer{index}": torch.zeros(2) for index in range(40)}, {}))
    assert len(table.splitlines()) == 14
    assert table.splitlines()[-1] == "… and 28 more"
