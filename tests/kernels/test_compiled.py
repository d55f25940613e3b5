"""The compiled kernels: arithmetic, the parts of a minibatch, threads, and the folder of compiled code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from charrnn import load
from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.errors import UserError
from charrnn.kernels import backend, gru, highway, rnn
from charrnn.kernels.cells import Array
from charrnn.training.loop import Diverged
from charrnn.training.setup import configure
from tests.helpers.command import SMALL, charrnn, one_line, write_text
from tests.helpers.runs import new_run

pytest.importorskip("numba")
from charrnn.kernels.compiled import arithmetic, code_cache, inputs, parts, products
from charrnn.kernels.compiled import gru as compiled_gru
from charrnn.kernels.compiled import highway as compiled_highway
from charrnn.kernels.compiled import rnn as compiled_rnn

COMPILED = ("-kernels", "compiled", "-threads", 2)
RNN = tuple(word for word in SMALL if word not in ("-kernels", "torch"))


@pytest.fixture(autouse=True)
def torch_afterwards() -> object:
    before = torch.get_num_threads()
    yield
    backend.use("torch", before)


@arithmetic.compile
def all_sigmoids(a: Array, out: Array) -> None:
    for i in range(len(a)):
        out[i] = arithmetic.sigmoid(a[i])


@arithmetic.compile
def all_tanhs(a: Array, out: Array) -> None:
    for i in range(len(a)):
        out[i] = arithmetic.tanh(a[i])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sigmoid_and_tanh_are_exact_to_two_epsilons(dtype: type) -> None:
    a = np.concatenate([np.linspace(-30, 30, 100_001), [0, 1e-9, -1e-9, 88, -88, 1e4, -1e4, np.inf, -np.inf]]).astype(
        dtype
    )
    exact = a.astype(np.longdouble)
    with np.errstate(over="ignore"):
        expected = {all_sigmoids: 1 / (1 + np.exp(-exact)), all_tanhs: np.tanh(exact)}
    for function, values in expected.items():
        out = np.empty_like(a)
        function(a, out)
        assert np.abs(out - values).max() <= 2 * np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_stays_nan(dtype: type) -> None:
    a = np.array([np.nan, 1.0] * 20, dtype)
    for function in (all_sigmoids, all_tanhs):
        out = np.empty_like(a)
        function(a, out)
        assert np.isnan(out[::2]).all() and np.isfinite(out[1::2]).all()


def test_exp_works_only_in_compiled_code() -> None:
    with pytest.raises(NotImplementedError):
        arithmetic.exp(1.0)


@pytest.mark.parametrize(
    ("B", "sizes"),
    [
        (1, [1]),
        (7, [7]),
        (8, [4, 4]),
        (25, [12, 13]),
        (47, [23, 24]),
        (50, [12, 13, 12, 13]),
        (100, [12, 13] * 4),
        (400, [50] * 8),
    ],
)
def test_parts_are_even_and_cover_all_rows(B: int, sizes: list[int]) -> None:
    found = parts.parts(B)
    assert [part.stop - part.start for part in found] == sizes
    assert [row for part in found for row in range(B)[part]] == list(range(B))
    assert parts.largest(found) == max(sizes)


@pytest.mark.parametrize(
    ("G", "H", "rows", "count"),
    [
        (6, 4, 3, 1),  # too narrow to be cut
        (256, 128, 25, 1),  # small enough without cutting
        (512, 512, 25, 8),
        (2048, 512, 25, 32),
        (30, 7, 5000, 1),  # too large, but every cut would be too narrow
        (97, 512, 50, 1),  # too large, but prime
    ],
)
def test_panels_cover_the_matrix_and_are_small_if_possible(G: int, H: int, rows: int, count: int) -> None:
    R, h, d = (torch.randn(shape, dtype=torch.float64) for shape in ((G, H), (rows, H), (rows, G + 2)))
    cut, turned = products.panels(R, rows), products.transposed_panels(R, rows)
    assert len(cut) == len(turned) == count
    assert count == 1 or cut.shape[1] * rows * H <= products.SMALL
    sums, dh = np.ones((rows, G + 2)), np.empty((rows, H))
    products.add_states(h.numpy(), turned, sums, 2)
    products.through(d.numpy(), 2, cut, dh)
    torch.testing.assert_close(torch.from_numpy(sums)[:, 2:], 1 + h @ R.T, rtol=1e-12, atol=1e-12)
    assert (sums[:, :2] == 1).all()
    torch.testing.assert_close(torch.from_numpy(dh), d[:, 2:] @ R, rtol=1e-12, atol=1e-11)


def test_token_ids_look_up_rows_and_add_gradients_to_them() -> None:
    x, W = np.array([[0, 2], [2, 2]]), np.random.default_rng(0).random((3, 4))
    gates = np.empty((2, 1, 4))
    inputs.enter(x, 1, 0, W, gates)
    assert (gates == W[2]).all()
    dW, db = np.zeros((3, 4)), np.zeros(4)
    inputs.leave(x, 1, 0, W, gates, np.empty((0, 0, 0)), dW, db)
    np.testing.assert_allclose(dW, np.stack([0 * W[0], 0 * W[0], 2 * W[2]]))
    np.testing.assert_allclose(db, 2 * W[2])


def layers(name: str, T: int, B: int) -> tuple[object, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) / 3).requires_grad_()

    if name == "rhn":
        return highway.scan, [draw(1, T, B, 5), draw(B, 8), draw(2, 5, 8), draw(3, 2, 8, 8), draw(3, 2, 1, 8)]
    gates = {"gru": 3, "rnn": 1}[name]
    scan = {"gru": gru.scan, "rnn": rnn.scan}[name]
    return scan, [draw(T, B, 5), draw(B, 8), draw(gates * 8, 5), draw(gates * 8, 8), draw(gates * 8)]


@pytest.mark.parametrize("name", ["gru", "rnn", "rhn"])
def test_results_are_bit_identical_for_any_number_of_threads(name: str) -> None:
    scan, arguments = layers(name, 30, 110)
    results = []
    for count in (1, 2, 3, 8):
        backend.use("compiled", count)
        y = scan(*arguments)
        results.append([y, *torch.autograd.grad(y.square().sum(), arguments)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("name", ["gru", "rnn", "rhn"])
def test_arguments_of_wrong_shapes_are_refused(name: str) -> None:
    """Without this check, compiled code would read past the end of an array."""
    scan, arguments = layers(name, 4, 3)
    backend.use("compiled", 1)
    scan(*arguments)
    for at in range(1, len(arguments)):
        for shorter in (arguments[at][:-1], arguments[at][..., :-1]):
            with pytest.raises((ValueError, RuntimeError)):
                scan(*arguments[:at], shorter, *arguments[at + 1 :])
    if name == "rhn":
        for n in (torch.ones(3, 3, 8), torch.ones(1, 2, 8), torch.ones(0, 3, 8)):
            with pytest.raises(ValueError):
                scan(*arguments, n)
    else:
        for character in (-1, 5):
            with pytest.raises(IndexError, match="but the layer has 5 inputs"):
                scan(torch.tensor([[0, 1, character]]), *arguments[1:])


@pytest.mark.parametrize("name", ["gru", "rnn", "rhn"])
def test_a_nan_weight_reaches_the_result_and_the_gradients(name: str) -> None:
    scan, arguments = layers(name, 4, 3)
    backend.use("compiled", 1)
    with torch.no_grad():
        arguments[3].view(-1)[0] = torch.nan
    y = scan(*arguments)
    assert y.isnan().any()
    assert all(g.isnan().any() for g in torch.autograd.grad(y.sum(), arguments))


def test_a_diverging_run_raises_diverged(tmp_path: Path) -> None:
    flags = {"model": "rnn", "rnn_size": 8, "batch_size": 4, "seq_length": 8, "learning_rate": 1e30, "grad_clip": 0}
    write_text(tmp_path / "data")
    where = {"data_dir": str(tmp_path / "data"), "checkpoint_dir": str(tmp_path / "cv"), "gpuid": -1}
    run = new_run(configure(flags | where | {"kernels": "compiled", "threads": 1}))
    with pytest.raises(Diverged):
        list(run.records())


@pytest.mark.parametrize("name", ["gru", "rhn"])
def test_a_run_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Runs in new processes, with minibatches that are large enough to be split into two parts."""
    write_text(tmp_path / "data")
    words = ("-data_dir", "data", *RNN, "-batch_size", 50, "-model", name, "-sample_length", 0)
    whole = charrnn("train", *words, *COMPILED, "-max_epochs", 3, "-checkpoint_dir", "whole", cwd=tmp_path)
    charrnn("train", *words, *COMPILED, "-max_epochs", 1, "-checkpoint_dir", "halves", cwd=tmp_path)
    charrnn("train", "-resume", "halves", "-max_epochs", 3, cwd=tmp_path)
    assert b"Error" not in whole.stderr
    saved = [
        Checkpoint.load(max((tmp_path / folder).glob("*.pt"), key=os.path.getmtime)) for folder in ("whole", "halves")
    ]
    assert [s.options.kernels for s in saved] == ["compiled"] * 2
    assert saved[0].epoch == saved[1].epoch == 3
    for key, weights in saved[0].weights.items():
        assert torch.equal(weights, saved[1].weights[key]), key
    model, _ = load(tmp_path / "whole")
    assert model is not None


HIDE = """
import sys
for name in {names!r}:
    sys.modules[name] = None
from charrnn.__main__ import main
sys.argv[1:] = {words!r}
main()
"""


def without(names: list[str], *words: object, cwd: Path) -> tuple[int, str]:
    """Run charrnn as if these libraries were not installed. Return the exit code and stderr."""
    code = HIDE.format(names=names, words=[str(word) for word in words])
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)
    return done.returncode, done.stderr


def test_without_the_fast_extra_only_the_compiled_kernels_are_missing(tmp_path: Path) -> None:
    write_text(tmp_path / "data")
    words = ("train", "-data_dir", "data", *RNN, "-model", "rnn", "-max_epochs", 0.1, "-sample_length", 0)
    assert without(["numba"], *words, cwd=tmp_path)[0] == 0
    assert Checkpoint.load(tmp_path / "cv").options.kernels == "torch"
    code, err = without(["scipy"], *words, "-kernels", "compiled", cwd=tmp_path)
    assert code == 1
    assert err == (
        "charrnn: -kernels compiled: the compiled kernels need numba, scipy, threadpoolctl: "
        "pip install 'char-rnn-torch[fast]'; use -kernels torch instead\n"
    )


def test_a_run_with_compiled_kernels_can_be_resumed_with_torchs_kernels(tmp_path: Path) -> None:
    write_text(tmp_path / "data")
    words = ("-data_dir", "data", *RNN, "-model", "rnn", "-max_epochs", 0.5, "-sample_length", 0)
    charrnn("train", *words, *COMPILED, cwd=tmp_path)
    code, err = without(["numba"], "train", "-resume", "cv", "-max_epochs", 1, cwd=tmp_path)
    assert code == 1 and "pip install 'char-rnn-torch[fast]'; use -kernels torch instead" in err
    charrnn("train", "-resume", "cv", "-max_epochs", 1, "-kernels", "torch", cwd=tmp_path)


def test_asking_for_compiled_kernels_with_bf16_is_an_error() -> None:
    with pytest.raises(UserError, match="-kernels compiled computes in float32 or float64: leave out -precision bf16"):
        configure({"kernels": "compiled", "precision": "bf16"})


def test_a_checkpoint_that_does_not_record_its_kernels_is_resumed_with_torchs(tmp_path: Path) -> None:
    write_text(tmp_path / "data")
    words = ("-data_dir", "data", *RNN, "-model", "rnn", "-max_epochs", 0.5, "-sample_length", 0, "-threads", 1)
    charrnn("train", *words, "-kernels", "torch", cwd=tmp_path)
    path = next((tmp_path / "cv").glob("*epoch*.pt"))
    content = torch.load(path, weights_only=True)
    del content["options"]["kernels"]
    torch.save(content, path)
    assert configure({}, resume=str(path)).options.kernels == "torch"


def test_damaged_compiled_code_is_reported_in_one_line(tmp_path: Path) -> None:
    write_text(tmp_path / "data")
    words = ("train", "-data_dir", "data", *RNN, "-model", "rnn", "-max_epochs", 0.1, "-sample_length", 0)
    own = {"NUMBA_CACHE_DIR": str(tmp_path / "kept")}
    first = charrnn(*words, *COMPILED, cwd=tmp_path, **own)
    assert "compiling the kernels, which takes a few seconds" in first.stderr.decode()
    files = [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
    assert any(path.suffix == ".nbc" for path in files)
    assert "compiling" not in charrnn(*words, *COMPILED, cwd=tmp_path, **own).stderr.decode()
    for path in files:
        path.write_bytes(b"\x80junk")
    assert one_line(charrnn(*words, *COMPILED, cwd=tmp_path, code=1, **own)).startswith(
        "charrnn: -kernels compiled: the compiled kernels do not run here ("
    )
    done = charrnn(*words, cwd=tmp_path, **own).stderr.decode()
    assert "using torch's kernels: the compiled kernels do not run here (" in done


def test_the_folder_of_compiled_code_depends_on_the_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    before = code_cache.folder()
    assert before.is_relative_to(tmp_path) and not code_cache.filled()
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in Path(code_cache.__file__).parent.glob("*.py"):
        (copy / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(code_cache, "__file__", str(copy / "code_cache.py"))
    assert code_cache.folder() == before
    (copy / "arithmetic.py").write_text("changed", encoding="utf-8")
    assert code_cache.folder() != before


def test_without_a_writable_folder_compiled_code_is_not_saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    with code_cache.in_use() as writable:
        assert not writable
    assert not code_cache.filled()


def test_numbas_own_setting_is_restored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import numba

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    before = numba.config.CACHE_DIR
    with code_cache.in_use() as writable:
        assert writable and str(code_cache.folder()) == numba.config.CACHE_DIR
    assert before == numba.config.CACHE_DIR


@pytest.mark.parametrize("name", ["gru", "rnn", "rhn"])
def test_torchs_kernels_are_used_for_other_dtypes_and_without_gradients(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a backward pass, torch's kernels need less memory, since they keep no intermediate values."""
    scan, arguments = layers(name, 4, 3)
    backend.use("compiled", 1)
    for module in (compiled_gru, compiled_rnn, compiled_highway):
        monkeypatch.setattr(module, "scan", lambda *arguments: 1 / 0)
    with torch.no_grad():
        assert scan(*arguments).shape == (4, 3, 8)
    assert scan(*(a.detach().bfloat16().requires_grad_() for a in arguments)).dtype == torch.bfloat16
    with pytest.raises(ZeroDivisionError):
        scan(*arguments)


LIMITS = """
from charrnn.kernels import backend
import scipy.linalg.cython_blas, torch
from threadpoolctl import threadpool_info
for kernels, threads in (("torch", 2), ("compiled", 1), ("compiled", 2), ("torch", 2)):
    backend.use(kernels, threads)
    blas = {library["num_threads"] for library in threadpool_info() if "scipy" in library["filepath"]}
    print(kernels, torch.get_num_threads(), *blas)
"""


def test_with_compiled_kernels_openblas_has_one_thread_and_torch_the_given_number() -> None:
    """Runs in a separate process, whose environment allows two threads; that of the tests allows only one."""
    allowed = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "2")
    code = [sys.executable, "-c", LIMITS]
    done = subprocess.run(code, env=os.environ | allowed, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["torch 2 2", "compiled 1 1", "compiled 2 1", "torch 2 2"]
