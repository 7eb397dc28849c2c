"""The worked example of docs/how-to/add-a-pretext.md is run as it stands there."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

from ctnet_nnunet import pretext
from ctnet_nnunet.architectures.from_plan import network_from_plan
from ctnet_nnunet.benchmark.steps import RESENC, UNET, Workload, architecture_of
from ctnet_nnunet.pretext.base import PretextContext, PretextModel, build_pretext

DOCUMENT = Path(__file__).parents[1] / "docs" / "how-to" / "add-a-pretext.md"
SIZE = (16, 16, 16)


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The document's file as a module, and its line executed on a copy of the dict."""
    module_text, line = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    (tmp_path / "inversion_example.py").write_text(module_text)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("inversion_example")
    monkeypatch.setattr(pretext, "PRETEXTS", dict(pretext.PRETEXTS))
    assert line.strip() == 'PRETEXTS["inversion"] = Inversion'
    pretext.PRETEXTS["inversion"] = module.Inversion
    yield
    sys.modules.pop("inversion_example")


def _model(subject: str, weights: dict[str, float]) -> PretextModel:
    torch.manual_seed(0)
    network = network_from_plan(architecture_of(subject, Workload(SIZE, features_base=4)), 1, 3, True)
    context = PretextContext(SIZE, SIZE, (1.0, 1.0, 1.0), 0, 1)
    return build_pretext(pretext.PRETEXTS, network, context, weights, {"inversion_share": 0.5})


def _views() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    # Skewed intensities: only then can an inversion be seen.
    image = torch.rand(4, 1, *SIZE, generator=generator) ** 4 * 5
    return {"augmented": image, "pair": torch.stack([image, image.flip(2)], 1)}


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("subject", [UNET, RESENC, "CTNet-s"])
def test_it_combines_with_another_task_on_every_network(subject: str) -> None:
    model = _model(subject, {"inversion": 1.0, "volume_fusion": 0.5})
    assert model.views == {"augmented", "pair"}
    outputs = model(model.prepare(_views(), torch.Generator().manual_seed(0)))
    expected = outputs["inversion/loss"] + 0.5 * outputs["volume_fusion/loss"]
    torch.testing.assert_close(outputs["loss"], expected)
    outputs["loss"].backward()
    assert next(model.network.parameters()).grad.abs().sum() > 0


@pytest.mark.usefixtures("registered")
def test_it_learns() -> None:
    model = _model(UNET, {"inversion": 1.0})
    prepared = model.prepare(_views(), torch.Generator().manual_seed(1))
    assert 0 < prepared["inversion"]["inverted"].sum() < 4
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        outputs = model(prepared)
        outputs["loss"].backward()
        optimizer.step()
    assert outputs["inversion/accuracy"] == 1.0


@pytest.mark.usefixtures("registered")
def test_its_option_becomes_a_key_of_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctnet_nnunet.planning.options", None)
    monkeypatch.delitem(sys.modules, "ctnet_nnunet.planning.options")
    options = importlib.import_module("ctnet_nnunet.planning.options")
    read = options.read_options({"inversion_share": 0.25, "pretext": {"inversion": 1}})
    assert read.inversion_share == 0.25 and read.pretext == {"inversion": 1}
