"""A vocabulary of one's own: every byte sequence comes back, and the merges are an independent library's."""

import base64
import json
import random
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.commands import HANG, ROOT, command
from support.gpt2 import needs_gpt2_vocabulary

from engine.errors import UserError
from engine.text import byte_pairs
from engine.text.byte_pairs import (
    END_OF_TEXT,
    SPLIT_PATTERN,
    OwnBytePairTokenizer,
    byte_characters,
    learn_vocabulary,
    ranks_text,
)
from engine.text.tokenizer import tokenizer_from_dict
from engine.text.tokenizer_files import tokenizer_of_file
from engine.weights.pretrained import read_pretrained

TEXTS = [topics[name] for name in sorted(topics)][:60] + ["Élan vital, à la carte — 語 語 🙂🙂"] * 3
LEARNED = learn_vocabulary(TEXTS, 700)


def test_the_vocabulary_is_the_bytes_the_merges_and_the_end_of_text() -> None:
    assert LEARNED.vocab_size == 700 and LEARNED.end_of_text == 699
    assert LEARNED.sequences[:256] == [bytes([byte]) for byte in range(256)]
    assert len(set(LEARNED.sequences)) == 699 and all(len(one) > 1 for one in LEARNED.sequences[256:])
    assert LEARNED.encode(f"a{END_OF_TEXT}").tolist() == [97, 699]
    assert LEARNED.encode_document(f"a{END_OF_TEXT}").tolist() == [
        *LEARNED.encode_document("a")[:-1],
        *end_as_text(),
        699,
    ]


def end_as_text() -> list[int]:
    """What the end-of-text mark is when it is text."""
    return LEARNED.encoding.encode(END_OF_TEXT, disallowed_special=())


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_every_byte_sequence_comes_back(content: bytes) -> None:
    ids = LEARNED.encoding._encode_bytes(content)
    assert LEARNED.encoding.decode_bytes(ids) == content and max(ids, default=0) < 699


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=200))
@settings(deadline=None)
def test_every_text_comes_back(text: str) -> None:
    assert LEARNED.decode(LEARNED.encode(text)) == text
    assert LEARNED.decode(LEARNED.encode_document(text)) == text + END_OF_TEXT


def test_it_cuts_texts_as_the_library_that_learned_it() -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    character = dict(enumerate(byte_characters()))
    words = ["".join(character[byte] for byte in one) for one in LEARNED.sequences]
    ranks = {word: rank for rank, word in enumerate(words)}
    merges = []
    for one in LEARNED.sequences[256:]:  # the two parts that the earlier merges leave of it
        parts = [bytes([byte]) for byte in one]
        while len(parts) > 2:
            known = [(LEARNED.sequences.index(a + b), i) for i, (a, b) in enumerate(pairwise(parts))
                     if a + b in LEARNED.sequences and a + b != one]  # fmt: skip
            first = min(known)[1]
            parts[first : first + 2] = [parts[first] + parts[first + 1]]
        merges.append(tuple("".join(character[byte] for byte in part) for part in parts))
    reference = Tokenizer(BPE(vocab=ranks, merges=merges))
    reference.pre_tokenizer = ByteLevel(add_prefix_space=False)
    stream = random.Random(random.random())
    for _ in range(200):
        text = "".join(stream.choices([*"etaoin shrdlu\n.,'s  1", "the ", "语", "é", "\t"], k=60))
        assert reference.encode(text).ids == LEARNED.encode(text).tolist(), text
    for text in TEXTS[:10]:
        assert reference.encode(text).ids == LEARNED.encode(text).tolist()


def test_learning_twice_gives_the_same_and_other_text_another() -> None:
    assert learn_vocabulary(iter(TEXTS), 700).to_dict() == LEARNED.to_dict()
    assert learn_vocabulary(TEXTS[:5], 700).to_dict() != LEARNED.to_dict()


def test_a_short_text_gives_a_smaller_vocabulary() -> None:
    assert learn_vocabulary(["abab"], 5000).vocab_size < 300
    assert learn_vocabulary([], 257).sequences == [bytes([byte]) for byte in range(256)]


ENDLESS_WORDS = """
import random, sys
from engine.text.byte_pairs import LONGEST_WORD, learn_vocabulary
from engine.text.tokenizer_files import byte_pairs_of
draw = random.Random(1)
for letters in ("ACGT", "a", " ", "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/"):
    text = "".join(draw.choices(letters, k=2**20))
    learned = learn_vocabulary([text], 1_000)
    assert max(map(len, learned.sequences)) <= LONGEST_WORD, letters
    ids = learned.encode(text)
    assert len(ids) < len(text) and learned.decode(ids) == text, letters
    assert (byte_pairs_of(learned).encode(text) == ids).all(), letters
"""


def test_one_endless_word_is_learned_from_and_encoded() -> None:
    """A mebibyte of each: of what grows with its square, each would take many times what may be waited."""
    finished = subprocess.run(
        [sys.executable, "-c", ENDLESS_WORDS], cwd=ROOT, capture_output=True, text=True, timeout=HANG
    )
    assert finished.returncode == 0, finished.stderr


@needs_gpt2_vocabulary
def test_gpt2_encodes_one_endless_word() -> None:
    script = """
from engine.text.byte_pairs import GPT2Tokenizer
tokenizer = GPT2Tokenizer()
for text in ("a" * 2**20, "GATTACA" * 2**17, " " * 2**20):
    assert tokenizer.decode(tokenizer.encode(text)) == text
"""
    finished = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=HANG
    )
    assert finished.returncode == 0, finished.stderr


def test_words_of_usual_length_are_learned_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{'ab' * 200} {'xyz' * 9} x" for _ in range(3)]
    uncut = learn_vocabulary(texts, 600)
    assert b"ab" * 64 in uncut.sequences
    monkeypatch.setattr(byte_pairs, "LONGEST_WORD", 10**6)
    assert learn_vocabulary(TEXTS, 700).to_dict() == LEARNED.to_dict()


def test_byte_characters_are_those_of_the_library() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    assert sorted(byte_characters()) == sorted(ByteLevel.alphabet()) and len(byte_characters()) == 256
    assert ByteLevel(add_prefix_space=False).pre_tokenize_str("é ß")[0][0] == "".join(
        byte_characters()[byte] for byte in "é".encode()
    )


def test_tiktoken_loads_the_file(tmp_path: Path) -> None:
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    path = tmp_path / "tokenizer.tiktoken"
    path.write_bytes(ranks_text(LEARNED))
    encoding = tiktoken.Encoding(
        "mine",
        pat_str=SPLIT_PATTERN,
        mergeable_ranks=load_tiktoken_bpe(str(path)),
        special_tokens={END_OF_TEXT: 699},
    )
    for text in TEXTS[:20]:
        assert encoding.encode_ordinary(text) == LEARNED.encode(text).tolist()
    assert tokenizer_of_file(path).to_dict() == LEARNED.to_dict()


def test_it_travels_in_a_data_set_and_serves_another(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    options = ("--input", "a.txt", "--tokenizer")
    first = command(tmp_path, "prepare.py", "one", *options, "bpe", "--vocab_size", "500")
    assert first.returncode == 0, first.stderr
    meta = json.loads((tmp_path / "data/one/meta.json").read_text())
    assert meta["tokenizer"]["kind"] == "bpe" and meta["vocab_size"] == 500
    for number, of in enumerate(("data/one", "data/one/meta.json", "data/one/tokenizer.tiktoken")):
        assert command(tmp_path, "prepare.py", f"two{number}", *options, of).returncode == 0
        assert (tmp_path / f"data/two{number}/train.bin").read_bytes() == (
            tmp_path / "data/one/train.bin"
        ).read_bytes()
    assert np.fromfile(tmp_path / "data/one/train.bin", dtype="<u2").max() < 500


@pytest.mark.slow(reason="eight real commands, one after the other")
def test_it_travels_with_the_model_to_other_programs_and_back(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    (tmp_path / "a.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    small = ("--max_iters=2", "--n_layer=1", "--n_head=1", "--n_embd=16", "--block_size=16", "--eval_iters=1")
    for arguments in (
        ("prepare.py", "own", "--input", "a.txt", "--tokenizer", "bpe", "--vocab_size", "500"),
        ("train.py", "--dataset=own", "--out_dir=run", "--device=cpu", "--threads=1", *small),
        ("convert.py", "run", "--to", "hf", "hf"),
        ("convert.py", "hf", "--to", "run", "back"),
    ):
        finished = command(tmp_path, *arguments)
        assert finished.returncode == 0, finished.stderr
    own = tokenizer_of_file(tmp_path / "data/own")
    for folder in ("run", "hf", "back"):
        assert read_pretrained(str(tmp_path / folder)).tokenizer.to_dict() == own.to_dict()
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs.eos_token_id == own.end_of_text == 499
    stream = random.Random(random.random())
    for _ in range(300):
        text = "".join(stream.choices([*"etaoin shrdlu\n\r.,'s  1²语🙂", "the ", END_OF_TEXT], k=60))
        ids = own.encode(text).tolist()
        assert theirs.encode(text) == ids and theirs.decode(ids) == text
    said = []
    for folder in ("run", "hf"):
        options = ("--temperature=0", "--max_new_tokens=9", "--device=cpu")
        sampled = command(tmp_path, "sample.py", f"--init_from={folder}", *options)
        scored = command(tmp_path, "eval.py", folder, "--dataset", "own", "--device=cpu")
        assert sampled.returncode == scored.returncode == 0, sampled.stderr + scored.stderr
        said.append((sampled.stdout, scored.stdout))
    assert said[0] == said[1] and "bits per byte" in said[0][1]


WORDS = LEARNED.to_dict()["vocabulary"].split()


@pytest.mark.parametrize(
    "vocabulary",
    [
        " ".join(WORDS[1:]),  # a byte is missing
        " ".join([*WORDS, WORDS[300]]),  # one comes twice
        " ".join([*WORDS, "===="]),
        " ".join([*WORDS, "w6k"]),
        "",
    ],
)
def test_a_vocabulary_that_is_damaged_is_refused(vocabulary: str) -> None:
    with pytest.raises(UserError, match="vocabulary is damaged"):
        tokenizer_from_dict({"kind": "bpe", "vocabulary": vocabulary})


@pytest.mark.parametrize(
    "change", [lambda lines: lines[1:], lambda lines: [*lines, "%% 699"], lambda lines: ["é 0"]]
)
def test_a_file_that_is_no_vocabulary_is_named(
    tmp_path: Path, change: Callable[[list[str]], list[str]]
) -> None:
    path = tmp_path / "x.tiktoken"
    path.write_text("\n".join(change(ranks_text(LEARNED).decode().splitlines())))
    with pytest.raises(UserError, match=r"x\.tiktoken"):
        tokenizer_of_file(path)


def test_any_order_of_the_bytes_will_do() -> None:
    stream = random.Random(random.random())
    order = [bytes([byte]) for byte in range(256)]
    stream.shuffle(order)
    shuffled = OwnBytePairTokenizer([*order, b"ab"])
    text = "abc ab ÄÖ"
    assert shuffled.decode(shuffled.encode(text)) == text
    assert [base64.b64decode(word) for word in shuffled.to_dict()["vocabulary"].split()][:256] == order
