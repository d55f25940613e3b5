"""Completion as shells request it, in a real bash if one is installed, and without importing torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.command import charrnn, complete, environment


@pytest.mark.parametrize(
    ("line", "items"),
    [
        ("charrnn tr", ["plain,train"]),
        ("charrnn train -rnn", ["plain,-rnn_size"]),
        ("charrnn train --rnn", ["plain,--rnn_size"]),
        ("charrnn train -model g", ["plain,grid_lstm", "plain,gru"]),
        ("charrnn train -model mi", ["plain,mine"]),
        ("charrnn train -model mine -lea", ["plain,-learning_rate", "plain,-learning_rate_decay",
                                            "plain,-learning_rate_decay_after", "plain,-leak"]),
        ("charrnn train -model gru -reset", ["plain,-reset_after"]),
        ("charrnn train -lr_schedule c", ["plain,constant", "plain,cosine"]),
        ("charrnn train -rnn_size 3 -modle x -dry", ["plain,-dry_run"]),
        ("charrnn train -data_dir da", ["dir,da"]),
        ("charrnn train -resume c", ["file,c"]),
        ("charrnn train -accurate_gpu_timing ", ["plain,0", "plain,1"]),
        ("charrnn sample cv -temp", ["plain,-temperature"]),
        ("charrnn inspect c", ["file,c"]),
        ("charrnn completion z", ["plain,zsh"]),
        ("charrnn prepare t", ["plain,text8", "plain,tinyshakespeare"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_the_expected_words_are_completed(tmp_path: Path, line: str, items: list[str]) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/mine.py").write_text(
        "open('executed', 'w')\ndef create(input_size, rnn_size, n_layers, dropout, *, leak: float = 0.5): ...\n"
    )
    assert complete(line, tmp_path) == items
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(tmp_path: Path, shell: str) -> None:
    assert f"_CHARRNN_COMPLETE={shell}_complete".encode() in charrnn("completion", shell, cwd=tmp_path).stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_can_parse_its_script(tmp_path: Path, shell: str) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    script = charrnn("completion", shell, cwd=tmp_path).stdout
    subprocess.run([shell, "-n", "/dev/stdin"], input=script, check=True, timeout=60)


def test_bash_itself_completes(tmp_path: Path) -> None:
    if not shutil.which("bash"):
        pytest.skip("bash is not installed")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/charrnn"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m charrnn "$@"\n')
    program.chmod(0o755)
    words = """
        eval "$(charrnn completion bash)"
        COMP_WORDS=(charrnn train -model rh) COMP_CWORD=3
        _charrnn_completion charrnn
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    env = environment(PATH=f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    done = subprocess.run(["bash", "-c", words], cwd=tmp_path, env=env, capture_output=True, timeout=60)
    assert done.stdout.decode().split() == ["rhn"], done.stderr


def test_an_unknown_shell_is_refused_with_a_list_of_the_known_ones(tmp_path: Path) -> None:
    said = charrnn("completion", "tcsh", cwd=tmp_path, code=2).stderr.decode()
    assert "tcsh" in said and all(json.dumps(shell).replace('"', "'") in said for shell in ("bash", "zsh", "fish"))
