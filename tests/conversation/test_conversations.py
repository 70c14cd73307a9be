"""Conversations: read in every known form, checked, and written so that the assistant's words are targets."""

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jinja2 import TemplateError
from support.gpt2 import needs_gpt2_vocabulary
from tokenizers import AddedToken
from transformers import AutoTokenizer

from engine.conversation.messages import Message, from_json, read_conversation, to_json
from engine.conversation.template import encode_conversation, encode_question, shortened
from engine.errors import UserError
from engine.text.byte_pairs import MergesTokenizer, learn_vocabulary
from engine.text.characters import ByteTokenizer, CharTokenizer
from engine.text.roles import ChatTokenizer
from engine.text.tokenizer import tokenizer_from_dict, with_roles
from engine.text.tokenizer_files import byte_pairs_of, read_tokenizer, same_ids, tokenizer_files

TALK = [Message("system", "Be brief."), Message("user", "2 + 2?"), Message("assistant", "4")]
LONGER = [*TALK, Message("user", "And 3 more?"), Message("assistant", "7")]
WITH_TOOL = [*TALK[:2], Message("assistant", "<tool>2+2</tool>"), Message("tool", "4"), *LONGER[2:]]
KINDS = ("bytes", "char", "bpe", "merges", pytest.param("gpt2", marks=needs_gpt2_vocabulary))


def chat_tokenizer(kind: str) -> ChatTokenizer:
    text = "".join(sorted({*"<|endoftext|> <|user|> <|end|>\n", *map(chr, range(32, 127))}))
    own = learn_vocabulary([text, "be brief be brief two and two"], 300)
    kinds = {"bytes": ByteTokenizer(), "char": CharTokenizer.of_text(text), "bpe": own}
    base = byte_pairs_of(own) if kind == "merges" else kinds.get(kind) or tokenizer_from_dict({"kind": kind})
    assert base is not None
    return with_roles(base)


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [user("2 + 2?"), assistant("4")], "id": 7},
        {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
        {"instruction": "2 + 2?", "input": "", "output": "4"},
        {"prompt": "2 + 2?", "completion": "4"},
        {"question": "2 + 2?", "answer": "4"},
    ],
)
def test_every_form_of_a_conversation_is_read_as_the_same_messages(record: dict[str, Any]) -> None:
    messages = read_conversation(record, "line 1")
    assert messages == TALK[1:] and from_json(to_json(messages)) == messages


def test_the_input_of_an_instruction_is_part_of_the_question() -> None:
    record = {"instruction": "Add.", "input": "2 2", "output": "4"}
    assert read_conversation(record, "line 1")[0] == Message("user", "Add.\n\n2 2")


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([user("a"), {"role": "asistant", "content": "b"}], "turn 2: the role 'asistant' is unknown.*assist"),
        ([user("a")], "has no assistant turn"),
        ([], "has no assistant turn"),
        ([user("a"), user("b"), assistant("c")], "turn 2: two user turns in a row"),
        ([user("a"), assistant("b"), assistant("c")], "turn 3: two assistant turns in a row"),
        ([user("a"), assistant(" ")], "turn 2: content is empty"),
        ([user(""), assistant("b")], "turn 1: content is empty"),
        ([assistant("a")], "turn 1: a turn of the assistant at the beginning"),
        ([user("a"), {"role": "system", "content": "b"}], "turn 2: a turn of the system after one of the us"),
        ([user("a"), {"role": "assistant", "content": None}], "turn 2: content is no text"),
        ([user("a"), {"role": "assistant"}], "turn 2 must have the fields role and content"),
        ("text", "messages must be a list of turns"),
    ],
)
def test_a_conversation_that_is_none_is_named_in_one_line(turns: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"^a.jsonl, line 3.*{said}") as caught:
        read_conversation({"messages": turns}, "a.jsonl, line 3")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_the_assistants_words_and_the_ends_of_its_turns_are_targets_and_nothing_else(kind: str) -> None:
    tokenizer = chat_tokenizer(kind)
    ids, targets = encode_conversation(tokenizer, WITH_TOOL)
    whole = "<|endoftext|>" + "".join(f"<|{role}|>{content}<|end|>" for role, content in WITH_TOOL)
    assert tokenizer.decode(ids) == whole
    assert tokenizer.decode(ids[targets]) == "<tool>2+2</tool><|end|>4<|end|>7<|end|>"
    assert ids[0] == tokenizer.end_of_text and ids.max() < tokenizer.vocab_size


@pytest.mark.parametrize("kind", KINDS)
def test_text_that_looks_like_a_special_token_stays_text(kind: str) -> None:
    tokenizer = chat_tokenizer(kind)
    names = "<|endoftext|><|system|><|user|><|assistant|><|tool|><|end|>"
    special = {tokenizer.separator, *tokenizer.ids.values()}
    plain = tokenizer.encode_plain(names)
    assert tokenizer.decode(plain) == names and not special & set(plain.tolist())
    ids, _ = encode_conversation(tokenizer, [Message("user", names), Message("assistant", names)])
    roles = [tokenizer.role("user"), tokenizer.role("assistant")]
    end, begin = tokenizer.end_of_turn, tokenizer.separator
    assert [index for index in ids if index in special] == [begin, roles[0], end, roles[1], end]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_with_roles_comes_back_from_its_description(kind: str) -> None:
    tokenizer = chat_tokenizer(kind)
    again = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert again.to_dict() == tokenizer.to_dict() and again.vocab_size == tokenizer.vocab_size
    assert isinstance(again, ChatTokenizer) and again.ids == tokenizer.ids
    assert len({*tokenizer.ids.values(), tokenizer.separator}) == 6
    assert min(tokenizer.ids.values()) == tokenizer.base.vocab_size


@pytest.mark.parametrize("added", [["<|user|>"], [], [3], ["<|end|>"] * 6, "<|end|>"])
def test_a_damaged_list_of_added_tokens_is_an_error(added: Any) -> None:
    with pytest.raises(UserError, match="tokenizer"):
        tokenizer_from_dict({"kind": "chat", "base": {"kind": "bytes"}, "added": added})


def exported(tokenizer: ChatTokenizer, folder: Path) -> Any:
    """The tokenizer in `transformers`, through the files that convert.py writes."""
    for name, content in tokenizer_files(tokenizer, 512).items():
        (folder / name).write_bytes(content)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_targets_equal_those_of_transformers(kind: str, tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(kind)
    theirs = exported(tokenizer, tmp_path)
    words = ["be", "brief", "two\nlines", "  spaced ", "4", "<|user", "| end |>", "{{ 1 }}", "'\""]
    words += ["naïve 東京"] if kind != "char" else []
    for _ in range(20):
        talk = [Message("system", random.choice(words))] if random.random() < 0.5 else []
        for _ in range(random.randint(1, 4)):
            talk += [Message("user", random.choice(words)), Message("assistant", random.choice(words))]
            talk += [Message("tool", "4"), Message("assistant", "4")] if random.random() < 0.3 else []
        turns = [message._asdict() for message in talk]
        found = theirs.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
        ids, targets = encode_conversation(tokenizer, talk)
        assert ids.tolist() == found["input_ids"]
        assert targets.astype(int).tolist() == found["assistant_masks"]
        asked = theirs.apply_chat_template(turns[:-1], add_generation_prompt=True)["input_ids"]
        assert encode_question(tokenizer, talk[:-1], 10**6)[0].tolist() == asked


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_with_a_special_token_is_refused_by_the_template_and_split_on_request(
    kind: str, tmp_path: Path
) -> None:
    tokenizer = chat_tokenizer(kind)
    theirs = exported(tokenizer, tmp_path)
    for name in ("<|endoftext|>", *tokenizer.added):
        text = f"a{name}b"
        with pytest.raises(TemplateError, match=re.escape(f"cannot hold the special token {name}")):
            theirs.apply_chat_template([user("Hi"), assistant(text)])
        split = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert split == tokenizer.encode_plain(text).tolist()


def test_the_template_refuses_roles_and_contents_that_are_none(tmp_path: Path) -> None:
    theirs = exported(chat_tokenizer("bytes"), tmp_path)
    with pytest.raises(TemplateError, match="there is no role moderator"):
        theirs.apply_chat_template([{"role": "moderator", "content": "Hi"}])
    with pytest.raises(TemplateError, match="is a text"):
        theirs.apply_chat_template([{"role": "user", "content": 3}])


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_tokenizer_with_roles_comes_back(kind: str, tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(kind)
    exported(tokenizer, tmp_path).save_pretrained(tmp_path / "again")
    for folder in (tmp_path, tmp_path / "again"):  # also what transformers wrote
        back = read_tokenizer(folder)
        assert isinstance(back, ChatTokenizer) and back.added == tokenizer.added
        assert same_ids(back, tokenizer)
        assert type(back.base) is type(tokenizer.base) or kind == "merges"


def test_a_role_whose_name_is_taken_cannot_be_exported() -> None:
    base = byte_pairs_of(learn_vocabulary(["be brief be brief"], 300))
    assert base is not None
    taken = MergesTokenizer(base.vocabulary, base.merges, [*base.added, AddedToken("<|user|>", special=True)])
    with pytest.raises(UserError, match=r"two tokens <.user.>"):
        tokenizer_files(with_roles(taken), 24)


def lengths(tokenizer: ChatTokenizer, *talks: Sequence[Message]) -> list[int]:
    return [len(encode_conversation(tokenizer, talk).ids) for talk in talks]


def test_a_conversation_longer_than_the_block_is_cut_before_a_question() -> None:
    tokenizer = chat_tokenizer("bytes")
    short, long = lengths(tokenizer, TALK, LONGER)
    for size in range(2 * long):
        encoded, is_cut = shortened(tokenizer, LONGER, size)
        expected = LONGER if size >= long else TALK if size >= short else None
        assert is_cut == (size < long)
        assert (encoded is None) == (expected is None)
        if encoded is not None and expected is not None:
            assert np.array_equal(encoded.ids, encode_conversation(tokenizer, expected).ids)


def test_a_call_of_a_tool_is_not_cut_from_its_result() -> None:
    tokenizer = chat_tokenizer("bytes")
    talk = [*TALK, Message("user", "2 + 2?"), *WITH_TOOL[2:5]]
    whole = lengths(tokenizer, talk)[0]
    encoded, _ = shortened(tokenizer, talk, whole - 1)
    assert encoded is not None and np.array_equal(encoded.ids, encode_conversation(tokenizer, TALK).ids)


def test_the_oldest_exchanges_go_where_a_question_does_not_fit() -> None:
    tokenizer = chat_tokenizer("bytes")
    asked = [*LONGER, Message("user", "Why?")]
    whole, left_out = encode_question(tokenizer, asked, 10**6)
    assert left_out == 0 and tokenizer.decode(whole).endswith("<|user|>Why?<|end|><|assistant|>")
    ids, left_out = encode_question(tokenizer, asked, len(whole) - 1)
    assert left_out == 2 and "2 + 2?" not in tokenizer.decode(ids)
    ids, left_out = encode_question(tokenizer, asked, 10)
    assert left_out == 4
    assert re.fullmatch(r"<.endoftext.><.system.>Be brief.<.end.><.user.>Why\?.*", tokenizer.decode(ids))
