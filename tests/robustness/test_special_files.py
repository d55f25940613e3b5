"""FIFOs, devices and links in place of a file are written to, skipped or refused, but never replaced or waited for."""

from __future__ import annotations

import lzma
import os
import resource
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from charrnn.checkpoints.checkpoint import Checkpoint
from tests.helpers.command import QUICK, SONG, environment, run, write_text
from tests.helpers.kills import finish, output, start
from tests.helpers.rights import null_device

TRAIN = ("train", "-data_dir", "data", *QUICK, "-threads", 1, "-max_epochs", 0.5)
SAMPLE = ("sample", "cv", "-gpuid", -1, "-length", 30, "-verbose", 0, "-primetext", "The ")
OLD = Path(__file__).parents[1] / "checkpoints/t7/rnn_2x32.t7.xz"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    write_text(folder / "data", SONG * 60)
    (folder / "old.t7").write_bytes(lzma.decompress(OLD.read_bytes()))
    run(folder, *TRAIN)
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A folder with a text and a run."""
    return Path(shutil.copytree(trained, tmp_path / "work"))


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ((*SAMPLE, "-output"), "out.txt"),
        (("plot", "cv", "-output"), "out.png"),
        (("plot", "cv", "-output"), "out.pdf"),
        (("import", "old.t7", "-force", 1), "out.pt"),
    ],
)
def test_output_is_written_to_the_target_of_a_link_and_to_a_fifo_or_device(
    folder: Path, words: tuple[object, ...], name: str
) -> None:
    words = (*words[:2], name, *words[2:]) if words[0] == "import" else (*words, name)
    run(folder, *words)
    plain = (folder / name).read_bytes()
    (folder / name).rename(folder / "target")
    (folder / "target").write_bytes(b"old")
    (folder / name).symlink_to("target")
    run(folder, *words)
    assert (folder / name).is_symlink() and len((folder / "target").read_bytes()) == len(plain)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append((folder / name).read_bytes()), daemon=True)
    reader.start()
    run(folder, *words)
    reader.join(60)
    assert (folder / name).is_fifo() and [len(content) for content in got] == [len(plain)]
    (folder / name).unlink()
    null_device(folder / name)
    before = (folder / name).lstat().st_ino
    run(folder, *words)
    assert (folder / name).lstat().st_ino == before and not (folder / name).is_file()


@pytest.mark.parametrize("redirect", ["| cat", "> there.txt; cat there.txt"])
def test_output_can_be_written_to_dev_stdout(folder: Path, redirect: str) -> None:
    """Uses a link in the test's own folder, since root could replace the system's /dev/stdout by mistake."""
    wanted = run(folder, *SAMPLE).out
    (folder / "stdout").symlink_to("/proc/self/fd/1")
    command = f'"$@" -output stdout {redirect}'
    words = ["bash", "-c", command, "bash", sys.executable, "-m", "charrnn", *map(str, SAMPLE)]
    assert subprocess.run(words, cwd=folder, env=environment(), capture_output=True, check=True).stdout == wanted


@pytest.mark.parametrize("link", ["/proc/self/fd/1", "/dev/fd/1"])
@pytest.mark.parametrize("redirect", ["> there.txt", ">> there.txt"])
def test_output_to_stdout_replaces_no_file_that_others_write_too(folder: Path, link: str, redirect: str) -> None:
    wanted = run(folder, *SAMPLE).out
    (folder / "stdout").symlink_to(link)
    command = f'{{ echo before; "$@" -output stdout; echo after; }} {redirect}'
    words = ["bash", "-c", command, "bash", sys.executable, "-m", "charrnn", *map(str, SAMPLE)]
    subprocess.run(words, cwd=folder, env=environment(), capture_output=True, check=True)
    assert (folder / "there.txt").read_bytes() == b"before\n" + wanted + b"after\n"


def fifos(folder: Path) -> None:
    """Put FIFOs and a device where charrnn looks for files."""
    (folder / "models").mkdir()
    for name in ("cv/lm_other_epoch0.10_0.0001.pt", "cv/lm_aaa_last.pt", "models/trap.py", "models/lstm.py"):
        os.mkfifo(folder / name)
    (folder / "cv/lm_zero_last.pt").symlink_to("/dev/zero")
    (folder / "cv/lm_none_last.pt").symlink_to("nothing")
    (folder / "cv/lm_folder_last.pt").mkdir()
    os.mkfifo(folder / "cv/.lm_lstm_last.pt.abc.charrnn-part")


@pytest.mark.parametrize(
    "words",
    [SAMPLE, ("train", "-resume", "cv", "-max_epochs", 1), ("plot", "cv", "-text"), ("inspect", "cv"), ("models",)],
    ids=lambda words: words[0],
)
def test_fifos_and_devices_in_the_folders_of_checkpoints_and_models_are_skipped(
    folder: Path, words: tuple[object, ...]
) -> None:
    fifos(folder)
    process = start(folder, *words)
    assert finish(process) == 0, output(folder)


@pytest.mark.parametrize("name", ["fifo.pt", "device.pt", "folder/fifo.pt"])
@pytest.mark.parametrize(
    "words",
    [
        ("sample", "@"),
        ("eval", "@"),
        ("eval", "cv", "-ensemble", "@"),
        ("inspect", "@"),
        ("novelty", "@"),
        ("plot", "@", "-text"),
        ("import", "@", "new.pt"),
        ("train", "-resume", "@"),
        ("train", "-init_from", "@"),
    ],
    ids=lambda words: "-".join(words).replace("@", ""),
)
def test_a_fifo_or_device_in_place_of_a_checkpoint_is_refused_in_one_line(
    folder: Path, words: tuple[str, ...], name: str
) -> None:
    (folder / "folder").mkdir()
    os.mkfifo(folder / "folder/fifo.pt")
    os.mkfifo(folder / "fifo.pt")
    (folder / "device.pt").symlink_to("/dev/zero")
    process = start(folder, *(name if word == "@" else word for word in words))
    assert finish(process) == 1
    (line,) = output(folder).splitlines()
    assert line.startswith("charrnn: ") and name in line


@pytest.mark.parametrize("name", ["lm_lstm_last.pt", "lm_lstm_epoch1.00_1.0000.pt", ".lm_lstm.lock"])
@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_a_run_whose_files_cannot_be_written_is_refused_at_once(folder: Path, name: str, kind: str) -> None:
    path = folder / "cv" / name
    path.unlink(missing_ok=True)
    {"fifo": os.mkfifo, "device": null_device, "folder": Path.mkdir}[kind](path)
    assert finish(start(folder, *TRAIN, "-print_every", 1)) == 1
    assert f"{name} is not a regular file" in output(folder) and "train_loss" not in output(folder)


def test_a_metrics_file_that_is_not_a_regular_file_is_reported_once_and_left_alone(folder: Path) -> None:
    (folder / "cv/lm_lstm_metrics.jsonl").unlink()
    os.mkfifo(folder / "cv/lm_lstm_metrics.jsonl")
    assert finish(start(folder, *TRAIN)) == 0
    assert output(folder).count("cannot write cv/lm_lstm_metrics.jsonl: not a regular file; training continues") == 1
    assert finish(start(folder, "plot", "cv", "-text")) == 1
    assert output(folder) == "charrnn: cannot read cv/lm_lstm_metrics.jsonl: not a regular file\n"


@pytest.mark.parametrize("length", range(225, 256, 3))
def test_a_name_too_long_for_a_file_is_refused_before_the_first_iteration(folder: Path, length: int) -> None:
    """A name that is too long only for its temporary file is accepted."""
    name = "x" * length
    code = finish(start(folder, *TRAIN, "-print_every", 1, "-savefile", name))
    if code:
        assert output(folder).splitlines()[-1].endswith("File name too long; choose a shorter -savefile")
        assert "train_loss" not in output(folder) and not list((folder / "cv").glob("*xxx*"))
    else:
        assert length < 230
        (saved,) = (folder / "cv").glob("*xxx*.pt")
        Checkpoint.load(saved)


def limit_descriptors(free: int) -> None:
    """Let this process open only ``free`` more files."""
    highest = max(map(int, os.listdir("/proc/self/fd")))
    while os.open(os.devnull, os.O_RDONLY) < highest:
        pass
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + free, highest + 1 + free))


def test_a_limit_on_open_files_too_low_for_saving_is_reported_before_the_first_iteration(folder: Path) -> None:
    outcomes = []
    for free in range(1, 10):
        shutil.rmtree(folder / "cv", ignore_errors=True)
        code = finish(start(folder, *TRAIN, "-print_every", 1, prepare=partial(limit_descriptors, free)))
        text = output(folder)
        assert (code == 0) == ("train_loss" in text) == any((folder / "cv").glob("*.pt")), text
        assert code == 0 or "Too many open files" in text.splitlines()[-1], text
        outcomes.append(code)
    assert outcomes == sorted(outcomes, reverse=True) and set(outcomes) == {0, 1}
