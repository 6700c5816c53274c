"""Makes Transformers' Auto classes, and with them ``pipeline``, know the models that vidray adds.

Registering needs Transformers and torch, which ``import vidray`` must not load: the driver and the decoding processes
do without. So ``import vidray`` only leaves word with Python's import system: when the Auto classes of models are
imported, by whomever, vidray's are registered right after. Where they have been imported before, it happens at once.
Nothing of Transformers is changed but by its own ``register``; ``register()`` does the same when called.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_AUTO_CLASSES = "transformers.models.auto.modeling_auto"


def register() -> None:
    """Register vidray's models with AutoConfig and AutoModelForVideoClassification. Calling it again is harmless."""
    from transformers import AutoConfig, AutoModelForVideoClassification

    from vidray.models.families import FAMILIES

    for family in FAMILIES.values():
        if family.module.startswith("vidray."):
            model_class, config_class = family.load_classes()
            AutoConfig.register(family.model_type, config_class, exist_ok=True)
            AutoModelForVideoClassification.register(config_class, model_class, exist_ok=True)


def register_when_needed() -> None:
    """Register as soon as Transformers' Auto classes of models are imported; at once if they are."""
    if _AUTO_CLASSES in sys.modules:
        register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Waits in ``sys.meta_path`` for one module, and leaves when it comes."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _AUTO_CLASSES:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
        return spec


class _Loader:
    """Loads a module as its own loader does, then registers."""

    def __init__(self, loader: object) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self._loader  # type: ignore[assignment]
        self._loader.exec_module(module)  # type: ignore[attr-defined]
        register()
