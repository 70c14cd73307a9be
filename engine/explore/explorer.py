"""Answers, in JSON, to the page's questions about a model: what it sees and predicts in a text."""

import base64
import threading
from typing import Annotated, Any

import numpy as np
import torch

from engine.errors import UserError
from engine.explore.inspection import Inspection, inspect, layer_guesses, neighbours
from engine.json_files import check_fields
from engine.shape import count_parameters
from engine.text.tokenizer import Tokenizer
from engine.web.server import Refused
from model import GPT

MAX_TOKENS = 256  # that are shown at once; a longer text is read from its end
GUESSES, NEIGHBOURS = 5, 12


class Explorer:
    """Answers questions about a model, one at a time. UserError for a model that cannot be shown."""

    def __init__(self, name: str, model: GPT, tokenizer: Tokenizer) -> None:
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self.n_tokens = min(tokenizer.vocab_size, model.config.vocab_size)
        self.limit = min(model.config.block_size, MAX_TOKENS)
        self.answers = {
            "/inspect": self._answer_inspect,
            "/layers": self._answer_layers,
            "/neighbours": self._answer_neighbours,
        }
        self._lock = threading.Lock()
        self._seen = self._inspect([0])

    def describe(self) -> dict[str, Any]:
        """What the page gets when it opens; `layers` and `heads` have attention to show."""
        layers, heads = self._seen.attention.shape[:2]
        return {
            "name": self.name,
            "blocks": len(self.model.blocks),
            "layers": layers,
            "heads": heads,
            "width": self.model.config.n_embd,
            "limit": self.limit,
            "tokens": [self.tokenizer.decode([index]) for index in range(self.n_tokens)],
            "parameters": count_parameters(self.model.config),
            "tied": self.model.config.tied_head,
        }

    def answer(self, path: str, question: Any) -> dict[str, Any]:
        """The answer to a question that was sent to a path. Raises Refused."""
        if path not in self.answers:
            raise Refused(404, f"there is no {path[:50]}")
        if not isinstance(question, dict):
            raise Refused(400, "a question is a JSON object")
        try:
            with self._lock:
                return self.answers[path](question)
        except UserError as error:
            raise Refused(400, str(error)) from error

    def _answer_inspect(self, question: dict[str, Any]) -> dict[str, Any]:
        """{text} or {ids}, perhaps {attention: false}: tokens, surprise, logits and attention."""
        text = question.get("text")
        if isinstance(text, str):
            ids = self._encode(text)
            kept = ids[-self.limit :]
        else:
            ids = self._ids_of(question)
            half = max(1, self.limit // 2)  # as in sampling: a full context drops its older half
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

    def _answer_layers(self, question: dict[str, Any]) -> dict[str, Any]:
        """{ids, position}: what each layer would predict there."""
        ids = self._ids_of(question)
        if len(ids) > self.limit:
            raise Refused(400, f"the text has at most {self.limit} tokens")
        position = checked(question, "position", Annotated[int, range(len(ids))])
        return {"layers": layer_guesses(self.model, self._look(ids), position, GUESSES, self.n_tokens)}

    def _answer_neighbours(self, question: dict[str, Any]) -> dict[str, Any]:
        """{id}: the nearest tokens in embedding space."""
        token = checked(question, "id", Annotated[int, range(self.n_tokens)])
        return {"neighbours": neighbours(self.model, token, NEIGHBOURS, self.n_tokens)}

    def _encode(self, text: str) -> list[int]:
        """A prompt's ids. Raises Refused and UserError."""
        if not text:
            raise Refused(400, "the prompt is empty; type something to look at")
        if any("\ud800" <= sign <= "\udfff" for sign in text):
            raise Refused(400, "the prompt holds half a character, which no UTF-8 text can; delete it")
        return self.tokenizer.encode(text).tolist()

    def _ids_of(self, question: dict[str, Any]) -> list[int]:
        """The token ids in a question, checked. Raises Refused and UserError."""
        ids = checked(question, "ids", list[Annotated[int, range(self.n_tokens)]])
        if not 0 < len(ids) <= 4 * MAX_TOKENS:
            raise Refused(400, f"ids must be a list of 1 to {4 * MAX_TOKENS} token numbers")
        return ids

    def _look(self, ids: list[int]) -> Inspection:
        """Inspect ids; the last result is kept: several questions are about one text."""
        if self._seen.ids.tolist() != ids:
            self._seen = self._inspect(ids)
        return self._seen

    def _inspect(self, ids: list[int]) -> Inspection:
        """Inspect ids. Raises UserError if a result is not finite."""
        device = self.model.token_embedding.weight.device
        seen = inspect(self.model, torch.tensor(ids, device=device), self.n_tokens)
        if not seen.last_logits.isfinite().all():
            raise UserError(f"{self.name} predicts numbers that are not finite; its weights are damaged")
        return seen


def checked(question: dict[str, Any], name: str, kind: Any) -> Any:
    """A field of a question, which must be of a type. Raises UserError."""
    return check_fields(question, {name: kind}, "the question")[name]


def packed(array: np.ndarray) -> str:
    """An array's bytes as base64."""
    return base64.b64encode(array.tobytes()).decode("ascii")


def triangle(attention: torch.Tensor) -> np.ndarray:
    """Weights (L, H, T, T) on and below the diagonal, row by row, in units of 1/65535."""
    rows, columns = np.tril_indices(attention.shape[-1])
    return (attention.cpu().numpy()[:, :, rows, columns] * 65535).round().astype("<u2")
