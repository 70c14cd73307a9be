"""nanoGPT's checkpoints as they are: read without code, and computing here what they computed there."""

import itertools
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from support.random_models import largest_difference, random_gpt2, save_nanogpt

from engine.errors import UserError
from engine.weights.gpt2_layout import unwrapped
from engine.weights.nanogpt import PlainDtype, plain_number
from engine.weights.pretrained import read_pretrained


def edit(path: Path, change) -> None:
    """Change the content of a checkpoint, by a function of it."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def renamed(weights: dict, name_of) -> dict:
    return {name_of(name): tensor for name, tensor in weights.items()}


PREFIXES = ["_orig_mod.", "module.", "model.", "_fsdp_wrapped_module."]
NESTED = [
    "",
    *PREFIXES,
    *("".join(pair) for pair in itertools.permutations(PREFIXES, 2)),
    "module._orig_mod.model._fsdp_wrapped_module.",
    "module.module.",
]


@pytest.mark.parametrize("prefix", NESTED)
def test_any_wrapping_of_a_name_comes_off(prefix: str) -> None:
    for name in ("transformer.wte.weight", "transformer.h.10.mlp.c_fc.bias", "lm_head.weight"):
        assert unwrapped(prefix + name) == name
        assert unwrapped(prefix + name.removeprefix("transformer.")) == name


@pytest.mark.parametrize(
    "prefix", ["", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.module."]
)
def test_checkpoints_of_wrapped_models_compute_the_same(prefix: str, tmp_path: Path) -> None:
    reference = random_gpt2(5, activation_function="gelu")
    path = save_nanogpt(reference, tmp_path / "ckpt.pt", prefix)
    for source in (path, tmp_path):
        assert largest_difference(source, reference, torch.float64) < 1e-12


def test_wrappers_inside_the_names_come_off_too(tmp_path: Path) -> None:
    """As FSDP and recomputation leave them, which wrap every block."""
    reference = random_gpt2(5, activation_function="gelu")
    path = save_nanogpt(reference, tmp_path / "ckpt.pt")

    def wrap(name: str) -> str:
        inner = name.replace(".h.0.", ".h.0._fsdp_wrapped_module._checkpoint_wrapped_module.")
        return f"_fsdp_wrapped_module.{inner}"

    edit(path, lambda content: content.update(model=renamed(content["model"], wrap)))
    assert largest_difference(path, reference, torch.float64) < 1e-12


def test_a_weight_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = save_nanogpt(random_gpt2(5), tmp_path / "ckpt.pt")

    def add(content: dict) -> None:
        content["model"]["_orig_mod.transformer.ln_f.weight"] = torch.ones(16)

    edit(path, add)
    with pytest.raises(UserError, match=r"transformer.ln_f.weight twice, once as _orig_mod"):
        read_pretrained(str(path))


def test_models_without_biases(tmp_path: Path) -> None:
    reference = random_gpt2(6, activation_function="gelu")
    zero_biases(reference)
    path = save_nanogpt(reference, tmp_path / "ckpt.pt")

    def drop_biases(content: dict) -> None:
        content["model"] = {
            name: tensor for name, tensor in content["model"].items() if not name.endswith("bias")
        }
        content["model"]["transformer.h.0.attn.bias"] = torch.ones(1, 1, 24, 24).tril()
        content["model_args"]["bias"] = False

    edit(path, drop_biases)
    assert read_pretrained(str(path)).config.bias is False
    assert largest_difference(path, reference, torch.float64) < 1e-12


def zero_biases(reference: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()


def test_checkpoints_of_early_2023_without_a_word_about_biases(tmp_path: Path) -> None:
    """They had biases, GELU in its tanh form, a mask among the weights, and no dropout in the oldest."""
    reference = random_gpt2(7, activation_function="gelu_new")
    path = save_nanogpt(reference, tmp_path / "ckpt.pt")

    def age(content: dict) -> None:
        del content["model_args"]["bias"], content["model_args"]["dropout"]
        content["model"]["transformer.h.1.attn.bias"] = torch.ones(1, 1, 24, 24).tril()

    edit(path, age)
    assert read_pretrained(str(path)).config.bias is True
    assert largest_difference(path, reference, torch.float64) < 1e-12


def test_a_head_that_is_not_the_embedding_stays_one_of_its_own(tmp_path: Path) -> None:
    """As before nanoGPT tied them."""
    reference = random_gpt2(8, activation_function="gelu", tie_word_embeddings=False)
    path = save_nanogpt(reference, tmp_path / "ckpt.pt")
    assert read_pretrained(str(path)).config.tied_head is False
    assert largest_difference(path, reference, torch.float64) < 1e-12


# ------------------------------------------------------------------------------------------------------------
# the pickle


@pytest.mark.parametrize(
    "value",
    [np.float64(1.5), np.float32(1.5), np.float16(1.5), np.int64(-3), np.int32(7)],
    ids=repr,
)
def test_a_numpy_scalar_among_the_figures_is_a_number(value: np.generic, tmp_path: Path) -> None:
    reference = random_gpt2(9, activation_function="gelu")
    path = save_nanogpt(reference, tmp_path / "ckpt.pt", best_val_loss=value, iter_num=value)
    assert largest_difference(path, reference, torch.float64) < 1e-12


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i4", "i8"])
def test_a_plain_number_is_what_its_bytes_are(order: str, kind: str) -> None:
    scalar = np.array(-3, dtype=order + kind)
    dtype = PlainDtype(kind, False, True)
    dtype.__setstate__((3, order, None, None, None, -1, -1, 0))
    assert plain_number(dtype, scalar.tobytes()) == -3


def test_numpy_scalars_of_older_numpy_are_numbers_too(tmp_path: Path) -> None:
    """NumPy before version 2 pickled them under another module."""
    reference = random_gpt2(9, activation_function="gelu")
    path = save_nanogpt(reference, tmp_path / "ckpt.pt", best_val_loss=np.float64(1.5))
    modern, old = b"cnumpy._core.multiarray\nscalar\n", b"cnumpy.core.multiarray\nscalar\n"
    rewrite_pickle(path, lambda pickled: pickled.replace(modern, old), expected=old)
    assert largest_difference(path, reference, torch.float64) < 1e-12


def rewrite_pickle(path: Path, change, expected: bytes) -> None:
    """Change the pickle inside a checkpoint, which is a zip archive; what is expected must be in it then."""
    import zipfile

    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            changed = change(content) if name.endswith("data.pkl") else content
            assert not name.endswith("data.pkl") or expected in changed
            archive.writestr(name, changed)


def structured_scalar() -> np.void:
    return np.zeros(1, dtype=[("a", "<i4"), ("b", "<f8")])[0]


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(3),
        np.array([None]),
        np.array([None])[()],
        structured_scalar(),
        np.str_("a"),
        np.datetime64(0, "s"),
    ],
    ids=["array", "array of objects", "array that is an object", "structured", "text", "date"],
)
def test_nothing_else_of_numpy_is_read(value: object, tmp_path: Path) -> None:
    path = save_nanogpt(random_gpt2(10), tmp_path / "ckpt.pt", best_val_loss=value)
    with pytest.raises(UserError, match="nothing in it was run"):
        read_pretrained(str(path))


class Hostile:
    """Unpickled, it would leave a folder behind."""

    def __init__(self, place: Path) -> None:
        self.place = str(place)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.place,)


def test_what_a_pickle_would_run_is_named_and_not_run(tmp_path: Path) -> None:
    path = save_nanogpt(random_gpt2(11), tmp_path / "ckpt.pt", best_val_loss=Hostile(tmp_path / "ran"))
    with pytest.raises(UserError) as error:
        read_pretrained(str(path))
    assert f"it holds {os.mkdir.__module__}.mkdir, which is no tensor" in str(error.value)
    assert str(error.value).endswith("nothing in it was run") and str(error.value).isprintable()
    assert not (tmp_path / "ran").exists()


def test_damaged_checkpoints_are_one_line_without_terminal_codes(tmp_path: Path) -> None:
    path = save_nanogpt(random_gpt2(14), tmp_path / "ckpt.pt")
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    noise = random.Random(seed).randbytes(1000)
    contents = (
        b"",
        whole[:1000],
        whole[:-30],
        b"not a checkpoint at all",
        b"\x80\x02}q\x00.",
        noise,
        damaged,
    )
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as a nanoGPT checkpoint") as error:
            read_pretrained(str(path))
        assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.pop("model"), "it lacks model_args or model"),
        (lambda content: content.update(model_args=[]), "it lacks model_args or model"),
        (lambda content: content["model"].update(name="x"), "more than tensors"),
        (lambda content: content["model_args"].pop("n_head"), "n_head is missing"),
        (
            lambda content: content["model_args"].update(n_layer="two"),
            "n_layer must be a whole number, not 'two'",
        ),
        (lambda content: content["model_args"].update(n_head=3), "not divisible"),
        (lambda content: content["model_args"].update(bias="yes"), "bias must be True or False"),
    ],
)
def test_what_is_no_nanogpt_checkpoint_is_said(change, said: str, tmp_path: Path) -> None:
    path = save_nanogpt(random_gpt2(12), tmp_path / "ckpt.pt")
    edit(path, change)
    with pytest.raises(UserError, match=said):
        read_pretrained(str(path))


def test_characters_come_from_the_text_and_never_from_the_pickle_beside_it(tmp_path: Path) -> None:
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
