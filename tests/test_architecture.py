"""The plan of the house holds: imports go down only, and each heavy library has one place."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "vidray"

LAYERS = [
    {"types", "errors", "config", "retry", "process", "filesystems", "fetch", "storage", "lease"},
    {
        *("manifest", "manifest_file", "listing", "listing_s3", "patterns", "splits", "label_sources", "labels"),
        *("sampling", "timeline", "selection", "transforms", "pictures", "random_crops", "video_files", "decode"),
    },
    {"views", "sandbox_wire", "sandbox_child", "sandbox_process", "sandbox", "hub", "models", "checkpoint", "metrics"},
    {
        *("scoring.output", "scoring.history", "scoring.plan"),
        *("scoring.stages", "scoring.predictor", "scoring.host", "scoring.progress", "scoring.summary"),
        *("scoring.streaming", "scoring.stream_predictor"),
        "training",
    },
    {"connection", "scoring.pipeline", "ray_helpers", "training.trainer", "training.ray_pool"},
    {"scoring.job", "training.job"},
    {"preview", "demo", "convert", "cli"},
]
"""Ground first, doors last. A module imports from its own layer and those before it."""

ONLY_IN = {
    "ray": {"connection", "scoring.pipeline", "ray_helpers", "training.trainer", "training.ray_pool"},
    "av": {"decode", "demo"},  # the demo also makes videos
    "duckdb": {"scoring.history", "demo"},
}


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }


def imports_of(path: Path, *, at_import_time: bool = False) -> set[str]:
    """Full names of what a module imports; only what it imports when it is imported itself, if so asked."""
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree))
    if at_import_time:
        nodes = [node for statement in tree.body for node in unconditional(statement)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def unconditional(statement: ast.stmt) -> list[ast.AST]:
    is_type_checking = isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test)
    skipped = (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)
    return [] if is_type_checking or isinstance(statement, skipped) else list(ast.walk(statement))


def layer_of(module: str) -> int:
    exact = [number for number, layer in enumerate(LAYERS) if module in layer]
    found = exact or [number for number, layer in enumerate(LAYERS) if module.split(".")[0] in layer]
    assert found, f"{module} is in no layer: give it a place in the plan of the house"
    return found[0]


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_go_down_only(module):
    for name in imports_of(modules()[module]):
        imported = name.removeprefix("vidray.")
        if name.startswith("vidray.") and imported in modules():
            assert layer_of(imported) <= layer_of(module), f"{module} imports {imported} from a layer above it"


@pytest.mark.parametrize("module", sorted(modules()))
def test_each_heavy_library_has_its_place(module):
    tops = {name.split(".")[0] for name in imports_of(modules()[module])}
    for library, places in ONLY_IN.items():
        assert library not in tops or module in places, f"{module} imports {library}; only {sorted(places)} may"


def test_training_and_scoring_never_import_each_other():
    for module, path in modules().items():
        for side, other in (("training", "scoring"), ("scoring", "training")):
            if module.startswith(f"{side}."):
                assert not any(name.startswith(f"vidray.{other}") for name in imports_of(path)), module


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("vidray.cli", {"torch", "transformers", "ray", "av", "duckdb"}),
        ("vidray.scoring.job", {"torch", "transformers", "ray"}),
        ("vidray.scoring.stages", {"torch", "transformers", "ray", "av"}),
        ("vidray.scoring.streaming", {"torch", "transformers", "ray", "av"}),
        ("vidray.sandbox_child", {"torch", "transformers", "ray", "pyarrow", "duckdb"}),
        ("vidray.convert", {"torch", "transformers", "ray", "av", "duckdb"}),
        ("vidray.models.catalogue", {"torch", "transformers", "ray", "av", "duckdb", "pytorchvideo"}),
        ("vidray.views", {"torch", "transformers", "ray", "pyarrow", "duckdb"}),
    ],
)
def test_what_must_start_fast_imports_nothing_heavy(module, unwanted):
    script = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not unwanted & set(done.stdout.split())
