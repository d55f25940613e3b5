"""Write the checkpoints of one version of charrnn, with the results of using them: python make.py CHARRNN FOLDER.

CHARRNN is the command of that version, FOLDER the folder to write its checkpoints to. Only commands are used, so that
any version will do.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

SONG = "The quick brown fox jumps over the lazy dog, and the dog sleeps on.\n"
TEXTS = {"input.txt": SONG * 20, "train.txt": SONG * 15, "val.txt": SONG * 3 + "The lazy dog sings.\n"}
SMALL = ["-gpuid", "-1", "-rnn_size", "4", "-num_layers", "1", "-batch_size", "2", "-seq_length", "8"]
SMALL += [
    "-threads",
    "1",
    "-kernels",
    "torch",
    "-precision",
    "float64",
    "-sample_length",
    "0",
    "-eval_val_every",
    "300",
]
SMALL += ["-learning_rate", "0.02"]
ADAM = ["-optimizer", "adam", "-dropout", "0.1"]
PLATEAU = ["-optimizer", "sgd", "-lr_schedule", "plateau", "-learning_rate", "0.1"]
PLATEAU += ["-plateau_patience", "1", "-eval_val_every", "30"]
# the loss explodes once, in the first epoch; from the second on the learning rate is low
ROLLBACK = ["-optimizer", "sgd", "-learning_rate", "3", "-grad_clip", "0.5", "-on_nan", "rollback", "-save_every", "5"]
ROLLBACK += ["-learning_rate_decay", "0.5", "-learning_rate_decay_after", "1"]
ROLLBACK += ["-rnn_size", "6"]

# name -> the files of the text, and the flags of the run
RUNS: dict[str, tuple[list[str], list[str]]] = {
    "lstm_adam": (["train.txt", "val.txt"], ["-model", "lstm", "-num_layers", "2", *ADAM]),
    "gru_rollback": (["input.txt"], ["-model", "gru", *ROLLBACK]),
    "rnn_plateau": (["input.txt"], ["-model", "rnn", *PLATEAU, "-encoding", "bytes"]),
    "rhn": (["input.txt"], ["-model", "rhn", "-depth", "3", "-tie_embeddings", "1", "-drop_h", "0.2"]),
    "grid_lstm": (["input.txt"], ["-model", "grid_lstm", "-weight_decay", "0.001", "-max_grad_norm", "2"]),
    "lstm_words": (["train.txt", "val.txt"], ["-model", "lstm", "-level", "word", "-unk", "<unk>"]),
}


def write_text(folder: Path, names: list[str]) -> None:
    """Write the text that a run was trained on."""
    folder.mkdir()
    for name in names:
        (folder / name).write_text(TEXTS[name], encoding="utf-8", newline="")


def make(charrnn: str, name: str, target: Path) -> dict[str, Any]:
    """Train, keep the last checkpoint, resume for ten iterations and sample. Return the losses and the text."""
    names, flags = RUNS[name]
    with TemporaryDirectory() as home:
        folder = Path(home)
        write_text(folder / "data", names)

        def run(*words: object) -> str:
            command = [charrnn, *map(str, words)]
            return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout

        run("train", "-data_dir", "data", *SMALL, *flags, "-savefile", name, "-max_epochs", 9.2)
        saved = max((folder / "cv").glob("*.pt"), key=lambda path: path.stat().st_mtime_ns)
        shutil.copy(saved, target / f"{name}.pt")
        text = run("sample", saved, "-gpuid", -1, "-verbose", 0, "-sample", 0, "-length", 60, "-primetext", "The ")
        metrics = folder / "cv" / f"lm_{name}_metrics.jsonl"
        done = len(metrics.read_text().splitlines())
        run("train", "-resume", saved, "-max_epochs", 10)
        records = [json.loads(line) for line in metrics.read_text().splitlines()]
        if name == "rhn":
            for file in ("vocab.json", "input.npy"):
                shutil.copy(folder / "data" / file, target)
    return {"losses": [record["loss"] for record in records[done : done + 10]], "text": text}


if __name__ == "__main__":
    target = Path(sys.argv[2])
    target.mkdir(parents=True)
    recorded = {name: make(sys.argv[1], name, target) for name in RUNS}
    (target / "recorded.json").write_text(json.dumps(recorded, indent=1) + "\n")
