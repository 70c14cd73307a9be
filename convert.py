"""Weights in and out.

    python convert.py out/shakespeare_char --to hf exported/         a folder that `transformers` loads
    python convert.py out/shakespeare_char --to gguf exported.gguf   a file for llama.cpp
    python convert.py gpt2 --to run out/gpt2                         a run folder of ours, foreign weights
    python convert.py out-shakespeare-char/ckpt.pt --text input.txt --to run out/from-nanogpt

The source can be a run, gpt2 to gpt2-xl, OWNER/NAME@COMMIT on the Hugging Face hub, a folder in its GPT-2
layout, or a nanoGPT checkpoint.
"""

import shlex
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from engine.command_line import Parser, at_least_one, read_early, run_script
from engine.errors import UserError


def read_options(arguments: Sequence[str]) -> Namespace:
    """The command line, checked. Raises UserError."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("source", help="a run, the name of a GPT-2, a folder, or a nanoGPT ckpt.pt")
    targets = "hf FOLDER, gguf FILE, or run FOLDER"
    add("--to", nargs=2, required=True, metavar=("KIND", "PLACE"), help=targets)
    add("--checkpoint", default="best", help="which one of a run: best, last, step-… (default: best)")
    add("--text", type=Path, help="the text that a nanoGPT model of characters was trained on")
    add("--block_size", type=at_least_one, help="positions to keep, from the first (default: all)")
    options = parser.parse_args(arguments)
    kind = options.to[0]
    if kind not in ("hf", "gguf", "run"):
        raise UserError(f"--to {kind}: it can be hf, gguf, run, and then the place to write to")
    return options


# Above the slow imports, so that --help and mistakes are answered at once.
OPTIONS = read_early(read_options) if __name__ == "__main__" else None

from engine.text.roles import ChatTokenizer
from engine.weights.export import write_gguf, write_hugging_face, write_run
from engine.weights.pretrained import Pretrained, read_pretrained


def main(arguments: Sequence[str]) -> None:
    """Convert as a command line says."""
    convert(read_options(arguments))


def convert(options: Namespace) -> None:
    """Read the weights, write them in the layout that is asked for."""
    kind, place = options.to
    found = read_pretrained(options.source, options.checkpoint, options.text)
    if options.block_size is not None:
        found = found.with_block_size(options.block_size)
    {"hf": write_hugging_face, "gguf": write_gguf, "run": write_run}[kind](found, Path(place))
    report(found, kind, place)


def report(found: Pretrained, kind: str, place: str) -> None:
    """Print what was written, what is not in it, and the command that loads it."""
    config = found.config
    print(
        f"{found.source} → {place}: {config.n_layer} layers, {config.n_head} heads, {config.n_embd} wide, "
        f"block {config.block_size}, vocabulary {config.vocab_size:,}"
    )
    if found.tokenizer_problem is not None:
        print(f"note: no tokenizer was written: {found.tokenizer_problem}")
    elif found.tokenizer is None:
        print("note: no tokenizer came with these weights, so none was written")
    elif kind == "hf" and found.tokenizer.to_dict()["kind"] == "numbers":
        print("note: the vocabulary of these ids is unknown, so no tokenizer was written; add its files")
    if kind == "gguf" and config.activation == "gelu":
        forms = "llama.cpp computes the tanh form of GELU, this model the exact one"
        print(f"note: {forms}: its logits differ slightly")
    load = f"from transformers import AutoModelForCausalLM as M; print(M.from_pretrained({place!r}))"
    if isinstance(found.tokenizer, ChatTokenizer):
        load = (
            f"from transformers import pipeline; print(pipeline('text-generation', {place!r})"
            "([{'role': 'user', 'content': 'Hi'}], max_new_tokens=100, do_sample=False))"
        )
    command = {
        "hf": ["python", "-c", load],
        "gguf": ["llama-cli", "-m", place],
        "run": ["python", "sample.py", f"--out_dir={place}"],
    }[kind]
    print(f"to {'load' if kind == 'hf' else 'sample from'} it: {shlex.join(command)}")


if __name__ == "__main__":
    run_script(convert, OPTIONS)
