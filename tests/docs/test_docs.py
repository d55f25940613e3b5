"""The pages are correct: their commands are valid, their walk-throughs run, and their links have a target."""

from __future__ import annotations

import ast
import lzma
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from charrnn import registry
from charrnn.checkpoints import t7
from charrnn.cli.flags import Flag
from charrnn.cli.main import COMMANDS, cli
from charrnn.errors import UserError
from tests.helpers import pages
from tests.helpers.pages import ROOT, blocks, check, commands, is_output

DOCS = ROOT / "docs"
PAGES = [
    path
    for pattern in ("*.md", "docs/*.md", "data/*/README.md", "examples/**/*.md", "recipes/*.md", "recipes/*.toml")
    for path in sorted(ROOT.glob(pattern))
]
MARKDOWN = [path for path in PAGES if path.suffix == ".md"]
WALKS = [path for path in MARKDOWN if any(block.mark.startswith("run") for block in blocks(path))]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def written(page: Path) -> Iterator[tuple[str, str]]:
    """Yield each place in a page that has commands, with the shell commands there."""
    if page.suffix == ".toml":
        yield name(page), f"charrnn train -config {page.stem}"
        comments = re.findall(r"^#\s+(charrnn .*)", page.read_text(encoding="utf-8"), re.MULTILINE)
        yield name(page), "\n".join(comments).replace(", then ", "; ")
        return
    for block in blocks(page):
        if block.language == "sh":
            yield block.where, block.text
        elif block.language == "console":
            yield block.where, "\n".join(line[2:] for line in block.text.splitlines() if line.startswith("$ "))
    for span in pages.spans(page):
        # skip spans that only name a command, and those with placeholders in capitals
        if span.startswith("charrnn ") and not re.fullmatch(r"charrnn [a-z]+|.*\b(COMMAND|NAME)\b.*", span):
            yield f"{name(page)}: `{span}`", span


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_in_a_page_is_valid(page: Path, tmp_path: Path) -> None:
    pages.write_files(page, tmp_path)
    for where, shell in written(page):
        for words in commands(shell):
            try:
                check(words, tmp_path)
            except (click.ClickException, UserError) as error:
                pytest.fail(f"{where}: charrnn {' '.join(words)}: {getattr(error, 'message', error)}")


def test_commands_are_found_in_the_pages_and_in_every_recipe() -> None:
    count = {page: sum(len(list(commands(shell))) for _, shell in written(page)) for page in PAGES}
    assert count[ROOT / "README.md"] >= 20 and count[DOCS / "cookbook.md"] >= 30
    assert all(count[page] for page in PAGES if page.suffix == ".toml")


@pytest.mark.parametrize("page", WALKS, ids=name)
def test_a_walk_through_prints_the_output_on_its_page(page: Path, tmp_path: Path) -> None:
    assert pages.walk(page, tmp_path) > 0


def test_the_cookbook_has_a_walk_through() -> None:
    assert DOCS / "cookbook.md" in WALKS


@pytest.mark.parametrize("page", MARKDOWN, ids=name)
def test_links_between_pages_have_a_target(page: Path) -> None:
    for link in pages.links(page):
        if re.match(r"\w+:", link):
            continue
        path, _, section = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name(page)}: {link}"
        assert not section or section in pages.headings(target), f"{name(page)}: {link} has no such section"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    words = ["-W", "--keep-going", "-q", "-b", "html", "-d", tmp_path / "doctrees", DOCS, tmp_path / "html"]
    done = subprocess.run([sys.executable, "-m", "sphinx", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in DOCS.glob("*.md"):
        assert (tmp_path / "html" / f"{page.stem}.html").stat().st_size > 1000


def test_the_reference_page_is_up_to_date() -> None:
    printed = subprocess.run([sys.executable, DOCS / "reference.py"], capture_output=True, check=True).stdout
    text = (DOCS / "reference.md").read_text(encoding="utf-8")
    assert printed.decode() == text, "update it: python docs/reference.py > docs/reference.md"
    for name in COMMANDS:
        assert f"## `charrnn {name}`" in text
        assert all(f"| `-{flag} " in text for flag in flags(name))


def messages() -> set[str]:
    """Return every string in the program, with ``...`` in place of inserted values."""
    found = set()
    for path in (ROOT / "charrnn").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values]
                found.add("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def test_the_messages_that_the_cookbook_explains_exist() -> None:
    text = (DOCS / "cookbook.md").read_text(encoding="utf-8")
    explained = re.findall(r"^\| `([^`]+)` \|", text.partition("| message |")[2], re.MULTILINE)
    assert len(explained) >= 10
    known = messages()
    for message in explained:
        assert any(message in one for one in known), f"the program does not print: {message}"


# docs/differences.md

DIFFERENCES = DOCS / "differences.md"
HEADER = ["theirs", "default", "here", "default here", ""]
# settings that were not at their defaults when the original programs were recorded
GIVEN = {"model", "rnn_size", "num_layers", "dropout", "max_epochs", "eval_val_every", "gpuid"}
GIVEN |= {"savefile", "checkpoint_dir"}


def tables() -> dict[str, list[list[str]]]:
    """Return the rows of each table of flags, without its header, keyed by the heading above the table."""
    found: dict[str, list[list[str]]] = {}
    heading, rows = "", []
    for line in DIFFERENCES.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ").replace("`", "")
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            rows = []
        elif cells == HEADER:
            rows = found.setdefault(heading, [])
        elif heading in found and rows is found[heading] and not line.startswith("| ---"):
            assert len(cells) == len(HEADER), line
            rows.append(cells)
    return found


def command(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


def flags(name: str, model: str = "") -> dict[str, str]:
    """Return the default of each flag of a command, and of a model's options, formatted as in the tables."""
    options = [p.option for p in command(name).params if isinstance(p, Flag)]
    options += list(registry.find(model).options.values()) if model else []
    defaults = {}
    for option in options:
        value = option.default
        value = int(value) if isinstance(value, bool) else value
        defaults[option.name] = f"{value:g}" if isinstance(value, float) else "" if value in (None, ()) else str(value)
    return defaults


def switches(name: str) -> dict[str, str]:
    """Return the flags of a command that take no value."""
    return {p.opts[0].lstrip("-"): "" for p in command(name).params if type(p) is click.Option}


def test_our_flags_in_the_tables_exist_and_have_the_defaults_shown() -> None:
    counted = 0
    for heading, rows in tables().items():
        for theirs, _, here, default, _ in rows:
            named = [span.split() for span in re.findall(r"`([^`]+)`", here)]
            for i, (called, *words) in enumerate(named):
                model = words[1] if words[:1] == ["-model"] and len(words) == 3 else ""
                if not words or not words[-1].startswith("-"):  # the cell names a command, not a flag
                    assert called in COMMANDS, f"{heading}, {theirs}: {here}"
                    continue
                known = flags(called, model) | switches(called)
                flag = words[-1].lstrip("-")
                assert flag in known, f"{heading}, {theirs}: charrnn {called} has no -{flag}"
                if i == 0 and default:
                    shown = default.strip("`").replace('""', "")
                    assert shown == known[flag], f"{heading}, {theirs}: the default here is {known[flag]}, not {shown}"
                    counted += 1
    assert counted >= 60


def test_every_flag_of_the_originals_has_a_counterpart_or_a_remark() -> None:
    for heading, rows in tables().items():
        assert rows, heading
        for theirs, _, here, _, remark in rows:
            assert re.fullmatch(r"`[^`]+`", theirs), f"{heading}: {theirs}"
            assert here or remark, f"{heading}: no counterpart or remark for {theirs}"


@pytest.mark.parametrize("model", ["lstm_1x48_dropout", "grid_lstm_2x32"])
def test_the_tables_list_every_setting_of_a_recorded_run(model: str, tmp_path: Path) -> None:
    (tmp_path / "old.t7").write_bytes(lzma.decompress((ROOT / f"tests/checkpoints/t7/{model}.t7.xz").read_bytes()))
    recorded = {key.decode(): value for key, value in t7.load(tmp_path / "old.t7")[b"opt"].items()}
    shown = {theirs.strip("`-"): default.strip("`") for theirs, default, *_ in tables()["train.lua"]}
    if model.startswith("grid"):
        shown |= {theirs.strip("`-"): default.strip("`") for theirs, default, *_ in tables()["grid-lstm"]}
    assert set(recorded) == set(shown) - (
        {"task", "digit_length", "tie_weights"} if model.startswith("lstm") else set()
    )
    for setting, value in recorded.items():
        if setting not in GIVEN:
            plain = value.decode() if isinstance(value, bytes) else f"{value:g}"
            assert shown[setting].replace('""', "") == plain, setting


# the checks detect errors


@pytest.mark.parametrize(
    "line",
    [
        "charrnn train -rnn_sise 128",
        "charrnn train -rnn_size many",
        "charrnn train -rnn_size 0",
        "charrnn train -optimizer adamant",
        "charrnn train -depth 3",
        "charrnn train -model nobodys",
        "charrnn train -config nobodys",
        "charrnn trian",
        "charrnn",
        "charrnn sample",
        "charrnn sample cv cv2",
        "charrnn sample cv -stop x -until_newline",
        "charrnn eval cv -text letter.txt -split test",
        "charrnn eval cv -split all",
        "nohup charrnn train -gpuid -1 -invented 1 > log.txt 2>&1 &",
        'echo "ROMEO:" | charrnn sample cv -primetext -invented 1 | head',
        "for t in 0.5 1; do charrnn sample cv -temprature $t; done",
        "for t in hot cold; do charrnn sample cv -temperature $t; done",
        "charrnn train -rnn_size 64 \\\n  -invented 1",
    ],
)
def test_an_invalid_command_is_detected(line: str, tmp_path: Path) -> None:
    with pytest.raises((click.ClickException, UserError)):
        for words in commands(line):
            check(words, tmp_path)
            raise AssertionError(f"{words} passed")


@pytest.mark.parametrize(
    "line",
    [
        "charrnn train  # with a comment",
        "charrnn train -model rhn -depth 3",
        "charrnn train -config of_my_own.toml -resume cv",
        'echo "ROMEO:" | charrnn sample cv -primetext',
        'charrnn sample cv -primetext "-- he" > text.txt 2> log.txt',
        "for t in 0.5 1; do charrnn sample cv -temperature $t; done",
        "charrnn -version",
        "charrnn train -model rhn -help",
    ],
)
def test_a_valid_command_passes(line: str, tmp_path: Path) -> None:
    found = list(commands(line))
    assert len(found) == 1
    check(found[0], tmp_path)


def a_page(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    return page


STEPS = """
```toml
# settings/mine.toml
rnn_size = 16
```

<!-- run -->
```sh
cat settings/mine.toml
echo one >&2
```

<!-- output -->
```text
# settings/mine.toml
...
one
```

```sh
exit 7
```

<!-- run: exit 2 -->
```sh
charrnn train -invented 1
```

<!-- output -->
```text
charrnn train: unknown flag -invented...
```
"""


def test_a_walk_through_runs_the_marked_steps_in_order(tmp_path: Path) -> None:
    assert pages.walk(a_page(tmp_path, STEPS), tmp_path) == 2


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("\none\n```", "\ntwo\n```"),  # different output
        ("\none\n```", "\none\nand more\n```"),  # more than the step printed
        ("...\none\n", "rnn_size = 16\n"),  # less than the step printed
        ("exit 2", "exit 0"),
        ("<!-- run -->", "<!-- run: exit 1 -->"),
        ("cat settings", "cat other"),
    ],
)
def test_a_wrong_walk_through_is_detected(right: str, wrong: str, tmp_path: Path) -> None:
    assert right in STEPS
    with pytest.raises(AssertionError):
        pages.walk(a_page(tmp_path, STEPS.replace(right, wrong, 1)), tmp_path)


def test_only_dots_match_anything() -> None:
    assert is_output("a ... c\n...\nend\n", "a b c\nx\ny\nend\n")
    assert is_output("...\nend", "end\n")
    assert not is_output("a ... c", "a b\nc\n")
    assert not is_output("a.c", "abc\n")
    assert not is_output("end", "end\nmore\n")
    assert is_output("loss 1.5 after 10", "loss 1.25 after 9\n", about=True)
    assert not is_output("loss 1.5 after 10", "loss 1.25 after 9\n")
    assert not is_output("loss 1.5", "ppl 1.5\n", about=True)
