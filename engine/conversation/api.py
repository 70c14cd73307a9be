"""The part of OpenAI's chat API that a model here can answer, for the server of engine/web.

    GET  /v1/models              the one model that is served
    POST /v1/chat/completions    an answer, whole or as server-sent events
    POST /tokenize               {"messages": …}: the ids of the prompt that they make

Fields that this server adds: `left_out_messages`, the number of oldest messages for which there was no room,
and `tool_turns`, the assistant's calls of its tool with their results, which are not part of the content.
"""

import itertools
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from engine.conversation.answering import AnswerOptions, Assistant, TooLong, Turn, may_call
from engine.conversation.messages import Message, read_question
from engine.errors import UserError
from engine.generation import Sampling
from engine.json_files import COUNT, check_fields
from engine.value_types import UNBOUNDED
from engine.web.server import Answers, Refused
from model import derive_seed

AT_LEAST_ONE = Annotated[int, range(1, UNBOUNDED)]
FIELDS = {
    "model": str,
    "temperature": float,
    "top_p": float,
    "max_tokens": AT_LEAST_ONE,
    "max_completion_tokens": AT_LEAST_ONE,
    "stop": str | list[str],
    "seed": COUNT,
    "stream": bool,
    "stream_options": dict[str, bool],
}
MOST_STOPS = 4
# Fields for abilities that no model here has, and the values that ask for nothing.
NEUTRAL = {
    "n": 1,
    "logprobs": False,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logit_bias": {},
    "tools": [],
    "functions": [],
    "response_format": {"type": "text"},
}


@dataclass(frozen=True)
class Request:
    """A checked request."""

    messages: list[Message]
    options: AnswerOptions
    stream: bool
    with_usage: bool


@contextmanager
def refusals() -> Iterator[None]:
    """Turn a UserError into a refusal."""
    try:
        yield
    except TooLong as error:
        raise Refused(400, str(error), "context_length_exceeded") from error
    except UserError as error:
        raise Refused(400, str(error)) from error


class Api:
    """Answers requests for the assistant `name`, one at a time; others wait.

    `defaults` apply to options that a request leaves out. Each request gets a new seed, derived from theirs.
    """

    def __init__(self, name: str, assistant: Assistant, defaults: AnswerOptions) -> None:
        self.name, self.assistant, self.defaults = name, assistant, defaults
        self._started = int(time.time())
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def answer(self, path: str, question: Any) -> dict[str, Any] | Answers:
        """The answer to a request. Raises Refused."""
        if path == "/v1/models":
            model = {"id": self.name, "object": "model", "created": self._started, "owned_by": "plaingpt"}
            return {"object": "list", "data": [model]}
        answers = {"/v1/chat/completions": self._complete, "/tokenize": self._tokenize}
        if path not in answers:
            raise Refused(404, f"there is no {path[:50]}")
        if not isinstance(question, dict):
            raise Refused(400, "a request is a JSON object, sent by POST")
        with refusals():
            return answers[path](question)

    def _tokenize(self, question: dict[str, Any]) -> dict[str, Any]:
        messages = read_question(question.get("messages"), "messages")
        ids, _ = self.assistant.prompt(messages, self.assistant.limit(self.defaults.max_new_tokens))
        size = self.assistant.model.config.block_size
        return {"tokens": ids.tolist(), "count": len(ids), "max_model_len": size}

    def _complete(self, question: dict[str, Any]) -> dict[str, Any] | Answers:
        request = self._read(question)
        turns = self.assistant.turns(request.messages, request.options)
        chunks = self._chunks(request, next(turns), turns)  # whether it fits is known before anything is sent
        return chunks if request.stream else whole(chunks)

    def _read(self, question: dict[str, Any]) -> Request:
        """A request, checked. Raises UserError or Refused."""
        given = {name: value for name, value in question.items() if value is not None}
        check_fields(given, FIELDS, "the request", optional=FIELDS.keys() - {"model"})
        if given["model"] != self.name:
            sentence = f"there is no model {given['model'][:50]!r}; this server has {self.name!r}"
            raise Refused(404, sentence, "model_not_found")
        for name, neutral in NEUTRAL.items():
            if given.get(name, neutral) != neutral:
                raise UserError(f"{name} must be {neutral!r} or left out; this server does nothing else")
        stop = given.get("stop", [])
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        if len(stops) > MOST_STOPS or "" in stops:
            raise UserError(f"stop must be a text, or a list of up to {MOST_STOPS}, none of them empty")
        most = given.get("max_completion_tokens", given.get("max_tokens", self.defaults.max_new_tokens))
        seed = given.get("seed", derive_seed(self.defaults.seed, "answer", next(self._numbers)))
        stream = given.get("stream", False)
        return Request(
            read_question(given.get("messages"), "messages"),
            AnswerOptions(self._sampling(given), most, seed, stops),
            stream,
            with_usage=not stream or given.get("stream_options", {}).get("include_usage", False),
        )

    def _sampling(self, given: dict[str, Any]) -> Sampling:
        """The sampling options of a request. Raises UserError."""
        default = self.defaults.sampling
        top_p = given.get("top_p", default.top_p)
        try:
            return Sampling(float(given.get("temperature", default.temperature)), default.top_k, top_p)
        except OverflowError as error:
            raise UserError("temperature is beyond the numbers that a float holds") from error
        except ValueError as error:
            raise UserError(str(error)) from error

    def _chunks(self, request: Request, first: Turn, more: Iterator[Turn]) -> Answers:
        """An answer in OpenAI's chunks, as it is written; calls of the tool are kept out of its content."""
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.name}
        head["object"] = "chat.completion.chunk"

        def chunk(delta: dict[str, str], finish: str | None = None, **fields: Any) -> dict[str, Any]:
            choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
            return head | {"choices": [choice]} | fields

        turn, held, written = first, "", 0
        with self._lock, refusals():
            yield chunk({"role": "assistant", "content": ""}, left_out_messages=first.left_out)
            for turn in itertools.chain([first], more):
                if turn is not first:
                    called = [message._asdict() for message in request.messages[-2:]]
                    yield chunk({}, tool_turns=called, left_out_messages=turn.left_out)
                held, is_text = "", False
                for piece in turn:
                    held += piece
                    is_text = is_text or not may_call(held)
                    if is_text and held:
                        yield chunk({"content": held})
                        held = ""
                written += turn.tokens
            if held:
                yield chunk({"content": held})
            yield chunk({}, "length" if turn.is_cut else "stop")
        if request.with_usage:
            asked = len(first.prompt)
            usage = {"prompt_tokens": asked, "completion_tokens": written, "total_tokens": asked + written}
            yield head | {"choices": [], "usage": usage}


def whole(chunks: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The whole answer, put together from its chunks."""
    content, finish, left_out, turns, last = "", None, 0, [], {}
    for last in chunks:
        for choice in last["choices"]:
            content += choice["delta"].get("content", "")
            finish = choice["finish_reason"]
        left_out += last.get("left_out_messages", 0)
        turns += last.get("tool_turns", [])
    message = {"role": "assistant", "content": content, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
    answer = {"object": "chat.completion", "choices": [choice], "left_out_messages": left_out}
    return last | answer | {"tool_turns": turns}
