"""The training loop: truncated backpropagation through time, as char-rnn does it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from charrnn.compute import autocast
from charrnn.data.minibatches import Minibatches
from charrnn.errors import UserError
from charrnn.evaluation.loss import evaluate, summed_loss
from charrnn.model import State, device_of, evaluating
from charrnn.settings.training import TrainingOptions
from charrnn.training import schedules
from charrnn.training.optimizer import make_optimizer, norm

EXPLODED = 3  # times the first loss: char-rnn's own bound


class Diverged(UserError):
    """The loss is not a number, or has exploded. Nothing learned since the last checkpoint is worth keeping."""


@dataclass
class Record:
    """What one iteration did.

    loss: mean nats per character of the minibatch, before the update; penalty: the weight-decay term of
    the objective, which is loss * T + penalty, with T the time steps that count; norm_before and grad_norm:
    Euclidean norm of the whole gradient before the norm clipping and after all clipping; param_norm: of the
    updated weights; seconds: wall time of the iteration; val_loss: mean nats per character where a validation
    was due; measures: what else it measured, by name.
    """

    iteration: int
    iterations: int
    epoch: float
    learning_rate: float
    loss: float = math.nan
    penalty: float = math.nan
    norm_before: float = math.nan
    grad_norm: float = math.nan
    param_norm: float = math.nan
    seconds: float = math.nan
    val_loss: float | None = None
    measures: dict[str, float] = field(default_factory=dict)


class Training:
    """A training run: the model, the optimizer and all else that changes while it goes on.

    ``for record in training.run()`` trains; set ``stopping`` to end after the iteration under way.
    Nothing here depends on how often one prints or saves, nor, without plateau or early stopping, validates.
    """

    def __init__(self, model: nn.Module, train: Minibatches, val: Minibatches | None, options: TrainingOptions) -> None:
        self.model = model
        self.train = train
        self.val = val
        self.options = options
        self.device = device_of(model)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        schedules.check_validated(options, val is not None)
        self.optimizer = make_optimizer(self.parameters, options)
        self.iterations = max(1, math.floor(options.max_epochs * len(train) + 1e-9))
        self.iteration = 0
        self.state: State | None = None
        self.losses: list[float] = []
        self.val_losses: dict[int, float] = {}
        self.reductions = 0
        self.stalled = 0
        self.rollbacks = 0
        self.stopping = False
        # reading a loss makes the host wait for the device: on a GPU read several at a time
        self.in_flight = 1 if self.device.type == "cpu" or options.accurate_gpu_timing else 16
        self._pending: list[tuple[Record, Tensor]] = []

    @property
    def epoch(self) -> float:
        return self.iteration / len(self.train)

    def learning_rate(self) -> float:
        """The rate of the next iteration: what the schedule says, and half of that after every rollback."""
        planned = schedules.learning_rate(
            self.options, self.iteration, self.iterations, len(self.train), self.reductions
        )
        return planned * 0.5**self.rollbacks

    @property
    def stopped_early(self) -> bool:
        """Whether the validation loss has been without a new best for as long as ``early_stop`` says."""
        return bool(self.options.early_stop) and self.stalled >= self.options.early_stop

    def _weigh_validations(self) -> None:
        """Draw from the validation losses what schedules and early stopping go by."""
        losses = schedules.regular(self.val_losses, self.options.eval_val_every)
        self.reductions = schedules.reductions(losses, self.options.plateau_patience)
        self.stalled = schedules.stalled(losses)

    def run(self) -> Iterator[Record]:
        """Train to the end, one record an iteration. Raises Diverged where going on makes no sense."""
        self.model.train()
        while self.iteration < self.iterations and not self.stopping and not self.stopped_early:
            started = time.perf_counter()
            rate = self.learning_rate()
            numbers = self._step(rate)
            record = Record(self.iteration, self.iterations, self.epoch, rate)
            self._pending.append((record, numbers))
            last = self.iteration == self.iterations
            due = self.val is not None and (self.iteration % self.options.eval_val_every == 0 or last)
            records = self._read() if due or last or self.stopping or len(self._pending) >= self.in_flight else []
            record.seconds = time.perf_counter() - started
            if due and self.val is not None:
                score = evaluate(self.model, self.val)
                record.val_loss, record.measures = score.loss, score.measures
                self.val_losses[self.iteration] = record.val_loss
                self._weigh_validations()
            yield from records
        yield from self._read()

    def _step(self, rate: float) -> Tensor:
        """One minibatch: forward, backward, clip, update. Returns the record's five numbers on the device."""
        k = self.iteration % len(self.train)
        if self.train.begins(k):
            self.state = None
        x, y = self.train.batch(k)
        x, y = x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)

        self.optimizer.zero_grad()
        with autocast(self.options.precision, self.device):
            logits, state = self.model(x, self.state)
            objective = summed_loss(logits, y)
        if not isinstance(state, tuple):  # a lone tensor would be taken for a tuple of its rows, and pass
            raise UserError(
                f"the model {self.options.model} returns its state as {type(state).__name__}: "
                "its forward must return logits and a tuple of tensors, such as (h,)"
            )
        objective.backward()
        # carry the state on: each row is one long stream of text, but gradients stop here
        self.state = tuple(s.detach() for s in state)

        penalty = self._add_weight_decay(objective.detach())
        norm_before, grad_norm = self._clip()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.iteration += 1
        loss = objective.detach() / self.train.predicted
        return torch.stack([loss, penalty, norm_before, grad_norm, norm(self.parameters)])

    def _add_weight_decay(self, like: Tensor) -> Tensor:
        """Add the L2 term's gradient, so that clipping acts on the whole. Returns the term itself."""
        decay = self.options.weight_decay
        if not decay:
            return torch.zeros_like(like)
        for p in self.parameters:
            if p.grad is not None:
                p.grad.add_(p.detach(), alpha=decay)
        return 0.5 * decay * norm(self.parameters) ** 2

    def _clip(self) -> tuple[Tensor, Tensor]:
        """Clip the gradient by element, then by norm. Returns the norms before the second clip and after."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if bound := self.options.grad_clip:
            for gradient in gradients:
                gradient.clamp_(-bound, bound)
        total = norm(gradients)
        if not self.options.max_grad_norm:
            return total, total
        # no epsilon in the denominator, as the RHN program
        scale = self.options.max_grad_norm / total.clamp(min=self.options.max_grad_norm)
        for gradient in gradients:
            gradient.mul_(scale)
        return total, total * scale

    def _read(self) -> list[Record]:
        """Bring all numbers still on the device to the host, in one wait. Raises Diverged."""
        if not self._pending:
            return []
        records = [record for record, _ in self._pending]
        table = torch.stack([numbers for _, numbers in self._pending]).tolist()
        self._pending.clear()
        for record, row in zip(records, table, strict=True):
            record.loss, record.penalty, record.norm_before, record.grad_norm, record.param_norm = row
            self.losses.append(record.loss)
            self._check(record)
        return records

    def _check(self, record: Record) -> None:
        first = self.losses[0]
        if math.isfinite(record.loss) and record.loss <= EXPLODED * first:
            return
        what = "is not a number" if math.isnan(record.loss) else f"has exploded from {first:.4f} to {record.loss:.4f}"
        raise Diverged(
            f"the training loss {what} at iteration {record.iteration}: try a lower -learning_rate "
            f"(now {record.learning_rate:g}) or a lower -grad_clip"
        )

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on from here exactly, weights aside: tensors, numbers, lists and dicts."""
        rng = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "iteration": self.iteration,
            "state": None if self.state is None else [s.cpu() for s in self.state],
            "optimizer": self.optimizer.state_dict(),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "val_losses": dict(self.val_losses),
            "rollbacks": self.rollbacks,
            "rng": rng,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on exactly where state_dict was called. Raises KeyError, TypeError, AttributeError, ValueError or
        RuntimeError for anything that state_dict cannot have returned."""
        if type(saved["iteration"]) is not int or saved["losses"].shape != (saved["iteration"],):
            raise ValueError("there is not one loss for each iteration")
        if not all(type(k) is int and type(loss) is float for k, loss in saved["val_losses"].items()):
            raise ValueError("the validation losses are not numbers")
        state = saved["state"]
        self.state = None if state is None else self._fitting(state)
        self._restore_optimizer(saved["optimizer"])
        self.losses = saved["losses"].double().tolist()
        self.val_losses = dict(saved["val_losses"])
        self._weigh_validations()
        self.iteration = int(saved["iteration"])
        self.rollbacks = int(saved["rollbacks"])
        torch.set_rng_state(saved["rng"]["cpu"])
        if self.device.type == "cuda" and "cuda" in saved["rng"]:
            torch.cuda.set_rng_state(saved["rng"]["cuda"], self.device)

    def _fitting(self, saved: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """A saved state as this model carries it on this device, which a single time step shows.

        Its type may be another where -precision bf16 went on with a GPU's kernels or a CPU's. Raises ValueError.
        """
        with evaluating(self.model), autocast(self.options.precision, self.device):
            _, own = self.model(self.train.batch(0)[0][:1].to(self.device), None)
        if [(s.shape, s.is_floating_point()) for s in saved] != [(s.shape, s.is_floating_point()) for s in own]:
            raise ValueError("the carried state is not this model's")
        return tuple(s.to(self.device, like.dtype) for s, like in zip(saved, own, strict=True))

    def _restore_optimizer(self, saved: dict[str, Any]) -> None:
        """What the optimizer remembers of each parameter. Its settings follow from the options, save the last rate."""
        like = nn.Parameter(torch.zeros(1, dtype=self.parameters[0].dtype))
        sample = make_optimizer([like], self.options)
        like.grad = torch.zeros_like(like)
        sample.step()
        for number, memory in saved["state"].items():
            shapes = {
                name: self.parameters[number].shape if t.dim() else t.shape for name, t in sample.state[like].items()
            }
            if {name: t.shape for name, t in memory.items()} != shapes:
                raise ValueError("the optimizer's memory does not fit the parameters")
        groups = self.optimizer.state_dict()["param_groups"]
        for group, old in zip(groups, saved["param_groups"], strict=True):
            group["lr"] = float(old["lr"])
        self.optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
