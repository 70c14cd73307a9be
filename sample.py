"""Write text with a trained GPT.

    python sample.py --temperature 0.8
    python sample.py --start "ROMEO:" --num_samples 3 --max_new_tokens 300 --top_k 40 --seed 7
    python sample.py --out_dir=out/shakespeare_char --checkpoint=last --start FILE:prompt.txt

Without --out_dir the newest run in out/ is taken. The same seed gives the same text on the same machine; a sample
depends on the seed and its number, not on how many are drawn.
"""

from collections.abc import Sequence
from pathlib import Path

from engine.config import SampleSettings, read_settings
from engine.errors import UserError, run_script


def main(arguments: Sequence[str]) -> None:
    """Load a checkpoint, continue the prompt, print."""
    sources = read_settings(SampleSettings, arguments, __doc__)
    settings: SampleSettings = sources.settings(on_cpu=False)

    import torch

    from engine.checkpoint import find_runs, load
    from engine.device import Choices, choose_dtype, choose_threads, find_device
    from engine.tokenizer import encode_prompt

    device = find_device(settings.device)
    choices = Choices(device.type, choose_dtype(settings.dtype, device), False, choose_threads(settings.threads, 1))
    choices.apply()
    folder = settings.out_dir or next(iter(find_runs()), None)
    if folder is None:
        raise UserError(
            "there is no run in out/ to sample from; train one: python train.py configs/shakespeare_char.py"
        )
    model, tokenizer = load(folder, device, settings.checkpoint, choices.weights_dtype())
    prompt = encode_prompt(tokenizer, read_prompt(settings.start))
    ids = torch.from_numpy(prompt)[None].repeat(settings.num_samples, 1).to(device)
    with choices.autocast():
        texts = model.generate(
            ids,
            settings.max_new_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            seed=settings.seed,
            n_tokens=tokenizer.vocab_size,
        )
    for number, text in enumerate(texts.tolist()):
        if number:
            print("-" * 80)
        print(tokenizer.decode(text).strip("\n"))


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
