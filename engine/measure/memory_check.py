"""Predicted and measured memory of training, side by side: each case is trained in a process of its own.

    python -m engine.memory_check '{"n_layer": 6, "n_embd": 768}' '{"micro_batch": 8}'

The arguments are a `GPTConfig` and a `memory.Setup` as JSON. On a CPU the growth of the process is measured:
its largest resident size while training, less what it was before the model; on a GPU the peak of PyTorch's
allocator.
"""

import dataclasses
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.settings import TrainSettings
from engine.training.memory import Memory, Setup, predict
from model import GPTConfig


def measure_memory(options: Any) -> None:
    """Predicted and measured memory of three steps, for shapes that take a gigabyte and more."""
    from engine.training.memory import Setup, gigabytes

    pass
    from model import GPTConfig

    wide = GPTConfig(vocab_size=256, block_size=512, n_layer=6, n_head=8, n_embd=512, bias=False)
    dropping = dataclasses.replace(wide, dropout=0.1)
    turning = dataclasses.replace(wide, position="rotary", qk_norm=True, activation="relu2")
    gpt2 = GPTConfig(vocab_size=50304, block_size=256, bias=False)
    for config, setup in (
        (wide, Setup(8)),
        (wide, Setup(8, attention_kernel="matmul")),
        (dropping, Setup(8)),
        (dropping, Setup(8, attention_kernel="matmul")),
        (turning, Setup(8)),
        (wide, Setup(12, dtype="bfloat16")),
        (gpt2, Setup(4)),
        (gpt2, Setup(4, micro_steps=2)),
        (gpt2, Setup(2, optimizer="muon")),
    ):
        predicted, measured = check_memory(config, setup)
        print(
            f"{config.n_layer} × {config.n_embd}, block {config.block_size}, vocabulary {config.vocab_size}, "
            f"{setup.micro_steps} × {setup.micro_batch} sequences, {setup.optimizer}, {setup.dtype}, "
            f"attention {setup.attention_kernel}, dropout {config.dropout}, {config.position}: "
            f"predicted {gigabytes(predicted.total)}, measured {gigabytes(measured)}, "
            f"ratio {predicted.total / measured:.2f}",
            flush=True,
        )


ROOT = Path(__file__).resolve().parents[2]
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

    from engine.device import Compute
    from engine.training.optimizer import clip_gradients, make_optimizer
    from model import GPT

    compute = Compute(setup.device, setup.dtype, False, torch.get_num_threads())
    compute.apply()
    optimizer_used = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], fused=True)
    optimizer_used.step()  # loads what the first optimizer loads
    before = resident("VmRSS")
    model = GPT.empty(config, setup.device, compute.weights_dtype())
    model.init_weights(0)
    model.use_attention_kernel(setup.attention_kernel)
    optimizer = make_optimizer(model, TrainSettings(optimizer=setup.optimizer))
    rows = torch.randint(config.vocab_size, (setup.micro_batch, config.block_size + 1), device=setup.device)
    for _ in range(STEPS):
        for _ in range(setup.micro_steps):
            with compute.autocast():
                loss = model(rows[:, :-1], rows[:, 1:]) / (setup.micro_steps * rows[:, 1:].numel())
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
