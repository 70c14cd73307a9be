"""A model for other programs: a folder for `transformers`, a GGUF file for llama.cpp, a run folder of ours.

What a layout cannot hold is refused, naming the settings in the way. A target is written whole or not at all.
"""

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch

from engine.errors import UserError
from engine.shape import shape_settings
from engine.text.byte_pairs import MergesTokenizer
from engine.text.roles import ChatTokenizer
from engine.text.tokenizer_files import byte_pairs_of, chat_template, tokenizer_files
from engine.versions import versions
from engine.weights.gpt2_layout import tensors_for_gpt2
from engine.weights.hugging_face import ACTIVATIONS, EPSILON, OUR_NAMES
from engine.weights.pretrained import Pretrained
from engine.weights.saving import save_checkpoint
from engine.weights.shapes import SIZES
from model import GPTConfig

# Fields of GPTConfig that GPT-2's layout can hold at any value. Every other field must have its default.
# There is no place for the separator, and one document is read the same without.
HELD = (*SIZES, "dropout", "bias", "activation", "tied_head", "separator")


@contextlib.contextmanager
def written_whole(place: Path) -> Iterator[Path]:
    """A path beside `place`, which takes its place when all went well. Raises UserError."""
    if place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise UserError(f"{place} exists already and is not empty; name a new one")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as folder:
            beside = Path(folder, place.name)
            yield beside
            if place.exists():
                place.rmdir()
            os.replace(beside, place)
    except OSError as error:
        raise UserError(f"{place} cannot be written: {error.strerror or error}") from error


def check_is_gpt2(config: GPTConfig) -> None:
    """Raise UserError where GPT-2's layout cannot hold the model, naming the settings to blame."""
    in_the_way = [
        f"{field.name}={getattr(config, field.name)}"
        for field in dataclasses.fields(config)
        if field.name not in HELD and getattr(config, field.name) != field.default
    ]
    if config.activation not in ACTIVATIONS.values():
        in_the_way.append(f"activation={config.activation}")
    if in_the_way:
        raise UserError(
            f"this model is no GPT-2, so its layout cannot hold it: in the way are {', '.join(in_the_way)}; "
            f"only a model trained without them can be converted"
        )


def hugging_face_config(found: Pretrained) -> dict[str, Any]:
    """config.json of `GPT2LMHeadModel`; `bias` is a note of ours."""
    config = found.config
    end_of_text = None if found.tokenizer is None else found.tokenizer.end_of_text
    dtype = found.tensors["token_embedding.weight"].dtype
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{theirs: getattr(config, ours) for theirs, ours in OUR_NAMES.items()},
        "n_ctx": config.block_size,
        "n_inner": None,
        "activation_function": {"gelu_tanh": "gelu_new", "gelu": "gelu"}[config.activation],
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "layer_norm_epsilon": EPSILON,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "bias": config.bias,
    }


def generation_config(found: Pretrained) -> dict[str, Any]:
    """generation_config.json: an assistant ends its turn at any special token and writes no unused id."""
    tokenizer = found.tokenizer
    end_of_text = None if tokenizer is None else tokenizer.end_of_text
    generation: dict[str, Any] = {"bos_token_id": end_of_text, "eos_token_id": end_of_text}
    if isinstance(tokenizer, ChatTokenizer):
        special = {tokenizer.end_of_turn, tokenizer.separator, *tokenizer.ids.values()}
        generation |= {"eos_token_id": sorted(special), "pad_token_id": tokenizer.separator}
        generation["suppress_tokens"] = list(range(tokenizer.vocab_size, found.config.vocab_size))
    return generation


def write_hugging_face(found: Pretrained, folder: Path) -> None:
    """Write a new folder that `transformers` loads. Raises UserError."""
    check_is_gpt2(found.config)
    files = {} if found.tokenizer is None else tokenizer_files(found.tokenizer, found.config.block_size)
    files["config.json"] = json.dumps(hugging_face_config(found), indent=1).encode()
    files["generation_config.json"] = json.dumps(generation_config(found), indent=1).encode()
    weights = tensors_for_gpt2(found.config, found.tensors, transposed=True)
    with written_whole(folder) as beside:
        beside.mkdir()
        for name, content in files.items():
            (beside / name).write_bytes(content)
        safetensors.torch.save_file(weights, beside / "model.safetensors", metadata={"format": "pt"})


def write_gguf(found: Pretrained, path: Path) -> None:
    """Write a GGUF file of fp32 weights that llama.cpp loads as a GPT-2. Raises UserError."""
    try:
        import gguf
    except ImportError as error:
        raise UserError("writing GGUF takes the package gguf: pip install gguf") from error
    config = found.config
    check_is_gpt2(config)
    tensors = tensors_for_gpt2(config, found.tensors, transposed=False)
    pairs = gguf_byte_pairs(found)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config.n_layer)
    with written_whole(path) as beside:
        writer = gguf.GGUFWriter(beside, "gpt2")
        writer.add_name(Path(found.source).name)
        writer.add_block_count(config.n_layer)
        writer.add_context_length(config.block_size)
        writer.add_embedding_length(config.n_embd)
        writer.add_feed_forward_length(4 * config.n_embd)
        writer.add_head_count(config.n_head)
        writer.add_layer_norm_eps(EPSILON)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        add_vocabulary(writer, pairs, config.vocab_size)
        if isinstance(found.tokenizer, ChatTokenizer):
            special = [token.content for token in pairs.added if token.special]
            writer.add_chat_template(chat_template(special, pairs.end, marks_targets=False))
            writer.add_eot_token_id(found.tokenizer.end_of_turn)
        for name, tensor in tensors.items():
            theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
            assert theirs is not None, f"llama.cpp has no name for {name}"
            writer.add_tensor(theirs, tensor.float().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def gguf_byte_pairs(found: Pretrained) -> MergesTokenizer:
    """The tokenizer as llama.cpp's GPT-2 knows it: bytes, merges, an end-of-text token; else UserError.

    Where none is named, llama.cpp takes token 11 for the end of a text, whatever it is, so one is needed.
    """
    pairs = byte_pairs_of(found.known_tokenizer())
    if pairs is None or not pairs.merges or pairs.end_of_text is None:
        raise UserError(
            "llama.cpp reads GPT-2 models of byte pairs with an end-of-text token, "
            "and this model has none; --to hf takes it"
        )
    return pairs


def add_vocabulary(writer: Any, pairs: MergesTokenizer, vocab_size: int) -> None:
    """Write tokens in the order of their ids, and padding as unused ones."""
    import gguf

    tokens = [f"[unused{index}]" for index in range(vocab_size)]
    kinds = [gguf.TokenType.UNUSED] * vocab_size
    for name, index in pairs.vocabulary.items():
        tokens[index], kinds[index] = name, gguf.TokenType.NORMAL
    for token in pairs.added:
        kind = gguf.TokenType.CONTROL if token.special else gguf.TokenType.USER_DEFINED
        kinds[pairs.vocabulary[token.content]] = kind
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([f"{left} {right}" for left, right in pairs.merges])
    writer.add_add_bos_token(False)
    writer.add_bos_token_id(pairs.end_of_text)
    writer.add_eos_token_id(pairs.end_of_text)


def write_run(found: Pretrained, folder: Path) -> None:
    """Write a run folder with one checkpoint, step 0, and no optimizer."""
    meta = {
        "model": dataclasses.asdict(found.config),
        "settings": shape_settings(found.config),
        "tokenizer": found.known_tokenizer().to_dict(),
        "step": 0,
        "source": found.source,
        "versions": versions(),
    }
    with written_whole(folder) as beside:
        save_checkpoint(beside, meta, {"model": found.tensors})
