"""Tokenizer files: ids are those of the libraries that wrote them, and what cannot be read is said."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from support.commands import TEXT as LONG_TEXT
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from tokenizers.models import BPE, Unigram, WordPiece
from transformers import AutoTokenizer

from engine.errors import UserError
from engine.text.byte_pairs import (
    BYTES,
    END_OF_TEXT,
    SPLIT_PATTERN,
    BytePairTokenizer,
    MergesTokenizer,
    OwnBytePairTokenizer,
)
from engine.text.characters import ByteTokenizer, CharTokenizer
from engine.text.tokenizer import tokenizer_from_dict
from engine.text.tokenizer_files import (
    UnsupportedTokenizer,
    byte_pairs_of,
    merges_of,
    read_tokenizer,
    same_ids,
    tokenizer_files,
)

TEXT = (
    "The quick brown fox's 12 dogs  don't\n\tjump over naïve coöperation — 東京 😀, they're lazy. aaaaaaa\n\n"
)


def save(library: ByteLevelBPETokenizer, folder: Path) -> Path:
    """The three files that the library writes."""
    library.save_model(str(folder))
    library.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small byte-level BPE that the `tokenizers` library trained."""
    library = ByteLevelBPETokenizer()
    library.train_from_iterator(
        [TEXT * 3, "aaaa aaa aaaaaaaa bananas nab a banana"], 420, 1, special_tokens=[END_OF_TEXT]
    )
    return save(library, tmp_path_factory.mktemp("bpe"))


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=60) | st.text("ab n\n<|>'s", max_size=40))
def test_a_folders_bpe_encodes_as_the_library_does(trained: Path, text: str) -> None:
    text = text.encode("utf-8", errors="ignore").decode()
    theirs = ByteLevelBPETokenizer(str(trained / "vocab.json"), str(trained / "merges.txt"))
    ours = read_tokenizer(trained)
    assert ours.encode(text).tolist() == theirs.encode(text).ids
    assert ours.decode(ours.encode(text)) == text


def test_special_tokens_documents_and_the_trip_through_a_checkpoint(trained: Path, tmp_path: Path) -> None:
    ours = read_tokenizer(trained)
    assert isinstance(ours, MergesTokenizer) and ours.end_of_text == 0
    assert ours.encode(f"a{END_OF_TEXT}b").tolist() == [*ours.encode("a"), 0, *ours.encode("b")]
    document = ours.encode_document(END_OF_TEXT).tolist()
    assert document[-1] == 0 and len(document) > 2 and 0 not in document[:-1]
    assert ours.decode(document) == END_OF_TEXT * 2
    again = tokenizer_from_dict(json.loads(json.dumps(ours.to_dict())))
    assert again.encode(TEXT).tolist() == ours.encode(TEXT).tolist() and same_ids(again, ours)
    assert again.to_dict() == ours.to_dict() and again.end_of_text == 0
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    assert same_ids(read_tokenizer(tmp_path), ours)


def test_a_description_of_an_earlier_version_still_loads(trained: Path) -> None:
    ours = read_tokenizer(trained)
    vocabulary = {name: index for name, index in ours.vocabulary.items() if name != END_OF_TEXT}
    merges = [f"{left} {right}" for left, right in ours.merges]
    earlier = {
        "kind": "merges", "vocabulary": vocabulary, "merges": merges, "special": {END_OF_TEXT: 0}
    }  # fmt: skip
    found = tokenizer_from_dict(earlier)
    assert found.to_dict() == earlier  # by which data set and checkpoint are compared on resume
    assert same_ids(found, ours) and found.end_of_text == 0
    text = f"{TEXT}{END_OF_TEXT}{TEXT}"
    assert found.encode(text).tolist() == ours.encode(text).tolist()
    assert found.encode_document(text).tolist() == ours.encode_document(text).tolist()


def test_merges_are_recovered_from_a_table_of_ranks(trained: Path) -> None:
    ours = read_tokenizer(trained)
    made = {left + right for left, right in ours.merges}
    ranks = {
        spelled.encode("latin-1"): index
        for spelled, index in ours.vocabulary.items()
        if spelled.isascii() and spelled in made
    }
    singles = {bytes([byte]): -256 + byte for byte in range(256)}
    expected = [(left.encode(), right.encode()) for left, right in ours.merges if (left + right).isascii()]
    assert merges_of(singles | ranks) == expected and expected


def test_a_tiktoken_encoding_of_ones_own_is_exported_with_the_merges_it_was_trained_with(
    tmp_path: Path,
) -> None:
    library = ByteLevelBPETokenizer()
    library.train_from_iterator([LONG_TEXT], 1500, 2, special_tokens=[])
    theirs = read_tokenizer(save(library, tmp_path))
    ranks = {bytes(BYTES[one] for one in spelled): index for spelled, index in theirs.vocabulary.items()}
    encoding = tiktoken.Encoding(
        "own", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)}
    )
    ours = byte_pairs_of(BytePairTokenizer(encoding))
    assert ours.merges == theirs.merges and ours.vocabulary == theirs.vocabulary | {END_OF_TEXT: len(ranks)}
    assert ours.encode(f"a{END_OF_TEXT}").tolist()[-1] == len(ranks)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    for _ in range(300):
        start = draw.randrange(len(LONG_TEXT) - 200)
        text = LONG_TEXT[start : start + draw.randint(1, 200)] + "".join(
            draw.choices("ab n-_=*#\n\t é", k=30)
        )
        assert encoding.encode(text) == ours.encode(text).tolist() == library.encode(text).ids


def test_merges_in_any_order_encode_as_the_library_does(trained: Path, tmp_path: Path) -> None:
    content = json.loads((trained / "tokenizer.json").read_text())
    content["model"]["merges"].reverse()
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    theirs, ours = Tokenizer.from_file(str(tmp_path / "tokenizer.json")), read_tokenizer(tmp_path)
    assert (
        ours.encode(TEXT).tolist() == theirs.encode(TEXT).ids != read_tokenizer(trained).encode(TEXT).tolist()
    )


def test_a_byte_without_an_entry_is_named(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "<pad>": 3}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<pad>"}))
    tokenizer = read_tokenizer(tmp_path)
    assert tokenizer.encode("aab<pad>b").tolist() == [0, 2, 3, 1] and tokenizer.end_of_text is None
    assert tokenizer.encode_document("ab").tolist() == [2]
    for text, character in (("abc", "c"), ("a b", "Ġ"), ("<pad>é", "Ã")):
        with pytest.raises(UserError, match=f"no entry for '{character}'"):
            tokenizer.encode(text)


# ------------------------------------------------------------------------------------------------------------
# added tokens


def check_as_autotokenizer(folder: Path, texts: list[str]) -> MergesTokenizer:
    """Read a folder and compare the ids of texts with those of AutoTokenizer, and both ways back."""
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    theirs, ours = AutoTokenizer.from_pretrained(folder), read_tokenizer(folder)
    again = tokenizer_from_dict(json.loads(json.dumps(ours.to_dict())))
    for text in texts:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text).tolist() == again.encode(text).tolist() == ids, text
        as_text = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        end = [] if ours.end_of_text is None else [ours.end_of_text]
        assert ours.encode_document(text).tolist() == as_text + end, text
    return ours


PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
ADDED_TEXTS = [
    "The fox<pad> jumps  <pad>  over<|user|>they're <|user|> lazy<|endoftext|>.",
    "<|endoftext|> <mask> brown<mask>\n <mask>",
    "dogs covid19 covid192 <|endoftext|><|endoftext|>",
    "<|user|>covid19<pad>",
    TEXT,
]
ADDED_FILES: dict[str, dict[str, Callable[[int], Any]]] = {
    "added tokens": {"added_tokens.json": lambda n: {"<pad>": n, "covid19": n + 1, "<|user|>": n + 2}},
    "added tokens of which one is named": {
        "added_tokens.json": lambda n: {"<pad>": n, "covid19": n + 1},
        "special_tokens_map.json": lambda n: {"pad_token": "<pad>", "eos_token": END_OF_TEXT},
    },
    "special tokens that have no id": {
        "special_tokens_map.json": lambda n: {"pad_token": "<pad>", "mask_token": "<mask>"}
    },
    "special tokens with options": {
        "added_tokens.json": lambda n: {"<pad>": n},
        "special_tokens_map.json": lambda n: {
            "mask_token": PLAIN | {"content": "<mask>", "lstrip": True},
            "pad_token": PLAIN | {"content": "<pad>", "rstrip": True},
        },
    },
    "additional special tokens": {
        "special_tokens_map.json": lambda n: {"additional_special_tokens": ["<|user|>", "<pad>"]}
    },
    "named in the configuration": {"tokenizer_config.json": lambda n: {"pad_token": "<pad>"}},
    "all in the configuration": {
        "tokenizer_config.json": lambda n: {
            "added_tokens_decoder": {
                "0": PLAIN | {"content": END_OF_TEXT},
                str(n): PLAIN | {"content": "<mask>", "lstrip": True},
                str(n + 1): PLAIN | {"content": "covid19", "single_word": True, "special": False},
                str(n + 2): PLAIN | {"content": "<|user|>", "rstrip": True},
            },
            "eos_token": "<|user|>",
            "mask_token": "<mask>",
        }
    },
}


@pytest.mark.parametrize("pipeline", [False, True], ids=["vocab.json", "tokenizer.json"])
@pytest.mark.parametrize("case", ADDED_FILES)
def test_added_tokens_have_the_ids_of_autotokenizer(
    trained: Path, tmp_path: Path, case: str, pipeline: bool
) -> None:
    for name in ["tokenizer.json"] if pipeline else ["vocab.json", "merges.txt"]:
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    size = len(json.loads((trained / "vocab.json").read_text()))
    for name, content in ADDED_FILES[case].items():
        (tmp_path / name).write_text(json.dumps(content(size)))
    ours = check_as_autotokenizer(tmp_path, ADDED_TEXTS)
    assert ours.vocab_size > size and any(ours.encode(text).max() >= size for text in ADDED_TEXTS)


def test_random_added_tokens_in_tokenizer_json_have_the_ids_of_autotokenizer(
    trained: Path, tmp_path: Path
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    for number in range(20):
        content = json.loads((trained / "tokenizer.json").read_text())
        ids = dict(content["model"]["vocab"])
        words = draw.sample(["<pad>", "<mask>", "covid19", "fox", "<|user|>", "|>x", "é", " of"], k=4)
        for word in words:
            options = {option: draw.random() < 0.3 for option in PLAIN}
            index = ids.setdefault(word, len(ids))
            content["added_tokens"].append({"id": index, "content": word} | options)
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "tokenizer.json").write_text(json.dumps(content))
        texts = [
            "".join(draw.choices([*words, " ", "x", "fox's", "1", END_OF_TEXT], k=12)) for _ in range(20)
        ]
        check_as_autotokenizer(folder, texts)


def test_the_token_that_ends_a_document_is_the_one_that_is_named(trained: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "</s>"}}')
    ours = read_tokenizer(tmp_path)
    size = read_tokenizer(trained).vocab_size
    again = tokenizer_from_dict(json.loads(json.dumps(ours.to_dict())))
    assert ours.end_of_text == again.end_of_text == size and ours.vocab_size == size + 1
    assert ours.encode_document("a").tolist()[-1] == size
    files = tokenizer_files(ours, 24)
    exported = tmp_path / "out"
    exported.mkdir()
    for name, content in (files | {"config.json": b'{"model_type": "gpt2"}'}).items():
        (exported / name).write_bytes(content)
    assert AutoTokenizer.from_pretrained(exported).eos_token_id == size
    assert read_tokenizer(exported).end_of_text == size


# ------------------------------------------------------------------------------------------------------------
# out


def test_a_folders_own_bpe_loads_in_transformers_too(trained: Path, tmp_path: Path) -> None:
    ours = read_tokenizer(trained)
    for name, content in tokenizer_files(ours, 24).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode(TEXT) == ours.encode(TEXT).tolist()
    assert theirs.decode(ours.encode(TEXT)) == TEXT
    assert same_ids(read_tokenizer(tmp_path), ours)


def test_added_tokens_go_out_and_come_back(trained: Path, tmp_path: Path) -> None:
    content = json.loads((trained / "tokenizer.json").read_text())
    size = len(content["model"]["vocab"])
    content["added_tokens"] += [
        PLAIN | {"id": size, "content": "<mask>", "lstrip": True},
        PLAIN | {"id": size + 1, "content": "covid19", "special": False, "normalized": True},
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    ours = read_tokenizer(tmp_path)
    exported = tmp_path / "out"
    exported.mkdir()
    for name, written in tokenizer_files(ours, 24).items():
        (exported / name).write_bytes(written)
    back = check_as_autotokenizer(exported, ADDED_TEXTS)
    assert back.to_dict() == ours.to_dict() and back.vocab_size == size + 2


def test_an_old_tokenizer_json_that_does_not_name_its_model_is_read(trained: Path, tmp_path: Path) -> None:
    content = json.loads((trained / "tokenizer.json").read_text())
    del content["model"]["type"]
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert read_tokenizer(tmp_path).to_dict() == read_tokenizer(trained).to_dict()


def test_bytes_with_a_token_that_ends_documents_are_read(tmp_path: Path) -> None:
    content = json.loads(tokenizer_files(ByteTokenizer(), 24)["tokenizer.json"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert isinstance(read_tokenizer(tmp_path), ByteTokenizer)
    content["added_tokens"] = [PLAIN | {"id": 256, "content": END_OF_TEXT}]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    found = read_tokenizer(tmp_path)
    assert isinstance(found, OwnBytePairTokenizer) and found.end_of_text == 256
    assert found.encode(f"é b{END_OF_TEXT}").tolist() == [*"é b".encode(), 256]


# ------------------------------------------------------------------------------------------------------------
# what cannot be read


def changed(**parts: Any) -> Callable[[dict[str, Any], Path], None]:
    """Something that changes parts of a tokenizer.json."""
    return lambda content, folder: content.update(parts)


def other_model(library: Tokenizer) -> Callable[[dict[str, Any], Path], None]:
    """Something that puts another library's model into a tokenizer.json."""
    return changed(model=json.loads(library.to_str())["model"])


def beside(name: str, text: str) -> Callable[[dict[str, Any], Path], None]:
    """Something that writes another file into the folder."""
    return lambda content, folder: (folder / name).write_text(text) and None


def alone(name: str) -> Callable[[dict[str, Any], Path], None]:
    """Something that leaves a vocabulary of another kind in the place of tokenizer.json."""
    return lambda content, folder: content.clear() or (folder / name).write_bytes(b"[PAD]\n")


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_model(Tokenizer(Unigram([("a", 0.0)], 0))), "model Unigram"),
        (other_model(Tokenizer(WordPiece({"a": 0, "[UNK]": 1}))), "model WordPiece"),
        (other_model(Tokenizer(BPE({"a": 0}, [], ignore_merges=True))), "ignore_merges"),
        (other_model(Tokenizer(BPE({"a": 0}, [], dropout=0.1))), "dropout"),
        (changed(pre_tokenizer=BYTE_LEVEL | {"add_prefix_space": True}), "add_prefix_space"),
        (changed(pre_tokenizer=BYTE_LEVEL | {"use_regex": False}), "use_regex"),
        (changed(pre_tokenizer={"type": "Metaspace", "replacement": "_"}), "pre_tokenizer Metaspace"),
        (changed(pre_tokenizer=None), "pre_tokenizer None"),
        (changed(normalizer={"type": "NFC"}), "normalizer NFC"),
        (beside("tokenizer_config.json", '{"add_prefix_space": true}'), "add_prefix_space"),
        (alone("vocab.txt"), "WordPiece"),
        (alone("spiece.model"), "SentencePiece"),
    ],
)
def test_a_tokenizer_of_another_kind_is_said_to_be_one(
    trained: Path, tmp_path: Path, change: Callable[[dict[str, Any], Path], None], said: str
) -> None:
    content = json.loads((trained / "tokenizer.json").read_text())
    change(content, tmp_path)
    if content:
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UnsupportedTokenizer, match="another kind than GPT-2's") as raised:
        read_tokenizer(tmp_path)
    assert said in str(raised.value) and str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_folder_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    assert read_tokenizer(tmp_path) is None
    assert byte_pairs_of(CharTokenizer.of_text("ab")) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"vocabulary": None},
        {"vocabulary": {}, "special": {}, "merges": []},
        {"vocabulary": {"a": "1"}},
        {"vocabulary": {"a": -1}},
        {"vocabulary": {"a": True}},
        {"vocabulary": {"a": 2**40}},
        {"vocabulary": {"a": 1, "b": 1}},
        {"vocabulary": {"": 3}},
        {"vocabulary": {"a\ud83d": 3}},
        {"merges": ["a"]},
        {"merges": [["a", 1]]},
        {"merges": ["a b"]},
        {"special": {END_OF_TEXT: None}},
        {"special": {END_OF_TEXT: 1}},
        {"added_tokens": 3},
        {"added_tokens": ["<pad>"]},
        {"added_tokens": [{"content": 3}]},
        {"added_tokens": [{"content": "<pad>", "lstrip": "yes"}]},
        {"end": ["<pad>"]},
    ],
)
def test_a_damaged_vocabulary_in_a_checkpoint_is_one_sentence(changes: dict) -> None:
    sound = {"kind": "merges", "vocabulary": {"a": 1, "b": 2}, "merges": [], "special": {}}
    assert tokenizer_from_dict(sound).decode([2, 1]) == "ba"
    with pytest.raises(UserError, match="vocabulary is damaged") as raised:
        tokenizer_from_dict(sound | changes)
    assert "\n" not in str(raised.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


def mutated(draw: st.DrawFn, value: Any) -> Any:
    """The value with one of its parts, at any depth, replaced by something else."""
    if isinstance(value, dict) and value and draw(st.integers(0, 6)):
        key = draw(st.sampled_from(sorted(value)))
        return value | {key: mutated(draw, value[key])}
    if isinstance(value, list) and value and draw(st.integers(0, 6)):
        index = draw(st.integers(0, len(value) - 1))
        return [*value[:index], mutated(draw, value[index]), *value[index + 1 :]]
    return draw(JSON)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_fuzzed_files_and_descriptions_are_one_line_or_a_tokenizer(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """With few entries, so that a change hits what matters; whatever loads must also run and travel."""
    vocabulary = {"a": 0, "b": 1, "ab": 2, "aab": 3, END_OF_TEXT: 4}
    merges = ["a b", ["a", "ab"]]
    tokens = [PLAIN | {"id": 4, "content": END_OF_TEXT}, PLAIN | {"id": 5, "content": "<pad>"}]
    files = {
        "tokenizer.json": {
            "added_tokens": tokens,
            "normalizer": None,
            "pre_tokenizer": BYTE_LEVEL,
            "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
        },
        "tokenizer_config.json": {"eos_token": END_OF_TEXT, "pad_token": tokens[1]},
        "special_tokens_map.json": {"mask_token": "<mask>", "additional_special_tokens": ["<|user|>"]},
        "added_tokens.json": {"<pad>": 5},
    }
    description = {
        "kind": "merges", "vocabulary": vocabulary, "merges": merges, "special": {"<pad>": 5},
        "added_tokens": [PLAIN | {"content": END_OF_TEXT}], "end": END_OF_TEXT,
    }  # fmt: skip
    name = data.draw(st.sampled_from(["", *files]))
    folder = tmp_path_factory.mktemp("fuzz")
    try:
        if name:
            files[name] = mutated(data.draw, files[name])
            for file, content in files.items():
                (folder / file).write_text(json.dumps(content))
            tokenizer = read_tokenizer(folder)
        else:
            tokenizer = tokenizer_from_dict(mutated(data.draw, description))
    except UserError as error:
        assert str(error)
        return
    assert tokenizer is not None
    text = tokenizer.decode([0])
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer_files(tokenizer, 8)
    assert same_ids(tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict()))), tokenizer)


@pytest.mark.parametrize("damage", [b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"model": {"type": "BPE"}}'])
@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "merges.txt"])
def test_damaged_files_are_one_line_that_names_the_folder(
    trained: Path, tmp_path: Path, name: str, damage: bytes
) -> None:
    for file in ("vocab.json", "merges.txt"):
        (tmp_path / file).write_bytes((trained / file).read_bytes())
    (tmp_path / name).write_bytes(damage)
    with pytest.raises(UserError) as raised:
        read_tokenizer(tmp_path)
    assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)
