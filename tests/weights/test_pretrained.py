"""Weights of GPT-2's kind compute here what they compute in `transformers`."""

import random
import socket
import subprocess
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import torch
from support.commands import command
from support.random_models import edit_json, largest_difference, random_gpt2, save_folder
from tokenizers import ByteLevelBPETokenizer

from engine.download import Unreachable
from engine.errors import UserError
from engine.settings import GPT2_SIZES
from engine.weights import pretrained
from engine.weights.pretrained import GPT2_REVISIONS, read_pretrained

TEXT = (
    "The quick brown fox's 12 dogs  don't\n\tjump over naïve coöperation — 東京 😀, they're lazy. aaaaaaa\n\n"
)


@pytest.mark.parametrize("seed", range(10))
def test_logits_equal_transformers_for_random_shapes(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    heads = draw.choice([1, 2, 3, 5])
    reference = random_gpt2(
        seed,
        vocab_size=draw.choice([11, 97, 50257 if seed == 0 else 130, 50304 if seed == 1 else 64]),
        n_positions=draw.randint(2, 40),
        n_layer=draw.randint(1, 4),
        n_head=heads,
        n_embd=heads * draw.choice([2, 4, 7]),
        activation_function=draw.choice(["gelu_new", "gelu"]),
        tie_word_embeddings=draw.random() < 0.7,
    )
    folder = save_folder(reference, tmp_path)
    assert largest_difference(folder, reference, torch.float32, seed) < 1e-5
    assert largest_difference(folder, reference, torch.float64, seed) < 1e-12


@pytest.mark.parametrize("vocab_size", [50257, 50304])
@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
def test_logits_at_gpt2s_scale_are_within_1e_5(vocab_size: int, activation: str, tmp_path: Path) -> None:
    torch.manual_seed(vocab_size)
    reference = random_gpt2(1, vocab_size=vocab_size, n_embd=32, activation_function=activation)
    folder = save_folder(reference, tmp_path)
    assert largest_difference(folder, reference, torch.float32) < 1e-5
    assert largest_difference(folder, reference, torch.float64) < 1e-12


def test_weights_without_the_transformer_prefix_and_with_old_masks(tmp_path: Path) -> None:
    reference = random_gpt2(3)
    folder = save_folder(reference, tmp_path)
    bare = {}
    for name, tensor in safetensors.torch.load_file(folder / "model.safetensors").items():
        bare[name.removeprefix("transformer.")] = tensor
    bare["h.0.attn.bias"] = torch.ones(1, 1, 24, 24).tril()
    bare["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    safetensors.torch.save_file(bare, folder / "model.safetensors")
    assert largest_difference(folder, reference, torch.float64) < 1e-12


def test_sharded_and_half_precision_weights(tmp_path: Path) -> None:
    reference = random_gpt2(4).to(torch.bfloat16)
    reference.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert largest_difference(tmp_path, reference, torch.float64) < 1e-12
    assert read_pretrained(str(tmp_path)).tensors["final_norm.weight"].dtype == torch.float32


def test_block_size_is_cropped_and_dropout_read(tmp_path: Path) -> None:
    reference = random_gpt2(8, resid_pdrop=0.25)
    found = read_pretrained(str(save_folder(reference, tmp_path))).with_block_size(10)
    assert found.config.block_size == 10 and found.config.dropout == 0.25
    ids = torch.randint(97, (1, 10))
    with torch.no_grad():
        ours = found.model(dtype=torch.float64).eval()(ids)
        assert (ours - reference.double()(ids).logits).abs().max() < 1e-12
    with pytest.raises(UserError, match="block_size is 11"):
        found.with_block_size(11)


def test_an_untied_head_and_a_tied_one_that_is_stored(tmp_path: Path) -> None:
    untied = random_gpt2(9, tie_word_embeddings=False)
    assert largest_difference(save_folder(untied, tmp_path / "a"), untied, torch.float64) < 1e-12
    tied = random_gpt2(10)
    folder = save_folder(tied, tmp_path / "b")
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    assert largest_difference(folder, tied, torch.float64) < 1e-12


# ------------------------------------------------------------------------------------------------------------
# the hub


def test_the_settings_name_the_models_that_are_pinned() -> None:
    assert tuple(GPT2_REVISIONS) == GPT2_SIZES


def hub_cache(folder: Path, name: str) -> None:
    """What huggingface_hub keeps after a download of a tiny stand-in for one of OpenAI's models."""
    place = folder / f"models--openai-community--{name}" / "snapshots" / GPT2_REVISIONS[name]
    save_folder(random_gpt2(11, vocab_size=300), place)
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([TEXT], vocab_size=290, special_tokens=["<|endoftext|>"])
    trained.save_model(str(place))
    (place / "tokenizer.json").unlink()


def sample(arguments: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess:
    few = ("--device=cpu", "--max_new_tokens=4", "--num_samples=1")
    return command(folder, "sample.py", *few, *arguments, **environment)


def test_sampling_from_a_cached_gpt2_needs_no_network(tmp_path: Path) -> None:
    hub_cache(tmp_path / "hub", "gpt2-medium")
    where = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    first = sample(["--init_from=gpt2-medium", "--start=The quick"], tmp_path, **where)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("The quick")


def test_without_network_it_is_said_after_one_question_and_nothing_else(tmp_path: Path) -> None:
    """Nobody listens at this address; the library would ask it again and again, and say so each time."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    where = {"HF_HUB_CACHE": str(tmp_path / "empty"), "HF_ENDPOINT": f"http://127.0.0.1:{port}"}
    failed = sample(["--init_from=gpt2"], tmp_path, **where, NO_PROXY="127.0.0.1")
    assert failed.returncode == 2 and failed.stderr.count("\n") == 1 and failed.stdout == ""
    assert failed.stderr.startswith("error: the weights of openai-community/gpt2 cannot be had: ")


def test_a_hub_that_does_not_answer_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def no_answer(repository: str, kind: str) -> str:
        asked.append((repository, kind))
        raise Unreachable("no route")

    monkeypatch.setattr(pretrained, "reach_hub", no_answer)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("asked again"))
    with pytest.raises(UserError, match=r"cannot be had: no route; where there is no network"):
        read_pretrained("gpt2-xl")
    assert asked == [("openai-community/gpt2-xl", "model")]


def test_without_network_the_sentence_says_what_to_put_where(tmp_path: Path) -> None:
    where = {"HF_HUB_CACHE": str(tmp_path / "empty"), "HF_HUB_OFFLINE": "1"}
    failed = sample(["--init_from=gpt2"], tmp_path, **where)
    assert failed.returncode == 2 and failed.stderr.count("\n") == 1
    for words in (
        "config.json, model.safetensors",
        "https://huggingface.co/openai-community/gpt2",
        "--init_from=FOLDER",
    ):
        assert words in failed.stderr


# ------------------------------------------------------------------------------------------------------------
# bad input


def test_bad_folders_are_named_with_the_fix(tmp_path: Path) -> None:
    def refused(message: str, **changes) -> None:
        folder = save_folder(random_gpt2(12), tmp_path / str(len(list(tmp_path.iterdir()))))
        edit_json(folder / "config.json", **changes)
        with pytest.raises(UserError, match=message):
            read_pretrained(str(folder))

    refused("type 'llama'", model_type="llama")
    refused("h.2.ln_1.weight", n_layer=3)
    refused(r"transformer.h.1\..* is in the weights and not in the configuration", n_layer=1)
    refused(r"\[97, 16\].*\[99, 16\]", vocab_size=99)
    refused("n_inner is 20", n_inner=20)
    refused("activation_function is relu", activation_function="relu")
    refused("layer_norm_epsilon is 0", layer_norm_epsilon=0)
    refused("add_cross_attention", add_cross_attention=True)
    refused("scale_attn_by_inverse_layer_idx must be True or False", scale_attn_by_inverse_layer_idx="yes")
    refused("not divisible", n_head=3)
    refused("must be a whole number", n_layer="two")
    refused("must be a whole number", n_embd=None)
    refused("lm_head.weight is in the configuration and not in the weights", tie_word_embeddings=False)
    refused("not zero", bias=False)
    refused(r"n_layer is 1000000000, but there are weights of at most", n_layer=10**9)
    refused("block_size is 1000000000000000000; no model is larger", n_positions=10**18)
    refused("vocab_size is 1000000000000000000; no model is larger", vocab_size=10**18)
    refused(r"\[24, 16\].*\[10000000, 16\]", n_positions=10**7)


def test_damaged_and_missing_weights(tmp_path: Path) -> None:
    folder = save_folder(random_gpt2(13), tmp_path / "gpt")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        weights.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"model.safetensors is damaged or cut short"):
            read_pretrained(str(folder))
    weights.unlink()
    with pytest.raises(UserError, match="no weights in"):
        read_pretrained(str(folder))
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pickled weights only \(pytorch_model.bin\).*save_pretrained"):
        read_pretrained(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        read_pretrained(str(folder))
    with pytest.raises(UserError, match="nowhere holds no checkpoint"):
        read_pretrained("nowhere")
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="holds no model"):
        read_pretrained(str(tmp_path / "bare"))
