"""``ctnet benchmark low-label`` by real trainings: interrupted, gone on with, read; and everything that it refuses."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ctnet_nnunet.low_label.experiment import FILE_NAME
from ctnet_nnunet.low_label.scores import COLUMNS
from tests.conftest import NnunetEnv
from tests.end_to_end.commands import BIN, Finished, environment, run, run_warm
from tests.end_to_end.tiny import Tiny, prepare

ARMS = ("unet", "ctnet+rotation")
PAGES = ("results.csv", "comparisons.csv", "summary.md", "report.html")


@pytest.fixture(scope="module")
def tiny(nnunet_env: NnunetEnv) -> Tiny:
    return prepare(nnunet_env, 710, "LowLabel", labelled=5, unlabelled=1)


def words(tiny: Tiny, out: Path, *more: str | Path, **changed: str | None) -> list[str | Path]:
    chosen: dict[str, str | None]
    chosen = {"-p": tiny.plans, "--labels": "1", "--draws": "1", "--iterations": "3", "--pretrain-iterations": "2"}
    chosen |= {"--epochs": "2", "--seed": "3"} | {f"--{key.replace('_', '-')}": value for key, value in changed.items()}
    command = ["ctnet", "benchmark", "low-label", "-d", str(tiny.id), "--out", out]
    return [*command, *(word for key, value in chosen.items() if value is not None for word in (key, value)), *more]


def refused(finished: Finished, *expected: str) -> None:
    assert finished.status == 2, finished.stdout + finished.stderr
    (line,) = finished.error_lines
    assert all(word in line for word in expected), line
    assert "Traceback" not in finished.stderr


def test_interrupted_gone_on_with_and_read(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [str(word) for word in words(tiny, out, "--arms", *ARMS)]
    with (tmp_path / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]], env=environment(tiny.env), stdout=log, stderr=log
        )
        wait_for(lambda: (out / "logs" / "arm_unet_1_labels_draw_1.txt").is_file(), process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) != 0
    assert not (out / "results.csv").exists()
    log = (out / "logs" / "pre_ctnet_rotation.txt").read_text()
    assert "pretraining on 5 scans (1 unlabelled, 4 images of fold 0)" in log, "the test case must not be among them"
    pretrained = next(out.rglob("*pre_ctnet_rotation*/fold_0/checkpoint_final.pth"))
    written = pretrained.stat().st_mtime_ns

    finished = run(tiny.env, *command).succeeded()
    assert pretrained.stat().st_mtime_ns == written, "a finished pretraining was run again"
    assert "[3/3] ctnet+rotation, 1 label, draw 1" in finished.stdout
    first = {page: (out / page).read_bytes() for page in PAGES}
    check_tables(out, tiny)

    again = run_warm(tiny.env, *command).succeeded()
    assert "$ nnUNetv2_train" not in again.stdout
    assert {page: (out / page).read_bytes() for page in PAGES[:2]} == {page: first[page] for page in PAGES[:2]}
    refused(run_warm(tiny.env, *words(tiny, out, "--arms", *ARMS, iterations="4")), "another iterations (3, now 4)")
    assert {page: (out / page).read_bytes() for page in PAGES[:2]} == {page: first[page] for page in PAGES[:2]}

    own = run_warm(tiny.env, *words(tiny, out, "--checkpoint", f"rotation={pretrained}")).succeeded()
    assert own.stdout.count("$ nnUNetv2_train") == 1 and "[1/1] ctnet@rotation, 1 label, draw 1" in own.stdout
    rows = list(csv.DictReader((out / "results.csv").open()))
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    assert arms == ["ctnet@rotation", *ARMS], "what earlier lines trained is lost"
    assert f"{ARMS[0]} − {ARMS[1]}" in (out / "summary.md").read_text()


def test_a_semi_supervised_arm_reads_the_images_of_the_pool_s_other_cases(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "out"
    without: dict[str, str | None] = {"iterations": "2", "epochs": "2", "pretrain_iterations": None}
    pretrained = words(tiny, out, "--arms", "unet-reciprocal", "unet+volf", **without)
    refused(run_warm(tiny.env, *pretrained), "--pretrain-iterations: arm unet+volf has a pretraining; say how many")
    run_warm(tiny.env, *words(tiny, out, "--arms", "unet-reciprocal", **without)).succeeded()
    log = (out / "logs" / "arm_unet_reciprocal_1_labels_draw_1.txt").read_text()
    assert "1 labelled and 3 unlabelled cases (0 of imagesUn, 3 with labels hidden)" in log
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert {row["arm"] for row in rows} == {"unet-reciprocal"}


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    for _ in range(2400):
        if condition():
            return
        assert process.poll() is None, "it ended before it could be interrupted"
        time.sleep(0.05)
    raise AssertionError("nothing happened for two minutes")


def check_tables(out: Path, tiny: Tiny) -> None:
    """The experiment's own record, splits and tables agree with each other."""
    content = json.loads((out / FILE_NAME).read_text())
    pool, test = content["settings"]["pool"], content["settings"]["test"]
    assert (len(pool), len(test)) == (4, 1)
    splits = json.loads(next(out.rglob("splits_final.json")).read_text())
    assert splits[0] == {"train": pool, "val": test}
    (draw,) = content["draws"]
    assert splits[1] == {"train": draw["cases"], "val": test}
    assert draw["cases"][0] in pool

    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    structures = [name for name in tiny_labels(tiny) if name != "background"]
    assert [(row["arm"], row["case"], row["structure"]) for row in rows] == [
        (arm, test[0], structure) for arm in ARMS for structure in structures
    ]
    summary = json.loads(next(out.rglob("*arm_unet*/fold_1/validation/summary.json")).read_text())
    for row in rows[: len(structures)]:
        label = str(tiny_labels(tiny)[row["structure"]])
        stock = summary["metric_per_case"][0]["metrics"][label]["Dice"]
        assert float(row["dice"]) == pytest.approx(stock, abs=1e-5)
    markdown = (out / "summary.md").read_text()
    assert "| unet | 1 |" in markdown and "unet − ctnet+rotation" in markdown
    assert "<script" not in (out / "report.html").read_text()


def tiny_labels(tiny: Tiny) -> dict[str, int]:
    labels: dict[str, int] = json.loads((tiny.raw / "dataset.json").read_text())["labels"]
    return labels


def test_refusals(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (tiny.raw / "labelsTr").glob("*.nii.gz"))
    test, pool = tmp_path / "test.txt", tmp_path / "pool.txt"
    test.write_text(f"{cases[0]}\n")
    pool.write_text("\n".join(cases[:3]))
    other = tmp_path / "other.pth"
    torch.save({"weights": torch.zeros(2)}, other)
    unfit = tmp_path / "unfit.pth"
    torch.save({"network_weights": {"encoder.x": torch.zeros(2)}}, unfit)

    def check(more: list[str | Path], *expected: str, **changed: str) -> None:
        refused(run_warm(tiny.env, *words(tiny, out, *more, **changed)), *expected)
        assert not out.exists() or [path.name for path in out.iterdir()] == [".lock"]

    arms = ["--arms", *ARMS]
    check(arms, "the pool has 4", labels="5")
    check(arms, "4 different draws", draws="5")
    check([*arms, "--test-cases", test, "--pool-cases", pool], cases[0], "in the pool")
    check([*arms, "--test-cases", tmp_path / "none.txt"], "cannot be read")
    check(["--arms", "ctnet", "magic"], "magic", "no such arm")
    check(["--arms", "ctnet+masked", "--preset", "identity"], "arm ctnet+masked", "masked_features")
    check([*arms, "--checkpoint", f"a={tmp_path / 'none.pth'}"], "does not exist")
    check([*arms, "--checkpoint", f"a={other}"], "no network_weights")
    check([*arms, "--checkpoint", f"a={unfit}"], "tensors do not fit", "ctnet transfer")
    check([*arms, "--set", "epochs=3"], "--epochs")
    check([*arms, "--set", "no_such=3"], "no_such")
    check([*arms, "-c", "3d_lowres"], "3d_lowres")
    check([*arms, "-device", "tpu"], "tpu")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    refused(run_warm(tiny.env, *words(tiny, tmp_path / "full", *arms)), "other files")
