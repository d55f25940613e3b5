"""Reading a text in chunks, compared with Python's decoder and plain loops."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from charrnn.data import encode
from charrnn.data.encode import (
    CharacterEncoder,
    StoredIds,
    TextChanged,
    hash_text,
    id_type,
    open_source,
    read_ids,
    translate,
    write_ids,
)
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError

texts = st.text(st.sampled_from("ab\r\n\0\ufeffé€汉\uffff😀\U0010ffff"), min_size=1, max_size=40) | st.text(min_size=1)
chunks = st.integers(1, 9)


def read(path: Path, encoding: str, chunk: int = encode.CHUNK) -> tuple[encode.Survey, Vocabulary, list[int], bytes]:
    """Encode a text. Return the survey, the vocabulary, the token ids, and the bytes of the file written."""
    with pytest.MonkeyPatch.context() as patch, open_source(path) as source, TemporaryFile() as file:
        patch.setattr(encode, "CHUNK", chunk)
        encoder = CharacterEncoder(encoding)
        found = encoder.survey(source, train=True)
        vocabulary, counts = encoder.vocabulary()
        ids = write_ids(source, found, encoder, vocabulary, file, path)
        file.seek(0)
        written = file.read()
    assert ids.checksum == sha256(written).hexdigest()
    tally = Counter(ids[:].tolist())
    assert counts.tolist() == [tally[number] for number in range(len(vocabulary))]
    return found, vocabulary, ids[:].tolist(), written


@given(texts, chunks)
@example("\r\n\n\r\r\n", 1)
@example("é\r\n€\r\n", 3)
def test_decoding_utf8_equals_a_plain_loop_for_every_chunk_size(text: str, chunk: int) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "input.txt")
        path.write_bytes(text.encode())
        found, vocabulary, ids, _ = read(path, "utf-8", chunk)
    alphabet = sorted(set(text))
    assert vocabulary.codes == tuple(map(ord, alphabet))
    assert ids == [alphabet.index(character) for character in text]
    assert found == encode.Survey(sha256(text.encode()).hexdigest(), len(text), text.count("\r\n"))


@given(st.binary(min_size=1), chunks)
def test_reading_bytes_equals_a_plain_loop_for_every_chunk_size(data: bytes, chunk: int) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "input.txt")
        path.write_bytes(data)
        found, vocabulary, ids, _ = read(path, "bytes", chunk)
    alphabet = sorted(set(data))
    assert vocabulary.codes == tuple(alphabet)
    assert ids == [alphabet.index(byte) for byte in data]
    assert found == encode.Survey(sha256(data).hexdigest(), len(data), data.count(b"\r\n"))


wrong = st.sampled_from(
    [b"\xff", b"\x80", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\xf0\x9f\x98"]
)


@given(texts, wrong, st.sampled_from(["", "z", "é"]), chunks)
def test_the_message_names_the_first_byte_that_is_not_utf8(before: str, bad: bytes, after: str, chunk: int) -> None:
    data = before.encode() + bad + after.encode()
    with pytest.raises(UnicodeDecodeError) as expected:
        data.decode()
    with TemporaryDirectory() as folder:
        path = Path(folder, "input.txt")
        path.write_bytes(data)
        with pytest.raises(UserError) as caught:
            read(path, "utf-8", chunk)
        assert str(caught.value) == (
            f"{path} is not UTF-8 at byte {expected.value.start}: convert it, or read it with -encoding bytes"
        )


@pytest.mark.parametrize("encoding", ["utf-8", "bytes"])
def test_numpy_can_read_the_file_of_token_ids(tmp_path: Path, encoding: str) -> None:
    path, npy = tmp_path / "input.txt", tmp_path / "input.npy"
    path.write_text("to be, or not to be: ö")
    _, vocabulary, ids, written = read(path, encoding)
    npy.write_bytes(written)
    assert np.load(npy).tolist() == ids
    again = read_ids(npy, sha256(written).hexdigest(), vocabulary, len(ids))
    assert isinstance(again, StoredIds)
    assert again[:].tolist() == ids


def test_a_file_with_a_wrong_checksum_type_or_length_is_not_read(tmp_path: Path) -> None:
    npy = tmp_path / "input.npy"
    np.save(npy, np.arange(9, dtype=np.uint8))
    checksum, nine = sha256(npy.read_bytes()).hexdigest(), Vocabulary(tuple(range(9)))
    again = read_ids(npy, checksum, nine, 9)
    assert again is not None and again[:].tolist() == list(range(9))
    assert read_ids(npy, sha256(npy.read_bytes() + b"\0").hexdigest(), nine, 9) is None
    assert read_ids(npy, checksum, Vocabulary(tuple(range(257))), 9) is None
    assert read_ids(npy, checksum, nine, 8) is None
    npy.write_bytes(npy.read_bytes()[:-1])
    assert read_ids(npy, sha256(npy.read_bytes()).hexdigest(), nine, 9) is None


def stored(tmp_path: Path) -> tuple[StoredIds, Path]:
    """Return the ids 0 to 99 in a file, and the file."""
    npy = tmp_path / "input.npy"
    np.save(npy, np.arange(100, dtype=np.uint8))
    os.utime(npy, (1, 1))
    ids = read_ids(npy, sha256(npy.read_bytes()).hexdigest(), Vocabulary(tuple(range(100))), 100)
    assert ids is not None
    return ids, npy


@pytest.mark.parametrize("place", [slice(None), slice(3, 9), slice(-7, None), slice(90, 300), slice(5, 5), slice(9, 3)])
def test_slices_of_a_file_of_ids_equal_those_of_an_array(tmp_path: Path, place: slice) -> None:
    ids, _ = stored(tmp_path)
    assert len(ids) == 100 and ids[place].dtype == ids.dtype
    assert ids[place].tolist() == list(range(100))[place]
    sent = pickle.loads(pickle.dumps(ids))
    assert sent[place].tolist() == np.asarray(ids)[place].tolist() == ids[place].tolist()


CHANGES: dict[str, Callable[[Path], object]] = {
    "cut off": lambda npy: os.truncate(npy, 150),
    "emptied": lambda npy: os.truncate(npy, 0),
    "longer": lambda npy: os.truncate(npy, 1000),
    "written over": lambda npy: npy.write_bytes(npy.read_bytes()[::-1]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_ids_that_another_program_changes_are_an_error(tmp_path: Path, change: str) -> None:
    ids, npy = stored(tmp_path)
    CHANGES[change](npy)
    for place in (slice(0, 1), slice(None)):
        with pytest.raises(
            TextChanged, match=f"^another program changed {npy} while it was being read; the next command rebuilds it$"
        ):
            ids[place]


@pytest.mark.parametrize("change", ["touched", "written again", "replaced", "deleted"])
def test_ids_that_only_look_changed_can_still_be_read(tmp_path: Path, change: str) -> None:
    ids, npy = stored(tmp_path)
    if change == "touched":
        npy.touch()
    elif change == "written again":
        npy.write_bytes(npy.read_bytes())
    elif change == "replaced":
        (tmp_path / "other").write_bytes(b"other")
        os.replace(tmp_path / "other", npy)
    else:
        npy.unlink()
    for _ in range(2):
        assert ids[:].tolist() == list(range(100))


@pytest.mark.parametrize(("size", "dtype"), [(1, "u1"), (256, "u1"), (257, "u2"), (65536, "u2"), (65537, "u4")])
def test_ids_take_the_smallest_type_that_fits(tmp_path: Path, size: int, dtype: str) -> None:
    vocabulary = Vocabulary(tuple(range(0x10000, 0x10000 + size)))
    assert id_type(vocabulary) == np.dtype(dtype)
    path, npy = tmp_path / "input.txt", tmp_path / "input.npy"
    path.write_text(vocabulary.decode(range(size)), encoding="utf-8")
    _, own, ids, written = read(path, "utf-8")
    npy.write_bytes(written)
    assert own == vocabulary
    assert ids == list(range(size))
    assert np.load(npy).dtype == np.dtype(dtype)


@pytest.mark.parametrize("encoding", ["utf-8", "bytes"])
def test_an_empty_text_is_an_error(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "input.txt"
    path.touch()
    with pytest.raises(UserError, match=r"input\.txt is empty: put a text there"):
        read(path, encoding)


def test_a_text_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.txt"):
        with pytest.raises(UserError, match=f"cannot read {path}: "):
            hash_text(path)


@pytest.mark.parametrize("reading", [1, 2])
@pytest.mark.parametrize("change", ["append", "replace a character"])
def test_a_text_that_changes_while_it_is_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reading: int, change: str
) -> None:
    path = tmp_path / "input.txt"
    path.write_bytes(b"abc" * 1000)
    monkeypatch.setattr(encode, "CHUNK", 100)
    readings, chunks = [], encode.Source.chunks

    def meddle(source: encode.Source):
        readings.append(source)
        for n, chunk in enumerate(chunks(source)):
            if n == 3 and len(readings) == reading:
                with path.open("ab" if change == "append" else "r+b") as file:
                    file.write(b"c")
            yield chunk

    monkeypatch.setattr(encode.Source, "chunks", meddle)
    with pytest.raises(UserError, match=r"input\.txt changed while it was being read: try again"):
        read(path, "utf-8", 100)
    assert len(readings) == 2


def test_a_change_that_leaves_size_and_times_the_same_is_detected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two writes within one tick of the clock leave the same times."""
    path = tmp_path / "input.txt"
    path.write_bytes(b"abcd")
    with open_source(path) as source, TemporaryFile() as file:
        monkeypatch.setattr(source, "_stamp", lambda: source.stamp)
        encoder = CharacterEncoder("utf-8")
        found = encoder.survey(source, train=True)
        path.write_bytes(b"abca")
        with pytest.raises(UserError, match="changed while it was being read"):
            write_ids(source, found, encoder, encoder.vocabulary()[0], file, path)


def test_translated_ids_stand_for_the_same_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "CHUNK", 3)
    own, other = Vocabulary(tuple(map(ord, "ace"))), Vocabulary(tuple(map(ord, "abcde")))
    ids = np.array([0, 1, 2, 2, 0, 1, 1], np.uint8)
    assert other.decode(translate(ids, own, other)[:]) == own.decode(ids)
    own, large = Vocabulary((1, 298, 299)), Vocabulary(tuple(range(300)))
    assert translate(ids, own, large)[:].tolist() == [own.codes[number] for number in ids[:]]


MEASURE = """
import sys
from pathlib import Path
from charrnn.data.cache import load_or_build
from charrnn.data.encode import Reading

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

before = peak()
folder = Path(sys.argv[1])
prepared = load_or_build({"input": folder / "input.txt"}, Reading(), folder, print)
print(len(prepared.ids["input"]), (peak() - before) / 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from Linux's /proc")
@pytest.mark.parametrize("kind", ["one line of NULs", "one line of four-byte characters"])
def test_memory_does_not_grow_with_the_text(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "input.txt"
    with path.open("wb") as file:
        if kind == "one line of NULs":
            size = 200_000_000
            file.truncate(size)
        else:
            size = 20_000_000
            for _ in range(20):
                file.write("😀".encode() * (size // 20))
    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=True)
    characters, megabytes = done.stdout.split()
    assert int(characters) == size
    assert float(megabytes) < 64
