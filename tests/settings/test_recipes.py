"""Recipes have the published values, and ``-print_config`` prints all settings of a run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from charrnn import registry
from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.settings import recipes
from charrnn.settings.training import GROUPS, TrainingOptions, training_options
from charrnn.training.schedules import learning_rate
from charrnn.training.setup import configure
from tests.helpers.command import QUICK, SMALL, charrnn, complete, environment, one_line, run, write_text
from tests.helpers.recorded import Recording

CHECKOUT = Path(__file__).parent.parent.parent
ALL = sorted(path.stem for path in (CHECKOUT / "recipes").glob("*.toml"))

# the configurations ptb_sota, enwik8_sota and text8_sota in the authors' rhn_train.py
# (github.com/jzilly/RecurrentHighwayNetworks), with the names of the settings there
ALIKE = {"init_scale": 0.04, "num_layers": 1, "depth": 10, "learning_rate": 0.2, "weight_decay": 1e-7,
         "max_grad_norm": 10, "max_max_epoch": 500}  # fmt: skip
WIKIPEDIA = ALIKE | {"init_bias": -4.0, "lr_decay": 1.03, "num_steps": 50, "hidden_size": 1500, "max_epoch": 5,
                     "batch_size": 128, "drop_x": 0.10, "drop_i": 0.40, "drop_h": 0.10, "drop_o": 0.40,
                     "tied": False}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "rhn_ptb": ALIKE | {"dataset": "ptb", "init_bias": -2.0, "lr_decay": 1.02, "num_steps": 35, "hidden_size": 830,
                "max_epoch": 20, "batch_size": 20, "drop_x": 0.25, "drop_i": 0.75, "drop_h": 0.25, "drop_o": 0.75,
                "tied": True, "vocab_size": 10000},
    "rhn_enwik8": WIKIPEDIA | {"dataset": "enwik8", "vocab_size": 205},
    "rhn_text8": WIKIPEDIA | {"dataset": "text8", "vocab_size": 27},
}  # fmt: skip
# the number that the program prints as "total variables"
PARAMETERS = {"rhn_ptb": 23_482_400, "rhn_enwik8": 45_994_730, "rhn_text8": 45_152_256}


def settings(name: str) -> dict[str, Any]:
    found = configure({}, name)
    return asdict(found.options) | found.model_options


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_rhn_recipes_have_the_published_values(name: str) -> None:
    ours = settings(name)
    read = {
        "dataset": Path(ours["data_dir"]).name,
        "init_scale": ours["init_scale"],
        "init_bias": ours["init_bias"],
        "num_layers": ours["num_layers"],
        "depth": ours["depth"],
        "learning_rate": ours["learning_rate"],
        "lr_decay": 1 / ours["learning_rate_decay"],
        "weight_decay": ours["weight_decay"],
        "max_grad_norm": ours["max_grad_norm"],
        "num_steps": ours["seq_length"],
        "hidden_size": ours["rnn_size"],
        "max_epoch": ours["learning_rate_decay_after"],
        "max_max_epoch": ours["max_epochs"],
        "batch_size": ours["batch_size"],
        "drop_x": ours["drop_x"],
        "drop_i": ours["drop_i"],
        "drop_h": ours["drop_h"],
        "drop_o": ours["drop_o"],
        "tied": ours["tie_embeddings"],
    }
    published = {key: value for key, value in PUBLISHED[name].items() if key != "vocab_size"}
    assert read.pop("lr_decay") == pytest.approx(published.pop("lr_decay"), rel=1e-15)
    assert read == published
    # fixed in the program: plain gradient descent, only one kind of clipping, the tokens of its reader, and random
    # initial values for all biases but one kind
    assert (ours["model"], ours["optimizer"], ours["lr_schedule"], ours["grad_clip"]) == (
        "rhn",
        "sgd",
        "epoch_decay",
        0,
    )
    assert (ours["other_bias"], ours["share_masks"], ours["precision"]) == ("random", True, "float32")
    word = name == "rhn_ptb"
    assert (ours["level"], ours["encoding"]) == (("word", "utf-8") if word else ("char", "bytes"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_rhn_recipes_give_the_published_number_of_parameters(name: str) -> None:
    found = configure({}, name)
    options = found.options
    size = (options.rnn_size, options.num_layers, options.dropout)
    model = registry.find("rhn").skeleton(PUBLISHED[name]["vocab_size"], *size, **found.model_options)
    assert model is not None
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_the_learning_rates_equal_the_recorded_ones(reference: Path) -> None:
    recording = Recording(reference / "rhn_schedule.npz")
    per_epoch = 3
    for name in ("rhn_enwik8", "rhn_text8"):
        options = configure({}, name).options
        epochs = len(recording.given("lr"))
        rates = [learning_rate(options, i, 10**9, per_epoch) for i in range(per_epoch * epochs)]
        for k in range(per_epoch):
            recording.compare("lr", rates[k::per_epoch])
    options = configure({}, "rhn_ptb").options
    for i in range(500):
        assert learning_rate(options, i, 500, 1) == pytest.approx(0.2 / 1.02 ** max(i - 20 + 1, 0), rel=1e-12)


@pytest.mark.parametrize("layers", [3, 6])
@pytest.mark.parametrize("model", ["grid_lstm", "lstm"])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_the_hutter_recipes_match_the_readme_of_grid_lstm(model: str, layers: int, dropout: float) -> None:
    kind = "stacked_lstm" if model == "lstm" else model
    found = configure({"num_layers": layers, "dropout": dropout}, f"{kind}_hutter")
    ours = asdict(found.options) | found.model_options
    # given in its README
    page = {"model": model, "num_layers": layers, "dropout": dropout, "rnn_size": 1000, "optimizer": "rmsprop",
            "learning_rate": 1e-3, "seq_length": 50, "batch_size": 50, "train_frac": 0.95,
            "val_frac": 0.05}  # fmt: skip
    # defaults of its train.lua
    page |= {"learning_rate_decay": 0.97, "learning_rate_decay_after": 10, "decay_rate": 0.95, "grad_clip": 5,
             "max_epochs": 50, "eval_val_every": 1000, "seed": 123}  # fmt: skip
    page |= {"tie_weights": True} if model == "grid_lstm" else {}
    assert {name: ours[name] for name in page} == page


HUTTER = ["grid_lstm_hutter", "stacked_lstm_hutter"]
QUICK_ONES = ["shakespeare_small", "grid_lstm_small", "rhn_small"]


@pytest.mark.parametrize("name", [*PUBLISHED, *HUTTER, *QUICK_ONES])
def test_published_and_quick_recipes_state_their_source_and_their_cost(name: str) -> None:
    comments = [line for line in recipes.find(name).read_text().split("\n") if line.startswith("#")]
    kinds = [line.split(":")[0] for line in comments[1:]]
    assert "# Numbers" in kinds, "no comment names the source of the values"
    assert kinds.count("# Published") + kinds.count("# Measured") == kinds.count("# Takes") == 1


@pytest.mark.parametrize("name", ALL)
def test_every_recipe_is_complete(name: str) -> None:
    path = recipes.find(name)
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    assert first.startswith("# ") and recipes.summary(path) == first[2:]
    found = configure({}, name)
    given = tomllib.loads(path.read_text(encoding="utf-8"))
    assert {key for key, source in found.sources.items() if source == name} == given.keys()
    options = found.options
    registry.find(options.model).check(options.rnn_size, options.num_layers, options.dropout, **found.model_options)


@pytest.mark.parametrize("name", ALL)
def test_the_printed_settings_of_a_recipe_equal_the_recipe(name: str, tmp_path: Path) -> None:
    printed = run(tmp_path, "train", "-config", name, "-print_config").lines
    (tmp_path / "mine.toml").write_text("\n".join(printed))
    one, two = configure({}, name), configure({}, str(tmp_path / "mine.toml"))
    assert (one.options, one.model_options) == (two.options, two.model_options)


def test_a_recipe_is_found_from_any_folder_unless_there_is_a_file_of_that_name(tmp_path: Path) -> None:
    def rnn_size(config: str) -> Any:
        return tomllib.loads("\n".join(run(tmp_path, "train", "-config", config, "-print_config").lines))["rnn_size"]

    (tmp_path / "rhn_ptb").mkdir()  # such as a folder of checkpoints
    assert rnn_size("rhn_ptb") == rnn_size("rhn_ptb.toml") == 830
    assert rnn_size(str(CHECKOUT / "recipes/rhn_ptb.toml")) == 830
    (tmp_path / "rhn_ptb.toml").write_text("rnn_size = 7")
    (tmp_path / "rhn_text8").write_text("rnn_size = 8")
    assert (rnn_size("rhn_ptb.toml"), rnn_size("rhn_text8"), rnn_size("rhn_ptb")) == (7, 8, 830)


def test_an_unknown_recipe_or_file_is_reported_in_one_line(tmp_path: Path) -> None:
    said = one_line(charrnn("train", "-config", "rhn_enwik", cwd=tmp_path, code=1))
    assert "rhn_enwik:" in said and "(did you mean rhn_enwik8?)" in said and "charrnn recipes" in said
    assert "no/mine.toml: No such file" in one_line(charrnn("train", "-config", "no/mine.toml", cwd=tmp_path, code=1))
    (tmp_path / "mine.toml").write_text("rnn_size")
    said = one_line(charrnn("train", "-config", "mine.toml", cwd=tmp_path, code=1))
    assert said.startswith("charrnn: mine.toml is not a TOML file: ")
    for path in ("recipes/rhn_ptb.toml", "no/rhn_ptb"):  # paths that exist only in a checkout, or in no folder
        said = one_line(charrnn("train", "-config", path, cwd=tmp_path, code=1))
        assert f"-config {path}: no such file; for the recipe use -config rhn_ptb" in said
    (tmp_path / "cv").mkdir()
    assert "cv: Is a directory" in one_line(charrnn("train", "-config", "cv", cwd=tmp_path, code=1))


def test_every_recipe_is_listed_with_a_description(tmp_path: Path) -> None:
    rows = [line.split("\t") for line in run(tmp_path, "recipes").lines]
    assert [name for name, _ in rows] == ALL
    assert all(len(what) > 20 for _, what in rows)


def test_completion_offers_recipes_and_settings_files(tmp_path: Path) -> None:
    (tmp_path / "rhn_mine.toml").touch()
    (tmp_path / "other.txt").touch()
    names = [name for name in ALL if name.startswith("rhn_")]
    expected = [f"plain,{name}" for name in (*names, "rhn_mine.toml")]
    assert complete("charrnn train -config rhn_", tmp_path) == expected
    assert complete("charrnn train -config sub/", tmp_path) == ["file,sub/"]


def test_the_wheel_contains_the_recipes(tmp_path: Path) -> None:
    """Runs the files of the wheel, outside the checkout and without an editable install."""
    for name in ("charrnn", "models", "recipes"):
        shutil.copytree(CHECKOUT / name, tmp_path / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, tmp_path / "source")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "wheels"]
    subprocess.run([*build, tmp_path / "source"], check=True, capture_output=True, timeout=120)
    (wheel,) = (tmp_path / "wheels").iterdir()
    with ZipFile(wheel) as files:
        files.extractall(tmp_path / "site")
    shutil.rmtree(tmp_path / "source")
    (tmp_path / "elsewhere").mkdir()
    program = [sys.executable, "-m", "charrnn"]
    env = environment(PYTHONPATH=str(tmp_path / "site"))
    done = subprocess.run([*program, "recipes"], cwd=tmp_path / "elsewhere", env=env, capture_output=True, check=True)
    assert [line.split("\t")[0] for line in done.stdout.decode().splitlines()] == ALL
    where = [sys.executable, "-c", "import charrnn.settings.recipes as r; print(r.folder())"]
    found = subprocess.run(where, cwd=tmp_path / "elsewhere", env=env, capture_output=True, check=True)
    assert found.stdout.decode().strip() == str(tmp_path / "site/charrnn/recipes")


def test_the_documentation_lists_every_recipe() -> None:
    text = (CHECKOUT / "docs/recipes.md").read_text(encoding="utf-8")
    for name in ALL:
        assert f"`{name}`" in text, name


# -print_config


def printed(folder: Path, *args: object) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the value and the source of every setting, parsed from the printed lines."""
    lines = run(folder, "train", *args, "-print_config").lines
    rows = [line.removeprefix("# ").split("  # ") for line in lines if "  # " in line]
    sources = {row[0].split(" = ")[0].strip(): row[-1] for row in rows}
    values = tomllib.loads("\n".join(row[0] for row in rows))
    headings = [line[2:] for line in lines if line.startswith("# ") and "  # " not in line]
    assert headings == list(GROUPS.values())
    return values, sources


def test_every_setting_is_printed_with_its_value_and_source(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'model = "rhn"\ndepth = 3\nrnn_size = 64\ndrop_x = "none"\ntie_embeddings = true'
    )
    values, sources = printed(tmp_path, "-config", "mine.toml", "-rnn_size", 32, "-share_masks", 0)
    before = [name for name, option in training_options().items() if option.group in ("data", "model")]
    after = [name for name, option in training_options().items() if option.group not in ("data", "model")]
    assert list(sources) == [*before, *registry.find("rhn").options, *after]
    told = {name: source for name, source in sources.items() if source != "default"}
    assert told == {"model": "mine.toml", "depth": "mine.toml", "drop_x": "mine.toml", "tie_embeddings": "mine.toml",
                    "rnn_size": "flag", "share_masks": "flag"}  # fmt: skip
    expected = asdict(TrainingOptions(model="rhn", rnn_size=32)) | {"input": [], "threads": "auto"}
    own = {
        name: "none" if option.default is None else option.default
        for name, option in registry.find("rhn").options.items()
    }
    assert values == expected | own | {"depth": 3, "tie_embeddings": True, "share_masks": False}
    assert not any(path.name != "mine.toml" for path in tmp_path.iterdir()), "something was written"


def test_unusual_values_survive_printing_and_reading(tmp_path: Path) -> None:
    strange = 'a "b" \\ #c\t\x7f é 𝄞'
    flags = {"savefile": strange, "input": ("x # y", strange), "learning_rate": 1e-7, "weight_decay": 1e20}
    words = [word for name, value in flags.items() for item in (value if isinstance(value, tuple) else [value])
             for word in (f"-{name}", item)]  # fmt: skip
    output = run(tmp_path, "train", *words, "-print_config").lines
    (tmp_path / "mine.toml").write_text("\n".join(output), encoding="utf-8")
    options = configure({}, str(tmp_path / "mine.toml")).options
    assert {name: getattr(options, name) for name in flags} == flags
    assert "# data_dir = " in "\n".join(output), "a folder that has no effect is commented out"
    said = run(tmp_path, "train", "-savefile", os.fsdecode(b"\xff"), "-print_config", code=1).errors
    assert "-savefile '\\udcff': TOML cannot hold" in said[-1]


def test_printed_settings_are_utf8_whatever_the_encoding_of_the_terminal(tmp_path: Path) -> None:
    strange = 'dätä "𝄞"'
    for encoding in ("ascii", "latin-1", "utf-8"):  # TOML must be UTF-8
        words = ("train", "-data_dir", strange, "-print_config")
        done = charrnn(*words, cwd=tmp_path, PYTHONIOENCODING=encoding)
        assert strange.replace('"', '\\"') in done.stdout.decode() and done.stderr == b""
        assert tomllib.loads(done.stdout.decode())["data_dir"] == strange


def test_a_checkpoint_is_a_source_of_settings(tmp_path: Path) -> None:
    write_text(tmp_path / "data")
    model = ("-model", "rhn", "-depth", 2, "-share_masks", 0)
    run(tmp_path, "train", "-data_dir", "data", *QUICK, *model, "-max_epochs", 0.2, "-threads", 1)
    saved = Checkpoint.load(tmp_path / "cv")
    values, sources = printed(tmp_path, "-resume", "cv", "-max_epochs", 3)
    assert (sources.pop("max_epochs"), values.pop("max_epochs")) == ("flag", 3)
    (file,) = (tmp_path / "cv").glob("*.pt")
    assert set(sources.values()) == {f"checkpoint cv/{file.name}"}
    expected = asdict(saved.options) | saved.model_options
    expected |= {"input": []} | {name: "none" for name, value in expected.items() if value is None}
    assert values == {name: expected[name] for name in values} and len(values) == len(expected) - 1
    values, sources = printed(tmp_path, "-data_dir", "data", "-init_from", "cv", "-depth", 2)
    told = {name: source for name, source in sources.items() if source == "checkpoint cv"}
    assert told.keys() == {"model", "rnn_size", "num_layers", *saved.model_options} - {"depth"}
    assert (sources["depth"], sources["init_from"], sources["seed"]) == ("flag", "flag", "default")
    assert (values["depth"], values["share_masks"], values["rnn_size"]) == (2, False, 16)


def test_the_printed_settings_train_the_same_model(tmp_path: Path) -> None:
    write_text(tmp_path / "data")
    flags = ("-data_dir", "data", *SMALL, "-sample_length", 0, "-max_epochs", 0.3, "-threads", 1)
    done = charrnn("train", *flags, "--print_config", cwd=tmp_path)
    assert done.stderr == b"" and not (tmp_path / "cv").exists()
    (tmp_path / "mine.toml").write_bytes(done.stdout)
    run(tmp_path, "train", *flags)
    run(tmp_path, "train", "-config", "mine.toml", "-checkpoint_dir", "cv2")
    one, two = (tmp_path / name / "lm_lstm_metrics.jsonl" for name in ("cv", "cv2"))
    losses = [[json.loads(line)["loss"] for line in path.read_text().splitlines()] for path in (one, two)]
    assert losses[0] == losses[1] and len(losses[0]) > 5


def test_dry_run_and_print_config_cannot_be_combined(tmp_path: Path) -> None:
    said = one_line(charrnn("train", "-dry_run", "-print_config", cwd=tmp_path, code=2))
    assert "-dry_run and -print_config cannot be combined" in said
