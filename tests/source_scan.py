"""What the package's source imports and which dangerous calls it makes, read with ast and without importing it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "ctnet_nnunet"
MAPPED = {"plans": f"{PACKAGE}.plans", "dataset_conversion": f"{PACKAGE}.dataset_conversion"}

# A call by its last name, whatever it is called on: an alias must not hide it.
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_CALLS = {
    "extractall", "extract", "unpack_archive", "getoutput", "getstatusoutput",
    "import_module", "load_pickle", "get_network_from_plans", "run_path", "run_module",
    "exec_module", "Unpickler",
}  # fmt: skip
FORBIDDEN_ON = {
    ("pickle", "load"), ("pickle", "loads"), ("marshal", "load"), ("marshal", "loads"), ("dill", "load"),
    ("dill", "loads"), ("cloudpickle", "load"), ("cloudpickle", "loads"), ("joblib", "load"), ("shelve", "open"),
    ("pydoc", "locate"), ("os", "system"), ("os", "popen"), ("hub", "load"), ("yaml", "load"),
    ("pandas", "read_pickle"), ("pd", "read_pickle"),
}  # fmt: skip
FORBIDDEN_IMPORTS = {"pydoc", "dill", "shelve", "marshal", "runpy", "imp", "torch.hub"}


def source_files() -> dict[str, Path]:
    """Every source file that ships: repository path (posix) → file."""
    folders = [PACKAGE, *MAPPED]
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path for path in paths}


def module_of(file: str) -> str:
    """Dotted name of a source file under which it is installed: ``plans/a.py`` → ``ctnet_nnunet.plans.a``."""
    parts = list(Path(file).with_suffix("").parts)
    parts[0] = MAPPED.get(parts[0], parts[0])
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all imports at any depth; for ``from a import b`` both ``a`` and ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute, so that they can be read"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((keyword.value for keyword in call.keywords if keyword.arg == name), None)


def _is(value: ast.expr | None, wanted: object) -> bool:
    return isinstance(value, ast.Constant) and value.value is wanted


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _danger(call: ast.Call) -> str | None:
    name = _last_name(call.func)
    on = _last_name(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    if (isinstance(call.func, ast.Name) and name in FORBIDDEN_NAMES) or name in FORBIDDEN_CALLS:
        return name
    if (on, name) in FORBIDDEN_ON:
        return f"{on}.{name}"
    if (on, name) == ("torch", "load") and not _is(_keyword(call, "weights_only"), True):
        return "torch.load without weights_only=True"
    if _keyword(call, "allow_pickle") is not None and not _is(_keyword(call, "allow_pickle"), False):
        return "allow_pickle"
    if _keyword(call, "shell") is not None and not _is(_keyword(call, "shell"), False):
        return "shell"
    return None


def dangers(source: str) -> list[tuple[int, str]]:
    """(line, what) of every call or import that could run what a file says."""
    tree = ast.parse(source)
    calls = [(node.lineno, what) for node in ast.walk(tree) if isinstance(node, ast.Call) and (what := _danger(node))]
    # A bare name taken out of such a module would hide its calls from the scan above.
    taken = {f"{module}.{name}" for module, name in FORBIDDEN_ON} | FORBIDDEN_IMPORTS | {"torch.load"}
    imports = [
        (node.lineno, f"import of {name}")
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in imported_modules(ast.Module(body=[node], type_ignores=[]))
        if name in taken
    ]
    return sorted(calls + imports)
