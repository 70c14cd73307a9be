"""Tokenizers: every text comes back as it went in, and what cannot go in is named."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.commands import HANG, ROOT, command
from support.gpt2 import needs_gpt2_vocabulary
from support.random_models import save_run

from engine.errors import UserError
from engine.generation import TextStream
from engine.text.byte_pairs import OwnBytePairTokenizer
from engine.text.characters import ByteTokenizer, CharTokenizer, NumberTokenizer
from engine.text.tokenizer import Tokenizer, encode_prompt, tokenizer_from_dict
from engine.text.tokenizer_files import byte_pairs_of
from model import GPTConfig

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
    ("description", "said"),
    [
        (None, "unknown tokenizer"),
        (3, "unknown tokenizer"),
        ({}, "unknown tokenizer"),
        ({"kind": "char"}, "unknown tokenizer"),
        ({"kind": "x"}, "unknown tokenizer"),
        ({"kind": ["gpt2"]}, "unknown tokenizer"),
        ({"kind": "char", "characters": "ba"}, "vocabulary is damaged"),
        ({"kind": "char", "characters": "a\ud800"}, "vocabulary is damaged"),
        ({"kind": "numbers", "vocab_size": 0}, "vocabulary is damaged"),
    ],
)
def test_a_description_that_is_none_is_refused(description: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        tokenizer_from_dict(description)


def test_every_kind_comes_back_from_its_description() -> None:
    for tokenizer in every_kind():
        again = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
        assert type(again) is type(tokenizer) and again.to_dict() == tokenizer.to_dict()
        assert again.vocab_size == tokenizer.vocab_size and again.end_of_text == tokenizer.end_of_text


def test_a_missing_prompt_is_a_line_break_or_the_first_entry() -> None:
    assert encode_prompt(CharTokenizer("\na"), None).tolist() == [0]
    assert encode_prompt(CharTokenizer("ab"), None).tolist() == [0]
    with pytest.raises(UserError, match="empty"):
        encode_prompt(CharTokenizer("ab"), "")


def every_kind() -> list[Tokenizer]:
    """A tokenizer of each kind that needs no download."""
    learned = OwnBytePairTokenizer([bytes([byte]) for byte in range(256)] + [b"ab"])
    return [CharTokenizer("\nab"), ByteTokenizer(), NumberTokenizer(3), learned, byte_pairs_of(learned)]


def test_every_kind_says_which_token_ends_a_document() -> None:
    assert [tokenizer.end_of_text for tokenizer in every_kind()] == [None, None, None, 257, 257]
    for tokenizer in every_kind()[3:]:
        assert tokenizer.encode_document("ab").tolist() == [256, 257]


@pytest.mark.parametrize("text", ["a\ud83d", "\udc80", "a\udce9b"])
def test_half_a_surrogate_pair_is_one_line(text: str) -> None:
    for tokenizer in every_kind():
        for encode in (tokenizer.encode, tokenizer.encode_document, partial(encode_prompt, tokenizer)):
            with pytest.raises(UserError) as raised:
                encode(text)
            assert "\n" not in str(raised.value)


def test_a_prompt_that_is_not_utf8_names_the_byte_and_the_way_out() -> None:
    text = b"caf\xe9 ol\xe9".decode("utf-8", "surrogateescape")  # as Python takes a command line
    for tokenizer in every_kind():
        with pytest.raises(UserError, match=r"not UTF-8 \(byte 0xE9 at position 3\).*FILE:prompt\.txt"):
            encode_prompt(tokenizer, text)


def test_a_byte_order_mark_before_a_prompt_is_left_out_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    tokenizer = CharTokenizer("ab")
    assert encode_prompt(tokenizer, "\ufeffab", said.append).tolist() == [0, 1]
    assert len(said) == 1 and "byte-order mark" in said[0]
    assert encode_prompt(tokenizer, "ab", said.append).tolist() == [0, 1] and len(said) == 1
    with pytest.raises(UserError, match="empty"):
        encode_prompt(tokenizer, "\ufeff", said.append)
    with pytest.raises(UserError, match="U\\+FEFF, position 1"):  # within a text it is a character
        encode_prompt(tokenizer, "a\ufeff", said.append)
    encode_prompt(tokenizer, "\ufeffab")
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("note: ")


@pytest.mark.skipif(os.name == "nt", reason="arguments of a command are no bytes on Windows")
def test_sample_takes_prompts_as_a_terminal_gives_them(tmp_path: Path) -> None:
    save_run(GPTConfig(257, 16, 1, 1, 8), ByteTokenizer(), tmp_path / "run", 1)
    (tmp_path / "prompt.txt").write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9")
    few = ("--out_dir=run", "--device=cpu", "--max_new_tokens=2", "--num_samples=1")
    arguments = [sys.executable, str(ROOT / "sample.py"), *few]
    refused = subprocess.run(
        [*arguments, b"--start=caf\xe9"], cwd=tmp_path, capture_output=True, timeout=HANG
    )
    assert refused.returncode == 2 and refused.stderr.startswith(b"error: the prompt is not UTF-8")
    assert refused.stderr.count(b"\n") == 1
    written = command(tmp_path, "sample.py", *few, "--start=FILE:prompt.txt")
    assert written.returncode == 0 and "note: the prompt begins with a byte-order mark" in written.stderr


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
