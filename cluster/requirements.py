"""Prints what vidray needs: ``python requirements.py s3 gcs > requirements.txt``, beside pyproject.toml.

An image installs it before the code is there, so that a change of the code does not install it again.
"""

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: str, extras: list[str]) -> list[str]:
    """What has to be installed to build and to run, with these extras."""
    content = tomllib.loads(pyproject)
    project = content["project"]
    optional = [name for extra in extras for name in project["optional-dependencies"][extra]]
    return [*content["build-system"]["requires"], *project["dependencies"], *optional]


if __name__ == "__main__":
    print("\n".join(requirements(Path("pyproject.toml").read_text(), sys.argv[1:])))
