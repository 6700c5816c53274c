"""What is installed from a wheel works without the repository, and the project's own files say the same everywhere."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.support import runs
from vidray.cluster import RAY_VERSIONS, check_ray_version
from vidray.errors import UsageError
from vidray.scoring.output import PREDICTION_SCHEMA
from vidray.types import Status

PYPROJECT = tomllib.loads((runs.ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from the tracked files, as they are here, with the setuptools that is installed."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=runs.ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("this is no git checkout")
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (runs.ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((runs.ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-q"]
    done = subprocess.run([*build, "-w", str(folder), str(source)], capture_output=True, text=True, check=False)
    if "No module named pip" in done.stderr:
        pytest.skip("pip is not installed")
    assert done.returncode == 0, done.stderr
    (path,) = folder.iterdir()
    return path


def test_a_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"vidray"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    tracked = subprocess.run(["git", "ls-files", "vidray"], cwd=runs.ROOT, capture_output=True, text=True, check=True)
    assert set(tracked.stdout.split()) <= set(names)
    assert "vidray/py.typed" in names


def test_a_wheel_works_where_the_repository_is_not(wheel, tmp_path):
    """Beside the libraries that are installed here: torch is large."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    site = next(environment.glob("lib/python3*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    others = [path for path in sys.path if path.endswith("site-packages")]
    (site / "others.pth").write_text("\n".join(others) + "\n")
    python = [str(environment / "bin/python"), "-P"]
    script = "import vidray; print(vidray.__file__)"
    done = subprocess.run([*python, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).is_relative_to(site)
    for arguments, expected in (["--version"], "vidray "), (["score", "--help"], "--source URI"):
        done = subprocess.run(
            [*python, "-m", "vidray", *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert expected in done.stdout
    done = subprocess.run([*python, "-m", "vidray", "scor"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "allowed are score" in done.stderr) == (2, True)


@pytest.mark.parametrize("version", ["2.55.1", "2.58.1", "2.61.0", "3.0.0", "1.13.0"])
def test_a_ray_that_was_never_tried_is_refused_with_the_way_out(version):
    with pytest.raises(UsageError, match=rf"Ray {version} is installed; vidray works with .*: pip install 'ray\["):
        check_ray_version(version)


@pytest.mark.parametrize("version", ["2.59.0", "2.59.1", "2.60.0", "2.60.0.dev0"])
def test_a_ray_that_was_tried_is_taken(version):
    check_ray_version(version)


def test_the_range_of_ray_is_the_same_wherever_it_stands():
    (oldest_major, oldest), (major, newest) = RAY_VERSIONS
    (pinned,) = (text for text in PYPROJECT["project"]["dependencies"] if text.startswith("ray["))
    assert pinned.endswith(f">={oldest_major}.{oldest},<{major}.{newest + 1}")
    workflow = (runs.ROOT / ".github/workflows/ci.yml").read_text()
    assert set(re.findall(r'ray: "([^"]+)"', workflow)) == {f"2.{oldest}.*", f"2.{newest}.*"}
    classifiers = PYPROJECT["project"]["classifiers"]
    pythons = {name.rpartition(" ")[2] for name in classifiers if "Python :: 3" in name}
    assert set(re.findall(r'python: "([^"]+)", ray', workflow)) == pythons


def test_every_status_and_every_column_is_in_the_docs():
    text = (runs.ROOT / "docs/output.md").read_text()
    named = set(re.findall(r"`([a-z_0-9]+)`", text))
    assert {status.value for status in Status} <= named
    assert set(PREDICTION_SCHEMA.names) <= named
