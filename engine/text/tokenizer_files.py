"""Tokenizers as Hugging Face's files, in and out: tokenizer.json and its config, vocab.json, merges.txt.

The JSON is that of the `tokenizers` library, so that `AutoTokenizer` loads what is written here; the
library itself is not needed. A tokenizer with GPT-2's own vocabulary is known by its hashes, and
stays a name in checkpoints.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.text.byte_pairs import GPT2Tokenizer, OwnBytePairTokenizer
from engine.text.characters import ByteTokenizer, CharTokenizer, NumberTokenizer
from engine.text.gpt2_vocabulary import keep_gpt2_vocabulary
from engine.text.merges import (
    BYTE_CHARACTERS,
    BYTES,
    END_OF_TEXT,
    MergesTokenizer,
    as_characters,
    merges_of,
    parse_merge,
)
from engine.text.tokenizer import Tokenizer, tokenizer_from_dict


def tokenizer_of_file(path: Path) -> Tokenizer:
    """The tokenizer in a file of ranks, of another data set, or of a folder in Hugging Face's layout."""
    if path.is_dir() and (found := read_tokenizer(path)) is not None:
        return found
    path = path / "meta.json" if path.is_dir() else path
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UserError(f"the tokenizer {path} cannot be read: {reason}") from error
    if path.suffix == ".json":
        try:
            meta = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise UserError(f"the tokenizer {path} is not JSON: {error}") from error
        return tokenizer_from_dict(meta.get("tokenizer") if isinstance(meta, dict) else None)
    words = []
    for number, line in enumerate(content.splitlines()):
        word, _, rank = line.partition(" ")
        if rank != str(number):
            raise UserError(f"{path}, line {number + 1}: expected a base64 word and the rank {number}")
        words.append(word)
    try:
        return OwnBytePairTokenizer.from_base64(words)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


SINGLE_CHARACTERS = {
    "type": "Split",
    "pattern": {"Regex": "[\\s\\S]"},
    "behavior": "Isolated",
    "invert": False,
}


def byte_pairs_of(tokenizer: Tokenizer) -> MergesTokenizer | None:
    """The same tokenizer with vocabulary and merges spelled out; None if it is no byte-pair encoding."""
    if isinstance(tokenizer, MergesTokenizer):
        return tokenizer
    if isinstance(tokenizer, ByteTokenizer):
        return MergesTokenizer({character: byte for byte, character in enumerate(BYTE_CHARACTERS)}, [], {})
    encoding = getattr(tokenizer, "encoding", None)  # tiktoken's
    if encoding is None:
        return None
    ranks: dict[bytes, int] = encoding._mergeable_ranks
    vocabulary = {as_characters(token): rank for token, rank in ranks.items()}
    merges = [(as_characters(left), as_characters(right)) for left, right in merges_of(ranks)]
    return MergesTokenizer(vocabulary, merges, encoding._special_tokens)


def same_ids(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether two tokenizers give the same ids the same meaning, however they are described."""
    if one.to_dict() == other.to_dict():
        return True
    pair = (byte_pairs_of(one), byte_pairs_of(other))
    if None in pair:
        return False
    return all(
        getattr(pair[0], name) == getattr(pair[1], name) for name in ("vocabulary", "merges", "special")
    )


# ------------------------------------------------------------------------------------------------------------
# out


def tokenizer_files(tokenizer: Tokenizer, block_size: int) -> dict[str, bytes]:
    """Names and contents of the files from which `AutoTokenizer` makes this tokenizer.

    There are none for ids of an unknown vocabulary. Raises UserError for tokens that no merge makes.
    """
    if isinstance(tokenizer, NumberTokenizer):
        return {}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
    }
    files: dict[str, Any] = {}
    if isinstance(tokenizer, CharTokenizer):
        vocabulary = {character: index for index, character in enumerate(tokenizer.characters)}
        model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unknown>"}
        files["tokenizer.json"] = pipeline(model, SINGLE_CHARACTERS, {"type": "Fuse"}, {})
    elif (pairs := byte_pairs_of(tokenizer)) is not None:
        files["tokenizer.json"] = byte_level(pairs, cut_words=not isinstance(tokenizer, ByteTokenizer))
        if END_OF_TEXT in pairs.special:
            config |= {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}
            config |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
            openai = openai_files(pairs.vocabulary | pairs.special, pairs.merges)
            files |= {"vocab.json": openai["encoder.json"], "merges.txt": openai["vocab.bpe"]}
    else:
        raise UserError(
            f"a tokenizer of the kind {tokenizer.to_dict().get('kind')} has no form in Hugging Face's files"
        )
    files["tokenizer_config.json"] = config
    return {
        name: content
        if isinstance(content, bytes)
        else json.dumps(content, ensure_ascii=False, indent=1).encode()
        for name, content in files.items()
    }


def byte_level(pairs: MergesTokenizer, cut_words: bool) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE; without `cut_words` the text is not cut before merging."""
    options = {"add_prefix_space": False, "trim_offsets": True, "use_regex": cut_words}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "vocab": pairs.vocabulary | pairs.special,
        "merges": [f"{left} {right}" for left, right in pairs.merges],
    }
    return pipeline(model, {"type": "ByteLevel"} | options, {"type": "ByteLevel"} | options, pairs.special)


def pipeline(
    model: dict[str, Any], pre_tokenizer: dict[str, Any], decoder: dict[str, Any], special: Mapping[str, int]
) -> dict[str, Any]:
    """The frame of a tokenizer.json."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = sorted(special.items(), key=lambda item: item[1])
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": name} | flags for name, index in added],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


# ------------------------------------------------------------------------------------------------------------
# in


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a folder: tokenizer.json, or vocab.json and merges.txt; None where it has neither.

    Raises UserError for files that are damaged, or of a kind that this program does not compute.
    """
    try:
        if (folder / "tokenizer.json").is_file():
            return from_pipeline(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")))
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
            lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
            merges = [line for line in lines if line and not line.startswith("#version")]
            special = {END_OF_TEXT: vocabulary[END_OF_TEXT]} if END_OF_TEXT in vocabulary else {}
            return from_byte_pairs(vocabulary, merges, special)
    except UserError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"the tokenizer files in {folder} are damaged: {type(error).__name__}: {error}"
        ) from error
    return None


def from_pipeline(content: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a tokenizer.json: a byte-level BPE, or a table of characters as written above."""
    model, before = content["model"], content.get("pre_tokenizer") or {}
    if model["type"] == "WordLevel" and before == SINGLE_CHARACTERS:
        return CharTokenizer("".join(sorted(model["vocab"], key=model["vocab"].__getitem__)))
    plain = (
        not before.get("add_prefix_space") and content.get("normalizer") is None and not model.get("dropout")
    )
    whole = before.get("use_regex") is False
    if (
        model["type"] != "BPE"
        or before.get("type") != "ByteLevel"
        or not plain
        or (whole and model["merges"])
    ):
        raise UserError(
            f"tokenizer.json holds a {model['type']} tokenizer of another kind than GPT-2's byte-level BPE; "
            f"prepare the text yourself and use the weights through train.py"
        )
    special = {token["content"]: token["id"] for token in content.get("added_tokens") or []}
    if (
        whole
        and model["vocab"] == {character: byte for byte, character in enumerate(BYTE_CHARACTERS)}
        and not special
    ):
        return ByteTokenizer()
    return from_byte_pairs(model["vocab"], model["merges"], special)


def from_byte_pairs(vocabulary: dict[str, int], merges: list[Any], special: dict[str, int]) -> Tokenizer:
    """GPT-2's own tokenizer where the vocabulary is GPT-2's, else one by its merges.

    One whose ids are in the order of the merges, as `prepare.py` learns them, comes back as it was.
    """
    pairs = [parse_merge(merge) for merge in merges]
    if special == {END_OF_TEXT: 50256} and keep_gpt2_vocabulary(openai_files(vocabulary | special, pairs)):
        return GPT2Tokenizer()
    found = MergesTokenizer(
        {name: index for name, index in vocabulary.items() if name not in special}, pairs, special
    )
    return own_byte_pairs(found) or found


def own_byte_pairs(tokenizer: MergesTokenizer) -> OwnBytePairTokenizer | None:
    """The same tokenizer as ranks, which are faster and smaller; None where ranks cannot say the same."""
    names = sorted(tokenizer.vocabulary, key=tokenizer.vocabulary.__getitem__)
    sequences = [bytes(BYTES.get(character, 0) for character in name) for name in names]
    try:
        found = OwnBytePairTokenizer(sequences)
        return found if same_ids(found, tokenizer) else None
    except ValueError:  # UserError too: not all bytes are there, or a token comes before its parts
        return None


def openai_files(vocabulary: Mapping[str, int], merges: list[tuple[str, str]]) -> dict[str, bytes]:
    """A vocabulary as OpenAI published GPT-2's, byte for byte, so that hashes tell whether it is that one."""
    ordered = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    return {"encoder.json": json.dumps(ordered).encode(), "vocab.bpe": ("\n".join(lines) + "\n").encode()}
