"""Which folders become which packages; everything else about the project is in pyproject.toml.

Two top-level folders ship below ``ctnet_nnunet``: ``plans`` as ``ctnet_nnunet.plans`` and ``dataset_conversion`` as
``ctnet_nnunet.dataset_conversion``. Setuptools builds the same map into a wheel (files are copied) and into an editable
install (an import finder, because a path entry alone cannot rename a folder), so ``import ctnet_nnunet.plans`` and
``importlib.resources.files("ctnet_nnunet.plans")`` work in both. Both folders hold an ``__init__.py`` for that: the
finder resolves regular packages.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

MAPPED = {"ctnet_nnunet.plans": "plans", "ctnet_nnunet.dataset_conversion": "dataset_conversion"}
# A mapped folder ships once it is a package; one that is not there yet is no error.
PRESENT = {package: folder for package, folder in MAPPED.items() if (ROOT / folder / "__init__.py").is_file()}

setup(
    packages=[*find_packages(str(ROOT), include=["ctnet_nnunet", "ctnet_nnunet.*"]), *PRESENT],
    package_dir={"ctnet_nnunet": "ctnet_nnunet", **PRESENT},
    package_data={
        "ctnet_nnunet": ["py.typed"],
        "ctnet_nnunet.plans": ["*.json", "*.md"],
        "ctnet_nnunet.dataset_conversion": ["*.md", "*.csv", "*.json"],
        # The demo's real scans with their licence and source, and the templates of the reports.
        "ctnet_nnunet.demo": ["data/**/*.nii.gz", "data/**/*.json", "data/**/*.txt", "data/**/*.md", "*.html", "*.j2"],
        "ctnet_nnunet.low_label": ["**/*.html"],
        "ctnet_nnunet.inference": ["**/*.html"],
        "ctnet_nnunet.evaluation": ["**/*.html", "**/*.j2", "**/*.css"],
        "ctnet_nnunet.conversion": ["**/*.html"],
        "ctnet_nnunet.inspection": ["**/*.html"],
    },
)
