"""Weights of GPT-2's kind compute here what they compute in `transformers`."""

import random
import subprocess
from pathlib import Path

import pytest
import safetensors.torch
import torch
from support.commands import command
from support.random_models import edit_json, random_gpt2, save_folder, save_nanogpt
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2LMHeadModel

from engine.errors import UserError
from engine.settings import GPT2_SIZES
from engine.weights.pretrained import GPT2_REVISIONS, read_pretrained

TEXT = (
    "The quick brown fox's 12 dogs  don't\n\tjump over naïve coöperation — 東京 😀, they're lazy. aaaaaaa\n\n"
)


def largest_difference(folder: Path, reference: GPT2LMHeadModel, dtype: torch.dtype, seed: int = 0) -> float:
    """The largest difference between our logits and theirs on random ids."""
    ours = read_pretrained(str(folder)).model(dtype=dtype).eval()
    config = reference.config
    stream = torch.Generator().manual_seed(seed)
    ids = torch.randint(config.vocab_size, (2, config.n_positions), generator=stream)
    with torch.no_grad():
        return (ours(ids)[0] - reference.to(dtype)(ids).logits).abs().max().item()


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


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_nanogpt_checkpoints(prefix: str, tmp_path: Path) -> None:
    reference = random_gpt2(5, activation_function="gelu")
    path = save_nanogpt(reference, tmp_path / "ckpt.pt", prefix)
    for source in (path, tmp_path):
        assert largest_difference(source, reference, torch.float64) < 1e-12


def test_nanogpt_without_biases(tmp_path: Path) -> None:
    reference = random_gpt2(6, activation_function="gelu")
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    path = save_nanogpt(reference, tmp_path / "ckpt.pt")
    content = torch.load(path, weights_only=True)
    content["model"] = {
        name: tensor for name, tensor in content["model"].items() if not name.endswith("bias")
    }
    content["model"]["transformer.h.0.attn.bias"] = torch.ones(1, 1, 24, 24).tril()
    content["model_args"]["bias"] = False
    torch.save(content, path)
    assert read_pretrained(str(path)).config.bias is False
    assert largest_difference(path, reference, torch.float64) < 1e-12


def test_nanogpts_characters_come_from_the_text_and_never_from_its_pickle(tmp_path: Path) -> None:
    text = "".join(chr(ord("!") + number) for number in range(97 - 2)) + "\n "
    path = save_nanogpt(random_gpt2(7), tmp_path / "out-letters" / "ckpt.pt")
    data = tmp_path / "data" / "letters"
    data.mkdir(parents=True)
    (data / "meta.pkl").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    assert read_pretrained(str(path)).tokenizer is None
    (data / "input.txt").write_text(text)
    assert read_pretrained(str(path)).tokenizer.characters == "".join(sorted(text))
    elsewhere = tmp_path / "other.txt"
    elsewhere.write_text("abc")
    with pytest.raises(UserError, match="3 different characters and the model 97"):
        read_pretrained(str(path), text=elsewhere)


def test_block_size_is_cropped_and_dropout_read(tmp_path: Path) -> None:
    reference = random_gpt2(8, resid_pdrop=0.25)
    found = read_pretrained(str(save_folder(reference, tmp_path))).with_block_size(10)
    assert found.config.block_size == 10 and found.config.dropout == 0.25
    ids = torch.randint(97, (1, 10))
    with torch.no_grad():
        ours = found.model(dtype=torch.float64).eval()(ids)[0]
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
    refused(r"hold .*transformer.h.1", n_layer=1)
    refused(r"\[97, 16\].*\[99, 16\]", vocab_size=99)
    refused("n_inner is 20", n_inner=20)
    refused("activation_function is relu", activation_function="relu")
    refused("layer_norm_epsilon", layer_norm_epsilon=1e-6)
    refused("scale_attn_by_inverse_layer_idx", scale_attn_by_inverse_layer_idx=True)
    refused("not divisible", n_head=3)
    refused("must be int", n_layer="two")
    refused("must be int", n_embd=None)
    refused("lack lm_head.weight", tie_word_embeddings=False)
    refused("not zero", bias=False)
    refused(r"lack transformer.h.999999999.ln_1.weight", n_layer=10**9)
    refused(r"\[24, 16\].*\[1000000000000000000, 16\]", n_positions=10**18)
    refused(r"\[97, 16\].*\[1000000000000000000, 16\]", vocab_size=10**18)


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


class Hostile:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (self.path, "w")


def test_hostile_and_damaged_nanogpt_checkpoints(tmp_path: Path) -> None:
    path = save_nanogpt(random_gpt2(14), tmp_path / "ckpt.pt")
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    for content in (
        b"",
        whole[:1000],
        whole[:-30],
        b"not a checkpoint at all",
        b"\x80\x02}q\x00.",
        bytes(damaged),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as a nanoGPT checkpoint"):
            read_pretrained(str(path))
    torch.save({"model": Hostile(str(tmp_path / "ran"))}, path)
    with pytest.raises(UserError, match="nothing in it was run"):
        read_pretrained(str(path))
    assert not (tmp_path / "ran").exists()
    torch.save({"weights": {}}, path)
    with pytest.raises(UserError, match="no nanoGPT checkpoint"):
        read_pretrained(str(path))
