"""The plan of the house holds: imports go down only, and each heavy library has one place."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "vidray"

LAYERS = [
    ["types", "errors", "flags", "cpu_tuning", "logs", "progress", "monitoring"],
    ["storage", "video", "models"],
    ["sources", "sandbox", "checkpoints", "cluster", "webhook"],
    ["pages"],
    ["scoring", "training"],
    ["results"],
    ["api"],
    ["cli"],
    ["__main__"],
]
"""Ground first, entry points last. A module imports from the layers before its own, or from its own package."""

ORDER = {
    "storage": [
        *("redaction", "failures", "retry", "redirects", "location"),
        *("versions", "fetch", "neighbours", "ranges", "store", "folder_kind", "localize", "lease", "arrow_file"),
    ],
    "video": [
        *("sampling", "byte_sources", "mp4_boxes", "file_size", "geometry", "random_crops"),
        *("packet_times", "packet_index", "frame_selector", "frame_converters", "decoder"),
        *("pytorchvideo_clips", "views"),
    ],
    "sources": [
        *("patterns", "task_pool", "scratch", "rows", "walk", "walk_local", "walk_s3", "walk_fsspec"),
        *("tar_file", "sidecars", "tar_shards", "manifest_file", "kept_columns", "manifest", "signed_urls"),
        *("splits", "label_formats", "label_tars", "label_sources", "labels"),
    ],
    "sandbox": ["landlock", "seccomp", "confinement", "protocol", "page_server", "process", "child", "sandbox"],
    "checkpoints": ["resolve", "checkpoint", "card", "write", "convert", "new"],
    "pages": ["words", "blocks", "page", "charts", "strips", "shown", "terminal", "picture"],
    "scoring": [
        *("config", "output", "plan_rows", "history", "accounting", "plan", "planning", "collector", "timing"),
        *("monitored", "summary", "verdict", "notify"),
        *("staging", "predictor", "classifier", "stages", "batching", "stream_predictor"),
        *("segment_predictor", "stream_stage", "runners", "stage_specs", "job"),
    ],
    "scoring.runners": ["base", "local_worker", "local", "ray_layout", "ray", "choose"],
    "training": [
        *("config", "metrics", "trackers", "resources", "device", "data", "loop", "plan"),
        *(
            "evaluate",
            "report_facts",
            "report_charts",
            "report",
            "publish",
            "evaluate_job",
            "finish",
            "worker",
            "trainer",
            "job",
        ),
    ],
    "training.data": [
        *("order", "batch", "bad_videos", "rand_augment", "augment", "clips", "pools", "ray_pool"),
        *("prefetcher", "clip_source"),
    ],
    "training.loop": [
        *("gradients", "ranks", "step_timer", "layers", "optim", "mixing", "build"),
        *("background", "state", "position", "task", "checkpoint_writer", "loop"),
    ],
    "results": [
        *("merged", "read", "compact", "verify", "similar", "moments", "detection", "evaluation"),
        *("parts", "runs", "changes", "run_rows", "accuracy", "profile", "views", "session", "table"),
        *("formats", "ddl", "examples", "overview", "query", "comparison", "compare", "naming", "forget", "show"),
        *("advice", "report_run", "report_found", "report_change", "report", "status", "nightly"),
    ],
    "cli": ["help", "parsing", "verdict_line", "demo", "preview", "completion", "main"],
}
"""The order within a package: a module imports only from those before it."""

ONLY_IN = {
    "ray": {"cluster", "scoring.runners.ray", "training.trainer", "training.data.ray_pool"},
    "av": {"video.decoder", "cli.demo"},  # the demo also makes videos
    "duckdb": {
        "sources.scratch",
        "scoring.history",
        "scoring.accounting",
        "scoring.planning",
        "results.read",
        "results.session",
        "results.changes",
    }
    | {"results.run_rows", "results.report_run", "results.report_found", "results.report_change", "cli.demo"}
    | {"results.profile", "results.accuracy"},
}


LOCATED_IN = {
    *("checkpoints.resolve", "sources.labels", "sources.manifest", "sources.manifest_file", "sources.kept_columns"),
    "sources.tar_shards",
    *("storage.fetch", "storage.store", "results.naming", "results.forget"),
}
"""Where a URI is parsed, once; what these modules call takes the `Location`."""


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


def imported_modules(path: Path) -> set[str]:
    """Modules of ours that a module imports, as ``scoring.plan``."""
    return {name.removeprefix("vidray.") for name in imports_of(path) if name.startswith("vidray.")} & set(modules())


def place_of(module: str, names: list[str], package: str = "") -> int:
    own = module.removeprefix(f"{package}.").split(".")[0]
    assert own in names, f"{module} has no place in the plan of {package or 'the house'}"
    return names.index(own)


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_go_down_only(module):
    def layer(name: str) -> int:
        return next((number for number, names in enumerate(LAYERS) if name.split(".")[0] in names), -1)

    assert layer(module) >= 0, f"{module} is in no layer: give it a place in the plan of the house"
    for imported in imported_modules(modules()[module]):
        is_own = imported.split(".")[0] == module.split(".")[0]
        assert is_own or layer(imported) < layer(module) or layer(module) == 0, f"{module} imports {imported}"


@pytest.mark.parametrize("package", sorted(ORDER))
def test_each_package_has_an_order(package):
    for module, path in modules().items():
        if module.startswith(f"{package}."):
            own = place_of(module, ORDER[package], package)
            for imported in imported_modules(path):
                if imported.startswith(f"{package}."):
                    place = place_of(imported, ORDER[package], package)
                    inside = (
                        imported.split(".")[: package.count(".") + 2] == module.split(".")[: package.count(".") + 2]
                    )
                    assert place < own or (inside and imported != module), f"{module} imports {imported}"


def test_there_is_no_circle_of_imports():
    graph = {module: imported_modules(path) - {module} for module, path in modules().items()}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("module", sorted(modules()))
def test_each_heavy_library_has_its_place(module):
    tops = {name.split(".")[0] for name in imports_of(modules()[module])}
    for library, places in ONLY_IN.items():
        assert library not in tops or module in places, f"{module} imports {library}; only {sorted(places)} may"


def test_a_uri_is_parsed_where_it_comes_in():
    assert {
        name for name, path in modules().items() if "vidray.storage.location.locate" in imports_of(path)
    } == LOCATED_IN


def test_training_and_scoring_never_import_each_other():
    for module, path in modules().items():
        for side, other in (("training", "scoring"), ("scoring", "training")):
            if module.startswith(f"{side}."):
                assert not any(name.startswith(f"vidray.{other}") for name in imports_of(path)), module


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("vidray.cli.main", {"torch", "transformers", "ray", "av", "duckdb"}),
        ("vidray.scoring.job", {"torch", "transformers", "ray"}),
        ("vidray.results.status", {"torch", "transformers", "ray", "av"}),
        ("vidray.scoring.stages", {"torch", "transformers", "ray", "av"}),
        ("vidray.scoring.stream_stage", {"torch", "transformers", "ray", "av"}),
        ("vidray.sandbox.child", {"torch", "transformers", "ray", "pyarrow", "duckdb"}),
        ("vidray.checkpoints.new", {"torch", "transformers", "ray", "av", "duckdb", "pytorchvideo"}),
        ("vidray.checkpoints.convert", {"torch", "transformers", "ray", "av", "duckdb"}),
        ("vidray.models.catalogue", {"torch", "transformers", "ray", "av", "duckdb", "pytorchvideo"}),
        ("vidray.video.views", {"torch", "transformers", "ray", "pyarrow", "duckdb"}),
    ],
)
def test_what_must_start_fast_imports_nothing_heavy(module, unwanted):
    script = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not unwanted & set(done.stdout.split())
