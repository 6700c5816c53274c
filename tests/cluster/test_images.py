"""What the images are made of: everything that is copied is there, dependencies come first, and no root."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.support import runs

FILES = sorted((runs.ROOT / "cluster").glob("*.Dockerfile"))
NOBODY = 65534

each_image = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def steps(path: Path) -> list[tuple[str, str]]:
    """Instructions with what follows them, on one line each."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(step.split(" ", 1)[0], step.split(" ", 1)[1]) for step in joined.splitlines()]


def copies(path: Path) -> list[tuple[list[str], str]]:
    """Of each COPY what is copied, and where to."""
    found = [arguments(rest) for step, rest in steps(path) if step == "COPY"]
    return [(words[:-1], words[-1]) for words in found]


def arguments(rest: str) -> list[str]:
    return [word for word in rest.split() if not word.startswith("--")]


def context() -> list[str]:
    """Tracked files that .dockerignore lets a build see."""
    deny, *allow = [line for line in (runs.ROOT / ".dockerignore").read_text().split("\n") if line and line[0] != "#"]
    assert deny == "*"
    kept = [line[1:] for line in allow if line.startswith("!")]
    listed = subprocess.run(["git", "ls-files"], cwd=runs.ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no git checkout")
    names = listed.stdout.split()
    return [name for name in names if any(fnmatch(name, one) or name.startswith(f"{one}/") for one in kept)]


@each_image
def test_a_build_sees_what_is_copied_and_nothing_else(path):
    seen, wanted = set(context()), {name for names, _ in copies(path) for name in names}
    for name in wanted:
        assert name in seen or any(one.startswith(f"{name}/") for one in seen), f"{name} is in .dockerignore"
    assert {name for name in seen if name not in wanted and name.partition("/")[0] not in wanted} == set()
    assert not {name.partition("/")[0] for name in seen} & {"tests", "docs", "benchmarks", ".venv", "node_modules"}


@each_image
def test_a_change_of_the_code_installs_no_dependency_again(path):
    order = [name for names, _ in copies(path) for name in names]
    assert order[-1] == "vidray"
    numbered = list(enumerate(steps(path)))
    copied = max(number for number, (step, _) in numbered if step == "COPY")
    installs = [(number, rest) for number, (step, rest) in numbered if step == "RUN" and "pip install" in rest]
    assert [number > copied for number, _ in installs] == [False, False, True]
    assert "--no-deps" in installs[-1][1]
    assert all("-c constraints.txt" in rest for number, rest in installs if number < copied)


@each_image
def test_it_runs_as_an_ordinary_user_on_the_ray_that_is_pinned(path):
    (base,) = (rest for step, rest in steps(path) if step == "FROM")
    (ray,) = re.findall(r"^ray==(\S+)", (runs.ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert base == f"rayproject/ray:{ray}-py311-{path.stem}"
    assert [rest for step, rest in steps(path) if step == "USER"] == ["1000"], "a number: Kubernetes tells it from root"


@each_image
def test_hadolint_has_nothing_to_say(path):
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([hadolint, "--no-color", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_shellcheck_has_nothing_to_say_of_the_wrapper():
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(
        [shellcheck, str(runs.ROOT / "cluster/restart.sh")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_two_images_differ_in_where_torch_comes_from_alone():
    cpu, gpu = (steps(runs.ROOT / f"cluster/{name}.Dockerfile") for name in ("cpu", "gpu"))
    differ = [step for step, other in zip(cpu, gpu, strict=True) if step != other]
    assert [name for name, _ in differ] == ["FROM", "RUN"]
    assert "--extra-index-url https://download.pytorch.org/whl/cpu" in differ[1][1]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """pytest's own folders are closed to other users."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.parametrize("packages", ["of this environment", pytest.param("from an index", marks=pytest.mark.long)])
@pytest.mark.timeout(3600)
def test_the_steps_of_an_image_work_in_a_new_environment(packages, open_folder):
    """No image can be built in a test. The steps of the GPU's are done, with a folder in place of /home/ray."""
    home, environment = open_folder / "home", open_folder / "venv"
    home.mkdir()
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    variables = {"PATH": f"{environment}/bin:/usr/bin:/bin", "HOME": str(home)}
    if packages == "of this environment":  # pip finds all that is pinned, or fails
        python = [str(environment / "bin/python"), "-m", "pip"]
        subprocess.run([*python, "uninstall", "-q", "-y", "setuptools"], check=True)  # an old one, before Python 3.12
        site = next(environment.glob("lib/python3*/site-packages"))
        (site / "others.pth").write_text("\n".join(one for one in sys.path if one.endswith("site-packages")) + "\n")
        variables["PIP_NO_INDEX"] = "1"
    else:
        kept = ("PIP_", "http", "no_proxy", "SSL_", "REQUESTS_")
        variables |= {name: value for name, value in os.environ.items() if name.startswith(kept)}
    user = ordinary_user(open_folder)
    folder = follow(steps(runs.ROOT / "cluster/gpu.Dockerfile"), home, variables, user)

    night = ["sh", "restart.sh", "0", "0", "vidray", "nightly", "--help"]
    done = subprocess.run(night, cwd=folder, env=variables, capture_output=True, text=True, check=False, **user)
    assert (done.returncode, "--max-drift" in done.stdout) == (0, True), done.stderr
    imported = "import vidray, s3fs, gcsfs, adlfs, ray.data, ray.train; print(vidray.__file__)"
    python = [str(environment / "bin/python"), "-P", "-c", imported]
    done = subprocess.run(python, cwd=home, env=variables, capture_output=True, text=True, check=False, **user)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(environment)


def ordinary_user(folder: Path) -> dict[str, int]:
    """Who runs the steps: not root, unless root alone may run this Python. ``folder`` becomes theirs."""
    user = {"user": NOBODY, "group": NOBODY}
    python = str(Path(sys.executable).resolve())
    if os.getuid() != 0 or subprocess.run(["/bin/sh", "-c", f"test -x {python}"], check=False, **user).returncode:
        return {}
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    return user


def follow(instructions: list[tuple[str, str]], home: Path, variables: dict[str, str], user: dict[str, int]) -> Path:
    """Does what a Dockerfile says, and returns its working folder."""
    seen, folder = context(), home
    for step, rest in instructions:
        if step == "WORKDIR":
            folder = home / Path(rest).relative_to("/home/ray")
        elif step == "ENV":
            variables |= dict(word.split("=", 1) for word in rest.split())
        elif step == "COPY":
            *names, target = arguments(rest)
            copy(seen, names, folder / target, user)
        elif step == "RUN":
            command = ["/bin/sh", "-c", rest.replace("/home/ray", str(home))]
            done = subprocess.run(
                command, cwd=folder, env=variables, capture_output=True, text=True, check=False, **user
            )
            assert done.returncode == 0, f"{rest}\n{done.stderr[-3000:]}"
    return folder


def copy(seen: list[str], names: list[str], target: Path, user: dict[str, int]) -> None:
    """As COPY does: a folder's content goes into ``target``, files keep their names."""
    for name in names:
        for file in seen:
            if file == name:
                place = target / Path(name).name
            elif file.startswith(f"{name}/"):
                place = target / Path(file).relative_to(name)
            else:
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(runs.ROOT / file, place)
    if user:
        for path in (target, *target.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
