"""The training loop: truncated backpropagation through time, as char-rnn does it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from charrnn.compute import autocast, random_state, restore_random_state, same_random_numbers
from charrnn.data.encode import TextChanged
from charrnn.data.minibatches import Minibatches
from charrnn.errors import UserError
from charrnn.evaluation.loss import evaluate, summed_loss
from charrnn.model import State, device_of, evaluating, problem_of_gradients, problem_of_output
from charrnn.settings.training import TrainingOptions
from charrnn.training import optimizer, schedules
from charrnn.training.optimizer import norm

EXTRA_STATE = "_extra_state"  # the end of torch's name for what get_extra_state returns
ROLLBACKS = 3  # with -on_nan rollback: a run that diverges more often needs different settings
EXPLODED = 3  # times the first loss, as in char-rnn


class Diverged(UserError):
    """The loss has become NaN or has exploded. Nothing learned since the last checkpoint is worth keeping."""


def check_contract(model: str, problem: str) -> None:
    """Raise UserError if there is a problem with a model of this name."""
    if problem:
        raise UserError(f"the model {model}: {problem}")


def diverged(problem: str, learning_rate: float) -> Diverged:
    return Diverged(f"{problem}: try a lower -learning_rate (now {learning_rate:g}) or a lower -grad_clip")


@dataclass
class Record:
    """The result of one iteration. Norms are Euclidean, over all elements together."""

    iteration: int
    # of the whole run
    iterations: int
    epoch: float
    learning_rate: float
    # mean nats per token of the minibatch, before the update
    loss: float = math.nan
    # the weight decay term of the objective, loss * T + penalty, where T is the number of time steps that count
    penalty: float = math.nan
    # of the gradient: before it is clipped by norm, and after all clipping
    norm_before: float = math.nan
    grad_norm: float = math.nan
    # of the updated weights
    param_norm: float = math.nan
    # wall time
    seconds: float = math.nan
    # mean nats per token, if a validation was due
    val_loss: float | None = None
    # further measures of that validation, by name
    measures: dict[str, float] = field(default_factory=dict)


class Training:
    """The model, the optimizer and everything else that changes during a run.

    ``for record in training.run()`` trains. The result does not depend on how often the run prints or saves. Unless
    plateau or early stopping is on, it does not depend on how often the run validates either.
    """

    def __init__(self, model: nn.Module, train: Minibatches, val: Minibatches | None, options: TrainingOptions) -> None:
        self.model = model
        self.train = train
        self.val = val
        self.options = options
        self.device = device_of(model)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        schedules.check_validated(options, val is not None)
        self.optimizer = optimizer.make_optimizer(self.parameters, options)
        self.iterations = max(1, math.floor(options.max_epochs * len(train) + 1e-9))
        self.iteration = 0
        self.state: State | None = None
        self.losses: list[float] = []
        self.val_losses: dict[int, float] = {}
        # how often plateau has lowered the learning rate
        self.reductions = 0
        # number of validations since the best one
        self.stalled = 0
        # how often the run went back to a checkpoint because its loss became NaN or exploded
        self.rollbacks = 0
        self.stopping = False
        # whether the model has kept the contract in one iteration
        self.checked = False
        # reading a loss makes the host wait for the device, so on a GPU several are read at a time
        self.in_flight = 1 if self.device.type == "cpu" or options.accurate_gpu_timing else 16
        self._pending: list[tuple[Record, Tensor]] = []

    @property
    def epoch(self) -> float:
        return self.iteration / len(self.train)

    def learning_rate(self) -> float:
        """Return the next iteration's learning rate: the schedule's, halved at each rollback."""
        planned = schedules.learning_rate(
            self.options, self.iteration, self.iterations, len(self.train), self.reductions
        )
        return planned * 0.5**self.rollbacks

    @property
    def stopped_early(self) -> bool:
        """Whether the last ``early_stop`` validations brought no new best."""
        return bool(self.options.early_stop) and self.stalled >= self.options.early_stop

    @property
    def at_regular_save(self) -> bool:
        """Whether -save_every asks for a checkpoint at this iteration."""
        return bool(self.options.save_every) and self.iteration % self.options.save_every == 0

    def stop(self) -> None:
        """End the run after the current iteration."""
        self.stopping = True

    def _weigh_validations(self) -> None:
        """Update the counts that plateau and early stopping derive from the validation losses."""
        losses = schedules.regular(self.val_losses, self.options.eval_val_every)
        self.reductions, self.stalled = schedules.progress(losses, self.options.plateau_patience)

    def run(self) -> Iterator[Record]:
        """Train to the end, yielding one record per iteration.

        Raises Diverged if the loss becomes NaN or explodes, and TextChanged if the next minibatch cannot be read.
        """
        self.model.train()
        while self.iteration < self.iterations and not self.stopping and not self.stopped_early:
            started = time.perf_counter()
            rate = self.learning_rate()
            try:
                numbers = self._step(rate)
            except TextChanged as error:
                records, broken = self._read()
                yield from records
                raise broken or error from None
            record = Record(self.iteration, self.iterations, self.epoch, rate)
            self._pending.append((record, numbers))
            last = self.iteration == self.iterations
            due = self.val is not None and (self.iteration % self.options.eval_val_every == 0 or last)
            full = len(self._pending) >= self.in_flight
            read = due or last or full or self.stopping or self.at_regular_save
            records, broken = self._read() if read else ([], None)
            record.seconds = time.perf_counter() - started
            if due and not broken and (broken := self._validate(record)):
                records.pop()
            yield from records
            if broken:
                raise broken
        records, broken = self._read()
        yield from records
        if broken:
            raise broken

    def _step(self, rate: float) -> Tensor:
        """Train on one minibatch: forward, backward, clip, update. Return the record's five numbers on the device."""
        k = self.iteration % len(self.train)
        if self.train.begins(k):
            self.state = None
        x, y = self.train.batch(k)
        x, y = x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)

        self.optimizer.zero_grad()
        with autocast(self.options.precision, self.device):
            returned = self.model(x, self.state)
            if not self.checked:
                check_contract(self.options.model, problem_of_output(returned, x))
            logits, state = returned
            objective = summed_loss(logits, y)
        objective.backward()
        if not self.checked:
            check_contract(self.options.model, problem_of_gradients(self.model))
            self.checked = True
        # keep the state: each row is one long stream of text, but gradients stop here
        self.state = tuple(s.detach() for s in state)

        penalty = optimizer.add_weight_decay(self.parameters, self.options.weight_decay)
        norm_before, grad_norm = optimizer.clip(self.parameters, self.options)
        optimizer.step(self.optimizer, rate)
        self.iteration += 1
        loss = objective.detach() / self.train.predicted
        return torch.stack([loss, penalty, norm_before, grad_norm, norm(self.parameters)])

    def _read(self) -> tuple[list[Record], Diverged | None]:
        """Copy all numbers that are still on the device to the host, with a single wait.

        Return the records before the first loss that is NaN or has exploded, and the error for that one.
        """
        if not self._pending:
            return [], None
        records = [record for record, _ in self._pending]
        table = torch.stack([numbers for _, numbers in self._pending]).tolist()
        self._pending.clear()
        for count, (record, row) in enumerate(zip(records, table, strict=True)):
            record.loss, record.penalty, record.norm_before, record.grad_norm, record.param_norm = row
            try:
                self._check(record)
            except Diverged as error:
                return records[:count], error
            self.losses.append(record.loss)
        return records, None

    def _validate(self, record: Record) -> Diverged | None:
        """Add the result of a validation to the record.

        Return an error if the loss, the weights or the optimizer's state is not finite.
        """
        assert self.val is not None
        score = evaluate(self.model, self.val)
        finite = math.isfinite(score.loss)
        problem = self._not_finite() if finite else f"the validation loss is {score.loss} at iteration {self.iteration}"
        if problem:
            return diverged(problem, record.learning_rate)
        record.val_loss, record.measures = score.loss, score.measures
        self.val_losses[self.iteration] = record.val_loss
        self._weigh_validations()
        return None

    def _check(self, record: Record) -> None:
        """Raise Diverged if the loss is NaN or has exploded."""
        if problem := self._problem(record.loss):
            raise diverged(f"the training loss {problem} at iteration {record.iteration}", record.learning_rate)

    def _problem(self, loss: float) -> str:
        """Return what is wrong with a training loss, or ''."""
        first = self.losses[0] if self.losses else loss
        if math.isnan(loss):
            return "is not a number"
        return "" if loss < math.inf and loss <= EXPLODED * first else f"has exploded from {first:.4f} to {loss:.4f}"

    def prove(self) -> None:
        """Raise Diverged unless the weights are finite and the next minibatch's loss is neither NaN nor exploded.

        The loss of an iteration is computed before its update, so it says nothing about the weights after it. This
        computes the loss of the next iteration, with the same dropout. It changes nothing.
        """
        problem = self._not_finite()
        if not problem and (found := self._problem(self._next_loss())):
            problem = f"the training loss {found} after iteration {self.iteration}"
        if problem:
            raise diverged(problem, self.learning_rate())

    def _not_finite(self) -> str:
        """Return which of losses, weights and optimizer state are not finite, or ''."""
        if len(self.losses) < self.iteration:
            return f"the training loss diverged at iteration {len(self.losses) + 1}"
        tensors = [*self.parameters, *optimizer.tensors(self.optimizer)]
        if torch.stack([tensor.isfinite().all() for tensor in tensors]).all():
            return ""
        return f"the weights or the optimizer's state are not finite after iteration {self.iteration}"

    def _next_loss(self) -> float:
        """Return the loss that the next iteration will have, up to rounding. Changes neither generators nor the model.

        If the next minibatch cannot be read, uses the previous one.
        """
        k = self.iteration % len(self.train)
        try:
            batch = self.train.batch(k)
        except TextChanged:
            batch = self.train.batch((k - 1) % len(self.train))
        x, y = (part.to(self.device) for part in batch)
        # whatever forward may change: buffers, also those that are not saved, frozen parameters, and extra state
        fixed = [t for t in (*self.model.parameters(), *self.model.buffers()) if not t.requires_grad]
        before = [tensor.clone() for tensor in fixed]
        extra = {name: value.clone() for name, value in self.model.state_dict().items() if name.endswith(EXTRA_STATE)}
        with torch.no_grad(), same_random_numbers(self.device), autocast(self.options.precision, self.device):
            logits, _ = self.model(x, None if self.train.begins(k) else self.state)
            loss = (summed_loss(logits, y) / self.train.predicted).item()
            for tensor, value in zip(fixed, before, strict=True):
                tensor.copy_(value)
            if extra:
                self.model.load_state_dict(extra, strict=False)
        return loss

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the model's weights on the CPU, by name. Tied weights stay one tensor."""
        weights = self.model.state_dict(keep_vars=True)
        copies = {id(weight): weight.detach().to("cpu", copy=True) for weight in weights.values()}
        return {name: copies[id(weight)] for name, weight in weights.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue exactly, except the weights: plain values, and tensors on the CPU.

        It is a copy, which later training does not change.
        """
        return {
            "iteration": self.iteration,
            "state": None if self.state is None else [s.to("cpu", copy=True) for s in self.state],
            "optimizer": optimizer.saved(self.optimizer),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "val_losses": dict(self.val_losses),
            "rollbacks": self.rollbacks,
            "rng": random_state(self.device),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue exactly where ``state_dict`` was called.

        Raises KeyError, TypeError, AttributeError, ValueError, OverflowError or RuntimeError for anything that
        ``state_dict`` cannot have returned.
        """
        if type(saved["iteration"]) is not int or saved["losses"].shape != (saved["iteration"],):
            raise ValueError("it does not have one loss per iteration")
        if not all(type(k) is int and type(loss) is float for k, loss in saved["val_losses"].items()):
            raise ValueError("the validation losses are not numbers")
        if type(saved["rollbacks"]) is not int or not 0 <= saved["rollbacks"] <= ROLLBACKS:
            raise ValueError(f"the number of its rollbacks is not between 0 and {ROLLBACKS}")
        state = saved["state"]
        self.state = None if state is None else self._fitting(state)
        optimizer.restore(self.optimizer, self.options, saved["optimizer"])
        self.losses = saved["losses"].double().tolist()
        self.val_losses = dict(saved["val_losses"])
        self._weigh_validations()
        self.iteration = int(saved["iteration"])
        self.rollbacks = saved["rollbacks"]
        restore_random_state(saved["rng"], self.device)

    def _fitting(self, saved: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return a saved hidden state on this device, in the dtypes that the model returns for one time step.

        The saved dtypes may differ, since -precision bf16 uses different ones on a GPU and on a CPU. Raises ValueError
        if the state does not fit the model.
        """
        with evaluating(self.model), autocast(self.options.precision, self.device):
            _, own = self.model(self.train.batch(0)[0][:1].to(self.device), None)
        if [(s.shape, s.is_floating_point()) for s in saved] != [(s.shape, s.is_floating_point()) for s in own]:
            shapes = [", ".join(str(tuple(s.shape)) for s in parts) for parts in (saved, own)]
            raise ValueError(f"the hidden state does not fit the model: its shapes are {shapes[0]}, not {shapes[1]}")
        return tuple(s.to(self.device, like.dtype) for s, like in zip(saved, own, strict=True))
