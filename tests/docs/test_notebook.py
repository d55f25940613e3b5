"""The notebook in the documentation, and interrupting training in a notebook, both in a real Jupyter kernel."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

from tests.helpers.command import write_text
from tests.helpers.pages import NUMBER, ROOT

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


class Kernel:
    """Runs cells in a Jupyter kernel with this Python."""

    def __init__(self, home: Path) -> None:
        # do not use a kernel that happens to be installed elsewhere
        self.manager = KernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
        self.manager.start_kernel(cwd=str(home))
        self.client: Any = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=120)  # output could be lost before the kernel is ready

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()

    def run(self, source: str, drawn: Callable[[], None] = lambda: None) -> tuple[str, list[dict[str, str]]]:
        """Run a cell, and call ``drawn`` at each update of a display. Return what was printed and displayed."""
        printed: list[str] = []
        displays: dict[str, dict[str, str]] = {}

        def take(message: dict[str, Any]) -> None:
            content = message["content"]
            if message["msg_type"] == "stream":
                assert content["name"] == "stdout", content["text"]
                printed.append(content["text"])
            elif "data" in content:
                displays[content["transient"]["display_id"]] = content["data"]
                drawn()

        reply = self.client.execute_interactive(source, timeout=120, output_hook=take, allow_stdin=False)
        assert reply["content"]["status"] == "ok", "\n".join(reply["content"]["traceback"])
        return "".join(printed), list(displays.values())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The working folder of the notebook."""
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def kernel(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(home.parent / name.lower()))
    kernel = Kernel(home)
    try:
        yield kernel
    finally:
        kernel.close()


def about(text: str) -> str:
    """Replace all numbers with 1, since they may differ on another processor."""
    return NUMBER.sub("1", text)


def test_the_notebook_contains_the_output_of_its_cells(home: Path, kernel: Kernel) -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 5
    for cell in code:
        printed, displays = kernel.run("".join(cell["source"]))
        shown = "".join(text for output in cell["outputs"] for text in output.get("text", ()))
        drawn = [output["data"] for output in cell["outputs"] if "data" in output]
        if "charrnn.sample(" in "".join(cell["source"]):  # the text differs on another processor
            assert len(shown) == len(printed) == 200
            continue
        assert about(shown) == about(printed)
        assert len(displays) == len(drawn)
        for one, other in zip(drawn, displays, strict=True):
            assert one.keys() == other.keys() == {"text/plain", "text/html"}
            figures = [
                [about(line) for line in "".join(text).splitlines() if line.startswith("iteration")]
                for text in (one["text/plain"], other["text/plain"])
            ]
            assert figures[0] == figures[1] and len(figures[0]) > 1
    assert list(home.glob("cv/*.pt"))


TRAIN = """
import charrnn
trained = charrnn.train("data", rnn_size=16, max_epochs=1000, seq_length=16, gpuid=-1, threads=1, eval_val_every=10)
"""


def test_interrupting_the_kernel_saves_and_returns(home: Path, kernel: Kernel) -> None:
    write_text(home / "data", "<b>&</b>\n" * 500)
    updates = []

    def interrupt_once() -> None:
        updates.append("")
        if len(updates) == 60:
            kernel.manager.interrupt_kernel()

    printed, displays = kernel.run(TRAIN, interrupt_once)
    assert "stopping after this iteration" in printed and printed.endswith(
        "charrnn.train(resume='cv/lm_lstm_last.pt')\n"
    )
    assert len(displays) == 1 and len(updates) >= 60, "not one display that is updated in place"
    html = displays[0]["text/html"]
    assert "<progress" in html and "<pre>" in html and "&lt;" in html, "the sample is not escaped"
    assert html.count("validation loss") == 10, "the display does not show the latest ten validations"
    kernel.run("assert trained.interrupted and trained.newest.is_file() and len(trained.records) < 1000")
