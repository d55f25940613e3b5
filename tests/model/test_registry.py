"""Finding, loading and building models from real files."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from torch import nn

from charrnn import registry
from charrnn.cli import train
from charrnn.errors import UserError
from charrnn.settings.training import TrainingOptions
from tests.helpers.command import charrnn, environment, one_line, write_text

SIZES = (7, 5, 2, 0.0)
SIGNATURE = "def create(input_size, rnn_size, n_layers, dropout"
PLUGIN = f'''"""A line of summary.

And more.
"""
from torch import nn


{SIGNATURE}):
    return nn.Linear(input_size, rnn_size)
'''
EXECUTED = 'raise AssertionError("this file was executed")\n'


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working directory, with $CHARRNN_MODELS unset."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CHARRNN_MODELS", raising=False)


def write(name: str, source: str = PLUGIN, folder: str | Path = "models") -> Path:
    path = Path(folder) / f"{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    return path


def with_option(declaration: str) -> str:
    return f"from torch import nn\n\n\ndef create(V, H, L, p, *, {declaration}):\n    return nn.Identity()\n"


def refused(call, *args, **own) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **own)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_built_in_models_are_found():
    models = registry.models()
    assert {"lstm", "gru", "rnn", "grid_lstm", "rhn"} <= models.keys()
    for name, file in models.items():
        assert file.name == name == file.path.stem and file.path.is_file() and file.origin == registry.BUILT_IN
        assert 10 < len(file.summary) < 120 and file.summary in file.path.read_text()
        options = registry.find(name).options.values()
        assert all(option.help for option in options)
        assert isinstance(registry.find(name).create(*SIZES), nn.Module)
        registry.find(name).check(5, 2, 0.0, **{option.name: option.default for option in options})


def test_a_file_in_the_working_directory_is_found():
    write("mine")
    file = registry.models()["mine"]
    assert (file.summary, file.path.resolve()) == ("A line of summary.", Path("models/mine.py").resolve())
    assert registry.find("mine").options == {}
    model = registry.find("mine").create(*SIZES)
    assert isinstance(model, nn.Linear) and (model.in_features, model.out_features) == (7, 5)


def test_each_directory_in_the_environment_variable_is_searched(monkeypatch):
    write("one", folder="a")
    write("two", folder="b")
    monkeypatch.setenv("CHARRNN_MODELS", os.pathsep.join(["a", "", "missing", str(Path("b").resolve())]))
    assert {"one", "two"} <= registry.models().keys()
    assert isinstance(registry.find("two").create(*SIZES), nn.Linear)


def declare(point: str, folder: str = "site") -> None:
    """Write the files that pip installs for a package that declares the entry point."""
    information = Path(folder) / "their_models-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: their-models\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[charrnn.models]\n{point}\n")


@pytest.mark.parametrize("file", ["their_models/theirs", "their_models/theirs/__init__"])
def test_an_entry_point_of_an_installed_package_is_found(file, monkeypatch):
    declare("theirs = their_models.theirs")
    write("__init__", EXECUTED, "site/their_models")
    path = write(Path(file).name, folder=Path("site") / Path(file).parent)
    monkeypatch.syspath_prepend("site")
    found = registry.models()["theirs"]
    assert found.path.resolve() == path.resolve() and "their-models" in found.origin
    assert isinstance(registry.find("theirs").create(*SIZES), nn.Linear)
    assert "their_models" not in sys.modules


def test_an_entry_point_may_refer_to_code_in_another_folder(monkeypatch):
    declare("theirs = far_models")
    path = write("far_models", EXECUTED + PLUGIN, "checkout")
    monkeypatch.syspath_prepend("site")
    monkeypatch.syspath_prepend("checkout")
    assert registry.models()["theirs"].path.resolve() == path.resolve()


def test_an_entry_point_to_missing_code_is_ignored(monkeypatch):
    declare("theirs = nowhere.at_all")
    monkeypatch.syspath_prepend("site")
    assert "theirs" not in registry.models()


@pytest.mark.parametrize(
    "source",
    [
        "def create(): ...",
        "class create: ...",
        "from elsewhere import create",
        "from elsewhere import build as create",
        "create = 1",
        "create: int = 1",
    ],
)
def test_a_file_with_a_top_level_create_is_a_model(source):
    write("mine", EXECUTED + source)
    assert "mine" in registry.models()


@pytest.mark.parametrize(
    "source",
    [
        "",
        "# create",
        "x = create = 1".replace("create", "creation"),
        "def outer():\n    def create(): ...",
        "class Outer:\n    def create(self): ...",
        "from elsewhere import create as build",
        "import create.build",
        "create()",
    ],
)
def test_a_file_without_a_top_level_create_is_not_a_model(source):
    write("mine", source)
    assert "mine" not in registry.models()
    assert "unknown model mine" in refused(registry.find, "mine")


def test_other_files_are_not_models():
    write("_private")
    write("two-words")
    write("notes", folder="models/deeper")
    Path("models/text.txt").write_text(PLUGIN)
    assert not {"_private", "two-words", "notes", "text"} & registry.models().keys()


@pytest.mark.parametrize("folders", [None, "", os.pathsep])
def test_a_file_in_the_working_directory_itself_is_not_a_model(folders, monkeypatch):
    if folders is not None:
        monkeypatch.setenv("CHARRNN_MODELS", folders)
    write("mine", folder=".")
    assert "mine" not in registry.models()


def test_only_the_requested_file_is_executed():
    write("mine")
    write("other", EXECUTED + PLUGIN)
    registry.models()
    registry.find("mine").create(*SIZES)
    with pytest.raises(AssertionError, match="this file was executed"):
        _ = registry.find("other").module


def test_listing_models_neither_loads_torch_nor_runs_their_code():
    write("other", EXECUTED + PLUGIN)
    code = (
        "import sys; from charrnn import registry; assert 'other' in registry.models(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.parametrize("name", ["../../evil", "models/mine", "mine.py", "/etc/passwd", "", "a b", "..", "mi\0ne"])
def test_a_name_must_be_a_plain_word(name):
    write("mine")
    write("evil", EXECUTED, "..")
    assert "plain word" in refused(registry.find, name)
    Path("../evil.py").unlink()


def test_the_message_for_an_unknown_name_lists_the_models():
    write("mine")
    message = refused(registry.find, "lsmt")
    assert "unknown model lsmt (did you mean lstm?); known models are " in message
    assert {"lstm", "gru", "rnn", "grid_lstm", "rhn", "mine"} <= set(re.findall(r"\w+", message))
    assert "did you mean" not in refused(registry.find, "qqqqq")


def test_the_error_for_a_different_file_with_a_built_in_name_names_both_files():
    path = write("lstm")
    message = refused(registry.find, "lstm")
    assert str(registry.built_in_folder() / "lstm.py") in message and str(path) in message
    assert "pip install -e ." in message
    assert isinstance(registry.find("gru").create(*SIZES), nn.Module)
    assert registry.models()["lstm"].origin == registry.BUILT_IN


def test_identical_files_with_one_name_do_not_clash(monkeypatch):
    Path("models").mkdir()
    shutil.copy(registry.built_in_folder() / "lstm.py", "models/lstm.py")
    write("mine", folder="a")
    write("mine", folder="b")
    monkeypatch.setenv("CHARRNN_MODELS", os.pathsep.join("ab"))
    assert isinstance(registry.find("lstm").create(*SIZES), nn.Module)
    assert isinstance(registry.find("mine").create(*SIZES), nn.Linear)


def test_identical_files_in_two_folders_each_know_their_own_folder(monkeypatch):
    """A model may read a file next to it."""
    for folder in "ab":
        path = write("mine", PLUGIN, folder)
        monkeypatch.setenv("CHARRNN_MODELS", folder)
        assert registry.find("mine").module.__file__ == str(path.resolve())


def test_two_different_user_files_with_one_name_clash(monkeypatch):
    paths = write("mine"), write("mine", PLUGIN + "\n", folder="b")
    monkeypatch.setenv("CHARRNN_MODELS", "b")
    message = refused(registry.find, "mine")
    assert all(str(path) in message for path in paths)


def test_a_file_with_a_syntax_error_is_an_error_only_if_it_is_requested():
    path = write("broken", PLUGIN + "def broken(:\n")
    assert "broken" not in registry.models()
    with pytest.raises(SyntaxError) as caught:
        _ = registry.find("broken").module
    assert Path(caught.value.filename) == path.resolve() and caught.value.text == "def broken(:\n"


def test_the_error_of_a_file_that_cannot_be_imported_is_shown():
    write("broken", "import no_such_package_anywhere\n" + PLUGIN)
    for _ in range(2):  # the second attempt must not find a half-loaded module
        with pytest.raises(ModuleNotFoundError, match="no_such_package_anywhere"):
            _ = registry.find("broken").module
    assert not [name for name in sys.modules if name.startswith("charrnn_model_broken")]


def test_the_command_shows_the_traceback_of_a_file_that_cannot_be_imported(tmp_path):
    write("broken", "import no_such_package_anywhere\n" + PLUGIN)
    write_text(tmp_path / "data")
    words = [sys.executable, "-m", "charrnn", "train", "-model", "broken", "-data_dir", "data", "-gpuid", "-1"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and str(tmp_path / "models" / "broken.py") in done.stderr
    assert done.stderr.rstrip().endswith("No module named 'no_such_package_anywhere'")
    assert "unknown model" not in done.stderr


def test_train_reports_impossible_options_in_one_line_before_any_work(tmp_path):
    write_text(tmp_path / "data")
    line = one_line(charrnn("train", "-model", "rhn", "-depth", 0, "-data_dir", "data", cwd=tmp_path, code=1))
    assert "depth must be at least 1" in line and "rhn" in line
    assert sorted(os.listdir("data")) == ["input.txt"] and not Path("cv").exists()


def test_a_file_that_changed_within_a_second_without_changing_size_is_reloaded(monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    write("mine", PLUGIN + "LAYERS = 1\n")
    first = registry.find("mine").module
    assert first.LAYERS == 1 and registry.find("mine").module is first
    write("mine", PLUGIN + "LAYERS = 2\n")
    assert registry.find("mine").module.LAYERS == 2


def test_objects_of_a_plugins_classes_can_be_pickled():
    write("mine", PLUGIN + "from dataclasses import dataclass\n\n\n@dataclass\nclass Point:\n    x: 'int'\n")
    module = registry.find("mine").module
    point = pickle.loads(pickle.dumps(module.Point(3)))
    assert point == module.Point(3) and get_type_hints(module.Point) == {"x": int}


OWN = """
def create(
    input_size, rnn_size, n_layers, dropout, *,
    a: Annotated[int, "help for a"] = 3,
    b: float = 0.5,
    c: Annotated[Literal["x", "y"], "one of two"] = "x",
    d: Annotated[bool, "on or off"] = True,
    e: Annotated[float | None, "perhaps"] = None,
    f: Optional[str] = "s",
    g=7,
):
    model = nn.Identity()
    model.own = dict(a=a, b=b, c=c, d=d, e=e, f=f, g=g)
    return model
"""


@pytest.mark.parametrize("future", ["", "from __future__ import annotations\n"])
def test_options_are_read_from_annotations_that_are_objects_or_strings(future):
    write("mine", future + "from typing import Annotated, Literal, Optional\nfrom torch import nn\n" + OWN)
    options = registry.find("mine").options
    assert {name: (o.type, o.default, o.help, o.choices, o.optional) for name, o in options.items()} == {
        "a": (int, 3, "help for a", (), False),
        "b": (float, 0.5, "", (), False),
        "c": (str, "x", "one of two", ("x", "y"), False),
        "d": (bool, True, "on or off", (), False),
        "e": (float, None, "perhaps", (), True),
        "f": (str, "s", "", (), True),
        "g": (int, 7, "", (), False),
    }
    defaults = {"a": 3, "b": 0.5, "c": "x", "d": True, "e": None, "f": "s", "g": 7}
    assert registry.find("mine").create(*SIZES).own == defaults
    words = {"a": "4", "b": "1", "c": "y", "d": "0", "e": "0.25", "f": "none", "g": 8.0}
    own = registry.find("mine").create(*SIZES, **words).own
    assert own == {"a": 4, "b": 1.0, "c": "y", "d": False, "e": 0.25, "f": None, "g": 8}
    assert type(own["b"]) is float and type(own["d"]) is bool and type(own["g"]) is int
    assert "-a four: must be a whole number" in refused(registry.find("mine").create, *SIZES, a="four")
    assert "must be one of x, y" in refused(registry.find("mine").create, *SIZES, c="z")


def test_the_message_for_an_unknown_option_suggests_a_similar_one():
    assert "the model rhn has no option dept (did you mean depth?)" in refused(
        registry.find("rhn").create, *SIZES, dept=3
    )
    assert "the model lstm has no option depth" in refused(registry.find("lstm").create, *SIZES, depth=3)


FLAGS = {flag.lstrip("-") for parameter in train.command.params for flag in parameter.opts}
TAKEN = sorted(FLAGS | TrainingOptions.__dataclass_fields__.keys() | {"help", "h"})


@pytest.mark.parametrize("option", TAKEN)
def test_an_option_with_the_name_of_a_flag_of_train_is_refused(option):
    path = write("mine", with_option(f"{option}: int = 1"))
    message = refused(lambda: registry.find("mine").options)
    assert str(path) in message and f"the option {option}," in message and "charrnn train" in message


def test_some_flags_of_train_are_among_the_reserved_names():
    assert {"model", "rnn_size", "dropout", "resume", "config"} <= FLAGS


@pytest.mark.parametrize(
    ("declaration", "words"),
    [
        ("size: int", "without a default"),
        ("size: list = ()", "with a type that flags do not support"),
        ("size: int | str = 1", "with a type that flags do not support"),
    ],
)
def test_an_option_that_cannot_be_a_flag_is_refused(declaration, words):
    path = write("mine", with_option(declaration))
    message = refused(lambda: registry.find("mine").options)
    assert str(path) in message and "size" in message and words in message


def test_errors_in_create_are_reported_with_the_name_of_the_model():
    write("mine", f'{SIGNATURE}, *, size: int = 1):\n    raise ValueError("size must be even")\n')
    message = refused(registry.find("mine").create, *SIZES)
    assert message == "the model mine cannot be built: size must be even"
    assert refused(registry.find("mine").check, 5, 2, 0.0) == message
    path = write("other", f"{SIGNATURE}):\n    return 3\n")
    message = refused(registry.find("other").create, *SIZES)
    assert path.name in message and "torch.nn.Module, not int" in message


def test_checking_a_model_uses_neither_memory_nor_random_numbers():
    before = torch.get_rng_state()
    registry.find("lstm").check(2**20, 2, 0.0)  # 64 TiB of weights
    assert torch.equal(torch.get_rng_state(), before)
    assert "depth must be at least 1" in refused(registry.find("rhn").check, 2**20, 2, 0.0, depth=0)
    write("mine", f"import torch\n\n\n{SIGNATURE}):\n    raise ValueError(f'on {{torch.empty(1).device}}')\n")
    assert refused(registry.find("mine").check, 5, 2, 0.0).endswith("on meta")


def test_a_model_that_cannot_be_built_on_the_meta_device_passes_the_check():
    source = "    import torch\n    float(torch.rand(3).sum())\n    return torch.nn.Linear(input_size, rnn_size)\n"
    write("mine", f"{SIGNATURE}):\n{source}")
    registry.find("mine").check(5, 2, 0.0)
    assert isinstance(registry.find("mine").create(*SIZES), nn.Linear)
