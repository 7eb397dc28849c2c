"""``ctnet plan`` as typed: what it prints, its exit status, and one line for each error."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from ctnet_nnunet.cli.main import main
from tests.planning.conftest import TINY, Dataset

SETTINGS = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture
def ctnet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the entry point in this process: exit status, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ctnet", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        return int(caught.value.code or 0), printed.out, printed.err

    return run


def test_a_plan_is_written_and_summed_up(dataset: Dataset, ctnet: Callable[..., tuple[int, str, str]]) -> None:
    status, out, error = ctnet(
        "plan", "-d", dataset.id, "-c", "3d_fullres", *SETTINGS, "--set", "patch_size=[16,24,24]"
    )
    assert (status, error) == (0, "")
    assert "3d_fullres: patch [16, 24, 24], batch 2" in out
    assert "transformer 12 wide, 1 blocks" in out
    assert "GB on a GPU" in out
    assert "uses the data that nnUNetv2_plan_and_preprocess made" in out
    assert out.rstrip().endswith(f"wrote {dataset.file()}")
    assert dataset.configuration()["patch_size"] == [16, 24, 24]


def test_another_name_and_spacing_say_how_to_preprocess(
    dataset: Dataset,
    ctnet: Callable[..., tuple[int, str, str]],
) -> None:
    changes = [*SETTINGS, "--set", "spacing=[1.5,1.25,1.0]"]
    status, out, _ = ctnet(
        "plan", "-d", dataset.raw.name, "-c", "3d_fullres", "--preset", "s", "--name", "Fine", *changes
    )
    assert status == 0
    assert f"nnUNetv2_preprocess -d {dataset.raw.name} -plans_name Fine -c 3d_fullres" in out
    assert dataset.configuration(name="Fine")["ctnet"]["preset"] == "s"


@pytest.mark.parametrize(("arguments", "words"), [
    (["--set", "epoch=5"], "unknown key; valid are epochs"), (["--set", "epochs"], "write it as key=value"),
    (["--set", "epochs=many"], "epochs='many'"), (["--preset", "xl"], "valid are s, m, l, identity"),
    (["-c", "4d"], "'4d': nnU-Net plans 2d, 3d_fullres"), (["--name", "nnUNetPlans"], "another planner"),
    (["-d", "999"], "dataset 999: not found"),
])  # fmt: skip
def test_an_error_is_one_line_and_status_2(
    dataset: Dataset,
    ctnet: Callable[..., tuple[int, str, str]],
    arguments: list[str],
    words: str,
) -> None:
    status, out, error = ctnet("plan", "-d", dataset.id, *SETTINGS, *arguments)
    assert status == 2
    assert out == ""
    assert error.startswith("ctnet: error: ")
    assert error.count("\n") == 1
    assert words in error
    assert not dataset.file().exists()


@pytest.mark.parametrize("arguments", [[], ["-d", "540", "--gpu-memory", "0"], ["-d", "540", "--speed"]])
def test_wrong_usage_is_status_2(ctnet: Callable[..., tuple[int, str, str]], arguments: list[str]) -> None:
    assert ctnet("plan", *arguments)[0] == 2


def test_the_real_command_refuses_in_a_process_of_its_own(dataset: Dataset) -> None:
    command = [sys.executable, "-m", "ctnet_nnunet.cli.main", "plan", "-d", "999"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("ctnet: error: dataset 999: not found in nnUNet_raw")
    assert "Traceback" not in ended.stderr
