"""``ctnet env``: what the shell gets is what nnU-Net needs, whatever is in the paths."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ctnet_nnunet import shim_path
from ctnet_nnunet.cli.env import export_line
from ctnet_nnunet.errors import SetupError
from ctnet_nnunet.shim_path import SHIM_FOLDER, VARIABLE, with_shim

NASTY = "/data/it's \"my\" $HOME `x` \\ folder; echo no"
CTNET = [sys.executable, "-m", "ctnet_nnunet.cli.main"]


def _ctnet(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, **variables}
    return subprocess.run([*CTNET, *arguments], env=environ, capture_output=True, text=True, check=False)


def _evaluated(shell: str, line: str) -> str:
    """Value of the variable after a real ``shell`` has evaluated ``line``."""
    script = f'eval "$LINE" && "{sys.executable}" -c "import os; print(os.environ[\'{VARIABLE}\'])"'
    process = subprocess.run([shell, "-c", script], env={**os.environ, "LINE": line}, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout.removesuffix("\n")


def test_eval_in_a_real_bash_sets_the_variable() -> None:
    script = f'eval "$({sys.executable} -m ctnet_nnunet.cli.main env)" && printenv {VARIABLE}'
    environ = {name: value for name, value in os.environ.items() if name != VARIABLE}
    process = subprocess.run(["bash", "-c", script], env=environ, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stdout == f"{SHIM_FOLDER}\n"
    assert process.stderr == ""


@pytest.mark.parametrize("value", [NASTY, "/a folder", "/é/ü", "/a\nb", "/plain"])
@pytest.mark.parametrize("shell", ["bash", "zsh", "sh"])
def test_any_path_survives_the_shell(shell: str, value: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    assert _evaluated(shell, export_line(shell, value)) == value


def test_fish_escapes_quote_and_backslash() -> None:
    assert export_line("fish", "/it's \\ $HOME") == "set -gx nnUNet_extTrainer '/it\\'s \\\\ $HOME'"
    if shutil.which("fish"):
        script = f"{export_line('fish', NASTY)}; printenv {VARIABLE}"
        process = subprocess.run(["fish", "-c", script], capture_output=True, text=True, check=True)
        assert process.stdout == f"{NASTY}\n"


def test_powershell_doubles_every_kind_of_single_quote() -> None:
    assert export_line("pwsh", "C:\\it's ‘so’ $x") == "$env:nnUNet_extTrainer = 'C:\\it''s ‘‘so’’ $x'"
    if shutil.which("pwsh"):
        script = f"{export_line('pwsh', NASTY)}; Write-Output $env:{VARIABLE}"
        process = subprocess.run(["pwsh", "-NoProfile", "-c", script], capture_output=True, text=True, check=True)
        assert process.stdout.strip() == NASTY


def test_the_calling_shell_is_asked_when_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import shellingham

    monkeypatch.setattr(shellingham, "detect_shell", lambda: ("fish", "/usr/bin/fish"))
    assert export_line(None, "/a").startswith("set -gx ")

    def undetected() -> tuple[str, str]:
        raise shellingham.ShellDetectionFailure

    monkeypatch.setattr(shellingham, "detect_shell", undetected)
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    assert export_line(None, "/a").startswith("set -gx ")
    monkeypatch.setenv("SHELL", "/sbin/nologin")
    assert export_line(None, "/a") == "export nnUNet_extTrainer=/a"


def test_other_folders_are_kept_in_order_and_nothing_is_doubled() -> None:
    assert with_shim(None) == str(SHIM_FOLDER)
    assert with_shim("") == str(SHIM_FOLDER)
    others = os.pathsep.join(["/a", "", "/b", "/a"])
    once = with_shim(others)
    assert once.split(os.pathsep) == ["/a", "/b", str(SHIM_FOLDER)]
    assert with_shim(once) == once


def test_a_link_to_the_shim_counts_and_another_installation_makes_way(tmp_path: Path) -> None:
    link = tmp_path / "trainers"
    link.symlink_to(SHIM_FOLDER)
    assert with_shim(str(link)) == str(link)
    assert with_shim("/old/env/ctnet_nnunet/nnunet_shim") == str(SHIM_FOLDER)


def test_a_separator_in_our_own_path_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shim_path, "SHIM_FOLDER", Path(f"/a{os.pathsep}b/ctnet_nnunet/nnunet_shim"))
    with pytest.raises(SetupError, match="separates the folders"):
        with_shim(None)


def test_an_unknown_shell_is_one_line_and_status_2() -> None:
    process = _ctnet("env", "--shell", "tcsh")
    assert process.returncode == 2
    assert process.stdout == ""
    message = "unknown shell 'tcsh' in --shell; choose one of bash, zsh, fish, powershell"
    assert process.stderr == f"ctnet: error: {message}\n"


def test_only_the_line_on_stdout_and_other_folders_kept() -> None:
    process = _ctnet("env", "--shell", "bash", **{VARIABLE: "/my own"})
    assert process.stdout == f"export {VARIABLE}='/my own:{SHIM_FOLDER}'\n"


def test_help_and_env_come_at_once() -> None:
    for arguments in (["--help"], ["env", "--shell", "bash"]):
        before = os.times()
        assert _ctnet(*arguments).returncode == 0
        after = os.times()
        # Of the processor, not of the clock: other work may wait for the same cores.
        assert after.children_user + after.children_system - before.children_user - before.children_system < 1.0


def test_help_imports_neither_torch_nor_nnunet() -> None:
    script = "import sys, ctnet_nnunet.cli.main; print({'torch', 'nnunetv2', 'numpy'} & set(sys.modules))"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert process.stdout == "set()\n"
