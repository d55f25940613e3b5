"""The commands as users run them, with real processes and files."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import charrnn as package
from charrnn.checkpoints.checkpoint import Checkpoint
from tests.helpers.command import SMALL, SONG, charrnn, environment, one_line, run, write_text

LINE = re.compile(
    r"(\d+)/(\d+) \(epoch (\d+\.\d{3})\), train_loss = +(\d+\.\d{8}), "
    r"grad/param norm = (\d\.\d{4}e[+-]\d\d), time/batch = \d+\.\d{4}s"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, and a model trained on it in cv."""
    folder = tmp_path_factory.mktemp("trained")
    write_text(folder / "data")
    run(folder, "train", "-data_dir", "data", *SMALL, "-max_epochs", 3, "-eval_val_every", 80)
    return folder


def checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "cv").glob("*.pt"))


def test_training_prints_char_rnns_lines_and_the_loss_falls(tmp_path: Path) -> None:
    write_text(tmp_path / "data")
    done = charrnn("train", "-data_dir", "data", *SMALL, "-max_epochs", 2, "-print_every", 10, cwd=tmp_path)
    found = [LINE.match(line) for line in done.stdout.decode().splitlines()]
    lines = [match for match in found if match]
    iterations = int(lines[-1][2])
    assert [int(m[1]) for m in lines] == sorted({*range(10, iterations + 1, 10), iterations})
    assert float(lines[-1][3]) == 2
    assert float(lines[-1][4]) < 0.8 * float(lines[0][4])


def test_a_checkpoint_is_named_after_its_epoch_and_validation_loss(trained: Path) -> None:
    names = [path.name for path in checkpoints(trained)]
    assert names
    assert all(re.fullmatch(r"lm_lstm_epoch\d+\.\d\d_\d+\.\d{4}\.pt", name) for name in names)
    assert any("epoch3.00" in name for name in names), "the end of training is always validated"


def test_eval_prints_the_loss_in_the_file_name(trained: Path) -> None:
    for path in checkpoints(trained):
        printed = charrnn("eval", path, "-gpuid", -1, "-json", cwd=trained)
        figures = json.loads(printed.stdout)
        assert f"{figures['loss']:.4f}" == re.findall(r"_(\d+\.\d{4})\.pt", path.name)[0]
        assert figures["bpc"] == pytest.approx(figures["loss"] / 0.6931471805599453)


def test_eval_of_any_text_scores_every_character_but_the_first(trained: Path) -> None:
    by_file = charrnn("eval", "cv", "-gpuid", -1, "-json", "-text", "data/input.txt", cwd=trained)
    by_stdin = charrnn("eval", "cv", "-gpuid", -1, "-json", "-text", "-", cwd=trained, stdin=(SONG * 80).encode())
    figures = json.loads(by_file.stdout)
    assert figures["characters"] == len(SONG) * 80 - 1
    assert json.loads(by_stdin.stdout)["loss"] == figures["loss"]


def test_eval_names_unknown_characters_and_their_line(trained: Path) -> None:
    text = f"{SONG}Ω and 7\n".encode()
    message = one_line(charrnn("eval", "cv", "-gpuid", -1, "-text", "-", cwd=trained, stdin=text, code=1))
    assert "'7', 'Ω' (first in line 2)" in message


def test_sample_prints_prime_text_then_length_characters_then_a_newline(trained: Path) -> None:
    done = charrnn("sample", "cv", "-gpuid", -1, "-primetext", "The quick", "-length", 40, cwd=trained)
    text = done.stdout.decode()
    assert text.startswith("The quick")
    assert len(text) == len("The quick") + 40 + 1
    assert text.endswith("\n")


def test_the_same_seed_samples_the_same_text(trained: Path) -> None:
    def text(*more: object) -> bytes:
        return charrnn("sample", "cv", "-gpuid", -1, "-length", 60, "-primetext", "The", *more, cwd=trained).stdout

    assert text() == text("-seed", 123)
    assert text() != text("-seed", 7)
    assert text("-sample", 0) == text("-sample", 0, "-seed", 7)
    assert text("-temperature", 0.0001) == text("-sample", 0)


def test_prime_text_from_stdin_and_with_dashes(trained: Path) -> None:
    done = charrnn("sample", "cv", "-gpuid", -1, "-length", 5, "-primetext", cwd=trained, stdin=b"The fox\n")
    assert done.stdout.startswith(b"The fox\n")
    message = one_line(charrnn("sample", "cv", "-verbose", 0, "-gpuid", -1, "-primetext", "-- he", cwd=trained, code=1))
    assert "'-'" in message


def test_sample_verbose_0_prints_the_text_alone(trained: Path) -> None:
    assert charrnn("sample", "cv", "-gpuid", -1, "-length", 5, "-verbose", 0, cwd=trained).stderr == b""
    assert b"lstm" in charrnn("sample", "cv", "-gpuid", -1, "-length", 5, cwd=trained).stderr


def test_a_closed_pipe_ends_quietly(trained: Path) -> None:
    words = f"{shlex.quote(sys.executable)} -m charrnn sample cv -gpuid -1 -verbose 0 -length 200000 | head -c 10"
    done = subprocess.run(["bash", "-c", words], cwd=trained, capture_output=True, env=environment(), timeout=120)
    assert len(done.stdout) == 10
    assert done.stderr == b""


@pytest.mark.parametrize(
    "words", ["recipes", "models", "-h", "completion bash", "train -print_config", "sample cv -gpuid -1 -verbose 0"]
)
def test_a_full_output_device_is_reported_in_one_sentence(trained: Path, words: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "charrnn", *words.split()],
            cwd=trained,
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(),
        )
    assert done.stderr.decode() == "charrnn: cannot write the output: No space left on device; send it elsewhere\n"
    assert done.returncode == 1


def test_a_character_that_the_output_cannot_encode_is_reported_in_one_sentence(trained: Path) -> None:
    words = ("plot", "cv", "-text", "-label", "山")
    for encoding in ("ascii", "iso8859-1", "cp1252"):
        said = one_line(charrnn(*words, cwd=trained, code=1, PYTHONIOENCODING=encoding))
        assert said.startswith(
            rf"charrnn: '\u5c71' cannot be printed in {encoding}, the output's encoding: set PYTHONIOENCODING=utf-8"
        )
    assert "山" in charrnn(*words, cwd=trained, PYTHONIOENCODING="utf-8:surrogateescape").stdout.decode()


def test_load_returns_a_model_in_evaluation_mode_and_its_vocabulary(trained: Path) -> None:
    model, vocabulary = package.load(checkpoints(trained)[-1])
    assert not model.training
    assert vocabulary.decode(vocabulary.encode("The fox")) == "The fox"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["-modle", "lstm"], "-modle (did you mean -model?)"),
        (["-model", "lsmt"], "lstm"),
        (["-rnn_size", "x"], "-rnn_size x: must be a whole number"),
        (["-rnn_size", "0"], "-rnn_size 0: must be between 1 and 1,048,576"),
        (["-dropout", "1"], "-dropout 1: must be at least 0 and below 1"),
        (["-learning_rate", "nan"], "-learning_rate nan: must be a number"),
        (["-data_dir", "nowhere"], "nowhere"),
        (["-gpuid", "9"], "-gpuid 9"),
        (["-opencl", "1"], "PyTorch does not support OpenCL; -gpuid 0"),
        (["-train_frac", "0.9", "-val_frac", "0.2"], "more than 1"),
        (["-optimizer", "adamw"], "rmsprop, adam, sgd"),
        (["-init_from", "nothing.pt"], "nothing.pt"),
        (["-config", "nothing.toml"], "nothing.toml"),
        (["-model", "../../x"], "../../x"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_reported_in_one_sentence_and_nothing_is_written(
    tmp_path: Path, args: list[str], said: str
) -> None:
    write_text(tmp_path / "data/tinyshakespeare")
    before = sorted(tmp_path.rglob("*"))
    usage = said.startswith("-modle") or "must be" in said or "rmsprop" in said
    done = run(tmp_path, "train", *args, code=2 if usage else 1)
    assert said in one_line(done)
    assert done.out == b""
    assert sorted(tmp_path.rglob("*")) == before


def test_a_config_file_applies_where_no_flag_is_given(tmp_path: Path) -> None:
    write_text(tmp_path / "data")
    settings = 'data_dir = "data"\nmodel = "gru"\nreset_after = true\nrnn_size = 99\ngpuid = -1\nmax_epochs = 0.1\n'
    (tmp_path / "mine.toml").write_text(settings)
    run(tmp_path, "train", "-config", "mine.toml", "-rnn_size", 8, "-batch_size", 4, "-seq_length", 16)
    model, _ = package.load(tmp_path / "cv")
    assert type(model).__name__ == "GRU" or "gru" in type(model).__module__
    assert sum(p.numel() for p in model.parameters()) < 5000
    assert Checkpoint.load(tmp_path / "cv").model_options == {"reset_after": True}
    (tmp_path / "mine.toml").write_text("rnn_sise = 8\n")
    assert "rnn_sise (did you mean rnn_size?)" in one_line(run(tmp_path, "train", "-config", "mine.toml", code=1))


@pytest.mark.parametrize("name", ["init_from", "model"])
def test_a_settings_file_that_names_a_file_by_a_number_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine.toml").write_text(f"{name} = 3\n")
    message = one_line(run(tmp_path, "train", "-config", "mine.toml", code=1))
    assert f"-{name} 3: must be " in message


def test_init_from_copies_weights_and_sizes(trained: Path, tmp_path: Path) -> None:
    write_text(tmp_path / "data")
    start = ("-init_from", checkpoints(trained)[-1], "-data_dir", "data", "-gpuid", -1, "-batch_size", 4)
    done = run(tmp_path, "train", *start, "-seq_length", 16, "-max_epochs", 0.1, "-print_every", 1)
    first = LINE.search(done.out.decode())
    assert first and float(first[4]) < 2
    write_text(tmp_path / "other", (SONG * 80).replace("dog", "d0g"))
    done = run(tmp_path, "train", *start, "-data_dir", "other", code=1)
    assert "only the text in other has '0'" in done.errors[-1]


def test_chinese_and_emoji_can_be_trained_on_sampled_and_evaluated(tmp_path: Path) -> None:
    write_text(tmp_path / "data", "山重水复疑无路，柳暗花明又一村。🌸👩\u200d🚀\n" * 120)
    run(tmp_path, "train", "-data_dir", "data", *SMALL, "-max_epochs", 1)
    text = run(tmp_path, "sample", "cv", "-gpuid", -1, "-primetext", "山重", "-length", 80).out.decode()
    assert len(text) == 83
    figures = json.loads(run(tmp_path, "eval", "cv", "-gpuid", -1, "-json").out)
    assert figures["loss"] > 0


def test_bytes_that_are_not_utf8_can_be_trained_on_and_sampled(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/input.txt").write_bytes("Über den Wölken, Straße für Straße.\n".encode("latin-1") * 120)
    message = one_line(charrnn("train", "-data_dir", "data", *SMALL, cwd=tmp_path, code=1))
    assert "byte 0" in message
    assert "-encoding bytes" in message
    charrnn("train", "-data_dir", "data", *SMALL, "-max_epochs", 3, "-encoding", "bytes", cwd=tmp_path)
    written = charrnn("sample", "cv", "-gpuid", -1, "-length", 300, cwd=tmp_path).stdout
    assert len(written) == 301
    assert b"\xfc" in written or b"\xdf" in written
    figures = charrnn("eval", "cv", "-gpuid", -1, "-text", "data/input.txt", "-json", cwd=tmp_path)
    assert json.loads(figures.stdout)["characters"] == 36 * 120 - 1


def test_ctrl_c_saves_and_says_how_to_resume(tmp_path: Path) -> None:
    write_text(tmp_path / "data")
    words = [sys.executable, "-m", "charrnn", "train", "-data_dir", "data", *map(str, SMALL), "-max_epochs", "10000"]
    with subprocess.Popen(
        words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        for _ in range(20):
            process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        said = process.stderr.read().decode()
        assert process.wait(60) == 130
    saved = re.findall(r"charrnn train -resume (\S+)", said)
    assert saved and (tmp_path / saved[0]).is_file()
    assert "Traceback" not in said


def test_an_exploding_loss_stops_the_run_and_keeps_what_was_saved(tmp_path: Path) -> None:
    write_text(tmp_path / "data")
    wild = ("-learning_rate", 1e6, "-optimizer", "sgd", "-grad_clip", 0)
    done = charrnn("train", "-data_dir", "data", *SMALL, *wild, "-eval_val_every", 1, cwd=tmp_path, code=1)
    message = done.stderr.decode().splitlines()[-1]
    assert "-learning_rate" in message
    saved = checkpoints(tmp_path)
    assert saved
    for path in saved:
        package.load(path)


def test_help_answers_at_once_without_torch(tmp_path: Path) -> None:
    words = (
        "import sys; from charrnn.cli.main import run; code = run(['--help']); sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", words], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"train" in done.stdout


@pytest.mark.parametrize("spelling", ["-h", "-help", "--help"])
def test_help_shows_each_flag_once_including_the_models_own(tmp_path: Path, spelling: str) -> None:
    text = charrnn("train", "-model", "gru", spelling, cwd=tmp_path).stdout.decode()
    assert text.count("-reset_after ") == 1
    assert text.count("-rnn_size ") == 1
    assert "--rnn_size" not in text
    assert "-reset_after" not in charrnn("train", spelling, cwd=tmp_path).stdout.decode()


def test_flags_may_have_two_dashes(trained: Path) -> None:
    done = charrnn("sample", "cv", "--gpuid", "-1", "--length=7", "--primetext", "The", cwd=trained)
    assert len(done.stdout) == 3 + 7 + 1


def test_version_prints_the_version(tmp_path: Path) -> None:
    assert package.__version__.encode() in charrnn("--version", cwd=tmp_path).stdout


def test_train_py_and_sample_py_start_the_commands(trained: Path) -> None:
    root = Path(package.__file__).parent.parent
    for script, args in (("train.py", ["-model", "rnn", "-h"]), ("sample.py", ["cv", "-gpuid", "-1", "-length", "5"])):
        words = [sys.executable, str(root / script), *args]
        assert subprocess.run(words, cwd=trained, capture_output=True, env=environment()).returncode == 0


def test_a_model_file_in_the_working_directory_trains_with_its_own_flag_and_samples(tmp_path: Path) -> None:
    write_text(tmp_path / "data")
    readme = (Path(package.__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    source = re.findall(r"```python\n(# models/mine\.py\n.*?)```", readme, re.DOTALL)[0]
    (tmp_path / "models").mkdir()
    (tmp_path / "models/mine.py").write_text(source)
    charrnn("train", "-model", "mine", "-leak", 0.3, "-data_dir", "data", *SMALL, "-max_epochs", 1, cwd=tmp_path)
    assert len(charrnn("sample", "cv", "-gpuid", -1, "-length", 5, cwd=tmp_path).stdout) == 6


@pytest.mark.parametrize("output", ["utf-8:surrogateescape", "ascii"])
def test_an_encoding_error_not_caused_by_the_output_ends_with_a_traceback(output: str) -> None:
    code = (
        "from charrnn.cli import main as cli\n"
        "cli.COMMANDS['defect'] = ''\n"
        "cli.Commands.get_command = lambda *_: cli.click.Command('defect', callback=lambda: '\\udcff'.encode())\n"
        "cli.run(['defect'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment(PYTHONIOENCODING=output))
    assert b"Traceback" in done.stderr and b"surrogates not allowed" in done.stderr


def test_without_a_command_the_help_is_printed_and_the_exit_code_is_that_of_wrong_flags(tmp_path: Path) -> None:
    done = run(tmp_path, code=2)
    assert "Usage: charrnn" in done.out.decode() and "prepare" in done.out.decode() and done.err == b""
