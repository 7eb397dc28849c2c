"""The nifti source: pairs, patterns, tables, and the command."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ctnet_nnunet.conversion.sources.nifti import list_pairs, list_patterns, list_table
from ctnet_nnunet.errors import DataError
from tests.conversion.fakes import SHARED, label_like, pairs, run, scan, write

ROOT = Path(__file__).resolve().parents[2]


def command(*arguments: str | Path, script: bool = False) -> subprocess.CompletedProcess[str]:
    """``ctnet convert nifti …``, or the script itself."""
    start = (
        [str(ROOT / "dataset_conversion/convert_nifti.py")]
        if script
        else ["-m", "ctnet_nnunet.cli.main", "convert", "nifti"]
    )
    line = [sys.executable, *start, *map(str, arguments), "-np", "0"]
    return subprocess.run(line, capture_output=True, text=True, check=False, env=dict(os.environ))


def test_pairs_with_channel_numbers(tmp_path: Path) -> None:
    for case in ("a", "b"):
        write(scan(), tmp_path / f"images/{case}_0000.nii.gz")
    write(scan(1), tmp_path / "images/a_0001.nii.gz")
    write(label_like(scan()), tmp_path / "labels/a.nii.gz")
    write(label_like(scan()), tmp_path / "labels/c.nii.gz")
    listing = list_pairs(tmp_path / "images", tmp_path / "labels", ["T1", "T2"])
    assert [(c.name, len(c.images), c.destination) for c in listing.cases] == [("a", 2, "Tr")]
    assert listing.refused["b"].startswith("lacks the channel _0001")
    assert listing.refused["labels/c.nii.gz"].startswith("is a label map without an image")


@pytest.mark.parametrize(
    ("images", "labels", "channels", "cases"),
    [
        (("a_0000", "a_0001", "b_0000", "b_0001"), ("a",), 0, {"a": 2, "b": 2}),
        (("a_0000", "a_0001", "a_0002"), ("a_0000", "a_0001"), 1, {"a_0000": 1, "a_0001": 1, "a_0002": 1}),
        (("a_0000", "a_0001"), (), 2, {"a": 2}),
        (("a_0000", "a_0001"), (), 1, {"a_0000": 1, "a_0001": 1}),
        (("a_0000", "b_0000"), (), 0, {"a": 1, "b": 1}),
        (("a_0001", "a_0002"), (), 0, {"a_0001": 1, "a_0002": 1}),
        (("a_0000", "a_0001"), (), 0, {"a_0000": 1, "a_0001": 1}),
        (("a_0000", "b"), (), 0, {"a_0000": 1, "b": 1}),
    ],
)
def test_a_number_at_the_end(tmp_path: Path, images: tuple, labels: tuple, channels: int, cases: dict) -> None:
    for folder, names in (("images", images), ("labels", labels)):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / f"{name}.nii.gz").touch()
    names = [f"C{index}" for index in range(channels)]
    listing = list_pairs(tmp_path / "images", tmp_path / "labels" if labels else None, names)
    assert {c.name: len(c.images) for c in listing.cases} == cases
    assert listing.refused == {}


def test_patterns_with_patient_session_and_site(tmp_path: Path) -> None:
    for place in ("north/p1/s1", "north/p1/s2", "south/p2/s1"):
        write(scan(), tmp_path / place / "scan_T1.nii.gz")
        write(scan(1), tmp_path / place / "x_FLAIR.nii.gz")
    write(label_like(scan()), tmp_path / "north/p1/s1/mask.nii.gz")
    listing = list_patterns(
        tmp_path,
        ["T1={site}/{patient}/{session}/*_T1.nii.gz", "FLAIR={site}/{patient}/{session}/*_FLAIR.nii.gz"],
        "{site}/{patient}/{session}/mask.nii.gz",
    )
    assert listing.channels == ["T1", "FLAIR"]
    assert [(c.name, c.patient, c.site, c.destination) for c in listing.cases] == [
        ("p1_s1", "p1", "north", "Tr"),
        ("p1_s2", "p1", "north", "Un"),
        ("p2_s1", "p2", "south", "Un"),
    ]


def test_a_field_used_twice_must_agree(tmp_path: Path) -> None:
    write(scan(), tmp_path / "p1/p1_T1.nii.gz")
    write(scan(), tmp_path / "p2/p9_T1.nii.gz")
    listing = list_patterns(tmp_path, ["T1={patient}/{patient}_T1.nii.gz"], None)
    assert [c.name for c in listing.cases] == ["p1"]


def test_pattern_refusals(tmp_path: Path) -> None:
    for name in ("a_T1", "a_T2", "b_T1", "c_1_T1", "c_2_T1", "c_T2"):
        write(scan(), tmp_path / f"{name}.nii.gz")
    write(label_like(scan()), tmp_path / "d_mask.nii.gz")
    listing = list_patterns(tmp_path, ["T1={case}_*T1.nii.gz", "T2={case}_T2.nii.gz"], "{case}_mask.nii.gz")
    assert [c.name for c in listing.cases] == ["a"]
    assert listing.refused["b"] == "lacks the channel T2; complete or remove the case"
    assert "several files for one channel: c_1_T1.nii.gz, c_2_T1.nii.gz" in listing.refused["c"]
    assert "without an image" in listing.refused["d_mask.nii.gz"]


@pytest.mark.parametrize(
    ("channels", "label", "reason"),
    [
        (["T1=*.nii.gz"], None, "fields"),
        (["T1={case}.nii.gz", "T2={other}.nii.gz"], None, "needs the same ones"),
        (["T1={case}.nii.gz"], "{patient}.nii.gz", "needs the same ones"),
        (["T1={case}.nii.gz", "T2"], None, "wanted NAME=PATTERN"),
        (["T1={case}.nii.gz"], None, "no file fits"),
    ],
)
def test_unusable_patterns(tmp_path: Path, channels: list[str], label: str | None, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        list_patterns(tmp_path, channels, label)


def test_a_table(tmp_path: Path) -> None:
    images, labels = pairs(tmp_path, count=2)
    assert (images, labels) == (tmp_path / "images", tmp_path / "labels")
    (tmp_path / "cases.csv").write_text(
        "case,patient,site,CT,label\n"
        "one,p1,A,images/case_0.nii.gz,labels/case_0.nii.gz\n"
        "two,p1,A,images/case_1.nii.gz,\n"
        "three,p2,A,images/none.nii.gz,\n"
        "four,p2,A,,labels/case_1.nii.gz\n"
    )
    listing = list_table(tmp_path / "cases.csv")
    assert listing.channels == ["CT"]
    assert [(c.name, c.patient, c.destination) for c in listing.cases] == [("one", "p1", "Tr"), ("two", "p1", "Un")]
    assert "images/none.nii.gz: no such file" in listing.refused["three"]
    assert "lacks the channel" in listing.refused["four"]


@pytest.mark.parametrize("script", [False, True])
def test_the_command_and_the_script(tmp_path: Path, script: bool) -> None:
    images, labels = pairs(tmp_path / "source", numbers=(10, 49))
    (images / "case_2.nii.gz").write_bytes((images / "case_2.nii.gz").read_bytes()[:-30])
    options = ["--labels", labels, "--channel", "T1w", "-d", "7", "-n", "Thalamus", "-o", tmp_path]
    done = command(images, *options, "--label-map", "10=left thalamus,49=right thalamus", script=script)
    assert done.returncode == 1, done.stderr
    assert "2 in imagesTr, 1 refused" in done.stdout
    assert "1 left thalamus (was 10), 2 right thalamus (was 49)" in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("ctnet: refused case_2: images/case_2.nii.gz: the compressed data are damaged")
    assert json.loads((tmp_path / "Dataset007_Thalamus/dataset.json").read_text())["numTraining"] == 2
    again = command(images, *options, script=script)
    assert again.returncode == 2
    assert again.stderr.startswith("ctnet: error:")
    assert len(again.stderr.splitlines()) == 1


@pytest.mark.skipif(os.name == "nt", reason="needs bash and ulimit")
def test_a_full_disk(tmp_path: Path) -> None:
    """A limit on file sizes stands in for it; ITK itself writes half a file then, and says nothing."""
    write(scan(size=(70, 60, 50)), tmp_path / "images/large.nii.gz")
    write(scan(), tmp_path / "images/small.nii.gz")
    convert = [sys.executable, "-m", "ctnet_nnunet.cli.main", "convert", "nifti", str(tmp_path / "images")]
    line = shlex.join([*convert, "--channel", "T1", "-d", "8", "-n", "Full", "-o", str(tmp_path), "-np", "0"])
    done = subprocess.run(["bash", "-c", f"ulimit -f 100; {line}"], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "refused large: large_0000.nii.gz: could not be written as a whole; free disk space" in done.stderr
    assert [p.name for p in (tmp_path / "Dataset008_Full/imagesUn").iterdir()] == ["small_0000.nii.gz"]
    done = subprocess.run(["bash", "-c", f"ulimit -f 0; {line} --force"], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stderr
    assert "cannot be written" in done.stderr
    assert [p.name for p in (tmp_path / "Dataset008_Full/imagesUn").iterdir()] == ["small_0000.nii.gz"]


@pytest.mark.skipif(not (SHARED / "deep_gray").is_dir(), reason="needs the real scans in ../shared/data/deep_gray")
def test_real_deep_gray(tmp_path: Path) -> None:
    folder = SHARED / "deep_gray"
    listing = list_pairs(folder / "images", folder / "labels", ["T1w"])
    kept = {"malf_1003", "malf_1023", "malf_1004", "malf_1024", "malf_1000"}
    listing.cases = [case for case in listing.cases if case.name in kept]
    table = tmp_path / "patients.csv"
    table.write_text("case,patient\n" + "".join(f"{n},{int(n[-4:]) % 20}\n" for n in sorted(kept)))
    report = run(listing, tmp_path, label_map=str(folder / "dataset.json"), patients=table)
    assert report.exit_status == 0
    assert report.labels is not None
    assert report.labels.names[0] == "thalamus_left"
    for split in report.splits:
        for pair in ({"malf_1003", "malf_1023"}, {"malf_1004", "malf_1024"}):
            assert pair <= set(split["train"]) or pair <= set(split["val"])
