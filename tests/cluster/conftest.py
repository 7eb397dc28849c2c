"""A model with random weights, as the prediction's own tests have it."""

from __future__ import annotations

from tests.inference.conftest import model_folder, tiny_for_models

__all__ = ["model_folder", "tiny_for_models"]
