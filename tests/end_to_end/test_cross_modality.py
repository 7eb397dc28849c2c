"""CMFT → CMFF → prediction by stock commands on two and on four sequences, and what is refused before a training."""

from __future__ import annotations

import functools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from typer.testing import CliRunner

from ctnet_nnunet.checkpoints import HEADS, read_checkpoint
from ctnet_nnunet.cli.main import app
from ctnet_nnunet.errors import CTNetError
from ctnet_nnunet.unlabeled.preprocess import preprocess_unlabeled
from tests.conftest import NnunetEnv
from tests.end_to_end.commands import run_function, run_warm
from tests.end_to_end.refusals import check_refused
from tests.end_to_end.test_kill_minus_nine import STOPPED
from tests.end_to_end.tiny import Tiny
from tests.synthetic import make_dataset, plan_and_preprocess

CMFT, CMFF, EARLY = "nnUNetTrainerCMFT", "nnUNetTrainerCMFF", "nnUNetTrainerEarlyFusion"
SHORT = {"epochs": 2, "iterations": 2, "val_iterations": 1, "save_minutes": 1e-6}
TABLE = {"arch": "plan", "features": 4, "discriminator_levels": 3, "pool_size": 2, "pictures_every": 1}


def two_sequences(env: NnunetEnv, number: int, name: str, channels: int = 2, **more: Any) -> Tiny:
    """A stock U-Net plan of few features, patch 16×24×24, with two unlabelled scans."""
    tiny = Tiny(env, number, name, more.pop("configuration", "3d_fullres"), plans="nnUNetPlans")
    make_dataset(env.raw, number, name, 5, 2, n_test=1, seed=number, channels=channels, **more)
    plan_and_preprocess(number, [tiny.configuration])
    patch = [16, 24, 24][-len(tiny.read_plans()["configurations"][tiny.configuration]["patch_size"]) :]
    tiny.change_configuration(patch_size=patch)
    set_table(tiny)
    preprocess_unlabeled(number, tiny.configuration, tiny.plans, processes=0)
    return tiny


def set_table(tiny: Tiny, **values: Any) -> None:
    tiny.change_configuration(ctnet={**SHORT, "cross_modality": {**TABLE, **values}})


def final(tiny: Tiny, trainer: str, fold: int | str = 0) -> Path:
    return tiny.fold(fold, trainer) / "checkpoint_final.pth"


@pytest.fixture(scope="module")
def pair(nnunet_env: NnunetEnv) -> Tiny:
    return two_sequences(nnunet_env, 760, "Pair", regions=True, ignore=True, labels=("core", "rim"))


@pytest.fixture(scope="module")
def transition(pair: Tiny) -> dict[str, Any]:
    """Stage 1 of fold 0, trained without a break; its checkpoint and what it printed."""
    printed = run_warm(pair.env, *pair.train(0, CMFT)).succeeded().stdout
    return {**read_checkpoint(final(pair, CMFT)), "printed": printed}


def test_the_transition_sees_no_label_and_no_validation_case(pair: Tiny, transition: dict[str, Any]) -> None:
    printed = transition["printed"]
    assert "pair a: MR0; pair b: MR1" in printed
    assert "pretraining on 6 scans (2 unlabelled, 4 images of fold 0)" in printed
    assert "-tr nnUNetTrainerCMFF" in printed
    for name in ("adversarial_a", "adversarial_b", "cycle_a", "cycle_b", "discriminator_a", "discriminator_b"):
        assert re.search(rf"train .*{name} \d", printed), name
    own = transition["ctnet"]
    assert own["cross_modality"]["pairs"] == [["MR0"], ["MR1"]]
    assert {len(images) for images in own["transition"]["pools"].values()} == {2}
    pictures = sorted((pair.fold(0, CMFT) / "pictures").iterdir())
    assert [picture.name for picture in pictures] == ["epoch_0001.png", "epoch_0002.png"]
    assert pictures[0].read_bytes().startswith(b"\x89PNG")


def test_its_checkpoint_starts_the_fusion_to_the_bit(pair: Tiny, transition: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "w.pth"
    run_function(pair.env, functools.partial(started_fusion, pair, str(final(pair, CMFT)), out)).succeeded()
    weights, started = transition["network_weights"], torch.load(out, weights_only=True)
    assert weights.keys() == started.keys()
    for key, weight in started.items():
        assert HEADS in key or torch.equal(weight, weights[key]), key
    heads = [key for key in started if HEADS in key and key.endswith("weight")]
    assert len(heads) == 3
    assert all(not torch.equal(started[key], weights[key]) for key in heads)
    own = transition["ctnet"]
    assert {key.split(".")[0] for key in own["generator_heads"]} == {"a_to_b", "b_to_a"}
    assert {key.split(".")[0] for key in own["discriminators"]} == {"a", "b"}


def started_fusion(tiny: Tiny, weights: str, out: Path) -> None:
    """Build stage 2 as the stock command does, load the weights as it does, and keep the network's.

    Of fold 1, whose seed is another: heads that were not loaded differ.
    """
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    built = get_trainer_from_args(str(tiny.id), tiny.configuration, 1, CMFF, tiny.plans, device=torch.device("cpu"))
    maybe_load_checkpoint(built, False, False, weights)
    torch.save(built.network.state_dict(), out)


def test_an_interrupted_transition_ends_like_an_undisturbed_one(pair: Tiny, transition: dict[str, Any]) -> None:
    """Ended behind its third step of four: networks, pools, optimisers and log to the bit."""
    stopped = run_function(pair.env, functools.partial(train_and_stop, pair, CMFT, 3))
    assert stopped.status == STOPPED, stopped.stderr
    left = read_checkpoint(pair.fold(0, CMFT) / "checkpoint_latest.pth")
    assert (left["current_epoch"], len(left["ctnet"]["epoch_outputs"])) == (1, 1)
    run_warm(pair.env, *pair.train(0, CMFT, "--c")).succeeded()
    resumed = read_checkpoint(final(pair, CMFT))
    parts = ("generator_heads", "discriminators", "discriminators_optimizer_state", "transition")
    found, wanted = ({"ctnet": {part: file["ctnet"][part] for part in parts},
                      **{key: file[key] for key in ("network_weights", "optimizer_state")}}
                     for file in (resumed, transition))  # fmt: skip
    assert_equal(found, wanted)
    for name in ("train_losses", "val_losses", "lrs"):
        assert resumed["logging"][name] == transition["logging"][name]
        assert len(resumed["logging"][name]) == 2


def assert_equal(found: Any, wanted: Any, where: str = "") -> None:
    """Equal to the bit, tensors included."""
    if isinstance(wanted, torch.Tensor):
        assert torch.equal(found, wanted), where
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        for key, value in wanted.items():
            assert_equal(found[key], value, f"{where}.{key}")
    elif isinstance(wanted, (list, tuple)):
        assert len(found) == len(wanted), where
        for number, value in enumerate(wanted):
            assert_equal(found[number], value, f"{where}.{number}")
    else:
        assert found == wanted, where


def train_and_stop(tiny: Tiny, trainer_name: str, step: int) -> None:
    """Train fold 0 and end the process, without any clearing up, behind the given step and its checkpoint."""
    import os

    from nnunetv2.run.run_training import get_trainer_from_args

    trainer = get_trainer_from_args(
        str(tiny.id), tiny.configuration, 0, trainer_name, tiny.plans, device=torch.device("cpu")
    )
    save, saved = trainer.save_checkpoint, []

    def save_and_stop(filename: str) -> None:
        save(filename)
        saved.append(len(trainer._epoch_outputs))
        if sum(outputs > 0 for outputs in saved) == step:
            os._exit(STOPPED)

    trainer.save_checkpoint = save_and_stop
    trainer.run_training()


@pytest.fixture(scope="module")
def fusion(pair: Tiny, transition: dict[str, Any]) -> Path:
    """Stage 2, folds 0 and 1 with modality dropout, from stage 1; returns the model's folder."""
    set_table(pair, modality_dropout=0.5)
    for fold in (0, 1):
        printed = run_warm(pair.env, *pair.train(fold, CMFF, "-pretrained_weights", final(pair, CMFT))).succeeded()
        assert "pretrained weights:" in printed.stdout
        losses = re.findall(r"train fused (\d\.\d+), branch_a (\d\.\d+), branch_b (\d\.\d+)", printed.stdout)
        means = re.findall(r"train_loss (\S+)", printed.stdout)
        assert len(losses) == len(means) == 2
        for outputs, mean in zip(losses, means, strict=True):
            assert sum(map(float, outputs)) / 3 == pytest.approx(float(mean), abs=2e-4)
    assert (pair.fold(0, CMFF) / "validation" / "summary.json").is_file()
    return pair.fold(0, CMFF).parent


def test_stock_prediction_ensembles_the_fused_output_and_ours_agrees(pair: Tiny, fusion: Path, tmp_path: Path) -> None:
    stock, ours = tmp_path / "stock", tmp_path / "ours"
    run_warm(pair.env, *pair.predict(pair.raw / "imagesTs", stock, [0, 1], CMFF)).succeeded()
    words = ("-o", ours, "-m", fusion, "--speed", "best", "--engine", "torch")
    status, text = ctnet("predict", "-i", pair.raw / "imagesTs", *words)
    assert status == 0 and "× 2 folds" in text
    (file,) = stock.glob("*.nii.gz")
    labels = [sitk.GetArrayFromImage(sitk.ReadImage(str(folder / file.name))) for folder in (stock, ours)]
    assert np.array_equal(*labels)


def test_the_reference_sees_all_sequences_at_once(pair: Tiny, tmp_path: Path) -> None:
    """Stock and our prediction agree; the benchmark reads its losses off the log."""
    from ctnet_nnunet.benchmark.cross_modality import DECIDING_LOSS, _course

    run_warm(pair.env, *pair.train(0, EARLY)).succeeded()
    folder = pair.fold(0, EARLY)
    weights = read_checkpoint(folder / "checkpoint_final.pth")["network_weights"]
    assert weights[next(key for key in weights if key.endswith("conv.weight"))].shape[1] == 2
    run_warm(pair.env, *pair.predict(pair.raw / "imagesTs", tmp_path / "stock", [0], EARLY)).succeeded()
    words = ("-o", tmp_path / "ours", "-m", folder.parent, "--speed", "best", "--engine", "torch")
    status, text = ctnet("predict", "-i", pair.raw / "imagesTs", *words)
    assert status == 0, text
    (file,) = (tmp_path / "stock").glob("*.nii.gz")
    labels = [sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / who / file.name))) for who in ("stock", "ours")]
    assert np.array_equal(*labels)
    assert len(_course(folder, DECIDING_LOSS[EARLY])) == 2


def ctnet(*words: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, CTNetError):
        return result.exception.exit_status, str(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def half_a_scan(pair: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test scan with its first sequence alone."""
    folder = tmp_path_factory.mktemp("half")
    (file,) = (pair.raw / "imagesTs").glob("*_0000.nii.gz")
    shutil.copy(file, folder)
    return folder


def test_a_scan_without_a_pair(pair: Tiny, fusion: Path, half_a_scan: Path, tmp_path: Path) -> None:
    """The fusion decides alone, or from what the generator makes; both say so, and they are not the same."""
    labels, generators = [], pair.fold(0, CMFT)
    for number, more in enumerate(([], ["--synthesis", generators])):
        out = tmp_path / str(number)
        status, text = ctnet("predict", "-i", half_a_scan, "-o", out, "-m", fusion, "--speed", "best", *more)
        assert status == 0, text
        (case,) = json.loads((out / "run.json").read_text())["cases"].values()
        said = "MR1 missing: synthesised from MR0 by" if more else "MR1 missing: the fusion decides from MR0"
        assert said in text and any(warning.startswith(said) for warning in case["warnings"])
        assert {given["file"] for given in case["inputs"]} == {file.name for file in half_a_scan.iterdir()}
        (file,) = out.glob("*.nii.gz")
        labels.append(sitk.GetArrayFromImage(sitk.ReadImage(str(file))))
    assert not np.array_equal(*labels)
    status, text = ctnet("predict", "-i", half_a_scan, "-o", tmp_path / "x", "-m", generators.parent)
    assert status == 2 and "segments nothing" in text
    status, text = ctnet("predict", "-i", half_a_scan, "-o", tmp_path / "x", "-m", fusion, "--synthesis", fusion)
    assert status == 2 and "generators are nnUNetTrainerCMFT's" in text


def test_a_synthesised_sequence_lies_in_the_scans_grid(pair: Tiny, half_a_scan: Path, tmp_path: Path) -> None:
    transition_folder = pair.fold(0, CMFT).parent
    (scan,) = half_a_scan.iterdir()
    out = tmp_path / "made"
    status, text = ctnet("synthesize", "-i", half_a_scan, "-o", out, "-m", transition_folder)
    assert status == 0, text
    made = sitk.ReadImage(str(out / scan.name.replace("_0000", "_0001")))
    given = sitk.ReadImage(str(scan))
    for part in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(made, part)() == getattr(given, part)()
    values, body = sitk.GetArrayFromImage(made), sitk.GetArrayFromImage(given) != 0
    assert np.isfinite(values).all() and values[body].std() > 0
    record = json.loads((out / "synthesis.json").read_text())
    assert record["pairs"] == [["MR0"], ["MR1"]] and "generated, not measured" in record["intensities"]
    status, text = ctnet("synthesize", "-i", half_a_scan, "-o", out, "-m", transition_folder)
    assert status == 2 and "exists already" in text
    status, text = ctnet("synthesize", "-i", pair.raw / "imagesTs", "-o", tmp_path / "b", "-m", transition_folder)
    assert status == 2 and "--pair a or --pair b" in text and not (tmp_path / "b").exists()
    status, text = ctnet(
        "synthesize", "-i", pair.raw / "imagesTs", "-o", tmp_path / "b", "-m", transition_folder, "--pair", "a"
    )
    assert status == 0 and [file.name for file in (tmp_path / "b").glob("*.nii.gz")] == [scan.name]


def test_what_is_refused_before_a_training(
    pair: Tiny, transition: dict[str, Any], copy_of_planned: Tiny, fresh_nnunet_env: NnunetEnv
) -> None:
    """One line each: one channel, unknown names, a small patch, weights of other pairs, different grids."""
    one_channel = run_warm(copy_of_planned.env, *copy_of_planned.train(0, CMFT))
    check_refused(one_channel, copy_of_planned, "1 channel (MR0)", "at least two sequences")

    tiny = Tiny(fresh_nnunet_env, pair.id, pair.name, plans=pair.plans)
    shutil.copytree(pair.preprocessed, tiny.preprocessed)
    shutil.copytree(pair.raw, tiny.raw)
    set_table(tiny, pairs=[["T1"], ["MR1"]])
    check_refused(run_warm(tiny.env, *tiny.train(0, CMFT)), tiny, "'T1'", "MR0, MR1", "cross_modality.pairs")
    set_table(tiny, discriminator_levels=4)
    check_refused(run_warm(tiny.env, *tiny.train(0, CMFT)), tiny, "[16, 24, 24] is too small", "32 voxels")
    set_table(tiny, pairs=[["MR1"], ["MR0"]])
    refused = run_warm(tiny.env, *tiny.train(0, CMFF, "-pretrained_weights", final(pair, CMFT)))
    check_refused(refused, tiny, "its pairs are (MR0) and (MR1)", "this training's are (MR1) and (MR0)")

    set_table(tiny)
    file = tiny.raw / "imagesTr" / "tr_002_0001.nii.gz"
    image = sitk.ReadImage(str(file))
    image.SetOrigin((5.0, 0.0, 0.0))
    sitk.WriteImage(image, str(file))
    for trainer in (CMFT, CMFF):
        grids = ("case tr_002", "24×28×20 voxels of 1, 1, 1 mm from 5, 0, 0", "from 0, 0, 0")
        check_refused(run_warm(tiny.env, *tiny.train(0, trainer)), tiny, *grids)


def test_four_sequences_in_the_papers_network_and_two_dimensions(nnunet_env: NnunetEnv, tmp_path: Path) -> None:
    """The paper's pairs out of channel_names, its network and loss; and slices on the plan's own network."""
    four = two_sequences(nnunet_env, 761, "Four", channels=4)
    dataset = json.loads((four.preprocessed / "dataset.json").read_text())
    dataset["channel_names"] = {"0": "FLAIR", "1": "T1", "2": "T1ce", "3": "T2"}
    (four.preprocessed / "dataset.json").write_text(json.dumps(dataset))
    four.change_configuration(patch_size=[16, 16, 32])
    set_table(four, arch="paper", features=2, loss="dice", masks="residual")
    printed = run_warm(four.env, *four.train("all", CMFT)).succeeded().stdout
    assert "pair a: T1, T1ce; pair b: T2, FLAIR" in printed
    run_warm(four.env, *four.train(0, CMFF, "-pretrained_weights", final(four, CMFT, "all"))).succeeded()

    flat = two_sequences(nnunet_env, 762, "Flat", configuration="2d", two_d=True)
    run_warm(flat.env, *flat.train("all", CMFT)).succeeded()
    run_warm(flat.env, *flat.train(0, CMFF, "-pretrained_weights", final(flat, CMFT, "all"))).succeeded()
    run_warm(flat.env, *flat.predict(flat.raw / "imagesTs", tmp_path, [0], CMFF)).succeeded()
    assert len(list(tmp_path.glob("*.nii.gz"))) == 1
