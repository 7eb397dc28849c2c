"""plans.json, dataset.json and checkpoints that must not get as far as a network."""

from __future__ import annotations

import codecs
import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.bad_files.base import CONFIGURATION, Bad, checkpoint, with_model

Edit = Callable[[Any], object]


def json_file(file: str, name: str, what: str, edit: Edit) -> Bad:
    """The good model with ``file`` edited."""

    def change(model: Path) -> None:
        content = json.loads((model / file).read_text())
        edit(content)
        (model / file).write_text(json.dumps(content))

    return Bad(f"{name}/{file}", what, lambda folder, good: with_model(folder, good, change))


def configuration(name: str, what: str, edit: Edit) -> Bad:
    return json_file("plans.json", name, what, lambda plans: edit(plans["configurations"][CONFIGURATION]))


def arguments(name: str, what: str, **values: Any) -> Bad:
    return configuration(name, what, lambda c: c["architecture"]["arch_kwargs"].update(values))


def raw_plans(name: str, what: str, write: Callable[[Path], object]) -> Bad:
    def change(model: Path) -> None:
        write(model / "plans.json")

    return Bad(f"{name}/plans.json", what, lambda folder, good: with_model(folder, good, change))


def dataset(name: str, what: str, edit: Edit) -> Bad:
    return json_file("dataset.json", name, what, edit)


def saved(name: str, what: str, edit: Edit, **options: Any) -> Bad:
    """The good checkpoint, edited before it is saved by torch."""

    def write(file: Path) -> None:
        content = checkpoint()
        torch.save(edit(content) or content, file, **options)

    return raw_checkpoint(name, what, write)


def raw_checkpoint(name: str, what: str, write: Callable[[Path], object]) -> Bad:
    def change(model: Path) -> None:
        write(model / "fold_0" / "checkpoint_final.pth")

    return Bad(f"{name}/checkpoint_final.pth", what, lambda folder, good: with_model(folder, good, change))


class Call:
    """Pickled as a call."""

    def __init__(self, function: Any, *values: Any) -> None:
        self.call = (function, values)

    def __reduce__(self) -> Any:
        return self.call


def _put(**values: Any) -> Edit:
    return lambda content: content.update(values)


def _weights(change: Callable[[dict[str, torch.Tensor], str], object]) -> Edit:
    """``change`` gets the weights and the name of the first."""

    def edit(content: dict[str, Any]) -> None:
        weights = content["network_weights"]
        change(weights, next(iter(weights)))

    return edit


def _sparse(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.truncate(500 * 2**20)


def _rezip(compression: int, copies: int = 1, extra: dict[str, bytes] | None = None) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        with zipfile.ZipFile(file) as archive:
            members = {item.filename: archive.read(item) for item in archive.infolist()}
        members |= extra or {}
        with zipfile.ZipFile(file, "w", compression) as archive:
            for name, data in list(members.items()) * copies:
                archive.writestr(name, data)

    return write


def _in_pickle(old: bytes, new: bytes) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        with zipfile.ZipFile(file) as archive:
            members = {item.filename: archive.read(item) for item in archive.infolist()}
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, data in members.items():
                archive.writestr(name, data.replace(old, new, 1) if name.endswith("data.pkl") else data)

    return write


def _huge_tensor(content: dict[str, Any]) -> None:
    weights = content["network_weights"]
    weights[next(iter(weights))] = torch.zeros(1).expand(10**6, 10**6)


def _tar(file: Path) -> None:
    with tarfile.open(file, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(Call(os.mkdir, str(file.with_name("canary"))), protocol=2)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def _laughs(depth: int) -> Any:
    """A list of lists of lists: a few bytes that print as millions."""
    value: Any = "ha"
    for _ in range(depth):
        value = [value] * 10
    return value


def _canary(function: Any) -> Callable[[Path], None]:
    """A pickle that would make a folder beside itself."""

    def write(file: Path) -> None:
        torch.save(checkpoint() | {"extra": Call(function, str(file.with_name("canary")))}, file)

    return write


def _bare(file: Path) -> None:
    file.write_bytes(pickle.dumps(Call(os.mkdir, str(file.with_name("canary")))))


def _old_format(file: Path) -> None:
    content = checkpoint() | {"extra": Call(os.mkdir, str(file.with_name("canary")))}
    torch.save(content, file, _use_new_zipfile_serialization=False)


def _shell(file: Path) -> None:
    torch.save(checkpoint() | {"extra": Call(os.system, f"touch {file.with_name('canary')}")}, file)


PLANS = [
    configuration("class_os_system", "network class os.system",
                  lambda c: c["architecture"].update(network_class_name="os.system")),
    configuration("class_torch_hub", "network class torch.hub.load, which runs a folder's hubconf.py",
                  lambda c: c["architecture"].update(network_class_name="torch.hub.load", arch_kwargs={
                      **c["architecture"]["arch_kwargs"], "repo_or_dir": ".", "model": "evil", "source": "local"})),
    arguments("operator_eval", "convolution builtins.eval", conv_op="builtins.eval3d"),
    configuration("import_block", "asks for the import of a block's class",
                  lambda c: c["architecture"].update(_kw_requires_import=["conv_op", "evil"])),
    configuration("foreign_normalization", "normalisation of another package",
                  lambda c: c.update(normalization_schemes=["Evil"])),
    configuration("foreign_resampling", "resampling of another package",
                  lambda c: c.update(resampling_fn_probabilities="evil")),
    configuration("foreign_preprocessor", "preprocessor of another package",
                  lambda c: c.update(preprocessor_name="Evil")),
    configuration("resampling_arguments", "an argument that the resampling does not take",
                  lambda c: c.update(resampling_fn_data_kwargs={"mode": "linear"})),
    json_file("plans.json", "foreign_reader", "reader of another package",
              lambda p: p.update(image_reader_writer="os.system")),
    json_file("plans.json", "foreign_labels", "label manager of another package",
              lambda p: p.update(label_manager="Evil")),
    configuration("huge_patch", "a patch of 4096³", lambda c: c.update(patch_size=[4096, 4096, 4096])),
    configuration("patch_text", "a patch that is a text", lambda c: c.update(patch_size="big")),
    configuration("patch_2d", "a 2d patch for a 3d network",
                  lambda c: c.update(patch_size=[8, 8], spacing=[1.0, 1.0])),
    arguments("negative_strides", "negative strides", strides=[[1, 1, 1], [-2, 2, 2]]),
    arguments("zero_kernels", "kernels of size 0", kernel_sizes=[[3, 3, 3], [0, 3, 3]]),
    arguments("million_features", "a million features", features_per_stage=[4, 10**6]),
    arguments("wide_network", "8192 features in each stage", features_per_stage=[8192, 8192]),
    arguments("billion_blocks", "a billion convolutions a stage", n_conv_per_stage=[1, 10**9]),
    arguments("million_stages", "a million stages", n_stages=10**6),
    arguments("unknown_argument", "an argument that the network does not take", backdoor=True),
    arguments("ill_typed_norm", "a text as the norm's epsilon", norm_op_kwargs={"eps": "x"}),
    configuration("deep_transformer", "a transformer of a billion blocks",
                  lambda c: c.update(ctnet={"transformer": {"depth": 10**9}})),
    configuration("nan_spacing", "a spacing of NaN", lambda c: c.update(spacing=[1.0, float("nan"), 1.0])),
    configuration("tiny_spacing", "a spacing of 1 µm, to which every scan would be resampled",
                  lambda c: c.update(spacing=[1e-3, 1e-3, 1e-3])),
    configuration("no_spacing", "no spacing", lambda c: c.pop("spacing")),
    configuration("no_architecture", "no architecture", lambda c: c.pop("architecture")),
    configuration("inherits_itself", "a configuration that inherits from itself",
                  lambda c: c.update(inherits_from=CONFIGURATION)),
    configuration("cascade", "a cascade's second stage", lambda c: c.update(previous_stage="3d_lowres")),
    configuration("two_channels", "normalises two channels of one",
                  lambda c: c.update(normalization_schemes=["NoNormalization"] * 2, use_mask_for_norm=[False] * 2)),
    configuration("ct_without_values", "CT normalisation without intensities",
                  lambda c: c.update(normalization_schemes=["CTNormalization"])),
    json_file("plans.json", "wrong_axes", "axes 0, 0, 2", lambda p: p.update(transpose_forward=[0, 0, 2])),
    json_file("plans.json", "not_undone", "a transposition that is not undone",
              lambda p: p.update(transpose_forward=[2, 0, 1], transpose_backward=[2, 0, 1])),
    json_file("plans.json", "configurations_list", "configurations that are a list",
              lambda p: p.update(configurations=[])),
    raw_plans("nested", "100 000 brackets", lambda file: file.write_text('{"a":' + "[" * 100_000)),
    raw_plans("500_megabytes", "500 MB", _sparse),
    raw_plans("key_twice", "the configurations twice", lambda file: file.write_text(
        file.read_text()[:-1] + ', "configurations": {}}')),
    raw_plans("latin1", "bytes that are no UTF-8", lambda file: file.write_bytes(b'{"a": "\xff\xfe"}')),
    raw_plans("a_list", "a list", lambda file: file.write_text("[]")),
    raw_plans("half", "its first half", lambda file: file.write_text(file.read_text()[:400])),
    raw_plans("missing", "not there", lambda file: file.unlink()),
]  # fmt: skip

DATASETS = [
    dataset("label_gap", "labels 0, 1, 3", lambda d: d["labels"].update(other=3)),
    dataset("no_background", "no background", lambda d: d.update(labels={"a": 0, "b": 1})),
    dataset("label_text", "a label that is a text", lambda d: d["labels"].update(blob="one")),
    dataset("labels_list", "labels that are a list", lambda d: d.update(labels=[0, 1])),
    dataset("regions_without_order", "regions without their order",
            lambda d: d.update(labels={"background": 0, "whole": [1, 2], "core": [2]})),
    dataset("foreign_ending", "file ending .exe", lambda d: d.update(file_ending=".exe")),
    dataset("ending_path", "file ending /../../x", lambda d: d.update(file_ending="/../../x")),
    dataset("no_channels", "no channels", lambda d: d.update(channel_names={})),
    dataset("channel_numbers", "channels 0 and 2", lambda d: d.update(channel_names={"0": "T1", "2": "T2"})),
    dataset("third_class", "a class more than the weights have", lambda d: d["labels"].update(other=2)),
]  # fmt: skip

CHECKPOINTS = [
    raw_checkpoint("os_system", "a pickle that calls os.system", _shell),
    raw_checkpoint("os_mkdir", "a pickle that makes a folder", _canary(os.mkdir)),
    raw_checkpoint("bare_pickle", "a bare pickle that makes a folder", _bare),
    raw_checkpoint("old_format", "torch's old format, with a pickle that makes a folder", _old_format),
    raw_checkpoint("tar", "torch's oldest format, a tar archive", _tar),
    saved("bytearray", "asks for 100 GB of zeros, which weights_only allows", _put(x=Call(bytearray, 10**11))),
    saved("doubling", "a chain of codecs that double their input, which weights_only allows",
          _put(x=Call(codecs.encode, Call(codecs.encode, "x", "latin1"), "hex"))),
    raw_checkpoint("persistent_id", "tensors by a persistent id that is no tensor",
                   _in_pickle(b"X\x07\x00\x00\x00storage", b"X\x07\x00\x00\x00evil!!!")),
    raw_checkpoint("foreign_name", "a class of another module in place of a table",
                   _in_pickle(b"ccollections\nOrderedDict\n", b"cctnet_evil\nOrderedDict\n")),
    raw_checkpoint("half", "its first half", lambda file: file.write_bytes(file.read_bytes()[:9000])),
    raw_checkpoint("empty", "nothing in it", lambda file: file.write_bytes(b"")),
    raw_checkpoint("text", "a text", lambda file: file.write_bytes(b"no weights at all")),
    raw_checkpoint("missing", "not there", lambda file: file.unlink()),
    raw_checkpoint("compressed", "a compressed archive that unpacks to a pickle of 200 MB",
                   _rezip(zipfile.ZIP_DEFLATED, extra={"archive/data.pkl": bytes(200 * 2**20)})),
    raw_checkpoint("torchscript", "a TorchScript archive", _rezip(zipfile.ZIP_STORED, extra={
        "archive/constants.pkl": b"", "archive/code/run.py": b""})),
    raw_checkpoint("twice", "every member twice", _rezip(zipfile.ZIP_STORED, copies=2)),
    saved("no_weights", "no network_weights", lambda _: {"state_dict": {}}),
    saved("weights_list", "weights that are a list", _put(network_weights=[1, 2])),
    saved("weights_numbers", "weights that are numbers", _put(network_weights={"a": 1.0})),
    saved("wrong_keys", "a tensor of another network", _weights(lambda w, key: w.update({"x" + key: w.pop(key)}))),
    saved("wrong_shape", "a tensor of another shape", _weights(lambda w, key: w.update({key: torch.zeros(3)}))),
    saved("huge_tensor", "a tensor that claims 10¹² values", _huge_tensor),
    saved("integers", "a tensor of integers", _weights(lambda w, key: w.update({key: w[key].long()}))),
    saved("nan", "a NaN among its weights", _weights(lambda w, key: w[key].view(-1)[0].fill_(float("nan")))),
    saved("other_configuration", "another configuration than the plan has",
          _put(init_args={"configuration": "2d"})),
    saved("configuration_list", "a configuration that is a list", _put(init_args={"configuration": ["3d_fullres"]})),
    saved("mirror_axes", "mirrors axis 9", _put(inference_allowed_mirroring_axes=(9,))),
    saved("mirror_text", "mirrors a text", _put(inference_allowed_mirroring_axes="012")),
    saved("trainer_name", "a trainer's name that prints as 300 million letters", _put(trainer_name=_laughs(8))),
]  # fmt: skip
MODELS = [*PLANS, *DATASETS, *CHECKPOINTS]
