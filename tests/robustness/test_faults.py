"""No finished training is lost after crashes, signals, full disks and vanished files, in real processes."""

from __future__ import annotations

import os
import pty
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.data import minibatches
from charrnn.files import UNFINISHED, replacing
from tests.helpers.command import SMALL, SONG, environment, write_text
from tests.helpers.kills import RUN, finish, last_of, newest, output, start, survive, unfinished, wait_for_iteration
from tests.helpers.kills import wait_until as wait
from tests.helpers.rights import give_up_rights
from tests.helpers.runs import same_run

LONG = (*RUN, "-max_epochs", 10_000)
STEADY = ("train", "-data_dir", "data", *SMALL, "-threads", 1, "-max_epochs", 4, "-eval_val_every", 10_000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_text(tmp_path / "data", SONG * 60)
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The final checkpoint of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    write_text(folder / "data", SONG * 60)
    assert finish(start(folder, *RUN)) == 0, output(folder)
    return last_of(folder / "cv")


def said(folder: Path) -> str:
    """Return the output of the process. Fail if it contains a traceback."""
    text = output(folder)
    assert "Traceback" not in text, text
    return text


def test_a_run_killed_ten_times_ends_as_if_undisturbed(tmp_path: Path) -> None:
    kills = inside = 0
    while kills < 10:
        result = survive(tmp_path / str(kills), 10 - kills, seed=kills)
        kills, inside = kills + result.kills, inside + result.inside
        assert result.iterations == sorted(result.iterations), "no kill may lose an earlier save"
    assert inside >= 2, "some of the kills hit a save"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_the_resumed_run_ends_as_if_undisturbed(
    folder: Path, whole: Path, number: signal.Signals
) -> None:
    process = start(folder, *RUN)
    assert wait_for_iteration(process, folder, 5)
    os.kill(process.pid or 0, number)
    assert finish(process) == 128 + number
    resume = re.findall(r"charrnn train -resume (\S+)", said(folder))
    assert resume and newest(folder / "cv").training["iteration"] >= 5
    assert finish(start(folder, "train", "-resume", resume[0])) == 0, output(folder)
    same_run(whole, last_of(folder / "cv"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_stops_at_once_and_damages_nothing(folder: Path, number: signal.Signals) -> None:
    process = start(folder, *LONG, "-save_every", 5)
    assert wait_for_iteration(process, folder, 12)
    os.kill(process.pid or 0, number)
    finish(process)
    before = last_of_all(folder).read_bytes()
    process = start(folder, "train", "-resume", "cv", "-save_every", 100_000, slow=3600)
    assert wait_for_iteration(process, folder)
    os.kill(process.pid or 0, number)
    # everything is written and is being flushed to a disk that takes longer than finish() waits
    assert wait(lambda: any(path.stat().st_size >= len(before) for path in unfinished(folder / "cv")), process)
    os.kill(process.pid or 0, number)
    assert finish(process) == (130 if number == signal.SIGINT else -number)
    assert last_of_all(folder).read_bytes() == before
    newest(folder / "cv")
    if number == signal.SIGINT:
        assert not unfinished(folder / "cv")


def last_of_all(folder: Path) -> Path:
    return folder / "cv" / "lm_lstm_last.pt"


def ignore_hangups() -> None:
    """Ignore SIGHUP, as nohup does."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def test_a_run_under_nohup_survives_a_hangup(folder: Path) -> None:
    process = start(folder, *LONG, prepare=ignore_hangups)
    assert wait_for_iteration(process, folder)
    os.kill(process.pid or 0, signal.SIGHUP)
    assert wait_for_iteration(process, folder, output(folder).count("train_loss") + 50), "the run must continue"
    os.kill(process.pid or 0, signal.SIGTERM)
    assert finish(process) == 128 + signal.SIGTERM


def test_a_closed_terminal_makes_the_run_save(folder: Path) -> None:
    words = [sys.executable, "-m", "charrnn", *map(str, LONG)]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execve(sys.executable, words, environment(TERM="xterm"))
    seen = b""
    while seen.count(b"train loss") < 2:
        seen += os.read(terminal, 65536)
    os.close(terminal)  # the system sends SIGHUP, and every write fails from here on
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    assert newest(folder / "cv").training["iteration"] > 0
    assert last_of_all(folder).exists()


def test_a_closed_pipe_makes_the_run_save(folder: Path) -> None:
    words = f"{shlex.quote(sys.executable)} -m charrnn {' '.join(map(str, LONG))} -save_every 0 | head -n 30"
    done = subprocess.run(["bash", "-c", words], cwd=folder, capture_output=True, env=environment(), timeout=120)
    assert b"Traceback" not in done.stderr
    assert newest(folder / "cv").training["iteration"] >= 30


def catches(pid: int, number: signal.Signals) -> bool:
    """Return whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(re.findall(r"SigCgt:\s*(\w+)", status)[0], 16) >> (number - 1) & 1)


def test_an_interrupt_during_startup_prints_nothing(folder: Path) -> None:
    words = [sys.executable, "-m", "charrnn", *map(str, LONG)]
    for seconds in (0, 0.3, 1, 2):
        with subprocess.Popen(words, cwd=folder, env=environment(), stdout=-1, stderr=-1) as process:
            while not catches(process.pid, signal.SIGINT):  # until Python has started
                time.sleep(0.001)
            while catches(process.pid, signal.SIGINT):  # and until charrnn has replaced its handler
                time.sleep(0.001)
            time.sleep(seconds)
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=60)
        assert b"Traceback" not in error, error.decode()
        assert process.returncode in (130, -signal.SIGINT)


def limit_files(size: int) -> None:
    """Limit the size of files, to imitate a full disk. Python ignores the signal that the system sends."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_disk_too_full_for_the_rolling_checkpoint_leads_to_a_warning(folder: Path) -> None:
    process = start(folder, *STEADY, "-save_every", 100, prepare=partial(limit_files, 30_000))
    assert finish(process) == 1, "at the end the validated checkpoint cannot be saved either"
    text = said(folder)
    warnings = re.findall(r"cannot save cv/lm_lstm_last\.pt: (.*); .*unchanged; training continues", text)
    assert len(warnings) == 2
    assert "File too large" in warnings[0]
    assert re.search(r"^charrnn: cannot save cv/lm_lstm_epoch4\.00_\S+: File too large", text, re.MULTILINE)
    assert not list((folder / "cv").glob("*.pt")) and not unfinished(folder / "cv")


def test_a_full_disk_leaves_the_previous_checkpoint_whole(folder: Path) -> None:
    assert finish(start(folder, *STEADY, "-save_every", 100)) == 0
    before = last_of_all(folder).read_bytes()
    longer = ("train", "-resume", "cv/lm_lstm_last.pt", "-max_epochs", 6)
    assert finish(start(folder, *longer, prepare=partial(limit_files, 30_000))) == 1
    assert "training continues" in said(folder)
    assert last_of_all(folder).read_bytes() == before
    assert finish(start(folder, *longer)) == 0, "once there is room, the run continues"


@pytest.mark.parametrize("size", [0, 100, 3000])
def test_a_disk_too_full_for_the_cache_is_an_error_and_leaves_no_file(folder: Path, size: int) -> None:
    assert finish(start(folder, *STEADY, prepare=partial(limit_files, size))) == 1
    log = said(folder)
    wanted = "charrnn: cannot write the vocabulary and token ids to data: File too large"
    assert log.startswith(wanted[:size]), "the log is a file too, so the limit cuts it"
    assert sorted(path.name for path in (folder / "data").iterdir()) == ["input.txt"]
    assert finish(start(folder, *STEADY, "-max_epochs", 0.1)) == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A file system of 256 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_file_system_leaves_every_saved_checkpoint_whole(folder: Path, small_disk: Path) -> None:
    process = start(folder, *STEADY, "-checkpoint_dir", "disk", "-save_every", 50, "-eval_val_every", 60)
    assert finish(process) == 1
    text = said(folder)
    assert "No space left on device" in text or "no room" in text, text
    found = list(small_disk.glob("*.pt"))
    assert len(found) >= 3 and not unfinished(small_disk)
    for path in found:
        Checkpoint.load(path)


def test_only_the_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    other = tmp_path / ".notes.tmp"
    other.write_text("mine")
    dead = tmp_path / f".one.pt.abcdefgh{UNFINISHED}"
    dead.write_text("left behind")
    with replacing(tmp_path / "two.pt") as under_way, replacing(tmp_path / "one.pt") as file:
        assert not dead.exists()
        assert len(unfinished(tmp_path)) == 2, "the file of a running writer must stay"
        under_way.write(b"two")
        file.write(b"one")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        ".notes.tmp": b"mine", "one.pt": b"one", "two.pt": b"two"
    }  # fmt: skip


def stopped_run(folder: Path) -> None:
    assert finish(start(folder, *STEADY, "-save_every", 50, "-max_epochs", 1)) == 0, output(folder)


@pytest.mark.parametrize("fault", ["changed", "shrunk", "gone", "folder gone", "empty", "not UTF-8"])
def test_a_run_does_not_resume_with_a_changed_or_missing_text(folder: Path, fault: str) -> None:
    stopped_run(folder)
    text, data = folder / "data/input.txt", folder / "data"
    content = text.read_bytes()
    actions = {
        "changed": lambda: text.write_bytes(content.replace(b"fox", b"cat", 1)),
        "shrunk": lambda: text.write_bytes(content[:-1]),
        "gone": text.unlink,
        "folder gone": lambda: shutil.rmtree(data),
        "empty": lambda: text.write_bytes(b""),
        "not UTF-8": lambda: text.write_bytes(b"\xff" + content),
    }
    actions[fault]()
    before = {path: path.read_bytes() for path in (folder / "cv").iterdir()}
    assert finish(start(folder, "train", "-resume", "cv", "-max_epochs", 2)) == 1
    message = said(folder).splitlines()[-1]
    wanted = {"changed": "not the one", "shrunk": "not the one", "gone": "no text found in data",
              "folder gone": "no folder data", "empty": "is empty", "not UTF-8": "not UTF-8"}  # fmt: skip
    assert wanted[fault] in message
    assert {path: path.read_bytes() for path in (folder / "cv").iterdir()} == before
    if fault in ("changed", "shrunk", "empty", "not UTF-8"):
        text.write_bytes(content)
        assert finish(start(folder, "train", "-resume", "cv", "-max_epochs", 1.1)) == 0, (
            "once the text is restored, the run resumes"
        )


@pytest.mark.parametrize("file", ["input.npy", "vocab.json"])
@pytest.mark.parametrize("fault", ["truncated", "flipped", "empty", "gone"])
def test_a_damaged_cache_is_rebuilt(folder: Path, whole: Path, file: str, fault: str) -> None:
    assert finish(start(folder, *STEADY, "-max_epochs", 0.1)) == 0
    shutil.rmtree(folder / "cv")
    path = folder / "data" / file
    content = path.read_bytes()
    if fault == "gone":
        path.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"truncated": content[:middle], "flipped": flipped, "empty": b""}[fault])
    assert finish(start(folder, *RUN)) == 0, output(folder)
    same_run(whole, last_of(folder / "cv"))


def read_little() -> None:
    """Read the ids of a few minibatches at a time, as if the text were large."""
    minibatches.AHEAD = 7 * 4 * 16


@pytest.mark.parametrize("fault", ["truncated", "written over", "copied over"])
def test_a_cache_that_is_changed_while_a_run_reads_it_makes_the_run_save(folder: Path, whole: Path, fault: str) -> None:
    process = start(folder, *RUN, prepare=read_little)
    assert wait_for_iteration(process, folder, 3)
    npy = folder / "data/input.npy"
    content = npy.read_bytes()
    if fault == "truncated":
        os.truncate(npy, 0)
    else:
        npy.write_bytes(content[::-1] if fault == "written over" else content[:128] + bytes(len(content) - 128))
    assert finish(process) == 1
    *_, line = said(folder).splitlines()
    assert re.fullmatch(
        r"charrnn: another program changed data/input\.npy while it was being read; the next command rebuilds it\. "
        r"The run so far is saved: continue it with -resume cv/lm_lstm_\S+\.pt",
        line,
    )
    assert newest(folder / "cv").training["iteration"] >= 3
    assert finish(start(folder, "train", "-resume", "cv")) == 0, output(folder)
    same_run(whole, last_of(folder / "cv"))


def test_an_unwritable_checkpoint_folder_is_refused_at_once(folder: Path) -> None:
    (folder / "cv").mkdir()
    (folder / "cv").chmod(0o555)
    assert finish(start(folder, *STEADY, prepare=give_up_rights)) == 1
    assert "cannot save to cv: Permission denied; name another -checkpoint_dir" in said(folder)
    assert "train_loss" not in output(folder), "the error must come at once, not after the first epoch"


def test_the_cache_of_an_unwritable_data_folder_is_kept_elsewhere(folder: Path) -> None:
    (folder / "data").chmod(0o555)
    (folder / "home").mkdir()
    place = partial(cache_in, str(folder / "home"))
    assert finish(start(folder, *STEADY, "-max_epochs", 0.1, prepare=place)) == 0, output(folder)
    assert "data cannot be written to: its vocabulary and token ids are kept in" in said(folder)
    assert sorted(path.name for path in (folder / "data").iterdir()) == ["input.txt"]


def cache_in(home: str) -> None:
    give_up_rights()
    os.environ["XDG_CACHE_HOME"] = home


def test_a_file_in_place_of_the_folder_is_refused_and_kept(folder: Path) -> None:
    (folder / "cv").write_text("mine")
    for place in ("cv", "cv/deeper"):
        assert finish(start(folder, *STEADY, "-checkpoint_dir", place)) == 1
        assert f"cannot save to {place}: " in said(folder)
    assert (folder / "cv").read_text() == "mine"


def test_a_missing_folder_is_created(folder: Path) -> None:
    assert finish(start(folder, *STEADY, "-max_epochs", 0.1, "-checkpoint_dir", "a/b/c")) == 0
    assert list((folder / "a/b/c").glob("*.pt"))


def test_a_checkpoint_folder_that_vanishes_is_created_again(folder: Path) -> None:
    process = start(folder, *LONG)
    assert wait(lambda: last_of_all(folder).exists(), process)
    shutil.rmtree(folder / "cv", ignore_errors=True)
    assert wait(lambda: last_of_all(folder).exists(), process)
    os.kill(process.pid or 0, signal.SIGINT)
    assert finish(process) == 130, output(folder)
    newest(folder / "cv")


def test_two_runs_with_the_same_name_cannot_share_a_folder(folder: Path) -> None:
    first = start(folder, *LONG)
    assert wait_for_iteration(first, folder, 10)
    second = folder / "second"
    second.mkdir()
    elsewhere = ("-data_dir", "../data", "-checkpoint_dir", "../cv")
    assert finish(start(second, *RUN, *elsewhere)) == 1
    assert "another training is saving lm_lstm_... to ../cv" in said(second)
    assert finish(start(second, *RUN, *elsewhere, "-max_epochs", 0.1, "-savefile", "mine")) == 0, (
        "another name may be used"
    )
    os.kill(first.pid or 0, signal.SIGKILL)
    finish(first)
    going = start(second, "train", "-resume", "../cv/lm_lstm_last.pt", *elsewhere)
    assert wait_for_iteration(going, second), "a killed run holds no lock"
    os.kill(going.pid or 0, signal.SIGINT)
    assert finish(going) == 130


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux does a lock survive the removal of its file")
@pytest.mark.parametrize("change", ["removed", "replaced", "folder gone"])
def test_two_runs_cannot_share_a_folder_even_if_the_lock_file_is_removed(folder: Path, change: str) -> None:
    first = start(folder, *LONG)
    assert wait_for_iteration(first, folder, 10)
    if change == "folder gone":
        shutil.rmtree(folder / "cv", ignore_errors=True)
    else:
        (folder / "cv/.lm_lstm.lock").unlink()
    if change == "replaced":
        (folder / "cv/.lm_lstm.lock").touch()
    second = folder / "second"
    second.mkdir()
    elsewhere = ("-data_dir", "../data", "-checkpoint_dir", "../cv")
    assert finish(start(second, *RUN, *elsewhere)) == 1
    assert "another training is saving lm_lstm_... to ../cv" in said(second)
    os.kill(first.pid or 0, signal.SIGKILL)
    finish(first)
    assert finish(start(second, *RUN, *elsewhere, "-max_epochs", 0.1)) == 0, "a killed run holds no lock"


WILD = ("-learning_rate", 1e6, "-optimizer", "sgd", "-grad_clip", 0)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoints(folder: Path) -> None:
    stopped_run(folder)
    before = last_of_all(folder).read_bytes()
    wild = (*STEADY, *WILD, "-init_from", "cv/lm_lstm_last.pt")
    assert finish(start(folder, *wild)) == 1
    assert re.search("the training loss (is not a number|has exploded)", said(folder).splitlines()[-1])
    assert last_of_all(folder).read_bytes() == before


def test_a_run_rolls_back_at_most_three_times(folder: Path) -> None:
    assert finish(start(folder, *STEADY, *WILD, "-on_nan", "rollback")) == 1
    text = said(folder)
    assert len(re.findall("Back to iteration 0, at half the learning rate", text)) == 3
    rates = re.findall(r"\(now (\S+)\)", text)
    assert [float(rate) for rate in rates] == [1e6, 5e5, 2.5e5, 1.25e5]


def limit_memory(size: int) -> None:
    """Limit the address space to ``size`` bytes more than its present size."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + size, taken + size))


@pytest.mark.parametrize("rnn_size", [3000, 6000])
def test_the_message_for_running_out_of_memory_says_how_much_is_needed(folder: Path, rnn_size: int) -> None:
    process = start(folder, *STEADY, "-rnn_size", rnn_size, prepare=partial(limit_memory, 400_000_000))
    assert finish(process) == 1
    message = said(folder).splitlines()[-1]
    found = re.search(r"out of memory: this run needs about ([\d.,]+) (MB|GB)", message)
    assert found and all(f"-{name}" in message for name in ("rnn_size", "num_layers", "batch_size", "seq_length"))
    weights = 4 * rnn_size * (rnn_size + len(set(SONG)) + 2) + len(set(SONG)) * (rnn_size + 1)
    needed = float(found[1].replace(",", "")) * (1e9 if found[2] == "GB" else 1e6)
    assert 3 * 4 * weights <= needed * 1.01 and needed < 2 * 3 * 4 * weights


@pytest.mark.parametrize("limit", [100_000, 250_000, 400_000, 500_000])  # kB; a library that aborts, and one that exits
def test_too_little_memory_to_load_torch_is_reported_in_one_sentence(folder: Path, limit: int) -> None:
    words = f"ulimit -v {limit}; {shlex.join([sys.executable, '-m', 'charrnn', *map(str, STEADY)])}"
    done = subprocess.run(["bash", "-c", words], cwd=folder, capture_output=True, env=environment(), timeout=60)
    assert done.returncode == 1
    message = r"charrnn: the memory of this process is limited to \d+ MB, too little to load PyTorch: .*\n"
    assert re.fullmatch(message, done.stderr.decode())


def test_a_model_larger_than_memory_is_refused_before_anything_is_written(folder: Path) -> None:
    assert finish(start(folder, *STEADY, "-rnn_size", 1_000_000)) == 1
    assert re.search(r"needs about [\d,.]+ GB .*, but the device has only [\d.]+ GB: lower -rnn_size", said(folder))
    assert sorted(path.name for path in folder.rglob("*")) == ["data", "input.txt", "log.txt"]
