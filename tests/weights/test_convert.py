"""What convert.py writes is the same model elsewhere, and comes back bit for bit."""

import ast
import dataclasses
import random
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from support.commands import command
from support.gpt2 import needs_gpt2_vocabulary
from support.random_models import random_gpt2, save_folder, save_nanogpt, save_run
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import convert
import sample
from engine.conversation.answering import TurnDecoder, write_turn
from engine.conversation.messages import Message
from engine.conversation.template import encode_question
from engine.errors import UserError
from engine.generation import Sampling, generate
from engine.text.byte_pairs import GPT2Tokenizer
from engine.text.characters import ByteTokenizer, CharTokenizer
from engine.text.roles import ChatTokenizer
from engine.text.tokenizer import Tokenizer, with_roles
from engine.text.tokenizer_files import read_tokenizer
from engine.versions import versions
from engine.weights.checkpoint import open_checkpoint
from engine.weights.export import check_is_gpt2, write_gguf, write_hugging_face, write_run
from engine.weights.pretrained import read_pretrained
from model import GPT, MLP, GPTConfig

LETTERS = CharTokenizer.of_text(
    "\n !,.'?-:;abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789éß東😀"
)


def small(**shape) -> GPTConfig:
    values = dict(vocab_size=LETTERS.vocab_size, block_size=32, n_layer=2, n_head=2, n_embd=24) | shape
    return GPTConfig(**values)


def difference(model: GPT, folder: Path, dtype: torch.dtype, seed: int) -> float:
    """The largest difference between a model's logits and those of the folder in `transformers`."""
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    stream = torch.Generator().manual_seed(seed)
    ids = torch.randint(model.config.vocab_size, (3, model.config.block_size), generator=stream)
    with torch.no_grad():
        return (model.to(dtype)(ids) - theirs(ids).logits).abs().max().item()


@pytest.mark.parametrize("seed", range(10))
def test_an_exported_model_has_the_same_logits_and_comes_back_bit_for_bit(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    heads = draw.choice([1, 2, 3])
    config = small(
        vocab_size=LETTERS.vocab_size + draw.choice([0, 13]),
        block_size=draw.randint(2, 40),
        n_layer=draw.randint(1, 4),
        n_head=heads,
        n_embd=heads * draw.choice([4, 6, 10]),
        bias=seed % 2 == 0,
        activation=draw.choice(["gelu", "gelu_tanh"]),
        tied_head=draw.random() < 0.7,
        dropout=0.125,
    )
    dtype = torch.float64 if seed % 3 == 0 else torch.float32
    model = save_run(config, LETTERS, tmp_path / "run", seed, dtype)
    write_hugging_face(read_pretrained(str(tmp_path / "run")), tmp_path / "hf")
    back = read_pretrained(str(tmp_path / "hf"))
    assert back.config == config and back.tokenizer.to_dict() == LETTERS.to_dict()
    assert back.tensors.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert back.tensors[name].dtype == dtype and torch.equal(back.tensors[name], parameter)
    assert difference(model, tmp_path / "hf", torch.float64, seed) < 1e-12
    assert difference(model, tmp_path / "hf", torch.float32, seed) < 1e-5


def test_greedy_text_is_equal_on_20_prompts(tmp_path: Path) -> None:
    model = save_run(small(vocab_size=LETTERS.vocab_size + 5), LETTERS, tmp_path / "run", 1).double()
    done = command(tmp_path, "convert.py", "run", "--to", "hf", "exported")
    assert done.returncode == 0, done.stderr
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    draw = random.Random(2)
    for _ in range(20):
        prompt = "".join(draw.choices(LETTERS.characters, k=draw.randint(1, 12)))
        ids = torch.from_numpy(LETTERS.encode(prompt))[None]
        assert tokenizer(prompt, return_tensors="pt").input_ids.tolist() == ids.tolist()
        ours = generate(model, ids, 16, Sampling(temperature=0))[0].tolist()
        options = dict(max_new_tokens=16, do_sample=False, pad_token_id=0)
        assert theirs.generate(ids, attention_mask=torch.ones_like(ids), **options)[0].tolist() == ours
        known = [index for index in ours if index < LETTERS.vocab_size]
        assert tokenizer.decode(known) == LETTERS.decode(known)


def own_bpe(folder: Path) -> Tokenizer:
    """A small byte-pair encoding that the `tokenizers` library trained."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        ["the theme of the thesis, those 3 theories of 東京 😀"] * 3, 330, 1, special_tokens=["<|endoftext|>"]
    )
    trained.save_model(str(folder))
    return read_tokenizer(folder)


@pytest.mark.parametrize("kind", ["char", "bytes", "bpe"])
def test_autotokenizer_encodes_and_decodes_random_text_alike(kind: str, tmp_path: Path) -> None:
    tokenizer = {"char": lambda: LETTERS, "bytes": ByteTokenizer, "bpe": lambda: own_bpe(tmp_path)}[kind]()
    config = small(vocab_size=tokenizer.vocab_size + 3)
    save_run(config, tokenizer, tmp_path / "run", 3)
    write_hugging_face(read_pretrained(str(tmp_path / "run")), tmp_path / "hf")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    draw = random.Random(4)
    for _ in range(200):
        text = "".join(draw.choices(LETTERS.characters, k=draw.randint(0, 40)))
        ids = tokenizer.encode(text).tolist()
        assert theirs.encode(text) == ids
        assert theirs.decode(ids) == text == tokenizer.decode(ids)
    assert theirs.model_max_length == 32


@needs_gpt2_vocabulary
def test_gpt2s_own_tokenizer_travels_as_openai_published_it(tmp_path: Path) -> None:
    tokenizer = GPT2Tokenizer()
    config = small(vocab_size=50304, n_embd=4)
    save_run(config, tokenizer, tmp_path / "run", 5)
    write_hugging_face(read_pretrained(str(tmp_path / "run")), tmp_path / "hf")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = "Thou'lt  say\n\n\tso—東京 😀!<|endoftext|>And 1234 more"
    assert theirs.encode(text) == tokenizer.encode(text).tolist()
    assert theirs.decode(theirs.encode(text)) == text
    assert theirs.eos_token_id == 50256
    assert isinstance(read_pretrained(str(tmp_path / "hf")).tokenizer, GPT2Tokenizer)


def chat_tokenizer(kind: str, folder: Path) -> ChatTokenizer:
    """A tokenizer with roles."""
    base = {"char": lambda: LETTERS, "bytes": ByteTokenizer, "bpe": lambda: own_bpe(folder)}[kind]()
    return with_roles(base)


@pytest.mark.parametrize("kind", ["char", "bytes", "bpe"])
def test_transformers_pipeline_answers_as_chat_does(kind: str, tmp_path: Path) -> None:
    """Greedily, and an answer ends at the same tokens."""
    tokenizer = chat_tokenizer(kind, tmp_path)
    config = small(vocab_size=tokenizer.vocab_size + 7, separator=tokenizer.separator, block_size=64)
    model = save_run(config, tokenizer, tmp_path / "run", 2, torch.float64)
    write_hugging_face(read_pretrained(str(tmp_path / "run")), tmp_path / "hf")
    answer = pipeline("text-generation", str(tmp_path / "hf"), dtype=torch.float64)
    draw, lengths = random.Random(3), []
    for _ in range(30):
        talk = [
            Message(role, "".join(draw.choices("abc 123", k=4)) + ".")
            for role in ("user", "assistant", "user")
        ]
        prompt, _ = encode_question(tokenizer, talk, 44)
        decoder = TurnDecoder(tokenizer)
        pieces = list(write_turn(model, decoder, prompt, 20, Sampling(temperature=0), 0))
        turns = [message._asdict() for message in talk]
        found = answer(turns, max_new_tokens=20, do_sample=False)[0]["generated_text"]
        assert found == [*turns, {"role": "assistant", "content": decoder.text}]
        lengths.append(len(pieces))
    assert min(lengths) < 20 <= max(lengths), "no answer ended, or each did"


def test_an_assistant_in_hugging_faces_layout_is_one_here_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = with_roles(LETTERS)
    config = small(vocab_size=tokenizer.vocab_size, separator=tokenizer.separator)
    save_run(config, tokenizer, tmp_path / "run", 2)
    convert.main([str(tmp_path / "run"), "--to", "hf", str(tmp_path / "hf")])
    words = shlex.split(capsys.readouterr().out.splitlines()[-1].partition(": ")[2])
    assert words[:2] == ["python", "-c"] and "'role': 'user'" in words[2] and str(tmp_path / "hf") in words[2]
    ast.parse(words[2])
    back = read_pretrained(str(tmp_path / "hf"))
    assert back.known_tokenizer().to_dict() == tokenizer.to_dict()


def test_a_model_that_gpt2s_layout_cannot_hold_is_refused_by_setting() -> None:
    fields = [
        ("rotary", bool, dataclasses.field(default=False)),
        ("n_kv_head", int, dataclasses.field(default=1)),
    ]
    Wider = dataclasses.make_dataclass("Wider", fields, bases=(GPTConfig,), frozen=True)
    check_is_gpt2(Wider())
    with pytest.raises(UserError, match="in the way are rotary=True, n_kv_head=2"):
        check_is_gpt2(Wider(rotary=True, n_kv_head=2))
    other = small()
    object.__setattr__(other, "activation", "relu2")
    with pytest.raises(UserError, match="in the way are activation=relu2"):
        check_is_gpt2(other)


def changed_mlp(monkeypatch: pytest.MonkeyPatch, change: Callable[[MLP, GPTConfig], object]) -> None:
    """Change the model as one does in research: something else in every MLP."""
    plain = MLP.__init__

    def init(self: MLP, config: GPTConfig) -> None:
        plain(self, config)
        change(self, config)

    monkeypatch.setattr(MLP, "__init__", init)


def add_gate(mlp: MLP, config: GPTConfig) -> None:
    mlp.gate = torch.nn.Linear(config.n_embd, config.n_embd)


def narrow(mlp: MLP, config: GPTConfig) -> None:
    mlp.up = torch.nn.Linear(config.n_embd, 3 * config.n_embd)
    mlp.down = torch.nn.Linear(3 * config.n_embd, config.n_embd)


def without_up(mlp: MLP, config: GPTConfig) -> None:
    del mlp.up


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            add_gate,
            "blocks.0.mlp.gate.(weight|bias) is in the model and not in GPT-2's layout .*: it is no GPT-2",
        ),
        (narrow, r"blocks.0.mlp.up.weight is \[72, 24\] in the model and \[96, 24\] in GPT-2's layout"),
        (without_up, "blocks.0.mlp.up.weight is in GPT-2's layout and not in the model"),
    ],
)
def test_what_a_change_of_the_model_adds_has_no_place_in_gpt2s_layout(
    change: Callable[[MLP, GPTConfig], object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed_mlp(monkeypatch, change)
    save_run(small(vocab_size=256, activation="gelu_tanh"), ByteTokenizer(), tmp_path / "run", 1)
    for kind in ("hf", "gguf"):
        with pytest.raises(UserError, match=said):
            convert.main([str(tmp_path / "run"), "--to", kind, str(tmp_path / "out")])
    convert.main([str(tmp_path / "run"), "--to", "run", str(tmp_path / "again")])
    assert not (tmp_path / "out").exists()


def test_gpt2s_weights_do_not_fill_a_changed_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_folder(random_gpt2(2), tmp_path / "gpt")
    changed_mlp(monkeypatch, add_gate)
    with pytest.raises(UserError, match=r"blocks.0.mlp.gate.weight has no place in GPT-2's layout"):
        read_pretrained(str(folder))
    monkeypatch.undo()
    changed_mlp(monkeypatch, without_up)
    with pytest.raises(UserError, match=r"transformer.h.0.mlp.c_fc.(bias|weight) is in the weights and not"):
        read_pretrained(str(folder))


def test_the_last_line_is_a_command_that_goes_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_run(small(), LETTERS, tmp_path / "run", 1)

    def last_words(kind: str, place: str) -> list[str]:
        convert.main(["run", "--to", kind, place])
        return shlex.split(capsys.readouterr().out.splitlines()[-1].partition(": ")[2])

    assert last_words("run", "out/it's a b é")[:2] == ["python", "sample.py"]
    convert.main(["out/it's a b é", "--to", "run", "out/second"])
    capsys.readouterr()
    words = last_words("run", "out/third one")
    sample.main([*words[2:], "--max_new_tokens=2", "--num_samples=1", "--device=cpu"])
    assert words[2:] == ["--out_dir=out/third one"] and capsys.readouterr().out

    python, option, code = last_words("hf", "it's exported")
    assert (python, option) == ("python", "-c")
    imported, printed = ast.parse(code).body
    assert ast.unparse(imported) == "from transformers import AutoModelForCausalLM as M"
    assert ast.unparse(printed) == """print(M.from_pretrained("it's exported"))"""


def test_a_run_of_foreign_weights_says_what_wrote_it(tmp_path: Path) -> None:
    save_run(small(), LETTERS, tmp_path / "run", 1)
    write_run(read_pretrained(str(tmp_path / "run")), tmp_path / "again")
    assert open_checkpoint(tmp_path / "again", "last").meta["versions"] == versions()


def test_foreign_weights_become_a_run_that_sample_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = random_gpt2(6, vocab_size=LETTERS.vocab_size, activation_function="gelu")
    save_nanogpt(reference, tmp_path / "ckpt.pt")
    (tmp_path / "letters.txt").write_text(LETTERS.characters, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--text"):
        convert.main(["ckpt.pt", "--to", "run", "out/letters"])
    convert.main(["ckpt.pt", "--text", "letters.txt", "--to", "run", "out/letters"])
    options = ("--device=cpu", "--temperature=0", "--dtype=float64", "--num_samples=1", "--max_new_tokens=9")
    sampled = command(tmp_path, "sample.py", "--start=hey", *options)
    ids = torch.from_numpy(LETTERS.encode("hey"))[None]
    expected = reference.double().generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=9,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert sampled.stdout.strip("\n") == LETTERS.decode(expected[0].tolist()).strip("\n"), sampled.stderr


LLAMA_CPP_NAMES = {
    "blocks.": "blk.",
    "token_embedding": "token_embd",
    "position_embedding": "position_embd",
    "attention_norm": "attn_norm",
    "attention.qkv": "attn_qkv",
    "attention.out": "attn_output",
    "mlp_norm": "ffn_norm",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
    "final_norm": "output_norm",
}


def test_gguf_holds_every_tensor_and_token_under_llama_cpps_names(tmp_path: Path) -> None:
    gguf = pytest.importorskip(
        "gguf", reason="the package gguf is not installed: pip install -r requirements-dev.txt"
    )
    tokenizer = own_bpe(tmp_path)
    model = save_run(
        small(vocab_size=384, activation="gelu_tanh", bias=False), tokenizer, tmp_path / "run", 7
    )
    write_gguf(read_pretrained(str(tmp_path / "run")), tmp_path / "model.gguf")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    value = {name: field.contents() for name, field in reader.fields.items()}
    assert value["general.architecture"] == "gpt2"
    assert (value["gpt2.block_count"], value["gpt2.context_length"], value["gpt2.embedding_length"]) == (
        2,
        32,
        24,
    )
    assert (value["gpt2.attention.head_count"], value["gpt2.feed_forward_length"]) == (2, 96)
    tokens = value["tokenizer.ggml.tokens"]
    assert len(tokens) == 384 and all(tokens[index] == name for name, index in tokenizer.vocabulary.items())
    assert [tuple(merge.split(" ")) for merge in value["tokenizer.ggml.merges"]] == tokenizer.merges
    stored = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    for name, parameter in model.named_parameters():
        for ours, theirs in LLAMA_CPP_NAMES.items():
            name = name.replace(ours, theirs)
        assert torch.equal(stored.pop(name), parameter)
    assert stored and all(re.search(r"\.bias$", name) and not tensor.any() for name, tensor in stored.items())


def test_gguf_of_an_assistant_holds_its_template_and_the_end_of_its_turns(tmp_path: Path) -> None:
    gguf = pytest.importorskip(
        "gguf", reason="the package gguf is not installed: pip install -r requirements-dev.txt"
    )
    tokenizer = chat_tokenizer("bpe", tmp_path)
    config = small(vocab_size=384, activation="gelu_tanh", separator=tokenizer.separator)
    save_run(config, tokenizer, tmp_path / "run", 7)
    write_gguf(read_pretrained(str(tmp_path / "run")), tmp_path / "model.gguf")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    value = {name: field.contents() for name, field in fields.items()}
    end = tokenizer.end_of_turn
    assert value["tokenizer.ggml.eot_token_id"] == end
    assert value["tokenizer.ggml.eos_token_id"] == value["tokenizer.ggml.bos_token_id"] == tokenizer.separator
    for name, index in tokenizer.ids.items():
        assert value["tokenizer.ggml.tokens"][index] == name
        assert value["tokenizer.ggml.token_type"][index] == gguf.TokenType.CONTROL
    template = ImmutableSandboxedEnvironment().from_string(value["tokenizer.chat_template"])
    text = template.render(messages=[{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert text == "<|endoftext|><|user|>Hi<|end|><|assistant|>"


def test_gguf_needs_a_token_that_ends_a_text(tmp_path: Path) -> None:
    pytest.importorskip(
        "gguf", reason="the package gguf is not installed: pip install -r requirements-dev.txt"
    )
    save_run(small(activation="gelu_tanh"), LETTERS, tmp_path / "run", 9)
    with pytest.raises(UserError, match="end-of-text token"):
        write_gguf(read_pretrained(str(tmp_path / "run")), tmp_path / "letters.gguf")
    assert not (tmp_path / "letters.gguf").exists()


def test_what_is_there_already_is_not_touched(tmp_path: Path) -> None:
    save_folder(random_gpt2(8), tmp_path / "gpt")
    found = read_pretrained(str(tmp_path / "gpt"))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("all of it")
    for write in (write_hugging_face, write_run):
        with pytest.raises(UserError, match="is not empty"):
            write(found, tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert (tmp_path / "taken" / "thesis.txt").read_text() == "all of it"


def test_bad_command_lines_say_what_to_type(tmp_path: Path) -> None:
    for arguments, words in (
        (("nowhere", "--to", "hf", "x"), "nowhere holds no checkpoint"),
        (("gpt", "--to", "onnx", "x"), "it can be hf, gguf, run"),
        (("gpt",), "--to"),
        (("gpt", "--to", "hf", "x", "--block_size=0"), "at least 1"),
    ):
        with pytest.raises(UserError, match=words):
            convert.main(arguments)
    failed = command(tmp_path, "convert.py", "nowhere", "--to", "hf", "x")
    assert failed.returncode == 2 and failed.stderr.startswith("error: ") and failed.stderr.count("\n") == 1
