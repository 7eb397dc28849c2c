"""Which nnunetv2 this package works with; read from its metadata, because importing nnunetv2 takes seconds."""

from __future__ import annotations

from importlib import metadata

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from ctnet_nnunet.errors import SetupError

# The trainer's hooks and signatures change between minor versions: a newer one is tried before it is allowed.
SUPPORTED = SpecifierSet(">=2.8.1,<2.9")
REMEDY = f'install a supported one: python -m pip install "nnunetv2{SUPPORTED}"'


def installed_nnunet_version() -> str | None:
    """Version of the nnunetv2 that this Python would import, or None when there is none."""
    try:
        return metadata.version("nnunetv2")
    except metadata.PackageNotFoundError:
        return None


def is_supported(version: str) -> bool:
    """True when ``version`` (PEP 440) lies in :data:`SUPPORTED`; a development version of a supported one counts."""
    try:
        return SUPPORTED.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


def require_supported_nnunet() -> None:
    """Refuse to go on with an nnunetv2 that this package was not tested with.

    Raises:
        SetupError: nnunetv2 is missing, or its version is outside :data:`SUPPORTED`.
    """
    version = installed_nnunet_version()
    if version is None:
        raise SetupError(f"nnunetv2 is not installed in this Python environment; {REMEDY}")
    if not is_supported(version):
        raise SetupError(f"nnunetv2 {version} is installed but ctnet_nnunet needs nnunetv2{SUPPORTED}; {REMEDY}")
