"""``-tr nnUNetTrainerImagingPlanes``: pretraining on how the planes of a study cut each other, 2d."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from ctnet_nnunet.errors import CheckpointError, DataError, PlanError
from ctnet_nnunet.planes.sidecar import FILE_NAME, Sidecar, read_sidecar
from ctnet_nnunet.planning.options import Mode
from ctnet_nnunet.pretext.base import PretextContext
from ctnet_nnunet.trainers.planes_data import Host, PlaneSettings, PlanesLoader, count_lines, find_hosts, split_by_group
from ctnet_nnunet.trainers.pretrain_data import FixedBatches
from ctnet_nnunet.trainers.unlabeled_scans import checked_unlabeled_folder
from ctnet_nnunet.trainers.user_errors import reports_user_errors
from ctnet_nnunet.trainers.volf import nnUNetTrainerVolF
from ctnet_nnunet.unlabeled.dataset import PooledDataset, unlabeled_identifiers

TASK = "imaging_planes"
READER = "SimpleITKIO"


class nnUNetTrainerImagingPlanes(nnUNetTrainerVolF):
    """Intersecting lines and slice location on the plan's own 2d network: U-Net, ResEnc or CTNet.

    Hosts are the cases that planes.json names, in imagesUn and among the fold's training cases (their images alone).
    The checkpoint loads with ``-pretrained_weights`` into any 2d trainer with the same plans.
    """

    mode: ClassVar[Mode] = "planes"
    foreign_views: ClassVar[frozenset[str]] = frozenset()

    @reports_user_errors
    def initialize(self) -> None:
        patch = self.configuration_manager.patch_size
        if len(patch) != 2:
            raise PlanError(
                f"configuration {self.configuration_name}: {self.__class__.__name__} looks at single slices; train a "
                "2d configuration: nnUNetv2_train … 2d …"
            )
        reader = self.plans_manager.plans.get("image_reader_writer")
        if reader != READER:
            raise PlanError(
                f"plans {self.plans_manager.plans_name}: scans were read by {reader}, which does not keep where slices "
                f'lie; add "overwrite_image_reader_writer": "{READER}" to dataset.json, plan and preprocess again'
            )
        order = self.plans_manager.transpose_forward
        if order[0] != 0:
            raise PlanError(
                f"plans {self.plans_manager.plans_name}: transpose_forward {order} takes "
                "2d slices along another axis than the stacks have theirs; store the labelled scans with their slices "
                "along the third axis of the file, and plan again"
            )
        super().initialize()

    def pretext_weights(self) -> dict[str, float]:
        """This task alone: the others look at other views, and a plan that asks for one is refused."""
        own = self.options.own_tasks() or {}
        if foreign := sorted(set(own) - {TASK}):
            raise PlanError(
                f"ctnet option pretext: {foreign[0]} is not for {self.__class__.__name__}, which trains {TASK} alone; "
                f"train it with another trainer, or ask for {TASK}: ctnet plan … --set pretext='{{\"{TASK}\":1}}'"
            )
        return {TASK: own.get(TASK, 1.0)}

    def pretext_options(self) -> dict[str, Any]:
        """The plan's options, filled from planes.json."""
        return {**super().pretext_options(), **self.plane_settings.options()}

    def _pools(self) -> tuple[PooledDataset, PooledDataset]:
        """The hosts to train on and those to watch; studies of one group lie on one side."""
        labelled = Path(self.preprocessed_dataset_folder)
        folder = checked_unlabeled_folder(self)
        sidecar = self._sidecar(folder)
        options = super().pretext_options()
        self.plane_settings = settings = PlaneSettings.resolve(sidecar, options)
        where = str(folder / FILE_NAME)
        sidecar.require_roles(settings.hosts, "host", where)
        keys = self.training_keys(folder)
        folders = dict.fromkeys(keys, labelled) | dict.fromkeys(unlabeled_identifiers(folder), folder)
        hosts = find_hosts(sidecar, settings, folders, self.plans_manager.transpose_forward)
        if not hosts:
            raise DataError(
                f"{where}: none of its {', '.join(settings.hosts)} cases is preprocessed or in fold {self.fold}; run "
                f"{self._preprocessing()}"
            )
        self.hosts: dict[str, Host] = {host.case: host for host in hosts}
        if options["planes_lines"] > 0:
            sidecar.require_roles(settings.guests, "guest", where)
            self._check_lines(hosts, sidecar, where)
        elif not any(host.locations for host in hosts):
            raise DataError(f"{where}: every host is a single slice, which has no location; choose other planes_hosts")
        train, watched = split_by_group(hosts, self.schedule.seed)
        self._say(hosts, train, watched)
        return self._pool(labelled, folder, train), self._pool(labelled, folder, watched)

    def _sidecar(self, folder: Path) -> Sidecar:
        if not (folder / FILE_NAME).is_file():
            raise DataError(
                f"{folder / FILE_NAME}: does not exist; put {FILE_NAME} beside imagesUn (ctnet convert planes) and run "
                f"{self._preprocessing()}"
            )
        return read_sidecar(folder / FILE_NAME)

    def _check_lines(self, hosts: list[Host], sidecar: Sidecar, where: str) -> None:
        """Say how many cases have each line; refuse a guest that cuts no host."""
        counts = count_lines(hosts, self.plane_settings.guests)
        for role, (there, cut) in counts.items():
            self.print_to_log_file(f"guest {role}: in the studies of {there} of {len(hosts)} cases, cuts {cut}")
        for role, (there, cut) in counts.items():
            if not cut:
                why = "is parallel to the hosts of every study" if there else self._why_absent(hosts, sidecar, role)
                raise DataError(
                    f"{where}: guest {role!r} {why}, so there is no line; choose other planes_guests, or "
                    "train the location alone: ctnet plan … --set planes_lines=0"
                )

    def _why_absent(self, hosts: list[Host], sidecar: Sidecar, role: str) -> str:
        """Why no host has a plane of a guest: no such view beside it, or none with the slice that was asked for."""
        seen = {host.case for host in hosts}
        studies = {study for case, study, own in sidecar.cases() if case in seen and own != role}
        stacks = [sidecar.studies[study].stacks.get(role) for study in studies]
        counts = [stack.shape[0] for stack in stacks if stack is not None]
        if not counts:
            return "is in no study that has a host"
        chosen = self.plane_settings.guest_slice
        return f"has {max(counts)} slices at most and none of index {chosen} (planes_guest_slice)"

    def _say(self, hosts: list[Host], train: list[str], watched: list[str]) -> None:
        groups = len({host.group for host in hosts})
        aside = f"{len(watched)} cases of other studies are watched" if train != watched else "watched on the same ones"
        self.print_to_log_file(f"{len(hosts)} hosts of {groups} studies; training on {len(train)}, {aside}")

    def _pool(self, labelled: Path, folder: Path, cases: list[str]) -> PooledDataset:
        unlabelled = set(unlabeled_identifiers(folder))
        pool = PooledDataset(labelled, [case for case in cases if case not in unlabelled], folder)
        pool.identifiers = sorted(cases)
        self.check_cases(pool)
        return pool

    def _context(self) -> PretextContext:
        patch = tuple(self.configuration_manager.patch_size)
        spacing = tuple(self.configuration_manager.spacing)
        return PretextContext(patch, patch, spacing, None, self.num_input_channels)

    def get_dataloaders(self) -> tuple[Any, FixedBatches]:
        patch = self.configuration_manager.patch_size
        rotation, dummy_2d, initial, axes = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        transforms = nnUNetTrainer.get_training_transforms(
            patch, rotation, None, axes, dummy_2d, use_mask_for_norm=self.configuration_manager.use_mask_for_norm
        )
        shared = (self.hosts, self.plane_settings.sigma_mm, self.batch_size)
        train = PlanesLoader(self.pool, *shared, initial, patch, self.label_manager, transforms)
        watch = PlanesLoader(self.held_out, *shared, patch, patch, self.label_manager, None)
        fixed = FixedBatches(watch, self.num_val_iterations_per_epoch, self.watching_seed())
        processes = get_allowed_n_proc_DA()
        if processes == 0:
            return SingleThreadedAugmenter(train, None), fixed
        workers = NonDetMultiThreadedAugmenter(
            train, None, processes, max(6, processes // 2), seeds=None,
            pin_memory=self.device.type == "cuda", wait_time=0.002,
        )  # fmt: skip
        return workers, fixed

    def extra_state(self) -> dict[str, Any]:
        """Also the settings that the heads were trained for, so that a checkpoint explains its channels."""
        settings = {k: list(v) if isinstance(v, tuple) else v for k, v in self.plane_settings.options().items()}
        return {**super().extra_state(), "planes": settings}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Also refuses a checkpoint whose heads learned something else, in channels of the same number."""
        now = self.extra_state()["planes"]
        for name in ("planes_guests", "planes_sigma_mm", "planes_guest_slice", "planes_location_axis"):
            before = state["planes"][name]
            if before != now[name]:
                raise CheckpointError(
                    f"the checkpoint was trained with {name} {before}, {FILE_NAME} or the plan now says {now[name]}; "
                    "put it back, or train anew without --c"
                )
        super().load_extra_state(state)

    def _preprocessing(self) -> str:
        number, plans = int(self.plans_manager.dataset_name[7:10]), self.plans_manager.plans_name
        return f"ctnet preprocess-unlabeled -d {number} -c {self.configuration_name} -p {plans}"
