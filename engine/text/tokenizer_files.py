"""Tokenizers as files: Hugging Face's tokenizer.json and its neighbours, in and out, and tiktoken's ranks.

`AutoTokenizer` loads what is written here, and what is read here gives the ids that it gives. A tokenizer
with GPT-2's own vocabulary is known by its hashes, and stays a name in checkpoints.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as LibraryTokenizer

from engine.errors import UserError
from engine.json_files import read_json_object
from engine.text.byte_pairs import (
    BYTES,
    END_OF_TEXT,
    BytePairTokenizer,
    GPT2Tokenizer,
    MergesTokenizer,
    OwnBytePairTokenizer,
    as_characters,
    from_characters,
    parse_merge,
)
from engine.text.characters import ByteTokenizer, CharTokenizer, NumberTokenizer
from engine.text.gpt2_vocabulary import keep_gpt2_vocabulary
from engine.text.roles import END_OF_TURN, ROLES, BaseTokenizer, ChatTokenizer
from engine.text.tokenizer import Tokenizer, tokenizer_from_dict

SINGLE_CHARACTER = r"[\s\S]"
# Our own note in tokenizer_config.json: the added tokens of a chat tokenizer.
ROLE_TOKENS = "role_tokens"


def tokenizer_of_file(path: Path) -> Tokenizer:
    """The tokenizer in a file of ranks, a data set, or a folder in Hugging Face's layout."""
    if path.is_dir() and (found := read_tokenizer(path)) is not None:
        return found
    if path.is_dir() or path.suffix == ".json":
        meta = read_json_object(path / "meta.json" if path.is_dir() else path, "it names no tokenizer")
        return tokenizer_from_dict(meta.get("tokenizer"))
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UserError(f"the tokenizer {path} cannot be read: {reason}") from error
    words = [line.partition(" ") for line in content.splitlines()]
    for number, (_, _, rank) in enumerate(words):
        if rank != str(number):
            raise UserError(f"{path}, line {number + 1}: expected a base64 word and the rank {number}")
    try:
        return OwnBytePairTokenizer.from_base64([word for word, _, _ in words])
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def byte_pairs_of(tokenizer: Tokenizer) -> MergesTokenizer | None:
    """The same tokenizer with vocabulary and merges spelled out; None if it is no byte-pair encoding.

    Tokens for roles become special ones, which a text can spell. Raises UserError for names that are taken.
    """
    if isinstance(tokenizer, MergesTokenizer):
        return tokenizer
    if isinstance(tokenizer, ChatTokenizer):
        if (base := byte_pairs_of(tokenizer.base)) is None:
            return None
        if taken := [name for name in tokenizer.added if name in base.vocabulary]:
            raise UserError(f"the vocabulary has two tokens {taken[0]}, so no file can hold it")
        end = END_OF_TEXT if base.end_of_text is None else base.end
        added = [*base.added, *role_tokens(tokenizer)]
        found = MergesTokenizer(base.vocabulary | tokenizer.ids, base.merges, added, end)
        found.library.pre_tokenizer = base.library.pre_tokenizer
        return found
    if isinstance(tokenizer, ByteTokenizer):
        found = MergesTokenizer(BYTES, [], [])
        found.library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return found
    if not isinstance(tokenizer, BytePairTokenizer):
        return None
    ranks: dict[bytes, int] = tokenizer.encoding._mergeable_ranks
    special: dict[str, int] = tokenizer.encoding._special_tokens
    vocabulary = {as_characters(token): rank for token, rank in ranks.items()} | special
    merges = [(as_characters(left), as_characters(right)) for left, right in merges_of(ranks)]
    return MergesTokenizer(vocabulary, merges, [AddedToken(name, special=True) for name in special])


def role_tokens(tokenizer: ChatTokenizer) -> list[AddedToken]:
    """The added tokens as Hugging Face describes them: special, and spelled exactly."""
    return [AddedToken(name, special=True, normalized=False) for name in tokenizer.added]


def merges_of(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merges behind a table that lists tokens in the order of their making, as tiktoken keeps it.

    A token of several bytes was made of the two parts that are left when all earlier merges have been done.
    """
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            joined = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
            earliest = min(range(len(joined)), key=joined.__getitem__)
            if joined[earliest] >= rank:
                break
            parts[earliest : earliest + 2] = [parts[earliest] + parts[earliest + 1]]
        if len(parts) > 2:
            raise UserError(f"no two earlier tokens make the token {token!r}, so it cannot be exported")
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def same_ids(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether two tokenizers give the same ids the same meaning."""
    if one.to_dict() == other.to_dict():
        return True
    left, right = byte_pairs_of(one), byte_pairs_of(other)
    if left is None or right is None:
        return False
    return left.vocabulary == right.vocabulary and left.merges == right.merges


def tokenizer_files(tokenizer: Tokenizer, block_size: int) -> dict[str, bytes]:
    """The files from which `AutoTokenizer` makes this tokenizer; none for numbers. Raises UserError."""
    if isinstance(tokenizer, NumberTokenizer):
        return {}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
    }
    files: dict[str, bytes] = {}
    with_roles = isinstance(tokenizer, ChatTokenizer)
    base = tokenizer.base if with_roles else tokenizer
    if isinstance(base, CharTokenizer):
        vocabulary = {character: index for index, character in enumerate(base.characters)}
        library = LibraryTokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
        library.pre_tokenizer = pre_tokenizers.Split(Regex(SINGLE_CHARACTER), "isolated")
        library.decoder = decoders.Fuse()
        if with_roles:
            library.add_tokens(role_tokens(tokenizer))
            config |= dict.fromkeys(("bos_token", "eos_token"), END_OF_TEXT)
    else:
        pairs = byte_pairs_of(tokenizer)
        assert pairs is not None, "all tokenizers but characters and numbers have merges"
        library = pairs.library
        if pairs.end_of_text is not None:
            config |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), pairs.end)
        if pairs.end_of_text is not None and not with_roles:
            config |= {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}
            openai = openai_files(pairs.vocabulary, pairs.merges)
            files |= {"vocab.json": openai["encoder.json"], "merges.txt": openai["vocab.bpe"]}
    content = library.to_str(pretty=True)
    if with_roles:
        special = [token["content"] for token in json.loads(content)["added_tokens"] if token["special"]]
        config["chat_template"] = chat_template(special, config["eos_token"])
        config[ROLE_TOKENS] = tokenizer.added
    files["tokenizer.json"] = content.encode()
    files["tokenizer_config.json"] = json.dumps(config, ensure_ascii=False, indent=1).encode()
    return files


def chat_template(special: Sequence[str], end: str, marks_targets: bool = True) -> str:
    """A conversation as the text of its tokens, in Jinja, for `apply_chat_template`.

    Programs that fill it in read the whole text as tokens, so a message that spells one of the `special` ones
    is refused: it could end its own turn. `marks_targets` marks the assistant's words for transformers.
    """
    begin, finish = ("{% generation %}", "{% endgeneration %}") if marks_targets else ("", "")
    first, names, roles = (json.dumps(value, ensure_ascii=False) for value in (end, special, ROLES))
    parts = (
        f"{{{{ {first} }}}}",
        "{% for message in messages %}",
        f"{{% if message.role not in {roles} %}}",
        "{{ raise_exception('there is no role ' ~ message.role) }}{% endif %}",
        "{% if message.content is not string %}",
        "{{ raise_exception('the content of a message is a text') }}{% endif %}",
        f"{{% for name in {names} %}}{{% if name in message.content %}}",
        "{{ raise_exception('a message cannot hold the special token ' ~ name) }}{% endif %}{% endfor %}",
        "<|{{ message.role }}|>",
        f"{{% if message.role == 'assistant' %}}{begin}{{{{ message.content }}}}{END_OF_TURN}{finish}",
        f"{{% else %}}{{{{ message.content }}}}{END_OF_TURN}{{% endif %}}{{% endfor %}}",
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    )
    return "".join(parts)


def openai_files(vocabulary: dict[str, int], merges: Sequence[tuple[str, str]]) -> dict[str, bytes]:
    """A vocabulary byte for byte as OpenAI published GPT-2's, for their hashes."""
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    return {"encoder.json": json.dumps(vocabulary).encode(), "vocab.bpe": ("\n".join(lines) + "\n").encode()}


# What is known of GPT-2's own pipeline. Any other option must be off.
GPT2_PIPELINE = {"model": "BPE", "normalizer": None, "pre_tokenizer": "ByteLevel", "use_regex": True}
BPE_OPTIONS = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
# Names of special tokens, in the order in which AutoTokenizer gives ids to those that have none.
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
ADDED_TOKEN_OPTIONS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class UnsupportedTokenizer(UserError):
    """A tokenizer of a kind that this program does not run, though it can train on its ids."""

    def __init__(self, where: Path, kind: str) -> None:
        super().__init__(
            f"{where} holds a tokenizer of another kind than GPT-2's byte-level BPE ({kind}); encode the "
            "text with the program that made it and train on its ids: prepare.py --tokenizer numbers"
        )


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """A folder's tokenizer, or None. Raises UnsupportedTokenizer for another kind, UserError."""
    try:
        return _read(folder)
    except UserError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"the tokenizer files in {folder} are damaged: {type(error).__name__}: {error}"
        ) from error


def _read(folder: Path) -> Tokenizer | None:
    where, vocabulary, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if where.is_file():
        content = _read_object(where)
    elif vocabulary.is_file() and merges.is_file():
        where, lines = vocabulary, merges.read_text(encoding="utf-8").split("\n")
        pairs = [line for line in lines if line and not line.startswith("#version")]
        model = {"vocab": _read_object(vocabulary), "merges": pairs}
        content = {"model": model, "pre_tokenizer": {"type": "ByteLevel"}}
    else:
        for other in (*folder.glob("vocab.txt"), *folder.glob("*.model")):
            raise UnsupportedTokenizer(other, "WordPiece" if other.name == "vocab.txt" else "SentencePiece")
        return None
    config = _read_object(folder / "tokenizer_config.json")
    roles = config.get(ROLE_TOKENS)
    if roles:
        _leave_out(roles, content, config)
    model, added = content["model"], content.get("added_tokens")
    pre_tokenizer = content.get("pre_tokenizer") or {}
    if model.get("type") == "WordLevel" and pre_tokenizer.get("pattern") == {"Regex": SINGLE_CHARACTER}:
        base = CharTokenizer("".join(sorted(model["vocab"], key=model["vocab"].__getitem__)))
    elif pre_tokenizer.get("use_regex") is False and model["vocab"] == BYTES and not added:
        base = ByteTokenizer()
    elif others := _differences_from_gpt2(content, config):
        raise UnsupportedTokenizer(where, ", ".join(others))
    else:
        base = _from_byte_pairs(folder, config, content)
    return ChatTokenizer(base, roles) if roles else base


def _leave_out(roles: list[str], content: dict[str, Any], config: dict[str, Any]) -> None:
    for name in roles:
        content["model"]["vocab"].pop(name, None)
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in roles]
    decoder = config.get("added_tokens_decoder") or {}
    config["added_tokens_decoder"] = {
        index: token for index, token in decoder.items() if token["content"] not in roles
    }
    for key in SPECIAL_TOKENS:
        if config.get(key) == END_OF_TEXT and END_OF_TEXT in roles:
            del config[key]


def _read_object(path: Path) -> dict[str, Any]:
    return read_json_object(path, "the tokenizer is damaged") if path.is_file() else {}


def _differences_from_gpt2(content: dict[str, Any], config: dict[str, Any]) -> list[str]:
    model, pre_tokenizer = content["model"], content.get("pre_tokenizer") or {}
    found = {
        "model": model.get("type") or ("BPE" if "merges" in model else "unnamed"),  # old files do not say
        "normalizer": (content.get("normalizer") or {}).get("type"),
        "pre_tokenizer": pre_tokenizer.get("type"),
        "use_regex": bool(pre_tokenizer.get("use_regex", True) or not model.get("merges")),
        "add_prefix_space": bool(pre_tokenizer.get("add_prefix_space") or config.get("add_prefix_space")),
    }
    found |= {option: bool(model.get(option)) for option in BPE_OPTIONS}
    return [f"{name} {value}" for name, value in found.items() if value != GPT2_PIPELINE.get(name, False)]


def _from_byte_pairs(folder: Path, config: dict[str, Any], content: dict[str, Any]) -> BaseTokenizer:
    """GPT-2's own tokenizer if it is that; ranks, which are faster, if they say the same; or merges."""
    names, merges = content["model"]["vocab"], [parse_merge(pair) for pair in content["model"]["merges"]]
    if not config.get("added_tokens_decoder"):  # which says all that the older files say
        config = config | _read_object(folder / "special_tokens_map.json")
    tokens = _added_tokens(folder, config, content.get("added_tokens") or [], names)
    names = {name: token["id"] for name, token in tokens.items() if "id" in token} | names
    if len(tokens) == 1:  # it says which of several are looked for first
        tokens = {name: token | {"normalized": False} for name, token in tokens.items()}
    added = [
        AddedToken(name, **{option: token[option] for option in ADDED_TOKEN_OPTIONS if option in token})
        for name, token in tokens.items()
    ]
    end = config.get("eos_token") or END_OF_TEXT
    found = MergesTokenizer(names, merges, added, end["content"] if isinstance(end, dict) else end)
    if found.added != [AddedToken(END_OF_TEXT, special=True)]:
        return found
    if found.end_of_text == 50256 and keep_gpt2_vocabulary(openai_files(found.vocabulary, merges)):
        return GPT2Tokenizer()
    try:
        ranks = OwnBytePairTokenizer([from_characters(name) for name in [*found.vocabulary][:-1]])
        return ranks if same_ids(ranks, found) else found
    except ValueError:  # UserError too: not all bytes are there, or a token comes before its parts
        return found


def _added_tokens(
    folder: Path, config: dict[str, Any], listed: list[dict[str, Any]], names: dict[str, int]
) -> dict[str, dict[str, Any]]:
    """Added tokens by their content; last those that are only named, which may have no "id"."""
    older = _read_object(folder / "added_tokens.json").items()
    found = [{"content": name, "id": index, "special": False} for name, index in older] + listed
    decoder = config.get("added_tokens_decoder") or {}
    found += [token | {"id": int(index)} for index, token in decoder.items()]
    tokens = {token["content"]: token for token in found}
    tokens = dict(sorted(tokens.items(), key=lambda item: item[1]["id"]))
    if END_OF_TEXT in names or END_OF_TEXT in tokens:
        config = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT) | config
    named = [config.get(key) for key in SPECIAL_TOKENS]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        several = config.get(key) or []
        named += several.values() if isinstance(several, dict) else several
    for value in named:
        if value is not None:
            token = value if isinstance(value, dict) else {"content": value}
            tokens[token["content"]] = tokens.get(token["content"], token) | {"special": True}
    return tokens
