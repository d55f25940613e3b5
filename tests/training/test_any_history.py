"""Whatever happens to a run, its files, its newest and best checkpoints and its learning rate are right.

Hypothesis draws sequences of events: training, a save by the clock, Ctrl-C, a kill, resuming with other settings or
from an older checkpoint, a gradient of NaN, a touched or edited text, a copied folder. After each event the run is
compared with a model without weights, which takes the losses from the run and follows the rules in docs/reliability.md.
"""

from __future__ import annotations

import math
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.checkpoints.folder import RunFolder, find_best, find_newest
from charrnn.errors import UserError
from charrnn.files import UNFINISHED
from charrnn.training.loop import Diverged, Record
from charrnn.training.run import Run
from charrnn.training.setup import configure, prepare
from charrnn.training.train import Unseen
from tests.helpers.command import SONG, write_text
from tests.helpers.runs import metrics

EPOCH = 16  # minibatches
RATE = 0.1
FLAGS: dict[str, Any] = {
    "rnn_size": 3,
    "num_layers": 1,
    "batch_size": 2,
    "seq_length": 8,
    "learning_rate": RATE,
    "lr_schedule": "constant",
    "grad_clip": 0,
    "gpuid": -1,
    "threads": 1,
    "kernels": "torch",
    "sample_length": 0,
}
LAST = "lm_lstm_last.pt"
# the losses in all examples, which depend only on the iteration and on the iterations that rollbacks returned to
SEEN: dict[tuple[Any, ...], float] = {}


@dataclass(frozen=True)
class Settings:
    """Settings that a resumed run may change."""

    keep: int = 0
    save_every: int = 0
    eval_val_every: int = 4
    max_epochs: int = 2


@dataclass(frozen=True)
class State:
    """The content of a checkpoint, from which a run continues."""

    run: int
    settings: Settings = Settings()
    iteration: int = 0
    # the iterations that rollbacks returned to; each halves the learning rate
    returns: tuple[int, ...] = ()
    val_losses: tuple[tuple[int, float], ...] = ()
    # the names and losses of the validated checkpoints that -keep has not deleted, oldest first
    kept: tuple[tuple[str, float], ...] = ()
    # the state that a rollback returns to, if different
    good: State | None = None
    # the number of the save
    order: int = 0


class Ended(Exception):
    """The run cannot roll back any more."""


@dataclass
class Model:
    """The content of a folder, and the state of the run that writes to it."""

    files: dict[str, State] = field(default_factory=dict)
    state: State = State(0)
    good: State = State(0)
    runs: int = 0
    saves: int = 0
    rollback: bool = False
    # the iteration whose gradient will be NaN; 0 for none
    spoilt: int = 0
    # whether the weights are NaN, which is noticed only later
    broken: bool = False
    # whether a save by the clock is due
    clock: bool = False

    def begin(self, state: State) -> None:
        self.state = replace(state, good=None)
        self.good = state.good or self.state
        self.broken = self.clock = False
        self.spoilt = 0

    def new_run(self) -> int:
        self.runs += 1
        return self.runs

    def newest(self, run: int = 0) -> str:
        """Return the newest file of a run, or of the run that saved last."""
        run = run or max(self.files.values(), key=lambda state: state.order).run
        own = {name: state for name, state in self.files.items() if state.run == run}
        return max(own, key=lambda name: (len(own[name].returns), own[name].iteration, own[name].order))

    def best(self) -> set[str]:
        """Return the validated files with the lowest loss, or the newest file if none is validated."""
        losses = {name: dict(state.val_losses)[state.iteration] for name, state in self.files.items() if name != LAST}
        return {name for name, loss in losses.items() if loss == min(losses.values())} or {self.newest()}

    def save(self, name: str, good: State | None = None) -> None:
        self.saves += 1
        self.clock = False
        self.files[name] = replace(self.state, good=good, order=self.saves)

    def save_last(self, regular: bool = False) -> None:
        if regular:
            self.good = self.state
        carried = self.rollback and self.good.iteration != self.state.iteration
        self.save(LAST, self.good if carried else None)

    def save_validated(self, loss: float) -> None:
        """Save as after a validation, and delete checkpoints as -keep does: all but the newest ones and the best."""
        at = self.state.iteration
        new = (f"lm_lstm_epoch{at / EPOCH:.2f}_{loss:.4f}.pt", loss)
        kept = [each for each in self.state.kept if each[0] != new[0]] + [new]
        best = [each for each in kept if each[1] == min(loss for _, loss in kept)][-1]
        latest = kept[-self.state.settings.keep :]  # -keep 0 keeps all
        left = [each for each in kept if each == best or each in latest]
        self.state = replace(self.state, val_losses=(*self.state.val_losses, (at, loss)), kept=tuple(left))
        self.good = self.state
        self.save(new[0])
        for name, _ in set(kept) - set(left):
            self.files.pop(name, None)

    def roll_back(self) -> None:
        """Return to the last regular save. Raises Ended if that is not allowed."""
        if not self.rollback or len(self.state.returns) == 3:
            raise Ended
        returns = (*self.good.returns, self.good.iteration)
        present = self.state
        self.state = self.good = replace(self.good, returns=returns, kept=present.kept, settings=present.settings)
        self.broken = False

    def step(self, val_loss: float | None) -> int:
        """Train until the next record. Return its iteration, or 0 at the end. Raises Ended if the run must stop."""
        chosen = self.state.settings
        while self.state.iteration < EPOCH * chosen.max_epochs:
            at = self.state.iteration + 1
            was_broken = self.broken
            if at == self.spoilt:
                self.spoilt, self.broken = 0, True
            if was_broken:  # the loss is NaN
                self.roll_back()
                continue
            self.state = replace(self.state, iteration=at)
            if at % chosen.eval_val_every == 0 or at == EPOCH * chosen.max_epochs:
                if self.broken:
                    self.roll_back()
                    continue
                assert val_loss is not None, "a validation is due"
                self.save_validated(val_loss)
            elif (regular := bool(chosen.save_every) and at % chosen.save_every == 0) or self.clock:
                if self.broken:
                    self.roll_back()
                else:
                    self.save_last(regular)
            return at
        return 0

    def stop(self) -> None:
        """Save as after Ctrl-C. Raises Ended if the run cannot roll back."""
        if self.broken:
            self.roll_back()
        self.save_last()


CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "keep": st.integers(0, 3),
        "save_every": st.sampled_from([0, 3, 4]),
        "eval_val_every": st.integers(2, 6),
    },
)


class AnyHistory(RuleBasedStateMachine):
    """Applies the events that Hypothesis draws to a run, and compares it with the model after each one."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.folder = Path(self.stack.enter_context(TemporaryDirectory()))
        self.data = write_text(self.folder / "data", SONG * 4)
        self.cv = self.folder / "cv"
        self.model = Model()
        self.run: Run | None = None
        self.training: Iterator[Record] = iter(())
        self.lock = ExitStack()
        self.spoilt = 0
        self.ids: dict[int, str] = {}
        # whether the metrics file must contain every iteration from the first on
        self.complete = True

    def teardown(self) -> None:
        self.lock.close()
        self.stack.close()

    # --- steps that the rules share -----------------------------------------------------------------------------------

    def launch(self, changes: dict[str, Any], resume: Path | None) -> list[str]:
        """Begin or resume a run, which then waits for ``train``. Return the reported lines."""
        said: list[str] = []
        given = changes | {"data_dir": str(self.data), "checkpoint_dir": str(self.cv)}
        setup = prepare(configure(given, resume=str(resume) if resume else None), said.append)
        self.lock.enter_context(RunFolder.of(setup.options).alone())
        with pytest.raises(UserError, match="another training"), RunFolder(self.cv, "lstm").alone():
            pass
        self.run = Run(setup, said.append)
        next(self.run.model.parameters()).register_hook(self.spoil_gradient)
        self.training = self.run.follow(Unseen())
        self.spoilt = 0
        assert len(setup.splits["train"]) == EPOCH
        return said

    def spoil_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        assert self.run
        if self.run.training.iteration + 1 != self.spoilt:
            return gradient
        self.spoilt = 0
        return gradient * math.nan

    def compare(self, record: Record) -> None:
        """Compare a record with the model, and with earlier ones of the same iteration."""
        before = self.model.state.returns
        assert record.iteration == self.model.step(record.val_loss)
        returns = self.model.state.returns if record.iteration == self.model.state.iteration else before
        key = (returns, record.iteration)
        assert record.learning_rate == RATE / 2 ** len(returns)
        assert SEEN.setdefault(key, record.loss) == record.loss
        if record.val_loss is not None:
            assert SEEN.setdefault((*key, "val"), record.val_loss) == record.val_loss

    def end(self) -> None:
        """Leave the run without saving, as a kill does."""
        self.training.close()  # type: ignore[attr-defined]  # a generator
        self.lock.close()
        self.run = None

    def diverges(self, act: Callable[[], object], model: Callable[[], object]) -> bool:
        """Apply an event to the run and the model. Return whether both ended since they may not roll back."""
        try:
            act()
        except Diverged:
            with pytest.raises(Ended):
                model()
            self.end()
            return True
        model()
        return False

    # --- the rules ----------------------------------------------------------------------------------------------------

    @initialize(changes=CHANGES, rollback=st.sampled_from([True, True, False]))
    def begin(self, changes: dict[str, Any], rollback: bool) -> None:
        self.model.rollback = rollback
        chosen = replace(Settings(), **changes)
        self.launch(FLAGS | {"on_nan": "rollback" if rollback else "stop"} | asdict(chosen), None)
        self.model.begin(State(self.model.new_run(), chosen))

    @precondition(lambda self: self.run)
    @rule(count=st.integers(1, 12), spoil=st.one_of(st.none(), st.integers(1, 3), st.integers(1, 6)))
    def train(self, count: int, spoil: int | None) -> None:
        """Train ``count`` iterations. If ``spoil`` is set, the gradient is NaN that many iterations from now."""
        if spoil:
            self.spoilt = self.model.spoilt = self.model.state.iteration + spoil
        for _ in range(count):
            try:
                record = next(self.training)
            except Diverged:
                with pytest.raises(Ended):
                    self.model.step(None)
                return self.end()
            except StopIteration:
                assert self.run and self.model.step(None) == 0
                assert self.run.finish().val_loss == min((loss for _, loss in self.model.state.kept), default=None)
                return self.ended()
            self.compare(record)
        return None

    @precondition(lambda self: self.run)
    @rule()
    def save_by_the_clock(self) -> None:
        assert self.run
        self.run.saved_at = -1e12
        self.model.clock = True

    @precondition(lambda self: self.run)
    @rule()
    def stop(self) -> None:
        run = self.run
        assert run
        run.stop()
        if self.diverges(lambda: [*self.training, run.save_last()], self.model.stop):
            return
        self.ended()

    def ended(self) -> None:
        """Leave a run that has saved its last state. Check the metrics, and that no temporary file is left."""
        self.end()
        assert not list(self.cv.glob(f".*{UNFINISHED}"))
        lines = metrics(self.cv / "lm_lstm_metrics.jsonl")
        validated = {line["iteration"]: line["val_loss"] for line in lines if "val_loss" in line}
        if self.complete:
            assert [line["iteration"] for line in lines] == list(range(1, self.model.state.iteration + 1))
            assert validated == dict(self.model.state.val_losses)
        assert validated.items() <= dict(self.model.state.val_losses).items()

    @precondition(lambda self: self.run)
    @rule(inside=st.booleans())
    def kill(self, inside: bool) -> None:
        self.end()
        if self.model.state.returns:  # a rollback has cut off lines that belong to a checkpoint saved before it
            self.complete = False
        if inside:
            (self.cv / f".{LAST}.0123abcd{UNFINISHED}").write_bytes(b"half a checkpoint")

    @precondition(lambda self: not self.run)
    @rule(changes=CHANGES)
    def begin_anew(self, changes: dict[str, Any]) -> None:
        for file in self.cv.glob("*.pt"):
            file.unlink()
        self.model.files.clear()
        self.complete = True
        self.begin(changes, self.model.rollback)

    @precondition(lambda self: not self.run and self.model.files)
    @rule(changes=CHANGES, longer=st.booleans())
    def resume(self, changes: dict[str, Any], longer: bool) -> None:
        newest = self.model.newest()
        state = self.model.files[newest]
        if longer:
            changes = changes | {"max_epochs": state.settings.max_epochs + 1}
        said = self.launch(changes, self.cv)
        assert f"resuming from {self.cv / newest}, iteration {state.iteration}" in said
        self.model.begin(replace(state, settings=replace(state.settings, **changes)))

    @precondition(lambda self: not self.run and self.model.files)
    @rule(data=st.data())
    def resume_from_any(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.files)))
        state = self.model.files[name]
        another = name != self.model.newest(state.run)
        self.complete &= name == self.model.newest()  # otherwise some lines may have been removed
        self.launch({}, self.cv / name)
        if another:
            run = self.model.new_run()
            state = replace(state, run=run, good=state.good and replace(state.good, run=run))
        self.model.begin(state)

    @precondition(lambda self: not self.run and self.model.files)
    @rule(edit=st.booleans())
    def touch_the_text(self, edit: bool) -> None:
        text = self.data / "input.txt"
        content = text.read_bytes()
        if edit:
            text.write_bytes(content.replace(b"fox", b"cat"))
            with pytest.raises(UserError, match="not the one"):
                self.launch({}, self.cv)
            self.lock.close()
        text.write_bytes(content)

    @precondition(lambda self: not self.run and self.model.files)
    @rule(chance=st.randoms(use_true_random=False))
    def copy_the_folder(self, chance: random.Random) -> None:
        copy = self.folder / f"copy{len(list(self.folder.iterdir()))}"
        copy.mkdir()
        files = sorted(self.cv.glob("lm_*"))
        chance.shuffle(files)
        for file in files:
            shutil.copy(file, copy)
            os.utime(copy / file.name, (chance.randrange(2), chance.randrange(2)))
        self.cv = copy

    # --- what must always hold ----------------------------------------------------------------------------------------

    @invariant()
    def the_files_are_those_of_the_model(self) -> None:
        assert {file.name for file in self.cv.glob("*.pt")} == self.model.files.keys()

    @precondition(lambda self: not self.run and self.model.files)
    @invariant()
    def the_newest_and_the_best_are_those_of_the_model(self) -> None:
        assert find_newest(self.cv).name == self.model.newest()
        assert find_best(self.cv).name in self.model.best()
        for name, state in self.model.files.items():
            checkpoint = Checkpoint.load(self.cv / name)
            saved = checkpoint.training
            assert (checkpoint.iteration, saved["rollbacks"]) == (state.iteration, len(state.returns))
            assert tuple(saved["val_losses"].items()) == state.val_losses
            assert tuple(zip(saved["kept"], saved["kept_losses"], strict=True)) == state.kept
            assert ("good" in saved) == bool(state.good)
            assert self.ids.setdefault(state.run, checkpoint.run_id) == checkpoint.run_id
        assert len(set(self.ids.values())) == len(self.ids)


AnyHistory.TestCase.settings = settings(stateful_step_count=20)
test_any_history = AnyHistory.TestCase
