"""Options and fixtures for all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

REFERENCE = Path(__file__).parent / "originals"
CHECKPOINTS = Path(__file__).parent / "checkpoints" / "t7"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--reference", metavar="DIR", default=str(REFERENCE), help="folder of recorded values to compare with"
    )
    parser.addoption("--t7", metavar="DIR", default=str(CHECKPOINTS), help="folder of the originals' checkpoints")
    parser.addoption("--kills", metavar="N", type=int, default=100, help="kills in test_soak [100]")
    parser.addoption("--attempts", metavar="N", type=int, default=10_000, help="broken files in test_soak [10000]")
    parser.addoption("--first", metavar="NUMBER", type=int, default=0, help="first broken file in test_soak [0]")


def pytest_configure(config: pytest.Config) -> None:
    # the first optimizer or the first compiled kernel of a process takes seconds, whichever example meets it
    settings.register_profile("charrnn", deadline=None)
    settings.load_profile("charrnn")
    # what one test compiles the others find, in whatever home they run
    os.environ.setdefault("NUMBA_CACHE_DIR", str(Path.home() / ".cache" / "charrnn-tests"))
    # small tests gain nothing from a second thread, and workers side by side lose by it
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # a script's background jobs and nohup ignore these, and so would every process that a test sends one to
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="session")
def reference(pytestconfig: pytest.Config) -> Path:
    """The folder of recorded values of the original programs."""
    return Path(pytestconfig.getoption("--reference"))


@pytest.fixture(params=["torch", "compiled"])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Compute with these kernels, and with two threads if they are the compiled ones."""
    import torch

    from charrnn.kernels import backend

    before = torch.get_num_threads()
    if request.param == "compiled":
        if not backend.available():
            pytest.skip("the extra [fast] is not installed")
        backend.use("compiled", 2)
        torch.set_num_threads(before)
    yield request.param
    backend.use("torch", before)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the long tests unless -m chooses them."""
    if not config.getoption("-m"):
        long = [item for item in items if item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
