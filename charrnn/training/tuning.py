"""The kernels and the number of CPU threads that train a model fastest, found by trying."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import nn

from charrnn.data.minibatches import Minibatches
from charrnn.errors import UserError
from charrnn.kernels import backend
from charrnn.settings.training import TrainingOptions
from charrnn.training.loop import Diverged, Training

TRIALS = 5  # timed iterations at each number


PATIENCE = 1.0  # seconds: an iteration longer than this is timed once


Report = Callable[[str], None]


def settle(model: nn.Module, train: Minibatches, options: TrainingOptions, report: Report) -> TrainingOptions:
    """Have this process compute on the CPU with the options' kernels and threads, and return those options.

    What they leave open is found by trying: a few iterations on a copy of the model are timed with each of the kernels
    and with 1, 2, 4, ... threads, up to as many as torch uses now (the machine's cores, or $OMP_NUM_THREADS). More
    threads are not always faster: in small products they mostly wait for each other. The model and torch's random
    numbers stay as they were.

    Raises UserError where the options name the compiled kernels and these cannot run.
    """
    state, most = torch.get_rng_state(), torch.get_num_threads()
    # a trial is not validated, and what depends on that is left out
    tried = replace(options, lr_schedule="constant", early_stop=0)
    kernels: backend.Kernels = "torch"
    threads = most
    try:
        seconds = dict(_trials(model, train, tried, report))
        kernels, threads = min(seconds, key=lambda pair: seconds[pair])
    finally:  # also after an error nothing of the trial stays
        backend.use(kernels, threads)
        torch.set_rng_state(state)
    return replace(options, kernels=kernels, threads=threads)


def _trials(
    model: nn.Module, train: Minibatches, options: TrainingOptions, report: Report
) -> Iterator[tuple[tuple[backend.Kernels, int], float]]:
    """Kernels and threads, and the seconds of an iteration with them; a lone pair is not timed."""
    most = torch.get_num_threads()
    counts = sorted({most, *(2**n for n in range(most.bit_length()) if 2**n <= most)})
    counts = [options.threads] if options.threads else counts
    either = options.kernels == "auto" and options.precision != "bf16" and backend.available()
    timed = either or len(counts) > 1
    backend.asked()
    if options.kernels != "compiled":
        for count in counts:
            yield ("torch", count), _time(model, train, options, "torch", count) if timed else 0
        if not (either and backend.asked()):
            return
    else:
        # first without them: what fails now is not their doing
        sound = _iterate(model, train, options, "torch")
        backend.use("torch", most)
        has_some = backend.asked()
        if not has_some:
            report(f"-kernels compiled: this {options.model} has none, and is computed with torch")
        if not has_some or not sound:
            yield from _trials(model, train, replace(options, kernels="torch"), report)
            return
    if problem := _compile(model, train, options, report):
        if options.kernels == "compiled":
            raise UserError(f"-kernels compiled: {problem}; -kernels torch does without")
        report(f"computing with torch alone: {problem}")
        return
    for count in counts:
        yield ("compiled", count), _time(model, train, options, "compiled", count) if timed else 0


def _iterate(model: nn.Module, train: Minibatches, options: TrainingOptions, kernels: backend.Kernels) -> bool:
    """One iteration on a copy of the model, on one thread. Whether it could be done without the loss breaking."""
    backend.use(kernels, 1)
    try:
        return next(Training(copy.deepcopy(model), train, None, options).run(), None) is not None
    except Diverged:  # the run itself will say so
        return False


def _compile(model: nn.Module, train: Minibatches, options: TrainingOptions, report: Report) -> str:
    """One iteration with the compiled kernels, so that they are there. What went wrong, or ''."""
    if not backend.available():
        return f"the compiled kernels need {', '.join(backend.NEEDED)}: pip install 'char-rnn-torch[fast]'"
    where = ""
    try:
        from charrnn.kernels.compiled import kept

        where = f"; if that stays so, delete {kept.folder()}"
        if not kept.filled():
            report("compiling the kernels, which takes some seconds")
        if not _iterate(model, train, options, "compiled"):
            return "the loss breaks in its first iteration"
    except Exception as error:  # numba fails in as many ways as there are machines
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return f"the compiled kernels do not run here ({said}){where}"
    return ""


def _time(
    model: nn.Module, train: Minibatches, options: TrainingOptions, kernels: backend.Kernels, threads: int
) -> float:
    """Seconds an iteration takes: the median of a few, after one that warms up."""
    backend.use(kernels, threads)
    run = Training(copy.deepcopy(model), train, None, options).run()
    took = []
    for _ in range(TRIALS + 1):
        started = time.perf_counter()
        try:
            if next(run, None) is None:
                break
        except Diverged:  # the run itself will say so
            break
        took.append(time.perf_counter() - started)
        if took[-1] > PATIENCE and len(took) > 1:
            break
    return statistics.median(took[1:] or took or [math.inf])
