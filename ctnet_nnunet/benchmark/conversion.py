"""Cases per minute and peak memory of a conversion, beside what decoding and encoding alone cost."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ctnet_nnunet.conversion.case import Outcome
from ctnet_nnunet.conversion.convert import convert
from ctnet_nnunet.conversion.settings import Settings
from ctnet_nnunet.conversion.sources.nifti import list_pairs
from ctnet_nnunet.conversion.writer import COMPRESSION
from ctnet_nnunet.errors import SetupError

_BARE_CASES = 10


@dataclass(frozen=True)
class ConversionFigures:
    """``seconds`` of wall time for all; ``worker_seconds`` and ``bare_seconds`` are CPU seconds a case; bytes."""

    cases: int
    processes: int
    source_bytes: int
    seconds: float
    worker_seconds: float
    bare_seconds: float
    peak_worker_bytes: int

    @property
    def cases_per_minute(self) -> float:
        return 60 * self.cases / self.seconds


def measure_conversion(
    cases: int, size: tuple[int, ...], processes: int, say: Callable[[str], None]
) -> ConversionFigures:
    """Convert generated cases from a temporary folder; ``size`` is in voxels along x, y, z, ``processes`` at least 1.

    Raises:
        SetupError: a generated case was refused, which would make the figures meaningless.
    """
    with tempfile.TemporaryDirectory(prefix="ctnet-benchmark-") as temporary:
        root = Path(temporary)
        say(f"generating {cases} cases of {'×'.join(map(str, size))} voxels")
        for index in range(cases):
            _generate(root, index, size)
        files = list(root.rglob("*.nii.gz"))
        bare = _bare_seconds(root, min(cases, _BARE_CASES))
        peak, taken = 0, list[float]()

        def watch(outcome: Outcome, through: int, total: int) -> None:
            nonlocal peak
            peak = max([peak, *(_peak_bytes(child.pid) for child in multiprocessing.active_children())])
            taken.append(outcome.cpu_seconds)
            if through % 25 == 0 or through == total:
                say(f"{through}/{total} converted")

        settings = Settings(501, "Benchmark", out=root / "raw", processes=processes, label_map="1=small,2=large")
        start = time.perf_counter()
        report = convert(list_pairs(root / "images", root / "labels", ["MR"]), settings, watch)
        seconds = time.perf_counter() - start
        if report.refused:
            raise SetupError(f"a generated case was refused: {next(iter(report.refused.values()))}")
        source_bytes = sum(path.stat().st_size for path in files)
    return ConversionFigures(cases, processes, source_bytes, seconds, float(np.mean(taken)), bare, peak)


def _generate(root: Path, index: int, size: tuple[int, ...]) -> None:
    """A smooth int16 scan with noise, which compresses about as an MR scan does, and a label map of two boxes; LPS."""
    rng = np.random.default_rng(index)
    shape = size[::-1]
    smooth = sum(
        np.cos(np.linspace(0, 3, n)).reshape([-1 if a == axis else 1 for a in range(3)]) for axis, n in enumerate(shape)
    )
    scan = sitk.GetImageFromArray((300 * smooth + rng.normal(600, 15, shape)).astype(np.int16))
    array = np.zeros(shape, np.uint8)
    array[tuple(slice(n // 4, n // 2) for n in shape)] = 2
    array[tuple(slice(n // 2, 2 * n // 3) for n in shape)] = 1
    label = sitk.GetImageFromArray(array)
    for image, folder in ((scan, "images"), (label, "labels")):
        (root / folder).mkdir(exist_ok=True)
        sitk.WriteImage(image, str(root / folder / f"case_{index:04d}.nii.gz"), True)


def _bare_seconds(root: Path, cases: int) -> float:
    """Reading and writing a case with ITK alone, in this process and one thread."""
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    start = time.process_time()
    for index in range(cases):
        for folder in ("images", "labels"):
            image = sitk.ReadImage(str(root / folder / f"case_{index:04d}.nii.gz"))
            sitk.WriteImage(image, str(root / "bare.nii.gz"), True, COMPRESSION)
    seconds = (time.process_time() - start) / cases
    (root / "bare.nii.gz").unlink()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    return seconds


def _peak_bytes(process_id: int | None) -> int:
    """A process's peak resident memory from the kernel; 0 for one that has just ended."""
    try:
        lines = Path(f"/proc/{process_id}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
