"""Tokenizers: every text comes back as it went in, and what cannot go in is named."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.gpt2 import needs_gpt2_vocabulary

from engine.errors import UserError
from engine.generation import TextStream
from engine.text.characters import ByteTokenizer, CharTokenizer
from engine.text.tokenizer import encode_prompt, tokenizer_from_dict

TEXTS = st.text(st.characters(exclude_categories=("Cs",)))


def test_the_worked_example() -> None:
    tokenizer = CharTokenizer.of_text("hello")
    assert tokenizer.characters == "ehlo" and tokenizer.encode("hole").tolist() == [1, 3, 2, 0]


@given(TEXTS.filter(bool))
def test_characters_round_trip(text: str) -> None:
    tokenizer = tokenizer_from_dict(CharTokenizer.of_text(text).to_dict())
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and ids.max() < tokenizer.vocab_size == len(set(text))


@given(TEXTS)
def test_bytes_round_trip(text: str) -> None:
    tokenizer = tokenizer_from_dict(ByteTokenizer().to_dict())
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(text).tolist() == list(text.encode())


@given(st.text(), TEXTS.filter(bool))
def test_a_character_outside_the_table_is_named(text: str, known: str) -> None:
    tokenizer = CharTokenizer.of_text(known)
    unknown = [character for character in text if character not in known]
    if any(0xD800 <= ord(character) < 0xE000 for character in text):
        with pytest.raises(UserError, match="surrogate"):
            tokenizer.encode(text)
    elif unknown:
        with pytest.raises(UserError, match=f"U\\+{ord(unknown[0]):04X}"):
            tokenizer.encode(text)
    else:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    "description", [None, 3, {}, {"kind": "char"}, {"kind": "char", "characters": "ba"}, {"kind": "x"}]
)
def test_a_description_that_is_none_is_refused(description: object) -> None:
    with pytest.raises(UserError):
        tokenizer_from_dict(description)


def test_a_missing_prompt_is_a_line_break_or_the_first_entry() -> None:
    assert encode_prompt(CharTokenizer("\na"), None).tolist() == [0]
    assert encode_prompt(CharTokenizer("ab"), None).tolist() == [0]
    with pytest.raises(UserError, match="empty"):
        encode_prompt(CharTokenizer("ab"), "")


@given(TEXTS)
def test_a_stream_of_bytes_shows_whole_characters_only(text: str) -> None:
    stream = TextStream(ByteTokenizer())
    pieces = [stream.push(token) for token in text.encode()] + [stream.finish()]
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@given(TEXTS, st.text("ab", min_size=1, max_size=3), TEXTS)
def test_a_stream_ends_before_the_stop_text(before: str, stop: str, after: str) -> None:
    text = before + stop + after
    stream = TextStream(ByteTokenizer(), stop)
    shown = "".join(stream.push(token) for token in text.encode()) + stream.finish()
    assert shown == text[: text.index(stop)] and stream.stopped


@needs_gpt2_vocabulary
def test_gpt2_encodes_as_tiktoken_does() -> None:
    import tiktoken

    tokenizer = tokenizer_from_dict({"kind": "gpt2"})
    text = "Hello, world! Élan vital.\n\n  Two  spaces<|endoftext|>and on"
    ids = tokenizer.encode(text)
    assert ids.tolist() == tiktoken.get_encoding("gpt2").encode(text, allowed_special="all")
    assert tokenizer.decode(ids) == text and tokenizer.end_of_text in ids
    assert ids.dtype == np.int64 and tokenizer.vocab_size == 50257
