"""Options and fixtures for all tests."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

REFERENCE = Path(__file__).parent / "originals"
CHECKPOINTS = Path(__file__).parent / "checkpoints" / "t7"
CI = bool(os.environ.get("CI"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--reference", metavar="DIR", default=str(REFERENCE), help="folder of recorded values to compare with"
    )
    parser.addoption(
        "--t7", metavar="DIR", default=str(CHECKPOINTS), help="folder of checkpoints written by the original programs"
    )
    parser.addoption("--kills", metavar="N", type=int, default=100, help="how often test_soak kills a run [100]")
    parser.addoption(
        "--attempts", metavar="N", type=int, default=10_000, help="how many damaged files test_soak tries [10000]"
    )
    parser.addoption(
        "--first",
        metavar="NUMBER",
        type=int,
        # an environment variable, so that all pytest-xdist workers use the same number
        default=int(os.environ.setdefault("CHARRNN_FIRST", str(random.randrange(10**9) if CI else 0))),
        help="number of the first damaged file in test_fuzz and test_soak [0; random if the variable CI is set]",
    )


def pytest_configure(config: pytest.Config) -> None:
    folder = config.cache.mkdir("charrnn")  # in .pytest_cache
    set_hypothesis_home_dir(folder / "hypothesis")
    # no deadline: the first optimizer or compiled kernel of a process takes seconds
    # not derandomized like Hypothesis' own CI profile, which tries the same examples in every run
    new = {"deadline": None, "derandomize": False, "print_blob": True}
    settings.register_profile("charrnn", max_examples=100, **new)
    settings.register_profile("charrnn-ci", max_examples=500, **new)
    settings.load_profile("charrnn-ci" if CI else "charrnn")
    # all tests share compiled kernels and fonts, which are kept for the next run
    os.environ.setdefault("NUMBA_CACHE_DIR", str(folder / "kernels"))
    os.environ.setdefault("MPLCONFIGDIR", str(folder / "matplotlib"))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
    # a second thread does not speed up small tests, and it slows down parallel workers
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # nohup and background jobs of scripts ignore these signals, and processes that tests start would inherit this
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def pytest_report_header(config: pytest.Config) -> str:
    return f"Hypothesis: {settings().max_examples} examples; damaged files: --first {config.getoption('--first')}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.get_verbosity() < 0:  # pytest -q, the default here, shows no header
        terminalreporter.write_line(pytest_report_header(config))


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use a temporary cache folder for all tests instead of the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def environment_unchanged(cache_home: None) -> Iterator[None]:
    """Check that each test leaves the environment and the working folder as it found them."""
    before, folder = dict(os.environ), Path.cwd()
    yield
    changed = {name for name, _ in before.items() ^ os.environ.items()} - {"PYTEST_CURRENT_TEST"}
    # libraries set these when they are imported
    changed = {name for name in changed if not name.startswith(("KMP_", "TORCH"))}
    assert not changed, f"the test changed environment variables: {', '.join(sorted(changed))}"
    assert Path.cwd() == folder, "the test changed the working folder"


@pytest.fixture(scope="session")
def reference(pytestconfig: pytest.Config) -> Path:
    """The folder with values recorded from the original programs."""
    return Path(pytestconfig.getoption("--reference"))


@pytest.fixture(params=["torch", "compiled"])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test with each kind of kernel; the compiled kernels use two threads."""
    import torch

    from charrnn.kernels import backend

    before = torch.get_num_threads()
    if request.param == "compiled":
        if not backend.available():
            pytest.skip("the [fast] extra is not installed")
        backend.use("compiled", 2)
        torch.set_num_threads(before)
    yield request.param
    backend.use("torch", before)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the long tests unless -m selects them."""
    if not config.getoption("-m"):
        long = [item for item in items if item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
