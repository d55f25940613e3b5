"""Find the kernels and the number of CPU threads that train a model fastest, by timing a few iterations."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import replace

import torch
from torch import nn

from charrnn.compute import Report, same_random_numbers
from charrnn.data.minibatches import Minibatches
from charrnn.errors import UserError
from charrnn.kernels import backend
from charrnn.model import HasCompiledKernels, copied, device_of
from charrnn.settings.training import TrainingOptions
from charrnn.training.loop import Diverged, Training

TRIALS = 5  # timed iterations per candidate
PATIENCE = 1.0  # seconds: time an iteration that takes longer only once

Candidate = tuple[backend.Kernels, int]  # kernels and number of threads


def tune(model: nn.Module, train: Minibatches, options: TrainingOptions, report: Report) -> TrainingOptions:
    """Set this process's kernels and number of CPU threads, and return the options with these choices.

    What the options leave open is chosen by timing a few iterations on a copy of the model. More threads are not
    always faster: in small products they mostly wait for each other. The model and the random numbers are left
    unchanged. A model that cannot be copied gets torch's kernels and as many threads as torch uses now.

    Raises UserError if the options ask for the compiled kernels and these cannot run.
    """
    # trials do not validate, so leave out what depends on validation losses
    tried = replace(options, lr_schedule="constant", early_stop=0)
    chosen: Candidate = ("torch", torch.get_num_threads())
    try:
        with same_random_numbers(device_of(model)):
            pairs = candidates(options, model)
            if any(kernels == "compiled" for kernels, _ in pairs):
                if problem := problem_of_compiled(model, train, tried, report):
                    if options.kernels == "compiled":
                        raise UserError(f"-kernels compiled: {problem}; use -kernels torch instead")
                    report(f"using torch's kernels: {problem}")
                    pairs = [pair for pair in pairs if pair[0] == "torch"]
            elif options.kernels == "compiled":
                report(f"-kernels compiled: this {options.model} has no compiled kernels; using torch's")
            if len(pairs) > 1 and copied(model) is None:
                pairs = [pair for pair in pairs if pair[0] == pairs[0][0]][-1:]
                report(
                    f"this {options.model} cannot be copied to time threads and kernels; using {pairs[0][1]} threads"
                )
            chosen = min(pairs, key=lambda pair: seconds(model, train, tried, *pair)) if len(pairs) > 1 else pairs[0]
    finally:  # an error must not leave the settings of a trial behind
        backend.use(*chosen)
    kernels, threads = chosen
    return replace(options, kernels=kernels, threads=threads)


def candidates(options: TrainingOptions, model: nn.Module) -> list[Candidate]:
    """List the pairs of kernels and number of threads that the options allow and the model supports.

    The numbers are 1, 2, 4, ... and the number that torch uses now: the machine's cores, or $OMP_NUM_THREADS.
    """
    most = torch.get_num_threads()
    threads = [options.threads] if options.threads else sorted({most, *(2**n for n in range(most.bit_length()))})
    kernels: list[backend.Kernels] = ["torch"]
    if options.kernels != "torch" and isinstance(model, HasCompiledKernels) and model.has_compiled_kernels:
        if options.kernels == "compiled":
            kernels = ["compiled"]
        elif options.precision != "bf16" and backend.available():
            kernels = ["torch", "compiled"]
    return [(name, count) for name in kernels for count in threads]


def problem_of_compiled(model: nn.Module, train: Minibatches, options: TrainingOptions, report: Report) -> str:
    """Compile the kernels by running one iteration. Return what went wrong, or ''.

    Raises the model's own error if the iteration also fails with torch's kernels.
    """
    if not backend.available():
        return f"the compiled kernels need {', '.join(backend.NEEDED)}: pip install 'char-rnn-torch[fast]'"
    advice = ""
    try:
        from charrnn.kernels.compiled import code_cache

        advice = f"; if this persists, delete {code_cache.folder()}"
        if not code_cache.filled():
            report("compiling the kernels, which takes a few seconds")
        works = completes(model, train, options, "compiled")
        problem = "" if works else "the loss becomes NaN or explodes in the first iteration"
    except Exception as error:  # numba raises different errors on different machines
        message = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        problem = f"the compiled kernels do not run here ({message}){advice}"
    # the kernels are to blame only if torch's complete the same iteration
    return problem if problem and completes(model, train, options, "torch") else ""


def completes(model: nn.Module, train: Minibatches, options: TrainingOptions, kernels: backend.Kernels) -> bool:
    """Return whether one iteration on a copy of the model, on one thread, completes without diverging.

    True for a model that cannot be copied.
    """
    backend.use(kernels, 1)
    trial = copied(model)
    try:
        return trial is None or bool(next(Training(trial, train, None, options).run()))
    except Diverged:
        return False


def seconds(
    model: nn.Module, train: Minibatches, options: TrainingOptions, kernels: backend.Kernels, threads: int
) -> float:
    """Return the median time of a few iterations, after one to warm up; infinity if the first one diverges."""
    backend.use(kernels, threads)
    trial = copied(model)
    assert trial
    run = Training(trial, train, None, options).run()
    took = []
    try:
        for _ in range(TRIALS + 1):
            started = time.perf_counter()
            if next(run, None) is None:
                break
            took.append(time.perf_counter() - started)
            if took[-1] > PATIENCE and len(took) > 1:
                break
    except Diverged:  # the run itself will report it
        pass
    return statistics.median(took[1:] or took or [math.inf])
