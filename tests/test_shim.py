"""nnU-Net's own finder, in real processes, on the shim of the installed package."""

from __future__ import annotations

import ast
import pkgutil

import pytest

from ctnet_nnunet.shim_path import SHIM_FOLDER, SHIM_MODULE, trainer_names
from tests.shim_facts import look_up


@pytest.fixture(scope="module")
def facts() -> dict[str, dict[str, object]]:
    return look_up(trainer_names(), SHIM_FOLDER)


def test_the_shim_names_the_trainers_of_this_release() -> None:
    assert {"nnUNetTrainerCTNet", "nnUNetTrainerCTNetPretrain"} <= set(trainer_names())


@pytest.mark.parametrize("name", trainer_names())
def test_found_picklable_and_always_the_same_class(facts: dict[str, dict[str, object]], name: str) -> None:
    fact = facts[name]
    assert str(fact["module"]).startswith("ctnet_nnunet.trainers.")
    assert fact["same_at_second_look_up"]
    assert fact["same_as_direct_import"]
    assert fact["same_after_pickle"]


def test_one_flat_module_and_no_class_of_its_own() -> None:
    modules = list(pkgutil.iter_modules([str(SHIM_FOLDER)]))
    assert [(module.name, module.ispkg) for module in modules] == [("ctnet_trainers", False)]
    body = ast.parse(SHIM_MODULE.read_text(encoding="utf-8")).body
    assert not [node for node in body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]


def test_every_name_is_imported_explicitly() -> None:
    body = ast.parse(SHIM_MODULE.read_text(encoding="utf-8")).body
    imported = {
        alias.asname or alias.name
        for node in body
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("ctnet_nnunet.trainers.")
        for alias in node.names
    }
    assert imported == set(trainer_names())
