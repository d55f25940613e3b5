"""The conversation without a terminal: the seed, prime text and settings of each line, and Ctrl-C."""

from __future__ import annotations

from io import BytesIO

import pytest

from charrnn.errors import UserError
from charrnn.sampling.conversation import CHANGEABLE, Conversation
from charrnn.sampling.output import Stream
from charrnn.sampling.sampler import Sampler, sample
from charrnn.settings.sampling import SamplingOptions
from tests.helpers.small_models import VOCABULARY, make


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def conversation(notes: list[str]) -> Conversation:
    return Conversation(Sampler(make("gru"), VOCABULARY), SamplingOptions(length=30, seed=5), notes.append)


def answers(conversation: Conversation, *lines: str) -> str:
    file = BytesIO()
    for line in lines:
        conversation.answer(line, Stream(file))
    return file.getvalue().decode()


def continued(prime: str, seed: int) -> str:
    return prime + "".join(sample(make("gru"), VOCABULARY, prime, 30, seed=seed)) + "\n"


def test_each_text_has_the_next_seed_and_an_empty_line_repeats_the_last_prime_text(conversation: Conversation) -> None:
    assert answers(conversation, "abc", "", "bad", "") == "".join(
        [continued("abc", 5), continued("abc", 6), continued("bad", 7), continued("bad", 8)]
    )


def test_a_refused_line_changes_nothing(conversation: Conversation) -> None:
    before = conversation.options
    for line in ("a!", "/temperature 0", "/top_p 7", "/length x", "/beam 3", "/"):
        with pytest.raises(UserError):
            answers(conversation, line)
    assert conversation.options == before
    assert answers(conversation, "") == continued("", 5)


def test_every_setting_can_be_shown_and_changed(conversation: Conversation, notes: list[str]) -> None:
    for name, value in zip(CHANGEABLE, ("0.5", "7", "3", "0.25", "0", "9"), strict=True):
        answers(conversation, f"/{name}", f"/{name} {value}", f"/{name}")
        assert notes[-2:] == [f"{name} {value}"] * 2
        assert notes[-3] != notes[-2]
    assert len(answers(conversation, "abc")) == len("abc") + 7 + 1
    answers(conversation, "/help")
    assert all(name in notes[-1] for name in CHANGEABLE)


class Interrupted(BytesIO):
    """A file that Ctrl-C interrupts at the tenth write."""

    writes = 0

    def write(self, data: object) -> int:
        self.writes += 1
        if self.writes == 10:
            raise KeyboardInterrupt
        return super().write(data)


def test_ctrl_c_ends_the_text_but_not_the_conversation(conversation: Conversation) -> None:
    file = Interrupted()
    conversation.answer("abc", Stream(file))
    assert file.getvalue().decode() == continued("abc", 5)[: len("abc") + 8] + "\n"
    assert answers(conversation, "abc") == continued("abc", 6)
