"""Nothing is lost, whichever file operation of a command fails.

As in SQLite's tests, the first call fails, then in a new attempt the second, and so on to the last. The calls are those
to the C library: open, write, fsync, close, rename, unlink, truncate and mkdir. Either one call fails, or that call and
all later ones.
"""

from __future__ import annotations

import errno
import json
import lzma
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.checkpoints.folder import find_best, find_newest
from charrnn.data.cache import unseal
from charrnn.files import UNFINISHED
from tests.helpers.command import SONG, write_text
from tests.helpers.faults import Fault, FaultyProcess, Outcome, compiler, faulty_process
from tests.helpers.runs import same_run

T7 = Path(__file__).parents[1] / "checkpoints/t7/rnn_2x32.t7.xz"
SMALL = ("-gpuid", -1, "-rnn_size", 4, "-num_layers", 1, "-batch_size", 4, "-seq_length", 16, "-threads", 1)
SMALL += ("-kernels", "torch", "-optimizer", "sgd", "-print_every", 10**6, "-sample_length", 0)
# the run ends after 10 iterations with a last.pt of iteration 6 and a validated checkpoint of iteration 10
BEGIN = ("train", "-data_dir", "data", *SMALL, "-max_epochs", 0.5, "-eval_val_every", 13, "-save_every", 6, "-keep", 1)

# for each kind of file: the commands that prepare a folder, and the command whose calls fail
CASES: dict[str, tuple[list[tuple[object, ...]], tuple[object, ...]]] = {
    # saves at iteration 12, and after validations at 13 and 14
    "checkpoints and metrics": ([BEGIN], ("train", "-resume", "cv", "-max_epochs", 0.7)),
    "caches of texts": ([], ("train", "-data_dir", "data", *SMALL, "-max_epochs", 0.1)),
    "caches of words": ([], ("train", "-input", "data/input.txt", *SMALL, "-level", "word", "-max_epochs", 1)),
    "sample": ([BEGIN], ("sample", "cv", "-length", 30, "-output", "output")),
    "import": ([("import", "old.t7", "output")], ("import", "old.t7", "output", "-force", 1)),
    "plot": ([BEGIN], ("plot", "cv", "-output", "picture.svg")),
    "prepare": ([], ("prepare", "addition", "-examples", 20, "-val_examples", 20)),
}
FAULTS = {
    "EIO": Fault(error=errno.EIO),
    "EIO from then on": Fault(error=errno.EIO, lasting=True),
    "ENOSPC": Fault(error=errno.ENOSPC),
    "ENOSPC from then on": Fault(error=errno.ENOSPC, lasting=True),
}


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyProcess]:
    if not compiler():
        pytest.skip("faults need a C compiler, cc")
    with faulty_process(tmp_path_factory.mktemp("faults")) as process:
        yield process


def prepared(process: FaultyProcess, folder: Path, case: str) -> Path:
    """Prepare a folder for the command of a case, and return it."""
    write_text(folder / "data", SONG * 20)
    (folder / "old.t7").write_bytes(lzma.decompress(T7.read_bytes()))
    (folder / "output").write_text("earlier output")
    (folder / "picture.svg").write_text("earlier picture")
    if case == "import":
        (folder / "output").unlink()
    for args in CASES[case][0]:
        assert process.run(folder, *args).done.code == 0
    return folder


def is_whole(path: Path) -> bool:
    """Return whether a file is complete, judging by its content."""
    if path.suffix == ".jsonl":
        lines = path.read_bytes().splitlines(keepends=True)
        return all(line.endswith(b"\n") and json.loads(line) for line in lines)
    if path.suffix == ".npy":
        return bool(np.load(path).size)
    if path.suffix == ".json":
        return unseal(path.read_bytes()) is not None
    return bool(Checkpoint.load(path).weights)


def delete_what_nobody_can(folder: Path) -> None:
    """Delete what charrnn cannot delete from a broken disk: temporary files and half a line of metrics."""
    for part in folder.rglob(f".*{UNFINISHED}"):
        part.unlink()
    for file in folder.rglob("*.jsonl"):
        file.write_bytes(file.read_bytes()[: file.read_bytes().rfind(b"\n") + 1])


def files(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_files(before: Path, after: Path, end: Path) -> None:
    """Assert that a failure lost nothing.

    Each file is as it was before, as it is after a run without faults, or complete. None is temporary. The best and the
    newest checkpoint are at least as good and as new as before.
    """
    old, final, found = files(before), files(end), files(after)
    for path, content in found.items():
        assert content in (old.get(path), final.get(path)) or is_whole(after / path), path
        assert not path.name.endswith(UNFINISHED)
    missing = old.keys() - found.keys()
    assert missing <= old.keys() - final.keys(), "only what -keep deletes may be missing"
    if (before / "cv").exists():
        best, newest = (Checkpoint.load(find(before / "cv")) for find in (find_best, find_newest))
        assert Checkpoint.load(find_best(after / "cv")).val_loss <= best.val_loss
        assert Checkpoint.load(find_newest(after / "cv")).training["iteration"] >= newest.training["iteration"]


def check_message(outcome: Outcome) -> None:
    """Assert that an error is reported in one sentence, at the end."""
    lines = outcome.done.errors
    assert outcome.done.code == 1 and lines[-1].startswith("charrnn: "), lines
    assert not any(line.startswith("charrnn: ") for line in lines[:-1])
    assert not any(word in " ".join(lines) for word in ("Traceback", "Errno", "Error")), lines


def check_report(call: str, kind: str, train: bool, outcome: Outcome) -> None:
    """Assert that a failed write is reported, and that it ends the command only if necessary."""
    name, _, path = call.partition(" ")
    if name in ("write", "rename") or (name == "fsync" and "." in path):  # not the folder's
        assert any("cannot" in line or "error" in line or "space" in line for line in outcome.done.errors)
    if train and "from then on" not in kind and ("/.lm_lstm_last.pt" in path or "metrics" in path):
        # a folder that cannot be written is refused before the first iteration
        assert outcome.done.code == 0 or outcome.done.errors[-1].startswith("charrnn: cannot save to cv: ")


def check_end(before: Path, after: Path, end: Path, outcome: Outcome, failed: bool) -> None:
    """Assert that a command has done everything except what it reports as failed.

    If it ``failed`` before, checkpoints that -keep should have deleted at that time may still be there.
    """
    assert outcome.done.code == 0
    reported = " ".join(outcome.done.errors)
    expected, found = set(files(end)), set(files(after))
    allowed = set(files(before)) if failed else set()
    assert all(str(path) in reported for path in (expected ^ found) - allowed), expected ^ found
    for path, content in files(end).items():
        assert not (after / path).exists() or (after / path).read_bytes() == content or is_whole(after / path)
        if path.suffix == ".pt" and path.name not in reported:
            same_run(after / path, end / path)


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("case", CASES)
def test_no_fault_loses_or_damages_a_file(tmp_path: Path, process: FaultyProcess, case: str, kind: str) -> None:
    before, args = prepared(process, tmp_path / "before", case), CASES[case][1]
    end = Path(shutil.copytree(before, tmp_path / "work"))
    calls = process.run(end, *args, fault=FAULTS[kind]).calls
    assert {"open", "write", "fsync", "close", "rename"} <= {call.partition(" ")[0] for call in calls}
    end = end.rename(tmp_path / "end")  # attempts have one folder name, since a cache's name depends on it
    for number, call in enumerate(calls, 1):
        after = Path(shutil.copytree(before, tmp_path / "work"))
        outcome = process.run(after, *args, fault=replace(FAULTS[kind], number=number))
        failed = bool(outcome.done.code)
        try:
            check_report(call, kind, args[0] == "train", outcome)
            if failed:
                check_message(outcome)
                if kind == "EIO from then on":
                    delete_what_nobody_can(after)
                check_files(before, after, end)
                outcome = process.run(after, *args)
            check_end(before, after, end, outcome, failed)
        except BaseException as error:
            error.add_note(f"call {number} failed: {call}; exit code {outcome.done.code}")
            error.add_note(outcome.done.err.decode())
            raise
        shutil.rmtree(after)
