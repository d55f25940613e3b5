"""Checkpoints are complete or absent, and loading one runs no code from it."""

from __future__ import annotations

import errno
import os
import pickle
import shlex
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from charrnn import load, registry
from charrnn.checkpoints import archive
from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.checkpoints.folder import find_best, find_newest
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError
from charrnn.settings.training import TrainingOptions

ALPHABET = Vocabulary(tuple(range(97, 108)))


def make(name: str = "lstm", **options: Any) -> Checkpoint:
    torch.manual_seed(2)
    model = registry.find(name).create(len(ALPHABET), 8, 2, 0.0)
    settings = TrainingOptions(model=name, rnn_size=8, num_layers=2, **options)
    return Checkpoint(settings, {}, ALPHABET, dict(model.state_dict()), epoch=1.5, val_loss=1.25)


@pytest.mark.parametrize("name", registry.models())
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_loaded_checkpoint_equals_the_saved_one(tmp_path: Path, name: str, precision: str) -> None:
    torch.manual_seed(2)
    dtype = getattr(torch, precision)
    model = registry.find(name).create(len(ALPHABET), 8, 2, 0.0).to(dtype).eval()
    options = TrainingOptions(model=name, rnn_size=8, num_layers=2, precision=precision)
    saved = Checkpoint(options, {}, ALPHABET, dict(model.state_dict()))
    again, vocabulary = load(saved.save(tmp_path / "one.pt"))
    assert vocabulary == ALPHABET
    x = torch.arange(11)[:, None]
    with torch.no_grad():
        expected, got = model(x, None)[0], again(x, None)[0]
    assert torch.equal(got, expected)
    assert got.dtype == dtype


@pytest.mark.parametrize(
    "vocabulary",
    [Vocabulary((0, 10, 0x4E00, 0x1F338)), Vocabulary((0, 10, 128, 255), "bytes")],
    ids=lambda v: v.encoding,
)
def test_any_vocabulary_survives_saving_and_loading(tmp_path: Path, vocabulary: Vocabulary) -> None:
    checkpoint = make()
    checkpoint.vocabulary = vocabulary
    assert Checkpoint.load(checkpoint.save(tmp_path / "one.pt")).vocabulary == vocabulary


def test_the_file_contains_only_plain_values(tmp_path: Path) -> None:
    path = make().save(tmp_path / "one.pt")
    content = torch.load(path, weights_only=True)
    assert content["format"] == 1
    assert content["options"]["rnn_size"] == 8


class Bomb:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_no_code_from_the_file_is_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    bomb = Bomb(f"touch {shlex.quote(str(mark))}")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(bomb))
    torch.save({"program": "charrnn", "format": 1, "options": bomb}, tmp_path / "zip.pt")
    for name in ("pickle.pt", "zip.pt"):
        with pytest.raises(UserError, match=name):
            Checkpoint.load(tmp_path / name)
    assert not mark.exists()
    pickle.loads((tmp_path / "pickle.pt").read_bytes())
    assert mark.exists(), "plain pickle should have run the code"


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: float) -> None:
    path = make().save(tmp_path / "one.pt")
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(UserError, match=r"one\.pt"):
        Checkpoint.load(path)


def test_a_zip_that_unpacks_to_more_than_its_size_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 50_000_000)
    with pytest.raises(UserError, match="damaged"):
        Checkpoint.load(tmp_path / "bomb.pt")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format 2"),
        ({"program": "another"}, "not a checkpoint"),
        ({"options": {"rnn_size": -4}}, "rnn_size"),
        ({"options": {"rnn_size": 8, "unheard_of": 1}}, "unheard_of"),
        ({"options": {"model": "../../x"}}, "x"),
        ({"options": {"model": "nosuch"}}, "nosuch"),
        ({"vocabulary": {"encoding": "utf-8", "tokens": ["b", "a"]}}, "vocabulary"),
        ({"weights": {"decoder.bias": "text"}}, "tensors"),
        ({"weights": {}}, "do not fit"),
        ({"options": {"rnn_size": 9, "num_layers": 2}}, "do not fit"),
        ({"model_options": {"depth": 3}}, "depth"),
    ],
)
def test_invalid_content_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = make().save(tmp_path / "one.pt")
    torch.save(torch.load(path, weights_only=True) | change, path)
    with pytest.raises(UserError, match=said):
        load(path)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make().save(tmp_path / "one.pt")
    before = path.read_bytes()

    def no_space(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(UserError, match=r"No space left.*unchanged"):
        make(seed=9).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_save_that_fails_at_any_write_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    path = make().save(tmp_path / "one.pt")
    before, torch_save = path.read_bytes(), torch.save
    for number in range(1, 1000):
        monkeypatch.setattr(torch, "save", partial(failing, torch_save, number, failure))
        try:
            make(seed=9).save(path)
        except (KeyboardInterrupt, UserError) as error:
            assert isinstance(failure, KeyboardInterrupt) == isinstance(error, KeyboardInterrupt), f"{number}: {error}"
            assert isinstance(failure, KeyboardInterrupt) or "No space left on device" in str(error)
        else:
            break
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]
    assert number > 30, "each write must fail in one attempt"


def failing(save: Callable[..., None], number: int, failure: BaseException, content: Any, file: IO[bytes]) -> None:
    save(content, Failing(file, number, failure))


class Failing:
    """A file whose write with the given number fails."""

    def __init__(self, file: IO[bytes], number: int, failure: BaseException) -> None:
        self.file, self.left, self.failure = file, number, failure

    def write(self, content: bytes) -> int:
        self.left -= 1
        if not self.left:
            raise self.failure
        return self.file.write(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_a_folder_stands_for_its_best_checkpoint(tmp_path: Path) -> None:
    for epoch, loss in ((1, 2.0), (2, 1.5), (3, 1.6)):
        checkpoint = make()
        checkpoint.epoch, checkpoint.val_loss = epoch, loss
        checkpoint.save(tmp_path / checkpoint.name)
    make().save(tmp_path / "lm_lstm_last.pt")
    assert find_best(tmp_path).name == "lm_lstm_epoch2.00_1.5000.pt"
    assert find_newest(tmp_path).name == "lm_lstm_last.pt"


def test_the_message_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.pt"):
        load(tmp_path / "nothing.pt")


def test_the_message_names_a_folder_without_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoints"):
        find_best(tmp_path)


def test_a_learning_rate_decay_above_1_in_a_checkpoint_is_read_as_1(tmp_path: Path) -> None:
    path = make(learning_rate_decay=1.5).save(tmp_path / "one.pt")
    assert Checkpoint.load(path).options.learning_rate_decay == 1


def test_an_error_of_the_disk_is_not_called_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, values: bool = True) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "one.pt").touch()
    monkeypatch.setattr(archive, "read", broken)
    with pytest.raises(UserError, match=r"^cannot read .*one\.pt: Input/output error"):
        Checkpoint.load(tmp_path / "one.pt")
