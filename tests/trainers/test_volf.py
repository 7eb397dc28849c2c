"""From nnUNetTrainerVolF's network into the one that the fine-tuning trainer builds, on every kind of plan."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from ctnet_nnunet.benchmark.steps import RESENC, UNET, Workload, architecture_of
from ctnet_nnunet.checkpoints import HEADS
from ctnet_nnunet.pretext import PRETEXTS
from ctnet_nnunet.pretext.base import PretextContext, build_pretext
from ctnet_nnunet.trainers.ctnet import nnUNetTrainerCTNet
from ctnet_nnunet.trainers.volf import nnUNetTrainerVolF

DOWNSTREAM = {UNET: nnUNetTrainer, RESENC: nnUNetTrainer, "CTNet-s": nnUNetTrainerCTNet}


def build(
    trainer: type[nnUNetTrainer], architecture: dict[str, Any], size: tuple[int, ...], channels: int
) -> nn.Module:
    """What the trainer builds from a plan with this network, a ``ctnet`` block of preset s and three classes."""
    plans: Any = SimpleNamespace(plans={"plans_name": "P"})
    arguments = architecture["arch_kwargs"]
    configuration: Any = SimpleNamespace(
        configuration={"architecture": architecture, "patch_size": list(size), "ctnet": {"preset": "s"}},
        network_arch_class_name=architecture["network_class_name"],
        network_arch_init_kwargs=arguments,
        network_arch_init_kwargs_req_import=[name for name in ("conv_op", "norm_op", "nonlin") if name in arguments],
    )
    network: nn.Module = trainer.build_network_architecture(plans, configuration, channels, 3, True)
    return network


@pytest.mark.parametrize("subject", list(DOWNSTREAM))
@pytest.mark.parametrize(("size", "channels"), [((16, 16, 16), 1), ((16, 16, 16), 3), ((32, 32), 2)])
def test_what_a_step_has_changed_goes_into_the_downstream_trainers_network_to_the_bit(
    subject: str, size: tuple[int, ...], channels: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    architecture = architecture_of(subject, Workload(size, features_base=4, channels=channels))
    network = build(nnUNetTrainerVolF, architecture, size, channels)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    context = PretextContext(size, size, (1.0,) * len(size), None, channels, 2)
    model = build_pretext(PRETEXTS, network, context, {"volume_fusion": 1.0}, {})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    views = {"pair": torch.randn(2, 2, channels, *size)}
    model(model.prepare(views, torch.Generator().manual_seed(0)))["loss"].backward()
    optimizer.step()
    pretrained = network.state_dict()
    for part in ("encoder.", "decoder.stages.", "decoder.transpconvs."):
        own = [key for key in pretrained if key.startswith(part)]
        assert any(not torch.equal(pretrained[key], before[key]) for key in own), part

    torch.save({"network_weights": pretrained}, tmp_path / "w.pth")
    started = build(DOWNSTREAM[subject], architecture, size, channels)
    heads = {key: value.clone() for key, value in started.state_dict().items() if HEADS in key}
    load_pretrained_weights(started, str(tmp_path / "w.pth"))
    capsys.readouterr()
    assert list(started.state_dict()) == list(pretrained) and heads
    for key, value in started.state_dict().items():
        assert torch.equal(value, heads[key] if key in heads else pretrained[key]), key
