"""Setting up a process for computing: devices, threads, and reuse of freed memory."""

from __future__ import annotations

import os
import platform
import random
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from charrnn import compute
from charrnn.errors import UserError

glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or "malloc" in os.environ.get("LD_PRELOAD", ""), reason="glibc's malloc only"
)


def in_a_process(code: str, *words: str, **env: str) -> str:
    """Run the code in a new process without environment variables for malloc or threads. Return its output."""
    prefixes = ("MALLOC_", "GLIBC_", "OMP_", "GOMP_", "OPENBLAS_", "MKL_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    return subprocess.run(
        [sys.executable, "-c", code, *words], env=clean | env, check=True, capture_output=True, text=True
    ).stdout


# Devices


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Make torch believe that the machine has ``cuda`` CUDA GPUs, and an MPS GPU if ``mps`` is true."""
    found = SimpleNamespace(cuda=0, mps=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found.cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: found.mps)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    return found


def test_the_gpu_with_the_given_number_is_chosen(gpus: SimpleNamespace) -> None:
    notes: list[str] = []
    gpus.cuda = 2
    assert compute.choose_device(1, notes.append) == torch.device("cuda", 1)
    assert not torch.backends.cudnn.allow_tf32
    gpus.cuda, gpus.mps = 0, True
    assert compute.choose_device(0, notes.append) == torch.device("mps")
    assert compute.choose_device(-1, notes.append) == torch.device("cpu")
    assert notes == []


def test_without_a_gpu_the_default_is_the_cpu_and_a_note_says_so(gpus: SimpleNamespace) -> None:
    notes: list[str] = []
    assert compute.choose_device(0, notes.append) == torch.device("cpu")
    assert notes == ["no GPU found, using the CPU (-gpuid -1 silences this)"]


@pytest.mark.parametrize(
    ("cuda", "mps", "existing"),
    [(0, False, "no GPU"), (1, False, "only GPU 0"), (0, True, "only GPU 0"), (3, False, "GPUs 0 to 2")],
)
def test_a_gpu_number_that_does_not_exist_is_an_error(
    gpus: SimpleNamespace, cuda: int, mps: bool, existing: str
) -> None:
    gpus.cuda, gpus.mps = cuda, mps
    with pytest.raises(UserError, match=f"^-gpuid 3: this machine has {existing}; for the CPU use -gpuid -1$"):
        compute.choose_device(3, lambda line: None)


def test_float64_on_mps_is_an_error(gpus: SimpleNamespace) -> None:
    gpus.mps = True
    with pytest.raises(UserError, match=r"^-precision float64: Apple's MPS has no float64"):
        compute.choose_device(0, lambda line: None, "float64")


# Threads


@pytest.mark.parametrize("own", [{}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}])
def test_threads_wait_briefly_unless_the_user_configured_openmp(own: dict[str, str]) -> None:
    environment = dict(own)
    compute.wait_briefly(environment)
    assert environment == (own or {"GOMP_SPINCOUNT": compute.SPIN_COUNT})


def test_the_command_line_sets_how_threads_wait_before_torch_is_loaded() -> None:
    code = (
        "import os, sys\n"
        "from charrnn.cli import main\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': print(os.environ.get('GOMP_SPINCOUNT'))\n"
        "sys.meta_path.insert(0, Finder())\n"
        "main.main(['train', '-h'])"
    )
    assert in_a_process(code).splitlines()[0] == compute.SPIN_COUNT


def test_one_thread_applies_to_torch_and_numpy() -> None:
    code = (
        "from charrnn.compute import one_thread\n"
        "one_thread()\n"
        "import torch, threadpoolctl\n"
        "print(torch.get_num_threads(), *(library['num_threads'] for library in threadpoolctl.threadpool_info()))"
    )
    pytest.importorskip("threadpoolctl")
    assert set(in_a_process(code).split()) == {"1"}


# Memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_running_out_of_memory_is_recognised(error: Exception) -> None:
    assert compute.ran_out(error)


@pytest.mark.parametrize(
    "message", ["mat1 and mat2 shapes cannot be multiplied", "not enough memory cells", "the std::bad_alloc mark"]
)
def test_other_errors_are_not_taken_for_a_lack_of_memory(message: str) -> None:
    assert not compute.ran_out(RuntimeError(message))


COUNT = """
import resource, sys
from charrnn.compute import keep_freed_memory
size = 40 << 20  # more than glibc ever takes from the heap by default
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
for round_ in range(8):
    if round_ == 3:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * size
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count(how: str, **env: str) -> tuple[str, int]:
    """Allocate and free 40 MiB five times. Return the result of keep_freed_memory and the number of page faults."""
    kept, faults = in_a_process(COUNT, how, **env).split()
    return kept, int(faults)


@glibc
def test_freed_memory_is_reused_without_page_faults() -> None:
    kept, faults = count("keep")
    assert kept == "True"
    assert faults * 5 < count("leave")[1]


@glibc
@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_TRIM_THRESHOLD_", "100000"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=100000")]
)
def test_malloc_is_left_alone_if_the_environment_configures_it(name: str, value: str) -> None:
    kept, faults = count("keep", **{name: value})
    assert kept == "False"
    assert faults > 5 * count("keep")[1]


# Random numbers


@pytest.mark.parametrize("number", [0, 2**32, 2**63 - 1])
def test_every_64_bit_seed_seeds_all_three_generators(number: int) -> None:
    drawn = []
    with compute.same_random_numbers(torch.device("cpu")):
        for _ in range(2):
            compute.seed(number)
            drawn.append((torch.rand(()).item(), np.random.rand(), random.random()))
    assert drawn[0] == drawn[1]
