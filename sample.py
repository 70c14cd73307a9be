"""Write text with a trained GPT.

    python sample.py --temperature 0.8
    python sample.py --start "ROMEO:" --num_samples 3 --max_new_tokens 300 --top_k 40 --seed 7
    python sample.py --out_dir=out/shakespeare_char --checkpoint=last --start FILE:prompt.txt
    python sample.py --interactive=True --stop="\\n\\n"
    python sample.py --init_from=gpt2 --start "The meaning of life is"

Without --out_dir it takes the newest run in out/. All samples are drawn together; the first is shown as it
is written. The same seed gives the same text on the same machine; a sample depends on the seed and its
number, not on how many are drawn.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.command_line import Sources, read_early, read_settings, run_script
from engine.errors import UserError, similar_file
from engine.settings import SampleSettings


def read_options(arguments: Sequence[str]) -> Sources:
    """The command line, checked. Raises UserError."""
    return read_settings(SampleSettings, arguments, __doc__)


# Above the slow imports, so that --help and mistakes are answered at once.
OPTIONS = read_early(read_options) if __name__ == "__main__" else None

import torch

from engine.generation import Sampling, TextStream, stream
from engine.runs import newest_run
from engine.text.tokenizer import BYTE_ORDER_MARK, Tokenizer, encode_prompt, print_note
from engine.weights.precision import ready_to_generate
from engine.weights.pretrained import read_pretrained
from model import GPT


def main(arguments: Sequence[str]) -> None:
    """Sample with the options of a command line."""
    sample(read_options(arguments))


def sample(sources: Sources) -> None:
    """Load a model, continue the prompt, print."""
    settings: SampleSettings = sources.settings(on_cpu=False)
    for remark in sources.remarks:
        print(f"note: {remark}", file=sys.stderr)
    source = settings.init_from
    if source == "resume":
        source = settings.out_dir or newest_run("to sample from")
    found = read_pretrained(str(source), settings.checkpoint)
    tokenizer = found.known_tokenizer()
    model, remark = ready_to_generate(found, settings.device, settings.dtype, settings.threads)
    if remark:
        print_note(remark)
    if settings.interactive:
        converse(model, tokenizer, settings)
    else:
        write_samples(model, tokenizer, read_prompt(settings.start), settings)


def write_samples(model: GPT, tokenizer: Tokenizer, start: str | None, settings: SampleSettings) -> None:
    """Print `num_samples` continuations of a prompt: the first as it is drawn, then the others."""
    prompt = encode_prompt(tokenizer, start)
    stop = None if settings.stop is None else settings.stop.replace("\\n", "\n")
    end = getattr(tokenizer, "end_of_text", None) if settings.stop_at_end else None
    streams = [TextStream(tokenizer, stop, end) for _ in range(settings.num_samples)]
    texts = [(start or "").removeprefix(BYTE_ORDER_MARK) for _ in streams]
    ids = torch.from_numpy(prompt)[None].repeat(settings.num_samples, 1)
    names = (field.name for field in dataclasses.fields(Sampling))
    tokens = stream(
        model,
        ids.to(model.token_embedding.weight.device),
        settings.max_new_tokens,
        Sampling(**{name: getattr(settings, name) for name in names}),
        seed=settings.seed,
        n_tokens=tokenizer.vocab_size,
    )
    print(texts[0], end="", flush=True)
    for step in tokens:
        pieces = [text.push(token) for text, token in zip(streams, step.tolist(), strict=True)]
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
        print(pieces[0], end="", flush=sys.stdout.isatty())
        if all(text.stopped for text in streams):
            break
    rest = [text.finish() for text in streams]
    print(rest[0])
    for text, piece in zip(texts[1:], rest[1:], strict=True):
        print("-" * 80 + "\n" + text + piece)


def converse(model: GPT, tokenizer: Tokenizer, settings: SampleSettings) -> None:
    """Read prompts from the terminal, one a line, until the end of the input; answer each."""
    while True:
        try:
            start = input("prompt> ")
        except EOFError:
            print()
            return
        try:
            if start:
                write_samples(model, tokenizer, start, dataclasses.replace(settings, num_samples=1))
        except UserError as error:
            print(f"error: {error}")


def read_prompt(start: str | None) -> str | None:
    """The prompt itself, or the content of the file that FILE:PATH names. Raises UserError."""
    if start is None or not start.startswith("FILE:"):
        return start
    path = Path(start.removeprefix("FILE:"))
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        why = f"{error.strerror}{similar_file(path)}"
        raise UserError(f"the prompt file {path} cannot be read: {why}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the prompt file {path} is not UTF-8 (byte {error.start})") from error


if __name__ == "__main__":
    run_script(sample, OPTIONS)
