"""Texts as token ids, and the minibatches that are cut from them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import Any

from charrnn.compute import Report
from charrnn.data import addition
from charrnn.data.cache import EncodedTexts, accept_all, load_or_build
from charrnn.data.datasets import penn_treebank
from charrnn.data.encode import Reading, Survey, TokenIds, join, translate
from charrnn.data.minibatches import Minibatches, Split, split_by_fractions, split_of_file
from charrnn.data.vocabulary import Vocabulary, Words
from charrnn.errors import UserError, listed, unreadable
from charrnn.settings.training import TrainingOptions, check_fractions

FEW = 50  # minibatches: char-rnn warns if there are fewer
SPLITS = ("train", "val", "test")

# called with the fingerprint of a text before anything is written; raises UserError if it is the wrong text
Accept = Callable[[Mapping[str, str]], None]


@dataclass(frozen=True, eq=False)
class Text:
    """The texts of a folder, or other text files joined into one, as token ids."""

    vocabulary: Vocabulary
    # how often each code of the texts occurs: characters in all of them, words in the text to train on
    counts: dict[Any, int]
    # the ids of ``input``, or of ``train``, ``val`` and perhaps ``test``: (N,) each, in a file
    files: Mapping[str, TokenIds]
    # what messages call each of them
    called: dict[str, str]
    # the SHA-256 of every file, by its name or index; a resumed run compares them
    fingerprint: dict[str, str]
    report: Report

    def split(self, batch_size: int, seq_length: int, train_frac: float, val_frac: float) -> dict[str, Split]:
        """Return the splits that have at least one minibatch; ``train`` is always one of them.

        ``input`` is split by the fractions; the other texts are splits already. ``report`` gets a line if there are few
        minibatches in all. Raises UserError if the fractions are invalid, or if the text is too short.
        """
        if "input" in self.files:
            check_fractions(train_frac, val_frac)
            splits = split_by_fractions(self.files["input"], batch_size, seq_length, train_frac, val_frac)
            if not splits:
                raise self._too_short("input", batch_size, seq_length, seq_length)
            if "train" not in splits:
                raise UserError(
                    f"-train_frac {train_frac:g} leaves nothing to train on "
                    f"(minibatches in all: {sum(map(len, splits.values()))}): "
                    "raise it, or lower -batch_size or -seq_length"
                )
        else:
            splits = {name: split_of_file(ids, batch_size, seq_length) for name, ids in self.files.items()}
            for name, split in splits.items():
                if not len(split):
                    raise self._too_short(name, batch_size, seq_length, seq_length + 1)
        total = sum(map(len, splits.values()))
        if total < FEW:
            self.report(f"the text has only {total} minibatches: consider a smaller -batch_size or -seq_length")
        return splits

    def _too_short(self, name: str, batch_size: int, seq_length: int, row_length: int) -> UserError:
        return UserError(
            f"{self.called[name]} has {len(self.files[name]):,} {self.vocabulary.units}, but one minibatch of "
            f"-batch_size {batch_size} and -seq_length {seq_length} needs {batch_size * row_length:,}: "
            "lower either of them, or add text"
        )


def open_text(
    source: str | Path | Sequence[Path],
    reading: Reading = Reading(),  # noqa: B008 (Reading is frozen)
    report: Report = print,
    vocabulary: Vocabulary | None = None,
    keep: bool = True,
    accept: Accept = accept_all,
) -> Text:
    """Open the texts of a folder, or other text files joined in this order into one ``input``.

    A folder has ``input.txt``, or else ``train.txt`` with ``val.txt`` and perhaps ``test.txt``. The vocabulary has the
    characters of all texts, or the words of the text to train on. If ``vocabulary`` is given, its ids, encoding and
    level are used instead. ``report`` gets lines that the user should see. Without ``keep``, no cache is written.
    Raises what ``accept`` raises, and UserError if there is no text, if a text is empty, unreadable or not in the
    encoding, and if it has unknown tokens.
    """
    if vocabulary:
        reading = replace(reading, encoding=vocabulary.encoding, level=vocabulary.level)
    folder: Path | None = None
    if isinstance(source, (str, Path)):
        folder = Path(source)
        paths = find_texts(folder)
        name, called = f"the text in {folder}", {split: str(path) for split, path in paths.items()}
    else:
        paths = {str(index): path for index, path in enumerate(source, 1)}
        name = str(source[0]) if len(source) == 1 else f"the text of {len(source)} files"
        called = {"input": name}

    def fingerprint(surveys: Mapping[str, Survey]) -> dict[str, str]:
        return {f"{key}.txt" if folder else key: found.sha256 for key, found in surveys.items()}

    encoded = load_or_build(paths, reading, folder, report, keep, lambda surveys: accept(fingerprint(surveys)))
    files = encoded.ids if folder else {"input": join(list(encoded.ids.values()))}
    report_crlf(paths, encoded.surveys, report)
    penn_treebank.check(paths, {split: len(ids) for split, ids in files.items()}, reading.level, report)
    own, counts = encoded.vocabulary, dict(zip(encoded.vocabulary.codes, encoded.counts.tolist(), strict=True))
    vocabulary = vocabulary or (words_to_train_on(encoded, name, reading.unk) if isinstance(own, Words) else own)
    if unknown := vocabulary.unknown_codes(own.codes):
        raise vocabulary.unknown_error(name, map(own.name, unknown))
    if vocabulary.codes[: len(own)] != own.codes:
        files = {split: translate(ids, own, vocabulary) for split, ids in files.items()}
    return Text(vocabulary, counts, files, called, fingerprint(encoded.surveys), report)


def open_chosen(
    options: TrainingOptions,
    report: Report,
    vocabulary: Vocabulary | None = None,
    keep: bool = True,
    accept: Accept = accept_all,
) -> Text:
    """Open the text that a run's settings name: the files of ``input``, or else the folder ``data_dir``.

    Otherwise like ``open_text``. ``input`` holds names, never patterns, because a checkpoint may come from a stranger.
    """
    for name in options.input:
        if not os.path.isfile(name):
            raise no_file(name)
    source = [Path(name) for name in options.input] or options.data_dir
    return open_text(source, Reading(options.encoding, options.level, options.unk), report, vocabulary, keep, accept)


def find_files(patterns: Sequence[str]) -> list[Path]:
    """Return the files that match names and patterns, each once, sorted. Raises UserError if one has no match."""
    found = set()
    for pattern in patterns:
        # the name of an existing file is not a pattern, even if it contains [ or *
        matches = [pattern] if os.path.exists(pattern) else glob(pattern, recursive=True)
        files = [Path(match) for match in matches if os.path.isfile(match)]
        if not files:
            raise no_file(pattern)
        found.update(files)
    return sorted(found)


def no_file(name: str) -> UserError:
    return UserError(f"-input {name}: {'not a regular file' if os.path.exists(name) else 'no such file'}")


def find_texts(folder: Path) -> dict[str, Path]:
    """Return the text files of a folder by the names of their splits.

    Raises UserError if there is none, or if there is a text to train on but none for validation.
    """
    try:
        paths = {name: folder / f"{name}.txt" for name in ("input", *SPLITS)}
        found = {name: path for name, path in paths.items() if path.exists() and not path.is_dir()}
        found = found or penn_treebank.find(folder)
        folder_exists = folder.is_dir()
    except OSError as error:
        raise unreadable(folder, error) from None
    if "input" in found:
        return {"input": found["input"]}
    if "train" in found and "val" in found:
        return found
    if "train" in found:
        train = found["train"].name
        val = "val.txt" if train == "train.txt" else penn_treebank.FILES["val"]
        raise UserError(
            f"{folder} has {train} but no {val}: add it, or name the text input.txt to split it by fractions"
        )
    raise UserError(
        f"{f'no text found in {folder}' if folder_exists else f'no folder {folder}'}: save your text as "
        f"{folder / 'input.txt'} (or as train.txt and val.txt there), or get a standard text with charrnn prepare"
    )


def has_text(folder: Path) -> bool:
    """Return whether a folder already has a text, even an incomplete one. No data set is made in such a folder."""
    return any((folder / f"{name}.txt").exists() for name in ("input", "train")) or bool(penn_treebank.find(folder))


def report_crlf(paths: Mapping[str, Path], surveys: Mapping[str, Survey], report: Report) -> None:
    crlf = {str(paths[name]): found.crlf_lines for name, found in surveys.items() if found.crlf_lines}
    if crlf:
        report(f"{', '.join(crlf)}: {sum(crlf.values()):,} lines end in CRLF; the CR is kept as a separate character")


def words_to_train_on(encoded: EncodedTexts, name: str, unk: str) -> Words:
    """Return the words of the text to train on, with ``unk`` for all others.

    Raises UserError if other texts have words that it lacks, and no ``unk`` is given.
    """
    own = encoded.vocabulary
    count = int((encoded.counts > 0).sum())
    words, others = own.codes[:count], own.codes[count:]
    if unk:
        return Words(words if unk in words else (*words, unk), own.encoding, unk)
    if others:
        raise UserError(
            f"{name} has {listed(map(own.name, others))}, which train.txt does not contain: name a word to stand for "
            "them, as in -unk '<unk>', or add them to train.txt"
        )
    return Words(words, own.encoding)


def require(splits: Mapping[str, Minibatches], name: str) -> Minibatches:
    """Return the split of that name. Raises UserError with the reason if it does not exist."""
    if name in splits:
        return splits[name]
    if any(split.carries for split in splits.values()):
        reason = "-train_frac and -val_frac leave no minibatch for it: change them, or lower -batch_size or -seq_length"
    else:
        reason = f"add {name}.txt to the folder of the text"
    raise UserError(f"no {name} split: {reason}")


def with_seq_length(options: TrainingOptions, train: Minibatches) -> TrainingOptions:
    """Return the settings with the sequence length of the minibatches. Raises UserError if a different one was set."""
    if options.seq_length not in (TrainingOptions.seq_length, train.seq_length):
        raise UserError(
            f"-seq_length {options.seq_length}: a problem in this text has {train.seq_length} time steps; "
            "leave out -seq_length"
        )
    return replace(options, seq_length=train.seq_length)


def minibatches(text: Text, options: TrainingOptions) -> Mapping[str, Minibatches]:
    """Return the minibatches of each split for the chosen task. Raises UserError if the text does not fit the task."""
    if options.task == "addition":
        return problems(text, options.batch_size)
    return text.split(options.batch_size, options.seq_length, options.train_frac, options.val_frac)


def problems(text: Text, batch_size: int) -> dict[str, addition.Problems]:
    """Return the splits of a text of addition problems. The val and test splits contain every problem."""
    if "train" not in text.files:
        raise UserError(
            "-task addition needs train.txt and val.txt, so that no problem is in both: charrnn prepare addition "
            "makes them"
        )
    splits = {name: addition.read(text.called[name], ids, text.vocabulary) for name, ids in text.files.items()}
    train = replace(splits.pop("train"), batch_size=batch_size)
    if not len(train):
        raise UserError(
            f"{text.called['train']} has {len(train.lines)} problems, but a minibatch takes {batch_size}: "
            "lower -batch_size"
        )
    return {"train": train} | {name: split.in_equal_parts() for name, split in splits.items()}
