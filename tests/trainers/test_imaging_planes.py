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
import SimpleITK as sitk
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from typer.testing import CliRunner

from ctnet_nnunet.architectures.transformer import TransformerOptions
from ctnet_nnunet.checkpoints import read_checkpoint
from ctnet_nnunet.cli.main import app
from ctnet_nnunet.conversion.planes.convert import PlanesRequest, describe_labelled, reslice_studies
from ctnet_nnunet.conversion.planes.reslice import Reslicing
from ctnet_nnunet.conversion.planes.write import Roles
from ctnet_nnunet.errors import CheckpointError, DataError, PlanError
from ctnet_nnunet.inspection.planes import line_offsets, open_dataset
from ctnet_nnunet.planes.sidecar import Sidecar, read_sidecar, write_sidecar
from ctnet_nnunet.planning.changes import parse_assignments
from ctnet_nnunet.planning.write import write_plan
from ctnet_nnunet.trainers.imaging_planes import nnUNetTrainerImagingPlanes
from ctnet_nnunet.trainers.planes_data import (
    Host,
    PlaneSettings,
    PlanesLoader,
    _inside,
    count_lines,
    find_hosts,
    heatmaps,
    split_by_group,
)
from ctnet_nnunet.trainers.pretrain import nnUNetTrainerCTNetPretrain
from ctnet_nnunet.trainers.stock_hooks import checked
from ctnet_nnunet.trainers.volf import nnUNetTrainerVolF
from ctnet_nnunet.unlabeled.dataset import PooledDataset
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
        assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG" and "median" not in done.output
        for more, expected in ((["--study", "no"], "no study 'no'"), (["-c", "3d"], "no configuration")):
            with pytest.raises(Exception, match=expected):
                CliRunner().invoke(app, [*words[:6], *more, "-o", "a.png"], catch_exceptions=False)

    def test_inspection_lists_how_far_lines_are_off_in_every_study(
        self, trained: nnUNetTrainer, dataset: Path, tmp_path: Path
    ) -> None:
        file = Path(trained.output_folder) / "checkpoint_final.pth"
        words = ["inspect", "planes", "-d", str(NUMBER), "-p", "CTNetPlans", "--checkpoint", str(file)]
        done = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "a.png")], catch_exceptions=False)
        _, listed = done.output.split("median distance")
        # Of the labelled cases, which have no other views, too: their lines are not known.
        assert sorted(line.split(":")[0].strip() for line in listed.splitlines()[1:]) == sorted(
            sidecar_of(dataset).studies
        )
        assert "tr_000: COR nan, SAG nan" in listed
        shifted = perfect_model(dataset, "v0-r0", 2.0)
        offsets = line_offsets(replace(open_dataset(str(NUMBER), "2d", "CTNetPlans", None), model=shifted))
        assert next(iter(offsets)) == "v0-r0", "the worst first; in the others nothing is found"
        assert offsets["v0-r0"] == pytest.approx((2.0, 2.0), abs=0.3)

    def test_inspection_refuses_what_it_cannot_look_at(
        self, trained: nnUNetTrainer, dataset: Path, tmp_path: Path
    ) -> None:
        file = Path(trained.output_folder) / "checkpoint_final.pth"
        content = read_checkpoint(file)
        foreign, unfitting = tmp_path / "foreign.pth", tmp_path / "unfitting.pth"
        torch.save({**content, "ctnet": {}}, foreign)
        weights = dict(content["network_weights"])
        weights.pop(next(iter(weights)))
        torch.save({**content, "network_weights": weights}, unfitting)
        for checkpoint, words in ((foreign, "not written by nnUNetTrainerImagingPlanes"), (unfitting, "does not fit")):
            with pytest.raises(CheckpointError, match=words):
                open_dataset(str(NUMBER), "2d", "CTNetPlans", checkpoint)
        plans_file = preprocessed(dataset) / "CTNetPlans.json"
        plans = json.loads(before := plans_file.read_text())
        try:
            plans_file.write_text(json.dumps({**plans, "transpose_forward": [1, 0, 2]}))
            with pytest.raises(PlanError, match="another axis"):
                open_dataset(str(NUMBER), "2d", "CTNetPlans", None)
            plans["configurations"]["2d"]["patch_size"] = [8, 8, 8]
            plans_file.write_text(json.dumps(plans))
            with pytest.raises(PlanError, match="name a 2d one"):
                open_dataset(str(NUMBER), "2d", "CTNetPlans", None)
        finally:
            plans_file.write_text(before)

    def test_it_goes_on_only_with_the_same_lines_in_its_channels(
        self, trained: nnUNetTrainer, dataset: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = str(Path(trained.output_folder) / "checkpoint_final.pth")
        other = trainer_of(dataset, planes_guests=["SAG", "COR"])
        with pytest.raises(SystemExit) as stopped:
            other.load_checkpoint(file)
        assert stopped.value.code == 2
        (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("ctnet: error:")]
        assert "planes_guests ['COR', 'SAG'], planes.json or the plan now says ['SAG', 'COR']" in line
        same = trainer_of(dataset)
        same.load_checkpoint(file)
        assert same.current_epoch == trained.num_epochs


def test_where_watched_studies_have_no_line_the_best_checkpoint_is_that_of_the_lowest_loss() -> None:
    """The overlap is nan then; nan is never better, and nothing is better than nan."""
    kept = []
    for loss, overlap in ((0.5, math.nan), (0.1, math.nan), (0.5, 0.25)):
        trainer = mock.Mock(train_metrics={}, current_epoch=0)
        outputs = [{"loss": loss, "imaging_planes/overlap": overlap}] * 2
        nnUNetTrainerCTNetPretrain.on_validation_epoch_end(trainer, outputs)
        logged = {call.args[0]: call.args[1] for call in trainer.logger.log.call_args_list}
        kept.append(logged["mean_fg_dice"])
    assert kept == pytest.approx([1 / 1.5, 1 / 1.1, 0.25])


def perfect_model(raw: Path, study: str, off: float) -> Any:
    """Predicts each slice's true lines, shifted by ``off`` mm; only the slices of ``study`` are known to it."""
    hosts = {host.case: host for host in hosts_of(raw)}
    host = hosts[f"{study}__AX"]
    data = np.asarray(PooledDataset(preprocessed(raw), [], unlabelled(raw)).load_case(host.case)[0][0])

    def predict(image: np.ndarray) -> tuple[np.ndarray, float]:
        known = [k for k in range(len(data)) if data[k].shape == image.shape[1:] and np.allclose(data[k], image[0])]
        if not known:
            return np.zeros((2, *image.shape[1:])), 0.0
        lines = host.lines(known[0])
        return np.stack([replace(line, offset=line.offset + off).heatmap(image.shape[1:], 2.0) for line in lines]), 0.0

    return mock.Mock(predict=predict)


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

    def test_a_window_that_runs_over_the_slice_s_edge(self, trained: nnUNetTrainer) -> None:
        """Its line is the slice's own, and counts where the slice is, not where it is padded."""
        loader, host = self.loader(trained, None), trained.hosts["v0-r0__AX"]
        index = len(host.planes) // 2
        shape = trained.pool.load_case(host.case)[0].shape[2:] if host.case in trained.pool.identifiers else (30, 30)
        height, width = shape
        box = [[index, index + 1], [-6, height + 4], [width - 5, width + 11]]
        sample = loader.sample_of(host, torch.zeros(1, height + 10, 16), box, shape)
        for channel, line in enumerate(host.lines(index)):
            whole = line.heatmap(shape, 4.0)
            assert np.allclose(sample["heat"][channel, 6 : 6 + height, :5], whole[:, width - 5 :], atol=1e-5)
            assert bool(sample["heat_valid"][channel]) == (np.abs(line.distance(shape)[:, width - 5 :]).min() < 4.0)
        rows, columns = _inside([[-6, 40], [25, 41]], (30, 30))
        assert (rows, columns) == (slice(6, 36), slice(0, 5))
        assert _inside([[31, 47], [-20, -4]], (30, 30)) == (slice(0, 0), slice(16, 16))


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

    def test_a_guest_slice_that_no_stack_has(self, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
        line = self.line(trainer_of(dataset, planes_guest_slice=4), capsys)
        assert "guest 'COR' has 1 slices at most and none of index 4 (planes_guest_slice)" in line

    def test_a_guest_beside_no_host(self, dataset: Path, changed: Any, capsys: pytest.CaptureFixture[str]) -> None:
        content = sidecar_of(dataset).model_dump(mode="json")
        stack = content["studies"]["v0-r0"]["stacks"]["COR"]
        content["studies"]["alone"] = {"frame_of_reference": "", "stacks": {"3CH": {**stack, "cases": []}}}
        changed(Sidecar(**content))
        line = self.line(trainer_of(dataset, planes_guests=["3CH"]), capsys)
        assert "guest '3CH' is in no study that has a host" in line

    def test_hosts_that_are_not_preprocessed(
        self, dataset: Path, changed: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        content = sidecar_of(dataset).model_dump(mode="json")
        content["studies"] = {"v0-r0": content["studies"]["v0-r0"]}
        content["studies"]["v0-r0"]["stacks"]["AX"]["cases"] = ["gone"]
        changed(Sidecar(**content))
        assert "none of its AX cases is preprocessed" in self.line(trainer_of(dataset), capsys)

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


def test_a_host_of_one_slice_is_preprocessed_and_has_lines_without_a_location(dataset: Path) -> None:
    raw_file, image = dataset / "planes.json", dataset / "imagesUn" / "one__AX_0000.nii.gz"
    before = raw_file.read_bytes()
    content = json.loads(before)
    stack = content["studies"]["v0-r0"]["stacks"]["AX"]
    middle = stack["shape"][0] // 2
    sitk.WriteImage(
        sitk.ReadImage(str(dataset / "imagesUn" / "v0-r0__AX_0000.nii.gz"))[:, :, middle : middle + 1], str(image)
    )
    one = {"cases": ["one__AX"], "shape": [1, *stack["shape"][1:]], "planes": stack["planes"][middle : middle + 1]}
    guests = {role: {**content["studies"]["v0-r0"]["stacks"][role], "cases": []} for role in ("COR", "SAG")}
    content["studies"]["one"] = {"frame_of_reference": "", "stacks": {"AX": one, **guests}}
    try:
        raw_file.write_text(json.dumps(content))
        summary = preprocess_unlabeled(NUMBER, "2d", "CTNetPlans", processes=0)
        assert (summary.done, summary.failed) == (["one__AX"], {})
        assert any("12 images of one slice are not preprocessed" in note for note in summary.notes)
        sidecar = sidecar_of(dataset)
        folders = {case: unlabelled(dataset) for case in ("one__AX", "v0-r0__AX")}
        host, stacked = find_hosts(sidecar, PlaneSettings.resolve(sidecar, {}), folders, (0, 1, 2))
        assert len(host.planes) == 1 and host.locations is None
        assert all(line is not None for line in host.lines(0)) and stacked.locations is not None
        trainer = trainer_of(dataset)
        trainer.initialize()
        assert "one__AX" in trainer.hosts
        loader = PlanesLoader(trainer.pool, trainer.hosts, 4.0, 2, (32, 32), (32, 32), trainer.label_manager, None)
        data = torch.zeros(1, 32, 32)
        sample = loader.sample_of(host, data, [[0, 1], [0, 32], [0, 32]], (32, 32))
        assert sample["heat_valid"].any() and not sample["location_valid"]
    finally:
        raw_file.write_bytes(before)
        image.unlink()
        preprocess_unlabeled(NUMBER, "2d", "CTNetPlans", processes=0)


@pytest.mark.parametrize("network", ["plain", "residual", "transformer"])
def test_a_step_on_stock_and_transformer_plans(network: str, dataset: Path) -> None:
    """The pretext on the plan's own network: encoder and decoder get a gradient; the residual and the CTNet too."""
    folder = preprocessed(dataset)
    plans = json.loads((folder / ("CTNetPlans.json" if network == "transformer" else "nnUNetPlans.json")).read_text())
    configuration = plans["configurations"]["2d"]
    configuration.update(patch_size=[32, 32], batch_size=2)
    kwargs = configuration["architecture"]["arch_kwargs"]
    if network == "transformer":
        block = vars(TransformerOptions(embed_dim=24, depth=1, heads=3))
        configuration["ctnet"]["transformer"] = block
        kwargs["transformer"] = {"stage": 2, **block}
    if network == "residual":
        configuration["architecture"]["network_class_name"] = (
            "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
        )
        kwargs["n_blocks_per_stage"] = kwargs.pop("n_conv_per_stage")
    plans["continue_training"] = False
    dataset_json = json.loads((folder / "dataset.json").read_text())
    trainer = nnUNetTrainerImagingPlanes(plans, "2d", 0, dataset_json, torch.device("cpu"))
    trainer.initialize()
    loader = PlanesLoader(trainer.pool, trainer.hosts, 7.56, 2, (32, 32), (32, 32), trainer.label_manager, None)
    np.random.seed(0)
    batch = loader.generate_train_batch()
    assert batch["heat_valid"].any() and batch["location_valid"].any()
    prepared = trainer.pretext.prepare({k: v for k, v in batch.items() if torch.is_tensor(v)}, trainer.generator)
    trainer.pretext(prepared)["loss"].backward()
    touched = {name for name, p in trainer.network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    wanted = {"plain": ["encoder"], "residual": ["skip"], "transformer": ["transformer"]}[network]
    for part in ("encoder.stages", "decoder.stages", *wanted):
        assert any(part in name for name in touched), part


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
