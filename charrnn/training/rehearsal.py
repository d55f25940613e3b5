"""Check before the first iteration that a model keeps its contract and survives being saved and loaded."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.compute import autocast, same_random_numbers
from charrnn.data.minibatches import Minibatches
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError
from charrnn.model import State, device_of, evaluating, problem_of_output
from charrnn.settings.resolve import Configuration
from charrnn.settings.training import TrainingOptions
from charrnn.training.loop import Training, check_contract

REMEDY = "keep all numbers that change or are random in parameters and persistent buffers of fixed shapes"

# largest error allowed in the logits, as a share of the largest logit
TOLERANCE = 1e-3


def rehearse(
    model: nn.Module,
    configuration: Configuration,
    vocabulary: Vocabulary,
    splits: Mapping[str, Minibatches],
    options: TrainingOptions,
) -> None:
    """Check that the model, after a round trip through a checkpoint in memory, still computes the same logits.

    Changes neither the model nor any random generator. Raises UserError if ``forward`` breaks the contract, if the
    checkpoint cannot be read back, or if the model in it computes different logits.
    """
    device, train = device_of(model), splits["train"]
    x = train.batch(0)[0].to(device)

    def forward(model: nn.Module, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        with evaluating(model), autocast(options.precision, device), same_random_numbers(device):
            returned = model(x, state)
            check_contract(options.model, problem_of_output(returned, x, len(vocabulary)))
        logits, state = returned
        return logits.float(), state

    _, state = forward(model, x, None)
    _, state = forward(model, x[:1], state)
    with same_random_numbers(device):
        twin, restored = read_back(model, configuration, vocabulary, splits, options, state)
    expected, _ = forward(model, x[:1], state)
    if not expected.isfinite().all():
        raise UserError(
            f"the model {options.model}: its logits are not finite before training: check its initial weights"
        )
    found, _ = forward(twin, x[:1], restored)
    tolerance = TOLERANCE * expected.abs().max().item()
    if not torch.allclose(found, expected, TOLERANCE, tolerance):
        raise UserError(
            f"the model {options.model}: read back from a checkpoint, it computes different logits: {REMEDY}, "
            "and nothing from one call to the next"
        )


def read_back(
    model: nn.Module,
    configuration: Configuration,
    vocabulary: Vocabulary,
    splits: Mapping[str, Minibatches],
    options: TrainingOptions,
    state: State,
) -> tuple[nn.Module, State | None]:
    """Return a second model and its hidden state, read from a checkpoint of this one. Raises UserError."""
    training = Training(model, splits["train"], splits.get("val"), options)
    training.state = state
    file, own = configuration.model, configuration.model_options
    checkpoint = Checkpoint(options, own, vocabulary, training.weights(), training=training.state_dict())
    try:
        saved = checkpoint.read_back()
        twin = saved.build(file).to(training.device)
        resumed = Training(twin, splits["train"], splits.get("val"), options)
        resumed.load_state_dict(saved.training)
    except (UserError, ValueError) as error:
        raise UserError(f"the model {options.model}: its checkpoint cannot be read back ({error}): {REMEDY}") from None
    return twin, resumed.state
