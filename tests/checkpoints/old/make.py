"""Write the checkpoints of one commit, with the results of using them: python tests/checkpoints/old/make.py COMMIT.

Takes the commit's files from git and runs them with this Python and its installed packages. Uses only the command line,
so it works for any commit whose ``charrnn`` command runs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

OLD = Path(__file__).resolve().parent
SONG = "The quick brown fox jumps over the lazy dog, and the dog sleeps on.\n"
TEXTS = {"input.txt": SONG * 20, "train.txt": SONG * 15, "val.txt": SONG * 3 + "The lazy dog sings.\n"}
SMALL = ["-gpuid", "-1", "-rnn_size", "4", "-num_layers", "1", "-batch_size", "2", "-seq_length", "8"]
SMALL += ["-threads", "1", "-precision", "float64", "-sample_length", "0", "-eval_val_every", "300"]
SMALL += ["-learning_rate", "0.02"]
# for versions that have this flag; earlier ones have only torch's kernels
KERNELS = ["-kernels", "torch"]
ADAM = ["-optimizer", "adam", "-dropout", "0.1"]
PLATEAU = ["-optimizer", "sgd", "-lr_schedule", "plateau", "-learning_rate", "0.1"]
PLATEAU += ["-plateau_patience", "1", "-eval_val_every", "30"]
# the loss explodes once, in the first epoch; after that epoch the learning rate is low
ROLLBACK = ["-optimizer", "sgd", "-learning_rate", "3", "-grad_clip", "0.5", "-on_nan", "rollback", "-save_every", "5"]
ROLLBACK += ["-learning_rate_decay", "0.5", "-learning_rate_decay_after", "1"]
ROLLBACK += ["-rnn_size", "6"]
# -save_minutes saves after every iteration; these saves also contain the state of the last regular save
CLOCK = ["-on_nan", "rollback", "-save_every", "50", "-save_minutes", "0.000001"]

# name -> the files of the text and the flags of the run
RUNS: dict[str, tuple[list[str], list[str]]] = {
    "lstm_adam": (["train.txt", "val.txt"], ["-model", "lstm", "-num_layers", "2", *ADAM]),
    "gru_rollback": (["input.txt"], ["-model", "gru", *ROLLBACK]),
    "rnn_plateau": (["input.txt"], ["-model", "rnn", *PLATEAU, "-encoding", "bytes"]),
    "rhn": (["input.txt"], ["-model", "rhn", "-depth", "3", "-tie_embeddings", "1", "-drop_h", "0.2"]),
    "grid_lstm": (["input.txt"], ["-model", "grid_lstm", "-weight_decay", "0.001", "-max_grad_norm", "2"]),
    "lstm_words": (["train.txt", "val.txt"], ["-model", "lstm", "-level", "word", "-unk", "<unk>"]),
    "rnn_clock": (["input.txt"], ["-model", "rnn", *CLOCK]),
}
# runs whose last checkpoint before the end of training is kept
BEFORE_THE_END = {"rnn_clock"}


def write_text(folder: Path, names: list[str]) -> None:
    """Write the text that a run was trained on."""
    folder.mkdir()
    for name in names:
        (folder / name).write_text(TEXTS[name], encoding="utf-8", newline="")


def make(tree: Path, name: str, target: Path) -> dict[str, Any] | None:
    """Train with the charrnn in ``tree``, keep the last checkpoint, sample from it, and resume it for ten iterations.

    Return the losses and the text, or None if this version lacks one of the run's flags.
    """
    names, flags = RUNS[name]
    with TemporaryDirectory() as home:
        folder = Path(home)
        write_text(folder / "data", names)
        env = os.environ | {"PYTHONPATH": str(tree), "XDG_CACHE_HOME": str(folder / "cache")}

        def run(*words: object) -> str:
            command = [sys.executable, "-m", "charrnn", *map(str, words)]
            return subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True, text=True).stdout

        known = run("train", *flags[:2], "-h").split()
        if not all(flag in known for flag in flags[::2]):
            return None
        kernels = KERNELS if KERNELS[0] in known else []
        run("train", "-data_dir", "data", *SMALL, *kernels, *flags, "-savefile", name, "-max_epochs", 9.2)
        pattern = "*_last.pt" if name in BEFORE_THE_END else "*.pt"
        saved = max((folder / "cv").glob(pattern), key=lambda path: path.stat().st_mtime_ns)
        shutil.copy(saved, target / f"{name}.pt")
        text = run("sample", saved, "-gpuid", -1, "-verbose", 0, "-sample", 0, "-length", 60, "-primetext", "The ")
        losses = resumed(folder, name, saved, run)
        if name == "rhn":
            for file in ("vocab.json", "input.npy"):
                shutil.copy(folder / "data" / file, target)
    return {"losses": losses, "text": text}


def resumed(folder: Path, name: str, saved: Path, run: Any) -> list[float]:
    """Resume a run, and return the losses of its next ten iterations, read from the checkpoint at its end."""
    import torch

    begun = torch.load(saved, weights_only=True)["training"]["iteration"]
    run("train", "-resume", saved, "-max_epochs", 10)
    end = max((folder / "cv").glob(f"lm_{name}*.pt"), key=lambda path: path.stat().st_mtime_ns)
    losses: list[float] = torch.load(end, weights_only=True)["training"]["losses"].tolist()
    return losses[begun : begun + 10]


def main(commit: str) -> None:
    """Write the folder of one commit."""
    target = OLD / commit
    target.mkdir()
    with TemporaryDirectory() as tree:
        files = subprocess.run(["git", "archive", commit], cwd=OLD.parents[2], check=True, capture_output=True).stdout
        subprocess.run(["tar", "x", "-C", tree], input=files, check=True)
        made = {name: make(Path(tree), name, target) for name in RUNS}
    recorded = {name: results for name, results in made.items() if results}
    (target / "recorded.json").write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
