"""Predicted and measured memory of training, side by side: each case is trained in a process of its own.

    python -m engine.memory_check '{"n_layer": 6, "n_embd": 768}' '{"micro_batch": 8}'

The arguments are a `GPTConfig` and a `memory.Setup` as JSON. On a CPU the growth of the process is measured:
its largest resident size while training, less what it was before the model; on a GPU the peak of PyTorch's
allocator.
"""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from engine.memory import Memory, Setup, predict
from model import GPTConfig

ROOT = Path(__file__).resolve().parent.parent
STEPS = 3


def check_memory(config: GPTConfig, setup: Setup) -> tuple[Memory, int]:
    """(the prediction, the bytes measured) for three steps of training in a new process."""
    line = [
        sys.executable,
        "-m",
        "engine.memory_check",
        json.dumps(asdict(config)),
        json.dumps(asdict(setup)),
    ]
    finished = subprocess.run(line, cwd=ROOT, check=True, capture_output=True, text=True)
    return predict(config, setup), json.loads(finished.stdout)


def resident(key: str) -> int:
    """This process's resident bytes as Linux tells them: "VmRSS" now, "VmHWM" at its largest."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def train_and_measure(config: GPTConfig, setup: Setup) -> int:
    """Make a model, train it for three steps as train.py does, and return the bytes that it took."""
    import torch

    from engine.config import TrainSettings
    from engine.device import Choices
    from engine.optimizer import clip_gradients, make_optimizer
    from model import GPT

    choices = Choices(setup.device, setup.dtype, False, torch.get_num_threads())
    choices.apply()
    optimizer_used = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], fused=True)
    optimizer_used.step()  # loads what the first optimizer loads
    before = resident("VmRSS")
    model = GPT.empty(config, setup.device, choices.weights_dtype())
    model.init_weights(0)
    model.use_attention_kernel(setup.attention_kernel)
    optimizer = make_optimizer(model, TrainSettings(optimizer=setup.optimizer))
    rows = torch.randint(config.vocab_size, (setup.micro_batch, config.block_size + 1), device=setup.device)
    for _ in range(STEPS):
        for _ in range(setup.micro_steps):
            with choices.autocast():
                loss = model(rows[:, :-1], rows[:, 1:])[1] / setup.micro_steps
            loss.backward()
            del loss
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if setup.device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resident("VmHWM") - before


if __name__ == "__main__":
    print(train_and_measure(GPTConfig(**json.loads(sys.argv[1])), Setup(**json.loads(sys.argv[2]))))
