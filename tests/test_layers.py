"""The rules of docs/architecture.md, read from the source: who imports whom, and that no file's content is run."""

from __future__ import annotations

import ast
import re
import sys

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

from tests.source_scan import PACKAGE, ROOT, dangers, imported_modules, module_of, source_files

FILES = source_files()
TREES = {file: ast.parse(path.read_text(encoding="utf-8")) for file, path in FILES.items()}

PURE = {"architectures", "pretext", "cross_modality", "semi_supervised"}
# component → the components it may import besides itself and the plain modules at the package's top ("base").
MAY_IMPORT: dict[str, set[str]] = {
    "base": set(),
    "plans": set(),
    "planes": set(),
    "architectures": set(),
    "pretext": {"architectures"},
    "cross_modality": {"architectures"},
    "semi_supervised": {"architectures"},
    "planning": PURE,
    "unlabeled": {"planning", "planes"},
    "trainers": {*PURE, "planning", "unlabeled", "planes", "evaluation"},
    "nnunet_shim": {"trainers"},
    "train": {"trainers"},
    "inference": {"architectures", "cross_modality", "planning", "evaluation", "conversion"},
    "conversion": {"planes"},
    "dataset_conversion": {"conversion"},
    "evaluation": set(),
    "doctor": set(),
    "benchmark": {"architectures", "pretext", "semi_supervised", "planning", "conversion", "evaluation"},
    "demo": {"evaluation"},
    "low_label": {"architectures", "pretext", "planning", "unlabeled", "evaluation", "planes"},
    "inspection": {"architectures", "pretext", "planning", "unlabeled", "evaluation", "planes"},
    "cluster": {"unlabeled", "planning", "evaluation", "inference"},
    "cli": {
        *("trainers", "inference", "evaluation", "conversion", "planning", "unlabeled", "demo", "doctor", "benchmark"),
        *("low_label", "dataset_conversion", "inspection", "cluster"),
    },
}
MAY_IMPORT_NNUNET = {
    *("trainers", "train", "planning", "unlabeled", "inference", "nnunet_shim", "demo", "benchmark", "inspection"),
    "cluster",
}
# dynamic_network_architectures is made of torch and timm; nothing of nnU-Net comes with it.
PURE_LIBRARIES = {"torch", "numpy", "dynamic_network_architectures", "timm"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
DECLARED = [*PROJECT["dependencies"], *EXTRAS["cpu"], *EXTRAS["cluster"]]

# Dangerous calls that were looked at: file → {what: why it is safe there}. An entry without its call is an error.
AUDITED: dict[str, dict[str, str]] = {}

DISTRIBUTIONS = {
    "SimpleITK": "simpleitk",
    "yaml": "pyyaml",
    "PIL": "pillow",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
}


def component(module: str) -> str:
    """``ctnet_nnunet.trainers.ctnet`` → ``trainers``; plain modules at the top are ``base``."""
    parts = module.split(".")
    if len(parts) == 1:
        return "base"
    return parts[1] if parts[1] in PACKAGES else "base"


PACKAGES = {module_of(file).split(".")[1] for file in FILES if module_of(file).count(".") >= 1 and "__init__" in file}


def _own_imports(file: str) -> set[str]:
    return {name for name in imported_modules(TREES[file]) if name.split(".")[0] == PACKAGE}


def _libraries(file: str) -> set[str]:
    tops = {name.split(".")[0] for name in imported_modules(TREES[file])}
    return tops - set(sys.stdlib_module_names) - {PACKAGE}


def test_every_component_has_its_place_in_the_table() -> None:
    unknown = {component(module_of(file)) for file in FILES} - set(MAY_IMPORT)
    assert unknown == set(), "say in MAY_IMPORT what these may import"


def test_the_table_itself_has_no_cycle() -> None:
    remaining = {name: set(targets) for name, targets in MAY_IMPORT.items()}
    while remaining:
        free = [name for name, targets in remaining.items() if not targets & set(remaining)]
        assert free, f"cycle among {sorted(remaining)}"
        for name in free:
            del remaining[name]


@pytest.mark.parametrize("file", FILES)
def test_dependencies_point_one_way(file: str) -> None:
    own = component(module_of(file))
    allowed = {own, "base"} | MAY_IMPORT[own]
    assert {component(name) for name in _own_imports(file)} - allowed == set()


@pytest.mark.parametrize("file", FILES)
def test_nnunet_is_imported_by_its_adapters_only(file: str) -> None:
    if component(module_of(file)) not in MAY_IMPORT_NNUNET:
        assert "nnunetv2" not in _libraries(file)


@pytest.mark.parametrize("file", [file for file in FILES if component(module_of(file)) in PURE])
def test_the_pure_packages_are_torch_alone(file: str) -> None:
    assert _libraries(file) - PURE_LIBRARIES == set()


@pytest.mark.parametrize("file", FILES)
def test_every_library_is_a_declared_dependency(file: str) -> None:
    declared = {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in DECLARED}
    used = {DISTRIBUTIONS.get(name, name).lower().replace("_", "-") for name in _libraries(file)}
    assert used - declared == set()


@pytest.mark.parametrize("file", FILES)
def test_no_file_content_is_ever_run(file: str) -> None:
    found = dangers(FILES[file].read_text(encoding="utf-8"))
    unexpected = [(line, what) for line, what in found if what not in AUDITED.get(file, {})]
    assert unexpected == []


def test_the_audited_list_is_not_stale() -> None:
    for file, entries in AUDITED.items():
        assert set(entries) <= {what for _, what in dangers(FILES[file].read_text(encoding="utf-8"))}


@pytest.mark.parametrize(
    "snippet",
    [
        "import pickle\npickle.load(f)",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "from torch import load",
        "import pydoc",
        "torch.hub.load('x', 'y')",
        "eval(text)",
        "exec(text)",
        "archive.extractall(folder)",
        "shutil.unpack_archive(file)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "os.popen(text)",
        "np.load(file, allow_pickle=True)",
        "importlib.import_module(name)",
        "__import__(name)",
        "joblib.load(file)",
        "load_pickle(file)",
        "get_network_from_plans(name)",
    ],
)
def test_the_scan_sees_each_of_these(snippet: str) -> None:
    assert dangers(snippet)


@pytest.mark.parametrize(
    "snippet",
    [
        "torch.load(path, weights_only=True)",
        "model.eval()",
        "json.load(file)",
        "re.compile('x')",
        "torch.compile(net)",
        "platform.system()",
    ],
)
def test_the_scan_lets_these_pass(snippet: str) -> None:
    assert dangers(snippet) == []
