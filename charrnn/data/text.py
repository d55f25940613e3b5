"""Texts, and the minibatches that are cut from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np

from charrnn.data import addition as problems
from charrnn.data.cache import Prepared, prepare, prepare_files
from charrnn.data.encode import Survey, Tokens, join, renumber
from charrnn.data.minibatches import Minibatches, Split
from charrnn.data.vocabulary import Vocabulary, Words
from charrnn.errors import UserError, listed
from charrnn.settings.option import Encoding, Level
from charrnn.settings.training import TrainingOptions, check_fractions

FEW = 50  # minibatches: char-rnn warns about less


Report = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Text:
    """The texts of a folder, or text files from anywhere joined to one, as numbers of characters or words.

    files: ``input``, or ``train``, ``val`` and perhaps ``test``, each (N,) unsigned integers mapped from a
    file. called: for each of them, what messages call it. counts: how often each code occurs in all of them, and a word
    in the text to train on.
    fingerprint: the SHA-256 of every text, by file name or number, which a resumed run compares.
    """

    called: dict[str, str]
    vocabulary: Vocabulary
    counts: dict[Any, int]
    files: dict[str, Tokens]
    fingerprint: dict[str, str]
    report: Report

    def split(self, batch_size: int, seq_length: int, train_frac: float, val_frac: float) -> dict[str, Split]:
        """The parts that have at least one minibatch, ``train`` always among them.

        ``input.txt`` is split by the fractions, the other texts are splits already. Few minibatches in all
        are worth a line to ``report``. Raises UserError for fractions that are none and for too little text.
        """
        if "input" in self.files:
            splits = self._split_by_fractions(batch_size, seq_length, train_frac, val_frac)
        else:
            splits = {name: self._split_of_file(name, batch_size, seq_length) for name in self.files}
        total = sum(map(len, splits.values()))
        if total < FEW:
            self.report(
                f"the text makes only {total} of these minibatches: consider a smaller -batch_size or -seq_length"
            )
        return splits

    def _split_by_fractions(
        self, batch_size: int, seq_length: int, train_frac: float, val_frac: float
    ) -> dict[str, Split]:
        """char-rnn's layout: the text is cut to whole minibatches and the state runs on from epoch to epoch."""
        check_fractions(train_frac, val_frac)
        text = np.asarray(self.files["input"])
        total = len(text) // (batch_size * seq_length)
        if not total:
            raise self._too_short("input", batch_size, seq_length, seq_length)
        n_train = math.floor(total * train_frac)
        if not n_train:
            raise UserError(
                f"-train_frac {train_frac:g} leaves nothing to train on (minibatches in all: {total}): "
                "raise it, or lower -batch_size or -seq_length"
            )
        # 1 - train - val, but for the rounding of the sum
        nothing_to_test = math.isclose(train_frac + val_frac, 1, abs_tol=1e-9)
        n_val = total - n_train if nothing_to_test else math.floor(total * val_frac)
        counts = {"train": n_train, "val": n_val, "test": total - n_train - n_val}
        cut = text[: total * batch_size * seq_length]
        splits, before = {}, 0
        for name, count in counts.items():
            if count:
                start = before * seq_length
                splits[name] = Split(cut, total * seq_length, start, count, batch_size, seq_length, carries=True)
            before += count
        return splits

    def _split_of_file(self, name: str, batch_size: int, seq_length: int) -> Split:
        """The layout of the RHN program and the PTB reader it shares: no target wraps, each epoch starts anew."""
        text = np.asarray(self.files[name])
        row_length = len(text) // batch_size
        count = (row_length - 1) // seq_length
        if count < 1:
            raise self._too_short(name, batch_size, seq_length, seq_length + 1)
        return Split(text, row_length, 0, count, batch_size, seq_length, carries=False)

    def _too_short(self, name: str, batch_size: int, seq_length: int, row_length: int) -> UserError:
        return UserError(
            f"{self.called[name]} has {len(self.files[name]):,} {self.vocabulary.units}, and one minibatch of "
            f"-batch_size {batch_size} and -seq_length {seq_length} takes {batch_size * row_length:,}: "
            "lower either, or add text"
        )


def open_text(
    folder: str | Path,
    encoding: Encoding = "utf-8",
    report: Report = print,
    vocabulary: Vocabulary | None = None,
    keep: bool = True,
    level: Level = "char",
    unk: str = "",
) -> Text:
    """Open ``input.txt`` of a folder, or else ``train.txt`` with ``val.txt`` and perhaps ``test.txt``.

    The vocabulary is made of the characters of all of them, or of the words of ``input.txt`` or ``train.txt``, unless
    one is given: then its numbers, its encoding and its level hold. unk: the word that stands for those which other
    texts have and ``train.txt`` has not. ``report`` gets lines that the user should see. keep: whether what is worked
    out may be written down for the next time. Raises UserError for a folder without texts, texts that are empty,
    unreadable or not UTF-8, and tokens outside the vocabulary.
    """
    if vocabulary:
        encoding, level = vocabulary.encoding, vocabulary.level
    folder = Path(folder)
    names = find_texts(folder)
    prepared = prepare(folder, names, encoding, report, keep, level)
    called = {name: str(folder / f"{name}.txt") for name in names}
    report_crlf({called[name]: found for name, found in prepared.surveys.items()}, report)
    fingerprint = {f"{name}.txt": found.sha256 for name, found in prepared.surveys.items()}
    return as_text(called, prepared, prepared.tokens, fingerprint, report, vocabulary, f"the text in {folder}", unk)


def open_chosen(
    options: TrainingOptions, report: Report, vocabulary: Vocabulary | None = None, keep: bool = True
) -> Text:
    """Open the text that the settings of a run name: the files of ``input``, or else the folder ``data_dir``."""
    kind = (options.encoding, report, vocabulary, keep, options.level, options.unk)
    if options.input:
        return open_files(find_files(options.input), *kind)
    return open_text(options.data_dir, *kind)


def open_files(
    files: Sequence[Path],
    encoding: Encoding = "utf-8",
    report: Report = print,
    vocabulary: Vocabulary | None = None,
    keep: bool = True,
    level: Level = "char",
    unk: str = "",
) -> Text:
    """Open text files from anywhere, joined in this order to one ``input``; otherwise as ``open_text``."""
    if vocabulary:
        encoding, level = vocabulary.encoding, vocabulary.level
    prepared = prepare_files(files, encoding, keep, level)
    report_crlf({str(file): found for file, found in zip(files, prepared.surveys.values(), strict=True)}, report)
    fingerprint = {name: found.sha256 for name, found in prepared.surveys.items()}
    name = str(files[0]) if len(files) == 1 else f"the text of {len(files)} files"
    with room_for_temporary_files():
        tokens = {"input": join(list(prepared.tokens.values()))}
    return as_text({"input": name}, prepared, tokens, fingerprint, report, vocabulary, name, unk)


def find_files(patterns: Sequence[str]) -> list[Path]:
    """The files that these names and patterns stand for, in the order of their names, each once. Raises UserError."""
    found = set()
    for pattern in patterns:
        # a file that is there is meant, whatever signs its name has
        matches = [pattern] if Path(pattern).exists() else glob(pattern, recursive=True)
        files = [Path(match) for match in matches if Path(match).is_file()]
        if not files:
            raise UserError(f"-input {pattern}: there is no such file")
        found.update(files)
    return sorted(found)


def report_crlf(surveys: dict[str, Survey], report: Report) -> None:
    crlf = {name: found.crlf_lines for name, found in surveys.items() if found.crlf_lines}
    if crlf:
        report(f"{', '.join(crlf)}: {sum(crlf.values()):,} lines end in CRLF; the CR is kept as a character of its own")


def as_text(
    called: dict[str, str],
    prepared: Prepared,
    tokens: dict[str, Tokens],
    fingerprint: dict[str, str],
    report: Report,
    known: Vocabulary | None,
    name: str,
    unk: str,
) -> Text:
    """The Text, with the numbers of a known vocabulary if there is one."""
    own = prepared.vocabulary
    counts = dict(zip(own.codes, prepared.counts.tolist(), strict=True))
    if not known:
        known = trained(prepared, name, unk) if isinstance(own, Words) else own
    if known.codes[: len(own)] != own.codes:
        tokens = known_tokens(name, own, tokens, known)
    return Text(called, known, counts, tokens, fingerprint, report)


def trained(prepared: Prepared, name: str, unk: str) -> Words:
    """The words to train on, and the one that stands for all others. Raises UserError for others without that one."""
    own = prepared.vocabulary
    count = int(np.count_nonzero(prepared.counts))
    words, others = own.codes[:count], own.codes[count:]
    if unk:
        return Words(words if unk in words else (*words, unk), own.encoding, unk)
    if others:
        raise UserError(
            f"{name} has {listed(map(own.name, others))}, not in train.txt: name a word to stand for them, "
            "as in -unk '<unk>', or add them to train.txt"
        )
    return Words(words, own.encoding)


def find_texts(folder: Path) -> list[str]:
    """The names of a folder's texts, without ``.txt``. Raises UserError where there are none, or no validation."""
    try:
        names = [name for name in ("input", "train", "val", "test") if (folder / f"{name}.txt").is_file()]
        folder_is_there = folder.is_dir()
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from None
    if "input" in names:
        return ["input"]
    if "train" in names and "val" in names:
        return names
    if "train" in names:
        raise UserError(
            f"{folder} has train.txt but no val.txt: add it, or name the text input.txt to have it split by fractions"
        )
    raise UserError(
        f"{f'there is no text in {folder}' if folder_is_there else f'there is no folder {folder}'}: put yours at "
        f"{folder / 'input.txt'} (or train.txt and val.txt there), or have charrnn prepare make one that has a name"
    )


def known_tokens(name: str, own: Vocabulary, files: dict[str, Tokens], known: Vocabulary) -> dict[str, Tokens]:
    """The tokens of texts with the numbers of a vocabulary that is not their own.

    Raises UserError that names the characters or words outside it.
    """
    if unknown := known.unknown_codes(own.codes):
        raise known.unknown_error(name, map(known.name, unknown))
    with room_for_temporary_files():
        return {name: renumber(tokens, own, known) for name, tokens in files.items()}


@contextmanager
def room_for_temporary_files() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"no room for temporary files: {error.strerror}; free some, or set TMPDIR") from None


def require(splits: Mapping[str, Minibatches], name: str) -> Minibatches:
    """The split of that name. Raises UserError that says why there is none."""
    if name in splits:
        return splits[name]
    if any(split.carries for split in splits.values()):
        reason = "-train_frac and -val_frac leave no minibatch for it: change them, or lower -batch_size or -seq_length"
    else:
        reason = f"add {name}.txt to the folder of the text"
    raise UserError(f"there is no {name} split: {reason}")


def with_seq_length(options: TrainingOptions, train: Minibatches) -> TrainingOptions:
    """The settings with the time steps that the minibatches have. Raises UserError where others were asked for."""
    if options.seq_length not in (TrainingOptions.seq_length, train.seq_length):
        raise UserError(
            f"-seq_length {options.seq_length}: a problem of this text has {train.seq_length} time steps; leave it out"
        )
    return replace(options, seq_length=train.seq_length)


def split_text(text: Text, options: TrainingOptions) -> Mapping[str, Minibatches]:
    return text.split(options.batch_size, options.seq_length, options.train_frac, options.val_frac)


def split_problems(text: Text, options: TrainingOptions) -> Mapping[str, Minibatches]:
    if "train" not in text.files:
        raise UserError(
            "-task addition needs train.txt and val.txt, so that no problem is in both: charrnn prepare addition "
            "makes them"
        )
    splits = {
        name: problems.read(text.called[name], tokens, text.vocabulary, options.batch_size)
        for name, tokens in text.files.items()
    }
    train = splits["train"]
    if not len(train):
        raise UserError(
            f"{text.called['train']} has {len(train.lines)} problems, and a minibatch takes {options.batch_size}: "
            "lower -batch_size"
        )
    return {name: split if name == "train" else split.in_equal_parts() for name, split in splits.items()}


def minibatches(text: Text, options: TrainingOptions) -> Mapping[str, Minibatches]:
    """The minibatches that the settings ask for."""
    return split_problems(text, options) if options.task == "addition" else split_text(text, options)
