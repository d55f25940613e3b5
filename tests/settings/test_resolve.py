"""Flags, a settings file and a checkpoint are combined into settings, tested on plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, get_args

import pytest

from charrnn.errors import UserError
from charrnn.settings.option import Option
from charrnn.settings.resolve import Sources, resolve
from charrnn.settings.training import Schedule, TrainingOptions, training_options


@dataclass
class Model:
    name: str = "mine"
    options: dict[str, Option] = field(default_factory=lambda: {"depth": Option("depth", int, 3)})


@dataclass
class Saved:
    options: TrainingOptions
    model_options: dict[str, Any]
    iteration: int = 15


def sources(**given: Any) -> Sources:
    return Sources(given.pop("file", {}), "mine.toml", Model(), **given)


def test_flags_override_the_file_which_overrides_the_defaults() -> None:
    found = resolve({"rnn_size": "20"}, sources(file={"rnn_size": 10, "num_layers": 1}))
    assert (found.options.rnn_size, found.options.num_layers, found.options.dropout) == (20, 1, 0.0)
    assert found.model_options == {"depth": 3}
    wanted = {"rnn_size": "flag", "num_layers": "mine.toml", "dropout": "default", "depth": "default"}
    assert {name: found.sources[name] for name in wanted} == wanted
    assert list(found.sources) == [*training_options(), "depth"] and found.notes == ()


def test_a_text_on_the_command_line_replaces_the_text_in_the_file() -> None:
    found = resolve({"input": "a.txt"}, sources(file={"data_dir": "there"}))
    assert (found.options.input, found.options.data_dir) == (("a.txt",), TrainingOptions.data_dir)


def test_an_initial_checkpoint_fixes_the_architecture_and_the_models_options() -> None:
    start = Saved(TrainingOptions(model="mine", rnn_size=7, dropout=0.5), {"depth": 5, "gone": 1})
    found = resolve({"init_from": "one.pt", "rnn_size": 9}, sources(start=start))
    assert (found.options.rnn_size, found.options.dropout, found.model_options) == (7, 0.0, {"depth": 5})
    assert found.notes == ("rnn_size is 7, as in one.pt",)
    assert found.sources["rnn_size"] == found.sources["depth"] == "checkpoint one.pt"
    assert resolve({"init_from": "one.pt", "depth": 2}, sources(start=start)).model_options == {"depth": 2}


# every setting, with a value other than the default: a resumed run may change the FREE ones but not the FIXED ones
FREE: dict[str, Any] = {
    "data_dir": "other", "input": ("other.txt",), "max_epochs": 9.0, "early_stop": 9, "print_every": 9,
    "eval_val_every": 9, "save_every": 9, "save_minutes": 9.0, "keep": 9, "sample_length": 9, "checkpoint_dir": "other",
    "savefile": "other", "log_dir": "other", "gpuid": 1, "kernels": "torch", "accurate_gpu_timing": True,
}  # fmt: skip
FIXED: dict[str, Any] = {
    "task": "addition", "level": "word", "unk": "<unk>", "encoding": "bytes", "train_frac": 0.5, "val_frac": 0.01,
    "model": "gru", "rnn_size": 9, "num_layers": 1, "dropout": 0.5, "init_from": "one.pt", "optimizer": "adam",
    "learning_rate": 0.1, "lr_schedule": "other", "learning_rate_decay": 0.5, "learning_rate_decay_after": 1,
    "plateau_factor": 0.1, "plateau_patience": 9, "warm_up": 0.5, "decay_rate": 0.5, "beta1": 0.5, "beta2": 0.5,
    "seq_length": 9, "batch_size": 9, "grad_clip": 9.0, "max_grad_norm": 9.0, "weight_decay": 0.1, "seed": 9,
    "on_nan": "rollback", "precision": "bf16", "threads": 2, "opencl": True,
}  # fmt: skip
# settings that these learning-rate schedules depend on, so that a resumed run may not change them either
FIXED_BY = {"max_epochs": {"cosine", "onecycle"}, "eval_val_every": {"plateau"}}


def test_the_tables_of_what_a_resumed_run_may_change_have_every_setting() -> None:
    assert sorted([*FREE, *FIXED]) == sorted(training_options())


@pytest.mark.parametrize("schedule", get_args(Schedule))
@pytest.mark.parametrize("name", [*FREE, *FIXED])
def test_a_resumed_run_may_change_what_the_tables_say_and_nothing_else(name: str, schedule: Schedule) -> None:
    saved = TrainingOptions(model="mine", lr_schedule=schedule, input=("text.txt",), kernels="compiled")
    resumed = sources(resume=Saved(saved, {"depth": 3}), resume_name="cv")
    value = (FREE | FIXED)[name]
    if name == "lr_schedule":
        value = next(other for other in get_args(Schedule) if other != schedule)
    if name in FREE and schedule not in FIXED_BY.get(name, ()):
        found = resolve({name: value}, resumed)
        assert getattr(found.options, name) == value and found.sources[name] == "flag"
        assert found.options.rnn_size == saved.rnn_size and found.sources["rnn_size"] == "checkpoint cv"
        assert found.options.input == {"data_dir": (), "input": value}.get(name, saved.input)
    else:
        assert getattr(resolve({name: getattr(saved, name)}, resumed).options, name) == getattr(saved, name)
        with pytest.raises(UserError, match=rf"-{name} \S+ \(was .*\): leave it out, or begin a new run"):
            resolve({name: value}, resumed)


def test_a_resumed_run_says_from_which_file_and_iteration() -> None:
    resumed = sources(resume=Saved(TrainingOptions(model="mine"), {}), resume_name="cv/one.pt")
    assert resolve({}, resumed).notes == ("resuming from cv/one.pt, iteration 15",)


def test_a_resumed_run_cannot_change_an_option_of_the_model() -> None:
    resumed = sources(resume=Saved(TrainingOptions(model="mine"), {"depth": 3}), resume_name="cv")
    assert resolve({"depth": "3"}, resumed).model_options == {"depth": 3}
    with pytest.raises(UserError, match=r"-depth 4 \(was 3\)"):
        resolve({"depth": "4"}, resumed)


@pytest.mark.parametrize(
    ("where", "message"), [("flag", "the model mine has"), ("file", "mine.toml: the model mine has")]
)
def test_the_message_for_an_unknown_setting_suggests_a_similar_one(where: str, message: str) -> None:
    given = {"dept": 3}
    with pytest.raises(UserError, match=rf"^{message} no setting dept \(did you mean depth\?\)"):
        resolve(given if where == "flag" else {}, sources(file=given if where == "file" else {}))


@pytest.mark.parametrize(
    ("option", "given", "wanted"),
    [
        (Option("a", bool, False), [True, 1, 1.0, "1", "True"], True),
        (Option("a", bool, True), [False, 0, 0.0, "0", "false"], False),
        (Option("a", int, 0), [3, 3.0, "3", " 3 "], 3),
        (Option("a", float, 0.0), [0.5, "0.5", "5e-1"], 0.5),
        (Option("a", int, 1, zero="auto"), ["auto", 0, "0"], 0),
        (Option("a", float, 1.0, optional=True), [None, "none", "None"], None),
        (Option("a", str, "", repeatable=True), [("x",), ["x"], "x"], ("x",)),
    ],
)
def test_strings_and_other_values_are_converted_to_the_type_of_the_setting(
    option: Option, given: list[Any], wanted: Any
) -> None:
    for value in given:
        converted = option.convert(value)
        assert converted == wanted and type(converted) is type(wanted)


@pytest.mark.parametrize(
    ("option", "given", "must_be"),
    [
        (Option("a", bool, False), ["yes", 2, None, [1], "1.0"], "0 or 1|needs a value"),
        (Option("a", int, 0), ["x", 1.5, "1.0", True, float("inf"), float("nan"), [1], ""], "a whole number"),
        (Option("a", int, 0), [2**63, "-" + "9" * 30], "a 64-bit number"),
        (Option("a", float, 0.0), ["x", "inf", "nan", False, {}, ""], "a number"),
        (Option("a", float, 0.0), [1e39], "a number that fits into single precision"),
        (Option("a", str, ""), [1, True, "a\0b", "\ud800"], "text"),
        (Option("a", str, "x", choices=("x", "y")), ["z", ""], "one of x, y"),
        (Option("a", int, 1, zero="auto"), ["many"], "a whole number or auto"),
    ],
)
def test_values_that_do_not_fit_the_setting_are_refused(option: Option, given: list[Any], must_be: str) -> None:
    for value in given:
        with pytest.raises(UserError, match=rf"^-a .*({must_be})$"):
            option.convert(value)
