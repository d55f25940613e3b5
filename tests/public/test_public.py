"""The public modules have the names and signatures recorded in this folder, and type checkers see their types."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import api
from tests.helpers.pages import ROOT

HERE = Path(__file__).parent


def test_public_names_and_signatures_are_those_of_api_txt() -> None:
    recorded = (HERE / "api.txt").read_text()
    assert api.interface() == recorded, "if the change is intended: python -m tests.helpers.api > tests/public/api.txt"


@pytest.mark.parametrize(
    "change",
    [
        ("def used(a: int", "def used(a: float"),
        ("def used", "def renamed"),
        ("= 1", "= 2"),
        ("field: str", "field: bytes"),
        ("def method(self)", "def method(self, more)"),
    ],
)
def test_a_change_of_a_name_a_type_a_default_or_a_field_is_detected(change: tuple[str, str]) -> None:
    source = "def used(a: int, b=1): ...\nclass C:\n    field: str = ''\n    def method(self): ...\nVALUE = 1\n"
    assert api.describe(source.replace(*change)) != api.describe(source)


def test_code_docstrings_and_private_names_are_not_part_of_the_interface() -> None:
    plain = "def used():\n    ...\nclass C:\n    field: str"
    full = (
        'import os\n\ndef used():\n    """Do."""\n    return os.name\ndef _own(): ...\n_private = 1\n'
        'class C:\n    """A class."""\n    field: str\n    def _own(self): ...\n'
    )
    assert api.describe(full) == plain


def test_every_name_of_api_txt_can_be_imported() -> None:
    for part in re.split(r"^# ", (HERE / "api.txt").read_text(), flags=re.M)[1:]:
        name, _, source = part.partition("\n")
        module = importlib.import_module(name)
        names = re.findall(r"^(?:class |def |from \S+ import )?(\w+)", source, re.M)
        missing = [found for found in names if not hasattr(module, found)]
        assert names and not missing


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with charrnn as pip installs it, without its dependencies."""
    folder = tmp_path_factory.mktemp("installed")
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True)
    if files.returncode:
        pytest.skip("not a git checkout, so it is unknown which files belong to the package")
    for file in files.stdout.decode().split("\0"):
        if file.startswith(("charrnn/", "models/", "recipes/")) or file in ("setup.cfg", "pyproject.toml", "README.md"):
            (folder / "source" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, folder / "source" / file)
    shutil.copy(ROOT / "LICENSE", folder / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--no-index", "--no-deps", "--no-build-isolation", "--target", str(folder / "packages")]
    subprocess.run([*pip, str(folder / "source")], check=True)
    return folder / "packages"


def test_mypy_checks_a_users_program_against_the_installed_package(
    installed: Path, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    shutil.copy(HERE / "user.py", tmp_path)
    env = {name: value for name, value in os.environ.items() if name not in ("MYPYPATH", "PYTHONPATH")}
    # on Python's path, not on mypy's: mypy reads the types of packages there only if they have a py.typed
    env["PYTHONPATH"] = str(installed)
    cache = pytestconfig.cache.mkdir("charrnn") / "mypy"
    words = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(cache), "user.py"]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
