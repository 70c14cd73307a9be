"""The page that explore.py shows, assembled into one file, and a small loopback server that answers it.

The server is meant for its own page alone. Host and Origin must be its own (which keeps other sites'
scripts and rebound names out), a request is at most MAX_BODY long, and whatever is wrong with one is
answered with a sentence.
"""

import base64
import threading
from typing import Any

import numpy as np
import torch

from engine.errors import UserError
from engine.explore.inspection import Inspection, inspect, layer_guesses, neighbours
from engine.shape import count_parameters
from engine.text.tokenizer import Tokenizer
from engine.web.server import Refused
from model import GPT

MAX_TOKENS = 256  # that are shown at once; a longer text is read from its end
GUESSES, NEIGHBOURS = 5, 12


class Explorer:
    """A model and its tokenizer, answering the page's questions in JSON. One question at a time."""

    def __init__(self, name: str, model: GPT, tokenizer: Tokenizer) -> None:
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self.n_tokens = min(tokenizer.vocab_size, model.config.vocab_size)
        self.limit = min(model.config.block_size, MAX_TOKENS)
        self._lock = threading.Lock()
        self._seen: Inspection | None = None

    def answer(self, path: str, question: Any) -> dict[str, Any]:
        """The answer to a question that was sent to a path. Raises Refused."""
        answers = {"/inspect": self._inspect, "/layers": self._layers, "/neighbours": self._neighbours}
        if path not in answers:
            raise Refused(404, f"there is no {path[:50]}")
        if not isinstance(question, dict):
            raise Refused(400, "a question is a JSON object")
        with self._lock:
            return answers[path](question)

    def describe(self) -> dict[str, Any]:
        """What the page knows from the start: the model's name and shape, its tokens, its parameters."""
        config = self.model.config
        return {
            "name": self.name,
            "layers": config.n_layer,
            "heads": config.n_head,
            "width": config.n_embd,
            "limit": self.limit,
            "tokens": [self.tokenizer.decode([index]) for index in range(self.n_tokens)],
            "parameters": count_parameters(config),
            "tied": config.tied_head,
        }

    def _inspect(self, question: dict[str, Any]) -> dict[str, Any]:
        """{text} or {ids}, perhaps {attention: false}: tokens, surprise, logits and attention."""
        text, ids = question.get("text"), question.get("ids")
        if isinstance(text, str):
            if not text:
                raise Refused(400, "the prompt is empty; type something to look at")
            try:
                ids = self.tokenizer.encode(text).tolist()
            except UserError as error:
                raise Refused(400, str(error)) from error
            kept = ids[-self.limit :]
        else:
            self._check_ids(ids)
            half = max(1, self.limit // 2)  # as in model.py: a full context drops its older half
            kept = ids if len(ids) <= self.limit else ids[-half:]
        seen = self._look(kept)
        answer = {
            "ids": kept,
            "dropped": ids[: len(ids) - len(kept)],
            "surprise": seen.surprise,
            "logits": packed(seen.last_logits.float().cpu().numpy().astype("<f4")),
        }
        if question.get("attention", True):
            answer["attention"] = packed(triangle(seen.attention))
        return answer

    def _layers(self, question: dict[str, Any]) -> dict[str, Any]:
        """{ids, position}: what each layer would predict there."""
        ids, position = question.get("ids"), question.get("position")
        self._check_ids(ids)
        if len(ids) > self.limit or not _is_index(position, len(ids)):
            raise Refused(
                400, f"position must be one of the text's, and the text at most {self.limit} tokens"
            )
        return {"layers": layer_guesses(self.model, self._look(ids), position, GUESSES, self.n_tokens)}

    def _neighbours(self, question: dict[str, Any]) -> dict[str, Any]:
        """{id}: the nearest tokens in embedding space."""
        token = question.get("id")
        if not _is_index(token, self.n_tokens):
            raise Refused(400, f"id must be a token's number, 0 to {self.n_tokens - 1}")
        return {"neighbours": neighbours(self.model, token, NEIGHBOURS, self.n_tokens)}

    def _check_ids(self, ids: Any) -> None:
        """Raise Refused for anything but a list of token numbers of bearable length."""
        if not isinstance(ids, list) or not 0 < len(ids) <= 4 * MAX_TOKENS:
            raise Refused(400, f"ids must be a list of 1 to {4 * MAX_TOKENS} token numbers")
        if not all(_is_index(index, self.n_tokens) for index in ids):
            raise Refused(400, f"every id must be a whole number from 0 to {self.n_tokens - 1}")

    def _look(self, ids: list[int]) -> Inspection:
        """The inspection of ids; the last one is kept, since the page asks several questions about it."""
        if self._seen is None or self._seen.ids.tolist() != ids:
            device = self.model.token_embedding.weight.device
            self._seen = inspect(self.model, torch.tensor(ids, device=device), self.n_tokens)
        return self._seen

    def whole_answers(self, prompt: str) -> dict[str, Any]:
        """All that a page without a server can show about a prompt. Raises UserError."""
        try:
            seen = self.answer("/inspect", {"text": prompt})
            layers = [
                self.answer("/layers", {"ids": seen["ids"], "position": position})
                for position in range(len(seen["ids"]))
            ]
            near = {index: self.answer("/neighbours", {"id": index}) for index in set(seen["ids"])}
        except Refused as error:
            raise UserError(f"--prompt: {error}") from error
        return {"prompt": prompt, "inspect": seen, "layers": layers, "neighbours": near}


def _is_index(value: Any, size: int) -> bool:
    return type(value) is int and 0 <= value < size


def packed(array: np.ndarray) -> str:
    """An array's bytes as base64."""
    return base64.b64encode(array.tobytes()).decode("ascii")


def triangle(attention: torch.Tensor) -> np.ndarray:
    """Weights (L, H, T, T) on and below the diagonal, row by row, in steps of 1/65535, as uint16."""
    T = attention.shape[-1]
    rows, columns = np.tril_indices(T)
    return (attention.cpu().numpy()[:, :, rows, columns] * 65535).round().astype("<u2")
