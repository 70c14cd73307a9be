"""GPT-2 folders as they are found, of any age and setting: here they compute what `transformers` does."""

import ast
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from support.random_models import edit_json, largest_difference, random_gpt2, save_folder
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from transformers import GPT2LMHeadModel

import convert
import prepare
import sample
import train
from engine.errors import UserError
from engine.weights.pretrained import read_pretrained


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a folder, by a function of them."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def without(folder: Path, *names: str) -> None:
    """Take fields out of config.json."""
    path = folder / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in content.items() if name not in names}))


# ------------------------------------------------------------------------------------------------------------
# config.json


@pytest.mark.parametrize("architectures", [["GPT2LMHeadModel"], None])
def test_the_oldest_configurations_do_not_say_what_they_are(
    architectures: list[str] | None, tmp_path: Path
) -> None:
    reference = random_gpt2(1)
    folder = save_folder(reference, tmp_path)
    without(folder, "model_type", "architectures", "activation_function", "n_inner", "tie_word_embeddings")
    if architectures:
        edit_json(folder / "config.json", architectures=architectures)
    assert largest_difference(folder, reference, torch.float64) < 1e-12


def test_other_models_that_do_not_say_what_they_are_are_refused(tmp_path: Path) -> None:
    folder = save_folder(random_gpt2(1), tmp_path)
    for changes in ({"architectures": ["BertModel"]}, {"n_layer": None, "num_hidden_layers": 2}):
        fields = json.loads((folder / "config.json").read_text()) | changes
        unnamed = {
            name: value for name, value in fields.items() if value is not None and name != "model_type"
        }
        if "num_hidden_layers" in changes:
            del unnamed["architectures"]
        (tmp_path / "config.json").write_text(json.dumps(unnamed))
        with pytest.raises(UserError, match="only gpt2 can be read"):
            read_pretrained(str(folder))


@pytest.mark.parametrize("n_ctx", [8, 24, 1024])
def test_positions_are_n_positions_whatever_n_ctx_says(n_ctx: int, tmp_path: Path) -> None:
    reference = random_gpt2(2)
    folder = save_folder(reference, tmp_path)
    edit_json(folder / "config.json", n_ctx=n_ctx)
    theirs = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float64)
    assert theirs.config.n_positions == read_pretrained(str(folder)).config.block_size == 24
    assert largest_difference(folder, reference, torch.float64) < 1e-12


def test_positions_that_only_n_ctx_names_are_read(tmp_path: Path) -> None:
    reference = random_gpt2(2)
    folder = save_folder(reference, tmp_path)
    without(folder, "n_positions")
    edit_json(folder / "config.json", n_ctx=24)
    assert largest_difference(folder, reference, torch.float64) < 1e-12


def test_the_names_that_transformers_takes_as_well_are_read(tmp_path: Path) -> None:
    reference = random_gpt2(3)
    folder = save_folder(reference, tmp_path)
    without(folder, "n_embd", "n_layer", "n_head", "n_positions")
    others = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=24)
    edit_json(folder / "config.json", **others)
    theirs = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float64)
    assert theirs.config.n_embd == 16 and theirs.config.n_positions == 24
    assert largest_difference(folder, reference, torch.float64) < 1e-12


@pytest.mark.parametrize(("weights", "by_layer"), [(False, False), (False, True), (True, True)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_scales_of_the_scores_are_folded_into_the_queries(
    weights: bool, by_layer: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    flags = dict(scale_attn_weights=weights, scale_attn_by_inverse_layer_idx=by_layer)
    reference = random_gpt2(4, n_layer=4, n_embd=20, **flags).to(dtype)
    folder = save_folder(reference, tmp_path)
    ignored = random_gpt2(4, n_layer=4, n_embd=20).to(dtype)
    assert largest_difference(folder, ignored, dtype) > 1e-4
    assert largest_difference(folder, reference, dtype) < (1e-12 if dtype == torch.float64 else 1e-5)


def test_scores_in_float32_are_the_same_function(tmp_path: Path) -> None:
    """`reorder_and_upcast_attn` goes with the scales in the models that have them."""
    flags = dict(reorder_and_upcast_attn=True, scale_attn_by_inverse_layer_idx=True)
    reference = random_gpt2(4, n_layer=3, **flags)
    assert largest_difference(save_folder(reference, tmp_path), reference, torch.float32) < 1e-5


@pytest.mark.parametrize("epsilon", [1e-3, 1e-6, 1e-12])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_another_epsilon_of_the_layer_norms_is_folded_into_the_residual_stream(
    epsilon: float, tied: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    shape = dict(tie_word_embeddings=tied, n_layer=3)
    reference = random_gpt2(5, **shape, layer_norm_epsilon=epsilon).to(dtype)
    folder = save_folder(reference, tmp_path)
    ignored = random_gpt2(5, **shape).to(dtype)
    assert largest_difference(folder, ignored, dtype) > 1e-5
    assert largest_difference(folder, reference, dtype) < (1e-11 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize(
    "activation",
    ["gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate", "gelu", "gelu_python"],
)
def test_every_name_of_the_two_gelus_is_known(activation: str, tmp_path: Path) -> None:
    reference = random_gpt2(6, activation_function=activation)
    assert largest_difference(save_folder(reference, tmp_path), reference, torch.float64) < 1e-12


def test_gelu_fast_is_the_tanh_form_with_a_rounded_constant(tmp_path: Path) -> None:
    reference = random_gpt2(6, activation_function="gelu_fast")
    assert largest_difference(save_folder(reference, tmp_path), reference, torch.float64) < 1e-9


# ------------------------------------------------------------------------------------------------------------
# weights


def test_tied_weights_of_which_only_the_head_is_stored(tmp_path: Path) -> None:
    reference = random_gpt2(7)
    folder = save_folder(reference, tmp_path)
    edit_weights(
        folder, lambda tensors: tensors.update({"lm_head.weight": tensors.pop("transformer.wte.weight")})
    )
    theirs = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float64)
    assert torch.equal(theirs.transformer.wte.weight.float(), reference.transformer.wte.weight)
    assert largest_difference(folder, reference, torch.float64) < 1e-12


def test_a_head_that_differs_is_believed_before_the_setting_that_ties_it(tmp_path: Path) -> None:
    untied = random_gpt2(8, tie_word_embeddings=False)
    folder = save_folder(untied, tmp_path)
    edit_json(folder / "config.json", tie_word_embeddings=True)
    theirs = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float64)
    assert not torch.equal(theirs.lm_head.weight, theirs.transformer.wte.weight)
    assert read_pretrained(str(folder)).config.tied_head is False
    assert largest_difference(folder, theirs.eval(), torch.float64) < 1e-12


def test_weights_of_a_wrapped_model_are_read(tmp_path: Path) -> None:
    reference = random_gpt2(9)
    folder = save_folder(reference, tmp_path)

    def wrap(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[f"module._orig_mod.{name}"] = tensors.pop(name)

    edit_weights(folder, wrap)
    assert largest_difference(folder, reference, torch.float64) < 1e-12


def test_the_line_that_converts_pickled_weights_does(tmp_path: Path) -> None:
    """Also from a folder with a blank in its name, whose config.json is too old to say what it is."""
    reference = random_gpt2(10)
    folder = save_folder(reference, tmp_path / "my gpt's")
    torch.save(safetensors.torch.load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    without(folder, "model_type", "architectures")
    with pytest.raises(UserError) as error:
        read_pretrained(str(folder))
    python, option, code = shlex.split(str(error.value).partition("convert them: ")[2])
    assert (python, option) == ("python", "-c")
    imported, converted = ast.parse(code).body
    assert ast.unparse(imported) == "from transformers import GPT2LMHeadModel as M"
    assert ast.unparse(converted) == f"M.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
    GPT2LMHeadModel.from_pretrained(folder).save_pretrained(folder)
    assert largest_difference(folder, reference, torch.float64) < 1e-12


# ------------------------------------------------------------------------------------------------------------
# a tokenizer that cannot be read


@pytest.fixture
def word_pieces(place: Path) -> Path:
    """A GPT-2 with a WordPiece tokenizer, and beside it data/ids, token ids made with that."""
    folder = save_folder(random_gpt2(11), place / "gpt")
    words = {"[UNK]": 0} | {f"word{number}": number for number in range(1, 90)}
    Tokenizer(WordPiece(words, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))
    ids = np.arange(3000, dtype="<u2") % 90
    (place / "ids").mkdir()
    ids.tofile(place / "ids/train.bin")
    ids[:300].tofile(place / "ids/val.bin")
    (place / "data").unlink()
    prepare.main(["ids", "--input", "ids", "--tokenizer", "numbers"])
    return folder


def test_weights_with_a_tokenizer_of_another_kind_are_finetuned_on_token_ids(
    word_pieces: Path, place: Path, fails: Callable[..., str]
) -> None:
    few = (
        "--max_iters=2",
        "--eval_iters=1",
        "--sample_tokens=4",
        "--threads=1",
        "--gradient_accumulation_steps=1",
    )
    train.main([f"--init_from={word_pieces}", "--dataset=ids", "--out_dir=tuned", "--batch_size=2", *few])
    found = read_pretrained("tuned", "last")
    start = read_pretrained(str(word_pieces))
    assert found.tokenizer.to_dict() == {"kind": "numbers", "vocab_size": 90}
    assert found.tensors["final_norm.weight"].shape == start.tensors["final_norm.weight"].shape
    assert not torch.equal(found.tensors["final_norm.weight"], start.tensors["final_norm.weight"])


def test_what_needs_text_names_the_tokenizer_that_cannot_be_read(
    word_pieces: Path, place: Path, fails: Callable[..., str]
) -> None:
    (place / "letters.txt").write_text("the quick brown fox " * 200)
    prepare.main(["letters.txt"])
    refused = fails(
        train.main, f"--init_from={word_pieces}", "--dataset=letters", "--out_dir=no", "--max_iters=1"
    )
    assert "data/letters is text, and" in refused and "tokenizer.json holds" in refused
    assert "WordPiece" in fails(sample.main, f"--init_from={word_pieces}")
    assert "WordPiece" in fails(convert.main, str(word_pieces), "--to", "run", "out/gpt")
    (word_pieces / "tokenizer.json").write_text("{")
    for main, arguments in (
        (sample.main, [f"--init_from={word_pieces}"]),
        (convert.main, [str(word_pieces), "--to", "hf", "out/again"]),
    ):
        assert "damaged" in fails(main, *arguments)


def test_an_export_without_its_tokenizer_says_why(
    word_pieces: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert.main([str(word_pieces), "--to", "hf", "exported"])
    output = capsys.readouterr().out
    assert "no tokenizer was written: " in output and "WordPiece" in output
    assert not Path("exported/tokenizer.json").exists()
