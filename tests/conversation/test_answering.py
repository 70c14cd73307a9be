"""Answers: many at once as each alone, until the end of the turn, with a tool's results between."""

from collections.abc import Iterator

import pytest
import torch
from support.models import random_model

from engine.conversation import answering
from engine.conversation.answering import TurnDecoder, answer_all, answer_turns, write_turn
from engine.conversation.messages import Message
from engine.conversation.template import encode_question
from engine.generation import Sampling
from engine.text.characters import ByteTokenizer
from engine.text.roles import ChatTokenizer
from model import GPT, GPTConfig
from tasks.calculator import answer_to

TOKENIZER = ChatTokenizer(ByteTokenizer())
GREEDY = Sampling(temperature=0)
QUESTIONS = [
    [Message("user", text)] for text in ("2 + 2?", "a much longer question than that", "x", "and one more")
]


def assistant(position: str = "rotary") -> GPT:
    shape = dict(n_layer=2, n_head=2, n_embd=16, block_size=128, position=position)
    return random_model(
        GPTConfig(TOKENIZER.vocab_size, separator=TOKENIZER.separator, **shape)  # pyright: ignore
    )


def prompt_of(talk: list[Message]) -> torch.Tensor:
    return encode_question(TOKENIZER, talk, 100)[0]


@pytest.mark.parametrize("position", ["rotary", "learned"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_of_a_batch_are_those_of_each_question_alone(position: str, temperature: float) -> None:
    model = assistant(position)
    prompts = [prompt_of(talk) for talk in QUESTIONS]
    sampling = Sampling(temperature=temperature)
    together = answer_turns(model, TOKENIZER, prompts, 20, sampling, seed=3)
    first = answer_turns(model, TOKENIZER, prompts[:1], 20, sampling, seed=3)
    assert together[0].text == first[0].text
    if temperature == 0:
        for prompt, found in zip(prompts, together, strict=True):
            decoder = TurnDecoder(TOKENIZER)
            pieces = list(write_turn(model, decoder, prompt, 20, sampling, seed=9))
            assert "".join(pieces) == decoder.text == found.text
            assert decoder.ended == found.ended
    assert len({decoder.text for decoder in together}) > 1


def scripted(monkeypatch: pytest.MonkeyPatch, *turns: list[list[int]]) -> list[torch.Tensor]:
    """Have the model write these tokens, a turn at a call, a row for each conversation; what it was given."""
    left, seen = list(turns), []

    def stream(model: GPT, ids: torch.Tensor, most: int, *_: object, **__: object) -> Iterator[torch.Tensor]:
        seen.append(ids)
        rows = left.pop(0)
        for number in range(most):
            yield torch.tensor([row[number] if number < len(row) else ord("!") for row in rows])

    monkeypatch.setattr(answering, "stream", stream)
    return seen


def tokens(text: str, *special: int) -> list[int]:
    return [*text.encode(), *special]


def test_an_answer_ends_at_the_end_of_its_turn_or_stops_at_any_special_token_or_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    end, user = TOKENIZER.end_of_turn, TOKENIZER.role("user")
    rows = [tokens("four", end), tokens("fo", user), tokens("f", TOKENIZER.separator), tokens("never")]
    scripted(monkeypatch, rows)
    found = answer_all(assistant(), TOKENIZER, QUESTIONS, 8, GREEDY, answer_to)
    assert [answer.text for answer in found] == ["four", "fo", "f", "never!!!"]
    assert [answer.ended for answer in found] == [True, False, False, False]


def test_a_call_gets_its_result_and_the_others_wait_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    end = TOKENIZER.end_of_turn
    seen = scripted(
        monkeypatch,
        [tokens("four", end), tokens("<tool>12*34</tool>", end)],
        [tokens("408", end)],
    )
    found = answer_all(assistant(), TOKENIZER, QUESTIONS[:2], 30, GREEDY, answer_to)
    assert found[0].turns == (Message("assistant", "four"),)
    roles = [(message.role, message.content) for message in found[1].turns]
    assert roles == [("assistant", "<tool>12*34</tool>"), ("tool", "408"), ("assistant", "408")]
    assert seen[1].shape[0] == 1
    text = TOKENIZER.decode(seen[1][0].tolist())
    assert text.endswith("<|assistant|><tool>12*34</tool><|end|><|tool|>408<|end|><|assistant|>")


def test_an_assistant_that_only_calls_its_tool_comes_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    call = [tokens("<tool>1</tool>", TOKENIZER.end_of_turn)]
    scripted(monkeypatch, *[call] * 20)
    (found,) = answer_all(assistant(), TOKENIZER, QUESTIONS[:1], 20, GREEDY, answer_to)
    assert len(found.turns) == 2 * (answering.MOST_CALLS + 1)
