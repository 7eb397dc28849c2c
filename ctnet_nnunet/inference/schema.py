"""What a model's JSON may say: every value that inference uses, typed and bounded, before anything is built of it."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    RootModel,
    model_validator,
)

MAX_PATCH_VOXELS = 2**25
"""320³: more than any GPU takes in one patch."""

_Name = Annotated[str, Field(max_length=256)]
_Text = Annotated[str, Field(max_length=65536)]
_Size = Annotated[int, Field(strict=True, ge=1, le=16384)]
_Millimetres = Annotated[float, Field(ge=1e-3, le=1e4, allow_inf_nan=False)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Features = Annotated[int, Field(strict=True, ge=1, le=8192)]
_Blocks = Annotated[int, Field(strict=True, ge=1, le=64)]
_Stride = Annotated[int, Field(strict=True, ge=1, le=16)]
_Kernel = Annotated[int, Field(strict=True, ge=1, le=31)]
_Axes = Annotated[list[int], Field(min_length=3, max_length=3), AfterValidator(lambda axes: _permutation(axes))]
_Simple = bool | int | _Finite | _Name | None
_Order = Annotated[int, Field(strict=True, ge=0, le=5)]
_Resampler = Literal["resample_data_or_seg_to_shape", "resample_torch_simple", "resample_torch_fornnunet"]
_Normalization = Literal[
    "ZScoreNormalization", "CTNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization"
]
_RESAMPLER_OPTIONS = {
    "resample_data_or_seg_to_shape": {"order", "order_z", "force_separate_z", "separate_z_anisotropy_threshold"},
    "resample_torch_simple": {"num_threads", "memefficient_seg_resampling", "mode"},
    "resample_torch_fornnunet": {
        *("num_threads", "memefficient_seg_resampling", "force_separate_z", "separate_z_anisotropy_threshold"),
        *("mode", "aniso_axis_mode"),
    },
}
FILE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl.gz", ".gipl", ".png", ".bmp", ".tif", ".tiff")


def _permutation(axes: list[int]) -> list[int]:
    if sorted(axes) != [0, 1, 2]:
        raise ValueError("is no order of the axes 0, 1, 2")
    return axes


class _Read(BaseModel):
    """What inference does not use is left out, unread."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class Transformer(_Read):
    """Of a CTNet block."""

    model_config = ConfigDict(extra="forbid")

    stage: Annotated[int, Field(strict=True, ge=0, le=16)]
    embed_dim: _Features
    depth: Annotated[int, Field(strict=True, ge=0, le=64)]
    heads: Annotated[int, Field(strict=True, ge=1, le=256)]
    mlp_ratio: Annotated[float, Field(gt=0, le=64)]
    drop_path: Annotated[float, Field(ge=0, lt=1)]
    reference_grid: Annotated[int, Field(strict=True, ge=1, le=64)]
    residual_scale: Annotated[float, Field(ge=0, le=100)] = 0.1


class _Options(_Read):
    model_config = ConfigDict(extra="forbid")


class NormOptions(_Options):
    """``norm_op_kwargs``."""

    eps: Annotated[float, Field(strict=True, gt=0, lt=1)] = 1e-5
    affine: bool = True
    momentum: Annotated[float, Field(ge=0, le=1)] | None = None
    track_running_stats: bool = False


class DropoutOptions(_Options):
    """``dropout_op_kwargs``."""

    p: Annotated[float, Field(ge=0, le=1)] = 0.0
    inplace: bool = False


class NonlinOptions(_Options):
    """``nonlin_kwargs``."""

    inplace: bool = False
    negative_slope: Annotated[float, Field(ge=0, le=1)] = 0.01


class ResamplingOptions(_Options):
    """Arguments of nnU-Net's resampling functions, of which each takes some."""

    is_seg: bool = False
    order: _Order = 1
    order_z: _Order = 0
    force_separate_z: bool | None = None
    separate_z_anisotropy_threshold: Annotated[float, Field(ge=1, le=1e4)] = 3.0
    memefficient_seg_resampling: bool = False
    num_threads: Annotated[int, Field(strict=True, ge=1, le=256)] = 4
    mode: Literal["linear", "nearest", "nearest-exact"] = "linear"
    aniso_axis_mode: Literal["linear", "nearest", "nearest-exact"] = "nearest-exact"


class NetworkArguments(_Read):
    """``arch_kwargs``; which names they may hold is decided by :mod:`ctnet_nnunet.architectures.from_plan`."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, _Simple]

    n_stages: Annotated[int, Field(strict=True, ge=1, le=16)]
    features_per_stage: list[_Features]
    strides: list[list[_Stride] | _Stride]
    kernel_sizes: list[list[_Kernel] | _Kernel]
    n_conv_per_stage: list[_Blocks] | _Blocks = 1
    n_blocks_per_stage: list[_Blocks] | _Blocks = 1
    n_conv_per_stage_decoder: list[_Blocks] | _Blocks
    conv_op: _Name
    norm_op: _Name | None = None
    norm_op_kwargs: NormOptions | None = None
    dropout_op: _Name | None = None
    dropout_op_kwargs: DropoutOptions | None = None
    nonlin: _Name | None = None
    nonlin_kwargs: NonlinOptions | None = None
    transformer: Transformer | None = None

    @model_validator(mode="after")
    def _one_entry_a_stage(self) -> NetworkArguments:
        for key in ("features_per_stage", "strides", "kernel_sizes"):
            if len(getattr(self, key)) != self.n_stages:
                raise ValueError(f"{key} has {len(getattr(self, key))} entries, n_stages is {self.n_stages}")
        return self


class Architecture(_Read):
    """A configuration's ``architecture``."""

    network_class_name: _Name
    arch_kwargs: NetworkArguments
    requires_import: Annotated[list[_Name], Field(alias="_kw_requires_import", max_length=16)] = []


class Configuration(_Read):
    """A plan's configuration, as far as inference needs it, with what it inherits."""

    data_identifier: _Name = ""
    preprocessor_name: Literal["DefaultPreprocessor"]
    batch_size: Annotated[int, Field(strict=True, ge=1)] = 1
    patch_size: Annotated[list[_Size], Field(min_length=2, max_length=3)]
    spacing: Annotated[list[_Millimetres], Field(min_length=2, max_length=3)]
    normalization_schemes: Annotated[list[_Normalization], Field(min_length=1, max_length=64)]
    use_mask_for_norm: list[bool]
    resampling_fn_data: _Resampler
    resampling_fn_data_kwargs: ResamplingOptions
    resampling_fn_seg: _Resampler
    resampling_fn_seg_kwargs: ResamplingOptions
    resampling_fn_probabilities: _Resampler
    resampling_fn_probabilities_kwargs: ResamplingOptions
    architecture: Architecture
    previous_stage: _Name | None = None
    ctnet: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _sizes(self) -> Configuration:
        if math.prod(self.patch_size) > MAX_PATCH_VOXELS:
            raise ValueError(f"patch_size {self.patch_size} has more than {MAX_PATCH_VOXELS} voxels")
        if len(self.spacing) != len(self.patch_size):
            raise ValueError(f"spacing has {len(self.spacing)} axes, patch_size {len(self.patch_size)}")
        if len(self.use_mask_for_norm) != len(self.normalization_schemes):
            raise ValueError("use_mask_for_norm and normalization_schemes are not one a channel each")
        for part in ("data", "seg", "probabilities"):
            _check_resampler(getattr(self, f"resampling_fn_{part}"), getattr(self, f"resampling_fn_{part}_kwargs"))
        _check_axes(self.architecture.arch_kwargs, len(self.patch_size))
        return self


def _check_resampler(function: str, options: ResamplingOptions) -> None:
    if foreign := options.model_fields_set - _RESAMPLER_OPTIONS[function] - {"is_seg"}:
        raise ValueError(f"{function} takes no {sorted(foreign)[0]}")


def _check_axes(arguments: NetworkArguments, axes: int) -> None:
    """Operators, strides and kernels must have the patch's number of axes."""
    for key in ("conv_op", "norm_op", "dropout_op"):
        name = getattr(arguments, key)
        if name is not None and not name.endswith(f"{axes}d"):
            raise ValueError(f"architecture.arch_kwargs.{key} {name} is not for {axes} axes")
    for key in ("strides", "kernel_sizes"):
        if any(isinstance(row, list) and len(row) != axes for row in getattr(arguments, key)):
            raise ValueError(f"architecture.arch_kwargs.{key} are not for {axes} axes")


class Plans(_Read):
    """plans.json with one configuration."""

    dataset_name: _Name
    plans_name: _Name
    image_reader_writer: Literal[
        "SimpleITKIO", "NibabelIO", "NibabelIOWithReorient", "NaturalImage2DIO", "Tiff3DIO"
    ]  # fmt: skip
    label_manager: Literal["LabelManager"] = "LabelManager"
    transpose_forward: _Axes
    transpose_backward: _Axes
    foreground_intensity_properties_per_channel: dict[_Name, dict[_Name, _Finite]] = {}
    configurations: Annotated[dict[_Name, Configuration], Field(min_length=1, max_length=1)]

    @model_validator(mode="after")
    def _there_and_back(self) -> Plans:
        if [self.transpose_forward[axis] for axis in self.transpose_backward] != [0, 1, 2]:
            raise ValueError("transpose_backward does not undo transpose_forward")
        return self


class Dataset(_Read):
    """dataset.json, as far as inference needs it."""

    channel_names: Annotated[dict[_Name, _Name], Field(min_length=1, max_length=64)]
    labels: Annotated[dict[_Name, int | list[int]], Field(min_length=2, max_length=4096)]
    file_ending: Literal[FILE_ENDINGS]  # type: ignore[valid-type] # a tuple of literals
    regions_class_order: list[int] | None = None
    name: _Text | None = None
    description: _Text | None = None
    reference: _Text | None = None
    licence: _Text | None = None

    @model_validator(mode="after")
    def _labels(self) -> Dataset:
        numbers = {n for value in self.labels.values() for n in ([value] if isinstance(value, int) else value)}
        if self.labels.get("background") != 0:
            raise ValueError("labels have no background of 0")
        if sorted(numbers) != list(range(len(numbers))):
            raise ValueError(f"labels are not 0 to {len(numbers) - 1} without a gap")
        if sorted(self.channel_names) != sorted(str(index) for index in range(len(self.channel_names))):
            raise ValueError("channel_names are not numbered from 0")
        return self


class DatasetFingerprint(_Read):
    """What nnU-Net measured of the training cases: spacings in mm and sizes in voxels, one each a case."""

    spacings: Annotated[list[list[_Millimetres]], Field(max_length=100_000)]
    shapes_after_crop: Annotated[list[list[_Size]], Field(max_length=100_000)]
    median_relative_size_after_cropping: _Finite = 1.0
    foreground_intensity_properties_per_channel: dict[_Name, dict[_Name, _Finite]] = {}


class ReferenceVolumes(RootModel[dict[_Name, JsonValue]]):
    """The training cases' volumes; who shows them judges what they say."""
