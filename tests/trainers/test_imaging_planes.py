"""The trainer on studies cut out of synthetic volumes: data, split, transfer, and everything that it refuses."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from typer.testing import CliRunner

from ctnet_nnunet.checkpoints import read_checkpoint
from ctnet_nnunet.cli.main import app
from ctnet_nnunet.conversion.planes.convert import PlanesRequest, describe_labelled, reslice_studies
from ctnet_nnunet.conversion.planes.reslice import Reslicing
from ctnet_nnunet.conversion.planes.write import Roles
from ctnet_nnunet.errors import DataError
from ctnet_nnunet.planes.sidecar import Sidecar, read_sidecar, write_sidecar
from ctnet_nnunet.planning.changes import parse_assignments
from ctnet_nnunet.planning.write import write_plan
from ctnet_nnunet.trainers.imaging_planes import nnUNetTrainerImagingPlanes
from ctnet_nnunet.trainers.planes_data import (
    Host,
    PlaneSettings,
    PlanesLoader,
    count_lines,
    find_hosts,
    heatmaps,
    split_by_group,
)
from ctnet_nnunet.trainers.pretrain import nnUNetTrainerCTNetPretrain
from ctnet_nnunet.trainers.stock_hooks import checked
from ctnet_nnunet.trainers.volf import nnUNetTrainerVolF
from ctnet_nnunet.unlabeled.preprocess import preprocess_unlabeled
from tests.conftest import NnunetEnv
from tests.end_to_end.tiny import settings
from tests.synthetic import make_case, make_dataset, plan_and_preprocess, write_image

SHAPE = (30, 36, 40)
NUMBER, NAME = 741, "Planes"


@pytest.fixture(scope="module")
def dataset(nnunet_env: NnunetEnv, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five labelled volumes, also entered as hosts, and two studies of each of three others; the raw folder."""
    raw = make_dataset(nnunet_env.raw, NUMBER, NAME, 5, 0, shape=SHAPE)
    volumes, rng = tmp_path_factory.mktemp("volumes"), np.random.default_rng(3)
    for index in range(3):
        write_image(volumes / f"v{index}_0000.nii.gz", make_case(rng, SHAPE, ("a", "b"))[0][0] + 1)
    request = PlanesRequest(raw, Roles())
    reslice_studies(volumes, Reslicing("head", gap=3.0, repeat=2), request)
    describe_labelled("AX", replace(request, study_pattern=r"(tr_\d+)"))
    plan_and_preprocess(NUMBER, ["2d"])
    changes = settings((32, 32), "iterations=3")[1::2]
    write_plan(
        NUMBER, "2d", "identity", changes=parse_assignments(x for x in changes if not x.startswith(("transf", "mask")))
    )
    summary = preprocess_unlabeled(NUMBER, "2d", "CTNetPlans", processes=0)
    assert (len(summary.done), summary.failed) == (6, {})
    return raw


def trainer_of(
    raw: Path, fold: int | str = 0, kind: type[nnUNetTrainer] = nnUNetTrainerImagingPlanes, **block: Any
) -> nnUNetTrainer:
    """A trainer of the 2d plan with changes to its ``ctnet`` block."""
    folder = preprocessed(raw)
    plans = json.loads((folder / "CTNetPlans.json").read_text())
    plans["configurations"]["2d"]["ctnet"].update(block)
    dataset_json = json.loads((folder / "dataset.json").read_text())
    plans["continue_training"] = False
    return kind(plans, "2d", fold, dataset_json, torch.device("cpu"))


def preprocessed(raw: Path) -> Path:
    return raw.parents[1] / "nnUNet_preprocessed" / raw.name


def unlabelled(raw: Path) -> Path:
    return preprocessed(raw) / "nnUNetPlans_2d_unlabeled"


def sidecar_of(raw: Path) -> Sidecar:
    return read_sidecar(unlabelled(raw) / "planes.json")


def hosts_of(raw: Path, **changes: Any) -> list[Host]:
    sidecar = sidecar_of(raw)
    folders = dict.fromkeys([f"v{i}-r{j}__AX" for i in range(3) for j in range(2)], unlabelled(raw))
    return find_hosts(sidecar, PlaneSettings.resolve(sidecar, changes), folders, (0, 1, 2))


@pytest.fixture(scope="module")
def trained(dataset: Path) -> nnUNetTrainer:
    """A short training of fold 0; not to be changed."""
    trainer = trainer_of(dataset)
    trainer.initialize()
    trainer.run_training()
    return trainer


class TestTraining:
    def test_it_draws_from_the_studies_and_the_fold_s_training_cases_alone(self, trained: nnUNetTrainer) -> None:
        _, validation = trained.do_split()
        hosts = set(trained.hosts)
        assert {case for case in hosts if case.startswith("v")} == {
            f"v{i}-r{j}__AX" for i in range(3) for j in range(2)
        }
        assert len([case for case in hosts if case.startswith("tr")]) == 4
        assert not hosts & set(validation)

    def test_watched_studies_are_of_other_volumes(self, trained: nnUNetTrainer) -> None:
        groups = [{trained.hosts[c].group for c in pool.identifiers} for pool in (trained.pool, trained.held_out)]
        assert groups[0] and groups[1] and not groups[0] & groups[1]

    def test_it_reports_both_errors(self, trained: nnUNetTrainer) -> None:
        wanted = {
            "lines",
            "overlap",
            "angle_deg",
            "offset_mm",
            "found",
            "location",
            "location_error",
            "location_slices",
        }
        assert {name.removeprefix("imaging_planes/") for name in trained.validation_metrics} >= wanted

    def test_its_checkpoint_loads_into_stock_with_all_but_the_heads_equal(
        self, trained: nnUNetTrainer, dataset: Path
    ) -> None:
        file = Path(trained.output_folder) / "checkpoint_final.pth"
        weights = read_checkpoint(file)["network_weights"]
        stock = trainer_of(dataset, kind=nnUNetTrainer)
        stock.plans_manager.plans["configurations"]["2d"]["architecture"]["network_class_name"] = (
            "dynamic_network_architectures.architectures.unet.PlainConvUNet"
        )
        stock.plans_manager.plans["configurations"]["2d"]["architecture"]["arch_kwargs"].pop("transformer", None)
        stock.configuration_manager = stock.plans_manager.get_configuration("2d")
        stock.initialize()
        checked(load_pretrained_weights)(stock.network, str(file))
        loaded = stock.network.state_dict()
        body = [key for key in loaded if ".seg_layers." not in key]
        assert len(body) > 20
        assert all(torch.equal(loaded[key], weights[key]) for key in body)

    def test_its_checkpoint_says_what_its_channels_are(self, trained: nnUNetTrainer) -> None:
        own = read_checkpoint(Path(trained.output_folder) / "checkpoint_final.pth")["ctnet"]
        assert own["planes"]["planes_guests"] == ["COR", "SAG"] and own["planes"]["planes_sigma_mm"] == 7.56

    def test_inspection_draws_what_it_predicts(self, trained: nnUNetTrainer, tmp_path: Path) -> None:
        file = str(Path(trained.output_folder) / "checkpoint_final.pth")
        words = ["inspect", "planes", "-d", str(NUMBER), "-p", "CTNetPlans", "--study", "v1-r0", "--checkpoint", file]
        done = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "a.html")], catch_exceptions=False)
        assert done.exit_code == 0 and "guests COR, SAG" in done.output
        text = (tmp_path / "a.html").read_text()
        count = sidecar_of(trained_raw(trained)).studies["v1-r0"].stacks["AX"].shape[0]
        assert text.count("<tr><td>v1-r0__AX</td>") == count and "data:image/png" in text
        done = CliRunner().invoke(app, [*words[:6], "-o", str(tmp_path / "a.png")], catch_exceptions=False)
        assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
        for more, expected in ((["--study", "no"], "no study 'no'"), (["-c", "3d"], "no configuration")):
            with pytest.raises(Exception, match=expected):
                CliRunner().invoke(app, [*words[:6], *more, "-o", "a.png"], catch_exceptions=False)


def trained_raw(trainer: nnUNetTrainer) -> Path:
    root = Path(trainer.preprocessed_dataset_folder_base)
    return root.parents[1] / "nnUNet_raw" / root.name


class TestLoader:
    def loader(
        self, trained: nnUNetTrainer, transforms: Any, batch: int = 6, patch: tuple[int, int] = (32, 32)
    ) -> PlanesLoader:
        return PlanesLoader(trained.pool, trained.hosts, 4.0, batch, patch, patch, trained.label_manager, transforms)

    def test_targets_are_those_of_the_window(self, trained: nnUNetTrainer) -> None:
        """The image's own voxels find the window again; the heat must be the whole slice's, cut at the same place."""
        np.random.seed(0)
        batch = self.loader(trained, None, patch=(16, 16)).generate_train_batch()
        checked_windows = 0
        for sample, case in enumerate(batch["keys"]):
            data = np.asarray(trained.pool.load_case(case)[0][0])
            window, host = batch["host"][sample, 0].numpy(), trained.hosts[case]
            inner = np.argwhere(np.isclose(data, window[8, 8], atol=0))
            places = [p for p in inner if p[1] >= 8 and p[2] >= 8 and fits(data, window, p)]
            if len(places) != 1 or host.guests[0] is None:
                continue
            index, row, column = places[0]
            for channel, line in enumerate(host.lines(index)):
                whole = line.heatmap(data.shape[1:], 4.0)
                part = whole[row - 8 : row + 8, column - 8 : column + 8]
                assert bool(batch["heat_valid"][sample, channel]) == (part.max() > math.exp(-0.5))
                assert np.allclose(batch["heat"][sample, channel], part, atol=1e-5)
            assert batch["location"][sample] == pytest.approx(host.locations[index])
            checked_windows += 1
        assert checked_windows

    def test_a_flip_of_the_rendering_is_the_rendering_of_the_flip(self, trained: nnUNetTrainer) -> None:
        flip, seen = MirrorTransform((0, 1)), []
        loader = self.loader(trained, None)
        for transforms in (None, mock.Mock(side_effect=lambda **d: flip.apply(d, axes=[0, 1]))):
            loader.transforms = transforms
            np.random.seed(5)
            seen.append(loader.generate_train_batch())
        plain, flipped = seen
        assert torch.equal(plain["host"].flip(2, 3), flipped["host"])
        assert torch.equal(plain["heat"].flip(2, 3), flipped["heat"])
        assert torch.equal(plain["location"], flipped["location"])
        assert "line" in plain and "line" not in flipped

    def test_a_rotation_moves_the_line_with_the_image(self, trained: nnUNetTrainer) -> None:
        turn = SpatialTransform((32, 32), 0, False, p_rotation=1, rotation=(0.5, 0.5))
        host = next(host for host in trained.hosts.values() if host.guests[0] is not None)
        index = len(host.planes) // 2
        line = host.lines(index)[0]
        heat = torch.from_numpy(line.heatmap((32, 32), 4.0)).float()[None]
        turned = turn(image=heat.clone(), regression_target=heat.clone())
        assert torch.allclose(turned["image"], turned["regression_target"], atol=1e-6)
        angle = 0.5
        for sign in (1, -1):
            c, s = np.cos(sign * angle), np.sin(sign * angle)
            rows, columns = np.meshgrid(np.arange(32) - 15.5, np.arange(32) - 15.5, indexing="ij")
            r, k = c * rows - s * columns + 15.5, s * rows + c * columns + 15.5
            drawn = np.exp(-0.5 * ((line.per_row * r + line.per_column * k + line.offset) / 4.0) ** 2)
            inside = np.hypot(rows, columns) < 14
            if np.abs(drawn - turned["image"][0].numpy())[inside].max() < 0.03:
                return
        raise AssertionError("the turned heatmap is no rotation of the line")

    def test_groups_are_drawn_alike_however_many_studies_they_have(self, trained: nnUNetTrainer) -> None:
        loader = self.loader(trained, None)
        shares: dict[str, float] = {}
        for case, share in zip(loader.indices, loader.sampling_probabilities, strict=True):
            shares[trained.hosts[case].group] = shares.get(trained.hosts[case].group, 0) + share
        assert np.allclose(list(shares.values()), 1 / len(shares))

    def test_validity(self) -> None:
        line = mock.Mock()
        line.distance.return_value = np.full((8, 8), 9.0)
        whole, none = (slice(0, 8), slice(0, 8)), (slice(0, 0), slice(0, 8))
        assert heatmaps([None, line], (8, 8), whole, 4.0)[1].tolist() == [False, False]
        assert heatmaps([line], (8, 8), whole, 10.0)[1].tolist() == [True]
        assert heatmaps([line], (8, 8), none, 10.0)[1].tolist() == [False], "a line in the padding alone is not seen"


def fits(data: np.ndarray, window: np.ndarray, place: np.ndarray) -> bool:
    k, r, c = place
    part = data[k, r - 8 : r + 8, c - 8 : c + 8]
    return part.shape == window.shape and np.allclose(part, window)


def test_a_study_without_a_guest_masks_it(dataset: Path) -> None:
    sidecar = sidecar_of(dataset)
    study = sidecar.studies["v0-r0"]
    stacks = {role: stack for role, stack in study.stacks.items() if role != "COR"}
    changed = sidecar.model_copy(update={"studies": {"v0-r0": study.model_copy(update={"stacks": stacks})}})
    (host,) = find_hosts(changed, PlaneSettings.resolve(changed, {}), {"v0-r0__AX": unlabelled(dataset)}, (0, 1, 2))
    assert [guest is not None for guest in host.guests] == [False, True]
    assert count_lines([host], ("COR", "SAG")) == {"COR": (0, 0), "SAG": (1, 1)}


def test_options_come_before_planes_json(dataset: Path) -> None:
    hosts = hosts_of(dataset, planes_guests=("SAG",))
    assert {len(host.guests) for host in hosts} == {1}
    resolved = PlaneSettings.resolve(sidecar_of(dataset), {"planes_sigma_mm": 3.0, "planes_hosts": None})
    assert (resolved.sigma_mm, resolved.hosts) == (3.0, ("AX",))
    turned = hosts_of(dataset, planes_location_axis="cardiac")
    assert turned[0].locations == pytest.approx([1 - x for x in hosts_of(dataset)[0].locations])


def test_a_split_by_group_has_no_group_on_both_sides(dataset: Path) -> None:
    host = hosts_of(dataset)[0]
    hosts = [replace(host, case=f"{g}-{i}", group=f"g{g}") for g in range(11) for i in range(3)]
    train, watched = split_by_group(hosts, 1)
    assert len(train) == 30 and len(watched) == 3
    assert not {case.split("-")[0] for case in train} & {case.split("-")[0] for case in watched}
    assert split_by_group(hosts[:12], 1) == ([h.case for h in hosts[:12]],) * 2


class TestRefusals:
    def line(self, trainer: nnUNetTrainer, capsys: pytest.CaptureFixture[str]) -> str:
        with pytest.raises(SystemExit) as stopped:
            trainer.initialize()
        assert stopped.value.code == 2
        (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("ctnet: error:")]
        return line

    def test_roles_that_no_study_has(self, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "guest '3CH': no study has this role" in self.line(trainer_of(dataset, planes_guests=["3CH"]), capsys)
        assert "host 'SAX': no study has this role" in self.line(trainer_of(dataset, planes_hosts=["SAX"]), capsys)

    def test_three_dimensions_another_reader_another_axis(
        self, dataset: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        trainer = trainer_of(dataset)
        trainer.configuration_manager.configuration["patch_size"] = [8, 8, 8]
        assert "2d configuration" in self.line(trainer, capsys)
        trainer = trainer_of(dataset)
        trainer.plans_manager.plans["image_reader_writer"] = "NibabelIO"
        assert "NibabelIO" in (line := self.line(trainer, capsys)) and "SimpleITKIO" in line
        trainer = trainer_of(dataset)
        trainer.plans_manager.plans["transpose_forward"] = [1, 0, 2]
        assert "third axis" in self.line(trainer, capsys)

    @pytest.fixture
    def changed(self, dataset: Path) -> Any:
        """A function that replaces the preprocessed planes.json until the test ends."""
        file = unlabelled(dataset) / "planes.json"
        before = file.read_bytes()
        yield lambda content: write_sidecar(content, file)
        file.write_bytes(before)

    def test_planes_that_are_not_the_image_s(
        self, dataset: Path, changed: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        content = sidecar_of(dataset).model_dump(mode="json")
        content["studies"]["v0-r0"]["stacks"]["AX"]["planes"][2]["ipp"][0] += 0.2
        changed(Sidecar(**content))
        line = self.line(trainer_of(dataset), capsys)
        assert "v0-r0__AX" in line and "0.2 mm" in line

    def test_a_guest_that_is_parallel_in_every_study(
        self, dataset: Path, changed: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        content = sidecar_of(dataset).model_dump(mode="json")
        for study in content["studies"].values():
            if "COR" in study["stacks"]:
                for plane in study["stacks"]["COR"]["planes"]:
                    plane["iop"] = study["stacks"]["AX"]["planes"][0]["iop"]
        changed(Sidecar(**content))
        assert "guest 'COR' is parallel to the hosts" in self.line(trainer_of(dataset), capsys)

    def test_no_planes_json(self, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = unlabelled(dataset) / "planes.json"
        content = file.read_bytes()
        file.unlink()
        try:
            assert "ctnet preprocess-unlabeled -d 741 -c 2d" in self.line(trainer_of(dataset), capsys)
        finally:
            file.write_bytes(content)

    def test_other_trainers_refuse_the_task(self, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for kind in (nnUNetTrainerCTNetPretrain, nnUNetTrainerVolF):
            trainer = trainer_of(dataset, kind=kind, pretext={"imaging_planes": 1.0})
            assert "-tr nnUNetTrainerImagingPlanes" in self.line(trainer, capsys)

    def test_a_plan_that_asks_for_other_tasks(self, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
        trainer = trainer_of(dataset, pretext={"imaging_planes": 1.0, "volume_fusion": 1.0})
        line = self.line(trainer, capsys)
        assert "volume_fusion is not for nnUNetTrainerImagingPlanes" in line and "--set pretext=" in line


@pytest.mark.parametrize(
    ("pretext", "fusion", "planes"),
    [
        ({}, {"volume_fusion": 1.0}, {"imaging_planes": 1.0}),
        ({"rotation": 1.0, "masked_features": 1.0}, {"volume_fusion": 1.0}, {"imaging_planes": 1.0}),
        ({"rotation": 0.5, "masked_features": 0.0}, {"rotation": 0.5}, None),
        ({"imaging_planes": 0.5}, {"imaging_planes": 0.5}, {"imaging_planes": 0.5}),
        ({"volume_fusion": 0.5, "rotation": 1.0}, {"volume_fusion": 0.5, "rotation": 1.0}, None),
    ],
)
def test_trainers_read_what_the_plan_asks_for(
    dataset: Path, pretext: dict[str, float], fusion: dict[str, float], planes: dict[str, float] | None
) -> None:
    """The preset's own weights, which ``ctnet plan`` writes into every block, ask for nothing."""
    block = {"preset": "s", "pretext": pretext}
    assert trainer_of(dataset, kind=nnUNetTrainerVolF, **block).pretext_weights() == fusion
    if planes is not None:
        assert trainer_of(dataset, **block).pretext_weights() == planes


def test_volume_fusion_across_the_batch_draws_different_scans(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    for pair in ("same", "batch"):
        trainer = trainer_of(dataset, kind=nnUNetTrainerVolF, fusion_pair=pair)
        trainer.initialize()
        assert trainer.get_dataloaders()[1].loader.different == (pair == "batch")
        assert "pretext tasks and the weights of their losses: volume_fusion 1" in capsys.readouterr().out
    alone = trainer_of(dataset, kind=nnUNetTrainerVolF, fusion_pair="batch", batch_size=1)
    with pytest.raises(SystemExit):
        alone.initialize()
    assert "fusion_pair: batch needs 2 scans a batch" in capsys.readouterr().err


def test_preprocessing_refuses_what_disagrees_and_names_the_rest(dataset: Path) -> None:
    raw_file = dataset / "planes.json"
    before = raw_file.read_bytes()
    content = json.loads(before)
    content["studies"]["v0-r0"]["stacks"]["AX"]["planes"][2]["ipp"][0] += 0.2
    del content["studies"]["v1-r1"]
    try:
        raw_file.write_text(json.dumps(content))
        summary = preprocess_unlabeled(NUMBER, "2d", "CTNetPlans", processes=0)
        assert "0.2 mm apart" in summary.failed["v0-r0__AX"]
        assert "reserved" in summary.failed["v1-r1__AX"]
        assert len(summary.unchanged) == 4 and summary.exit_status == 1
        raw_file.write_text(json.dumps({**content, "version": 9}))
        with pytest.raises(DataError, match="version"):
            preprocess_unlabeled(NUMBER, "2d", "CTNetPlans", processes=0)
        raw_file.write_bytes(before)
        plans_file = preprocessed(dataset) / "CTNetPlans.json"
        plans = plans_file.read_text()
        plans_file.write_text(plans.replace("SimpleITKIO", "NibabelIO"))
        try:
            with pytest.raises(Exception, match="NibabelIO"):
                preprocess_unlabeled(NUMBER, "2d", "CTNetPlans", processes=0)
        finally:
            plans_file.write_text(plans)
    finally:
        raw_file.write_bytes(before)
        preprocess_unlabeled(NUMBER, "2d", "CTNetPlans", processes=0)
