"""Only good states are saved. A rollback returns to the same state whether or not the run was stopped, and each save
contains the state of its own iteration."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.compute import random_state, restore_random_state
from charrnn.errors import UserError
from charrnn.training.loop import Diverged, Record
from charrnn.training.run import Run
from charrnn.training.setup import configure
from charrnn.training.train import Unseen
from tests.helpers.runs import FLAGS, data, metrics, new_run, same


def flags(tmp_path: Path, **more: Any) -> dict[str, Any]:
    if not (tmp_path / "data").exists():
        data(tmp_path / "data", "fractions")
    return FLAGS | {"data_dir": str(tmp_path / "data"), "sample_length": 0} | more


@contextmanager
def nan_gradient(run: Run, iteration: int, factor: float = math.nan) -> Iterator[None]:
    """Multiply the gradient of the last parameter in this iteration, unless the run has already rolled back."""

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        hit = run.training.iteration + 1 == iteration and not run.training.rollbacks
        return gradient * factor if hit else gradient

    hook = list(run.model.parameters())[-1].register_hook(spoil)
    try:
        yield
    finally:
        hook.remove()


def followed(run: Run, stop_at: int = 0) -> list[int]:
    """Train as the command does, to the end or until a signal after ``stop_at``. Return the iterations."""
    seen = []
    for record in run.follow(Unseen()):
        seen.append(record.iteration)
        if stop_at and record.iteration >= stop_at:
            run.stop()
    if stop_at:
        run.save_last()
    else:
        run.finish()
    return seen


def assert_finite(path: Path) -> None:
    checkpoint = Checkpoint.load(path)
    assert all(weight.isfinite().all() for weight in checkpoint.weights.values())
    for kept in checkpoint.training["optimizer"]["state"].values():
        assert all(value.isfinite().all() for value in kept.values())


def test_a_nan_gradient_at_a_save_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    given = flags(tmp_path, save_every=5, eval_val_every=1000, grad_clip=0)
    run = new_run(configure(given | {"checkpoint_dir": str(tmp_path / "cv")}))
    with nan_gradient(run, 10), pytest.raises(Diverged, match=r"not finite after iteration 10.*lower -learning_rate"):
        followed(run)
    last = tmp_path / "cv/lm_lstm_last.pt"
    assert Checkpoint.load(last).training["iteration"] == 5
    assert_finite(last)
    followed(new_run(configure({"checkpoint_dir": str(tmp_path / "cv")}, resume=str(last))))


def test_a_nan_gradient_at_a_validation_saves_nothing(tmp_path: Path) -> None:
    given = flags(tmp_path, eval_val_every=5, grad_clip=0)
    run = new_run(configure(given | {"checkpoint_dir": str(tmp_path / "cv")}))
    with nan_gradient(run, 10), pytest.raises(Diverged, match="validation loss is nan at iteration 10"):
        followed(run)
    saved = list((tmp_path / "cv").glob("*.pt"))
    assert len(saved) == 1 and Checkpoint.load(saved[0]).training["iteration"] == 5
    followed(new_run(configure({}, resume=str(tmp_path / "cv"))))


@pytest.mark.parametrize("at", [7, 9, 12, "last"])
def test_a_rollback_recovers_wherever_the_gradient_becomes_nan(tmp_path: Path, at: int | str) -> None:
    given = flags(tmp_path, on_nan="rollback", eval_val_every=10, save_every=9, grad_clip=0, train_frac=1, val_frac=0)
    run = new_run(configure(given | {"checkpoint_dir": str(tmp_path / "cv")}))
    iteration = run.training.iterations if at == "last" else int(at)
    with nan_gradient(run, iteration):
        seen = followed(run)
    assert run.training.rollbacks == 1 and seen[-1] == run.training.iterations
    assert [line["iteration"] for line in metrics(run.folder.metrics)] == list(range(1, run.training.iterations + 1))
    assert_finite(tmp_path / "cv/lm_lstm_last.pt")


def test_an_optimizer_state_that_is_not_finite_at_a_validation_is_rolled_back(tmp_path: Path) -> None:
    """The weights and losses stay finite, since rmsprop divides by the root of its state."""
    given = flags(tmp_path, on_nan="rollback", eval_val_every=5, checkpoint_dir=str(tmp_path / "cv"))
    run = new_run(configure(given))
    seen = []
    for record in run.follow(Unseen()):
        seen.append(record.iteration)
        if record.iteration == 9 and not run.training.rollbacks:
            run.training.optimizer.state[next(run.model.parameters())]["square_avg"].fill_(math.inf)
    assert run.training.rollbacks == 1 and seen[:11] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 6, 7]
    for path in (tmp_path / "cv").glob("*.pt"):
        assert_finite(path)


def test_weights_that_are_finite_but_give_no_finite_loss_are_not_saved(tmp_path: Path) -> None:
    given = flags(tmp_path, save_every=1, eval_val_every=1000)
    run = new_run(configure(given | {"checkpoint_dir": str(tmp_path / "cv")}))
    before = b""
    with pytest.raises(Diverged, match="after iteration 6"):
        for record in run.records():
            if record.iteration == 6:
                before = run.folder.last.read_bytes()
                with torch.no_grad():
                    for parameter in run.model.parameters():
                        parameter.mul_(1e30)
            run.save_last(regular=True)
    assert run.folder.last.read_bytes() == before


@pytest.mark.parametrize("stop_at", range(1, 21))
def test_stopping_and_resuming_a_run_that_rolls_back_changes_nothing(tmp_path: Path, stop_at: int) -> None:
    given = flags(tmp_path, on_nan="rollback", eval_val_every=9, save_every=4, grad_clip=0, max_epochs=1.5)
    whole = new_run(configure(given | {"checkpoint_dir": str(tmp_path / "whole")}))
    with nan_gradient(whole, 15):
        followed(whole)
    assert whole.training.rollbacks == 1
    part = new_run(configure(given | {"checkpoint_dir": str(tmp_path / "parts")}))
    with nan_gradient(part, 15):
        followed(part, stop_at)
    resumed = new_run(configure({}, resume=str(tmp_path / "parts/lm_lstm_last.pt")))
    with nan_gradient(resumed, 15):
        followed(resumed)
    same(whole.training.weights(), resumed.training.weights())
    same(whole.training.state_dict(), resumed.training.state_dict())
    files = [{path.name for path in (tmp_path / name).glob("*epoch*.pt")} for name in ("whole", "parts")]
    assert files[0] == files[1]


def test_a_run_with_a_damaged_rollback_state_does_not_resume(tmp_path: Path) -> None:
    given = flags(tmp_path, on_nan="rollback", save_every=4, checkpoint_dir=str(tmp_path / "cv"))
    run = new_run(configure(given))
    followed(run, stop_at=6)
    checkpoint = Checkpoint.load(run.folder.last)
    assert checkpoint.training["good"]["training"]["iteration"] == 4
    good = checkpoint.training["good"]
    for broken in (
        {"weights": {}, "training": good["training"]},
        {"weights": good["weights"]},
        good | {"training": good["training"] | {"state": [torch.zeros(1)]}},
        7,
    ):
        checkpoint.training["good"] = broken
        checkpoint.save(tmp_path / "broken.pt")
        with pytest.raises(UserError):
            new_run(configure({}, resume=str(tmp_path / "broken.pt")))


def test_saving_at_every_iteration_changes_no_weight_and_no_random_number(tmp_path: Path) -> None:
    ends = []
    for save_every in (0, 1):
        run = new_run(configure(flags(tmp_path, save_every=save_every, checkpoint_dir=str(tmp_path / str(save_every)))))
        followed(run)
        ends.append(run)
    same(ends[0].training.weights(), ends[1].training.weights())
    same(ends[0].training.state_dict(), ends[1].training.state_dict())


class WithExtraState(torch.nn.Module):
    number = torch.zeros(())

    def get_extra_state(self) -> torch.Tensor:
        return self.number

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.number = state


def test_the_loss_that_checks_a_state_is_that_of_the_next_iteration_with_its_dropout(tmp_path: Path) -> None:
    """A save by the clock or Ctrl-C thus fails only if the uninterrupted run would diverge one iteration later."""
    run = new_run(configure(flags(tmp_path, dropout=0.5, checkpoint_dir=str(tmp_path / "cv"))))
    counter, frozen = torch.zeros(()), torch.nn.Parameter(torch.zeros(()), requires_grad=False)
    run.model.register_buffer("counter", counter)
    run.model.register_parameter("frozen", frozen)
    extra = WithExtraState()
    run.model.add_module("extra", extra)

    def count(*_: object) -> None:
        counter.add_(1)
        frozen.add_(1)
        extra.number = extra.number + 1

    run.model.register_forward_hook(count)
    computed = []
    for _ in run.records():
        before = counter.item()
        computed.append(run.training._next_loss())
        assert counter.item() == frozen.item() == extra.number.item() == before, "nothing in the model may change"
    assert computed[:-1] == pytest.approx(run.training.losses[1:], rel=1e-6) and len(computed) > 10


def test_reading_losses_late_does_not_move_the_saves(tmp_path: Path) -> None:
    saved: dict[int, dict[int, dict[str, torch.Tensor]]] = {}
    for in_flight in (1, 16):
        given = flags(tmp_path, save_every=10, eval_val_every=1000, checkpoint_dir=str(tmp_path / str(in_flight)))
        run = new_run(configure(given))
        run.training.in_flight = in_flight
        found = saved[in_flight] = {}
        for record in run.follow(Unseen()):
            if run.folder.last.exists() and record.iteration % 10 == 0:
                checkpoint = Checkpoint.load(run.folder.last)
                found[checkpoint.training["iteration"]] = checkpoint.weights
    assert list(saved[16]) == list(range(10, run.training.iterations, 10)) and len(saved[16]) > 2
    same(saved[1], saved[16])


def test_the_records_before_a_loss_that_is_not_finite_are_kept(tmp_path: Path) -> None:
    run = new_run(configure(flags(tmp_path, grad_clip=0, checkpoint_dir=str(tmp_path / "cv"))))
    run.training.in_flight = 16
    seen: list[Record] = []
    with nan_gradient(run, 5), pytest.raises(Diverged, match="is not a number at iteration 6"):
        seen.extend(run.records())
    assert [line["iteration"] for line in metrics(run.folder.metrics)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("in_flight", [1, 16])
@pytest.mark.parametrize("on_nan", ["stop", "rollback"])
def test_a_run_whose_token_ids_are_changed_saves_its_last_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_flight: int, on_nan: str
) -> None:
    monkeypatch.setattr("charrnn.data.minibatches.AHEAD", 3 * 4 * 16)  # three minibatches at a time
    given = flags(tmp_path, eval_val_every=1000, on_nan=on_nan, checkpoint_dir=str(tmp_path / "cv"))
    run = new_run(configure(given))
    run.training.in_flight = in_flight
    before = (tmp_path / "data" / "input.npy").read_bytes()
    following, seen = run.follow(Unseen()), []
    with pytest.raises(
        UserError, match=r"changed .*input\.npy while it was being read; .* -resume .*lm_lstm_last\.pt$"
    ):
        for record in following:
            seen.append(record.iteration)
            (tmp_path / "data" / "input.npy").write_bytes(before[::-1])
    saved = Checkpoint.load(run.folder.last).training
    assert saved["iteration"] == len(saved["losses"]) == len(metrics(run.folder.metrics)) == seen[-1]
    resumed = new_run(configure({}, resume=str(run.folder.last)))
    followed(resumed)
    (tmp_path / "data" / "input.npy").write_bytes(before)
    whole = new_run(configure(given | {"checkpoint_dir": str(tmp_path / "whole")}))
    followed(whole)
    same(whole.training.weights(), resumed.training.weights())


def test_a_save_by_the_clock_waits_until_the_losses_are_read(tmp_path: Path) -> None:
    run = new_run(configure(flags(tmp_path, save_minutes=1e-9, checkpoint_dir=str(tmp_path / "cv"))))
    run.training.in_flight = 3
    due = [record.iteration for record in run.records() if run.save_is_due(record)]
    assert due[:3] == [3, 6, 7], "a validation, such as at iteration 7, reads the losses"


def test_a_checkpoint_that_keep_cannot_delete_is_reported_and_training_continues(tmp_path: Path) -> None:
    said: list[str] = []
    given = flags(tmp_path, keep=1, eval_val_every=3, max_epochs=1, checkpoint_dir=str(tmp_path / "cv"))
    run = new_run(configure(given))
    run.report = said.append
    blocked: list[Path] = []
    for record in run.follow(Unseen()):
        if record.iteration == 3:
            (path,) = (tmp_path / "cv").glob("*epoch*.pt")
            path.unlink()
            (path / "inside").mkdir(parents=True)
            blocked.append(path)
    assert run.training.iteration == run.training.iterations
    assert [line for line in said if str(blocked[0]) in line and "delete it yourself" in line]


def test_random_states_of_python_and_numpy_are_restored_unless_damaged() -> None:
    cpu = torch.device("cpu")
    state = random_state(cpu)
    drawn = [(random.random(), random.gauss(0, 1), np.random.randn(), torch.rand(()).item()) for _ in range(3)]
    restore_random_state(state, cpu)
    again = [(random.random(), random.gauss(0, 1), np.random.randn(), torch.rand(()).item()) for _ in range(3)]
    assert drawn == again
    keys, position, *gauss = state["numpy"]
    version, words, _ = state["python"]
    for broken in (
        {"numpy": [keys, 10**6, *gauss]},
        {"numpy": [-keys - 1, position, *gauss]},
        {"numpy": [keys[:3], 2, *gauss]},
        {"python": [version, words, "text"]},
        {"python": [version, words[:5], None]},
        {"python": [version, words.double(), None]},
    ):
        with pytest.raises((IndexError, ValueError, TypeError)):
            restore_random_state(state | broken, cpu)
    restore_random_state(state, cpu)
