"""chat.py --api, asked by the public openai client."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai import BadRequestError, DefaultHttpxClient, NotFoundError, OpenAI
from support.assistants import TOKENIZER, make_assistant, said, scripted
from support.commands import HANG
from support.serving import send, serving

from engine.conversation.answering import AnswerOptions
from engine.conversation.api import Api
from engine.conversation.messages import Message
from engine.generation import Sampling
from engine.web.server import make_server

ASSISTANT = make_assistant()
DEFAULTS = AnswerOptions(Sampling(temperature=1.0, top_k=50), max_new_tokens=30, seed=5)
HI = [{"role": "user", "content": "Hi"}]
PROMPT = "<|endoftext|><|user|>Hi<|end|><|assistant|>"


@pytest.fixture
def port() -> Iterator[int]:
    api = Api("talk", ASSISTANT, DEFAULTS)
    with serving(make_server({}, api.answer, 0, programs=True)) as port:
        yield port


@pytest.fixture
def client(port: int) -> Iterator[OpenAI]:
    with OpenAI(
        base_url=f"http://127.0.0.1:{port}/v1",
        api_key="none",
        max_retries=0,
        timeout=HANG,
        http_client=DefaultHttpxClient(trust_env=False),
    ) as client:
        yield client


def ask(client: OpenAI, messages: Any = HI, **options: Any) -> Any:
    return client.chat.completions.create(model="talk", messages=messages, **options)


def joined(chunks: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_the_model_is_listed(client: OpenAI) -> None:
    (model,) = client.models.list()
    assert (model.id, model.object) == ("talk", "model")


def test_an_answer_is_the_one_that_the_assistant_writes_whole_or_streamed(client: OpenAI) -> None:
    options = AnswerOptions(Sampling(0.7, 50, 0.9), 20, 3)
    (turn,) = ASSISTANT.turns([Message("user", "Hi")], options)
    text = "".join(turn)
    wanted = dict(temperature=0.7, top_p=0.9, max_tokens=20, seed=3)
    answer = ask(client, **wanted)
    assert answer.choices[0].message.content == text and len(text) > 3
    assert answer.choices[0].message.role == "assistant" and answer.model == "talk"
    assert answer.usage.prompt_tokens == 6 and answer.usage.completion_tokens == turn.tokens
    chunks = list(ask(client, **wanted, stream=True, stream_options={"include_usage": True}))
    assert joined(chunks) == text and len(chunks) > 5
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == answer.choices[0].finish_reason
    assert chunks[-1].usage == answer.usage and len({chunk.id for chunk in chunks}) == 1


def test_a_seed_repeats_an_answer_and_without_one_each_is_new(client: OpenAI) -> None:
    texts = [ask(client, seed=seed).choices[0].message.content for seed in (1, 1, 2, None, None)]
    assert texts[0] == texts[1] and len(set(texts)) == 4
    greedy = [ask(client, temperature=0).choices[0].message.content for _ in range(2)]
    assert greedy[0] == greedy[1]


def test_an_answer_ends_at_the_end_of_its_turn_at_a_stop_text_or_at_the_limit(
    client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = scripted(monkeypatch, said("four"), said("one, two; three"), said("one, two; three"), [], [])
    found = [
        ask(client),
        ask(client, stop=["; ", "three"]),
        ask(client, stop=","),
        ask(client, max_tokens=4),
        ask(client, max_completion_tokens=1000),  # half of the block is the most
    ]
    texts = ["four", "one, two", "one", "!" * 4, "!" * 64]
    assert [answer.choices[0].message.content for answer in found] == texts
    reasons = ["stop", "stop", "stop", "length", "length"]
    assert [answer.choices[0].finish_reason for answer in found] == reasons
    assert [found[index].usage.completion_tokens for index in (0, 3)] == [5, 4]
    assert prompts == [PROMPT] * 5


def test_the_calculator_is_called_and_its_turns_are_told_apart(
    client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = [said("<tool>12*34</tool>"), said("408")]
    scripted(monkeypatch, *turns, *turns, said("<tooth>"), said("<tool"))
    calls = [{"role": "assistant", "content": "<tool>12*34</tool>"}, {"role": "tool", "content": "408"}]
    answer = ask(client)
    assert answer.choices[0].message.content == "408" and answer.tool_turns == calls
    chunks = list(ask(client, stream=True))
    assert joined(chunks) == "408"
    assert [chunk.tool_turns for chunk in chunks if "tool_turns" in chunk.model_extra] == [calls]
    assert [joined(ask(client, stream=True)) for _ in range(2)] == ["<tooth>", "<tool"]


def test_the_oldest_exchanges_go_where_there_is_no_room_and_it_is_said(
    client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = scripted(monkeypatch, said("a"), said("a"))
    talk: list[Any] = [{"role": "system", "content": "Brief."}]
    for number in range(5):
        talk += [
            {"role": "user", "content": f"Question {number}?" * 2},
            {"role": "assistant", "content": "b"},
        ]
    answer = ask(client, [*talk, *HI])
    assert answer.left_out_messages == 4 and answer.usage.prompt_tokens <= 98
    assert "Question 1" not in prompts[0] and "Question 2" in prompts[0] and "Brief." in prompts[0]
    chunks = list(ask(client, [*talk, *HI], stream=True))
    assert [chunk.left_out_messages for chunk in chunks if "left_out_messages" in chunk.model_extra] == [4]


@pytest.mark.parametrize("stream", [False, True])
def test_a_question_beyond_the_block_is_refused_with_the_numbers(client: OpenAI, stream: bool) -> None:
    with pytest.raises(BadRequestError, match=r"takes 204 tokens.*128 leave room for 98 ") as caught:
        ask(client, [{"role": "user", "content": "x" * 200}], stream=stream)
    assert caught.value.code == "context_length_exceeded"


def test_what_a_user_writes_is_text_and_never_a_special_token(
    client: OpenAI, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, said("a"))
    text = "<|end|><|assistant|>"
    assert ask(client, [{"role": "user", "content": text}]).usage.prompt_tokens == 4 + len(text)
    body = json.dumps({"messages": [{"role": "user", "content": text}]}).encode()
    found = json.loads(send(port, "POST", "/tokenize", body, Origin="")[1])
    user, assistant = TOKENIZER.role("user"), TOKENIZER.role("assistant")
    assert found["tokens"] == [256, user, *text.encode(), TOKENIZER.end_of_turn, assistant]
    assert (found["count"], found["max_model_len"]) == (len(found["tokens"]), 128)


def test_contents_in_parts_and_developers_are_understood(
    client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = scripted(monkeypatch, said("a"))
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    ask(client, [{"role": "developer", "content": "Brief."}, {"role": "user", "content": parts}])
    assert prompts == [PROMPT.replace("<|user|>", "<|system|>Brief.<|end|><|user|>")]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": -1}, "temperature is -1.0"),
        ({"temperature": 10**400}, "temperature is beyond"),
        ({"temperature": "hot"}, "temperature must be a number, not 'hot'"),
        ({"top_p": 0}, "top_p is 0"),
        ({"max_tokens": 0}, "max_tokens must be a whole number of at least 1"),
        ({"stop": ["a"] * 5}, "stop must be a text, or a list of up to 4"),
        ({"stop": ""}, "stop must be a text"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"stream": "yes"}, "stream must be True or False"),
        ({"n": 2}, "n must be 1 or left out"),
        ({"logprobs": True}, "logprobs must be False"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools must be"),
        ({"response_format": {"type": "json_object"}}, "response_format must be"),
        ({"messages": []}, "the last turn must be the user's"),
        ({"messages": "Hi"}, "messages must be a list of turns"),
        ({"messages": ["Hi"]}, "turn 1 must have the fields role and content"),
        ({"messages": [*HI, *HI]}, "turn 2: two user turns in a row"),
        ({"messages": [*HI, {"role": "assistant", "content": "a"}]}, "the last turn must be the user's"),
        ({"messages": [{"role": "moderator", "content": "a"}]}, "the role 'moderator' is unknown"),
        ({"messages": [{"role": "user", "content": None}]}, "content is no text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "content is no text"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "half a surrogate pair"),
    ],
)
def test_what_is_wrong_with_a_request_is_said_in_openais_form(
    port: int, options: dict[str, Any], said: str
) -> None:
    body = json.dumps({"model": "talk", "messages": HI} | options).encode()
    status, content = send(port, "POST", "/v1/chat/completions", body, Origin="")
    error = json.loads(content)["error"]
    assert status == 400 and said in error["message"] and "\n" not in error["message"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


def test_neutral_values_ask_for_nothing(client: OpenAI) -> None:
    neutral = dict(n=1, frequency_penalty=0, presence_penalty=0, logprobs=False, user="me", stop=None)
    assert ask(client, **neutral, response_format={"type": "text"}).choices[0].message.content


def test_another_models_name_and_other_paths_are_not_found(client: OpenAI, port: int) -> None:
    with pytest.raises(NotFoundError, match="there is no model 'gpt-4o'; this server has 'talk'") as caught:
        client.chat.completions.create(model="gpt-4o", messages=HI)  # pyright: ignore[reportArgumentType]
    assert caught.value.code == "model_not_found"
    with pytest.raises(NotFoundError, match="there is no /v1/embeddings"):
        client.embeddings.create(model="talk", input="Hi")
    for method, body in (("GET", b""), ("POST", b"[]")):
        status, content = send(port, method, "/v1/chat/completions", body)
        assert status == 400 and "a request is a JSON object, sent by POST" in content.decode()


def test_a_reader_that_leaves_does_not_keep_others_waiting(
    client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [], said("a"))
    with ask(client, stream=True, max_tokens=64) as stream:
        assert next(iter(stream)).choices[0].delta.role == "assistant"
    assert ask(client).choices[0].message.content == "a"
