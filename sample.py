"""Write text with a trained GPT.

    python sample.py --temperature 0.8
    python sample.py --start "ROMEO:" --num_samples 3 --max_new_tokens 300 --top_k 40 --seed 7
    python sample.py --out_dir=out/shakespeare_char --checkpoint=last --start FILE:prompt.txt
    python sample.py --interactive=True --stop="\\n\\n"
    python sample.py --init_from=gpt2 --start "The meaning of life is"

Without --out_dir the newest run in out/ is taken. Samples are drawn together, the first is shown as it
comes. The same seed gives the same text on the same machine; a sample depends on the seed and its number,
not on how many are drawn.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.command_line import read_settings, run_script
from engine.errors import UserError
from engine.settings import SampleSettings

if TYPE_CHECKING:
    from engine.text.tokenizer import Tokenizer
    from model import GPT


def main(arguments: Sequence[str]) -> None:
    """Load a model, continue the prompt, print."""
    sources = read_settings(SampleSettings, arguments, __doc__)
    settings: SampleSettings = sources.settings(on_cpu=False)
    for remark in sources.remarks:
        print(f"note: {remark}", file=sys.stderr)

    import torch

    from engine.device import Choices, choose_dtype, choose_threads, find_device
    from engine.kernels import pack_for_generation
    from engine.weights.checkpoint import find_runs
    from engine.weights.pretrained import read_pretrained

    device = find_device(settings.device)
    choices = Choices(
        device.type, choose_dtype(settings.dtype, device), False, choose_threads(settings.threads, 1)
    )
    choices.apply()
    source = (
        (settings.out_dir or next(iter(find_runs()), None))
        if settings.init_from == "resume"
        else settings.init_from
    )
    if source is None:
        raise UserError(
            "there is no run in out/ to sample from; train one: python train.py configs/shakespeare_char.py"
        )
    found = read_pretrained(str(source), settings.checkpoint)
    tokenizer = found.known_tokenizer()
    model = pack_for_generation(found.model(device, getattr(torch, choices.dtype)).eval())
    if settings.interactive:
        converse(model, tokenizer, settings)
    else:
        write_samples(model, tokenizer, read_prompt(settings.start), settings)


def write_samples(model: "GPT", tokenizer: "Tokenizer", start: str | None, settings: SampleSettings) -> None:
    """Print `num_samples` continuations of a prompt: the first as it is drawn, the others behind it."""
    import torch

    from engine.generation import TextStream
    from engine.text.tokenizer import encode_prompt

    prompt = encode_prompt(tokenizer, start)
    stop = None if settings.stop is None else settings.stop.replace("\\n", "\n")
    streams = [TextStream(tokenizer, stop) for _ in range(settings.num_samples)]
    texts = ["" if start is None else start for _ in streams]
    ids = torch.from_numpy(prompt)[None].repeat(settings.num_samples, 1)
    tokens = model.stream(
        ids.to(model.token_embedding.weight.device),
        settings.max_new_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        min_p=settings.min_p,
        repetition_penalty=settings.repetition_penalty,
        seed=settings.seed,
        n_tokens=tokenizer.vocab_size,
    )
    print(texts[0], end="", flush=True)
    for step in tokens:
        pieces = [stream.push(token) for stream, token in zip(streams, step.tolist(), strict=True)]
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
        print(pieces[0], end="", flush=sys.stdout.isatty())
        if all(stream.stopped for stream in streams):
            break
    rest = [stream.finish() for stream in streams]
    print(rest[0])
    for text, piece in zip(texts[1:], rest[1:], strict=True):
        print("-" * 80 + "\n" + text + piece)


def converse(model: "GPT", tokenizer: "Tokenizer", settings: SampleSettings) -> None:
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
        raise UserError(f"the prompt file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the prompt file {path} is not UTF-8 (byte {error.start})") from error


if __name__ == "__main__":
    run_script(main)
