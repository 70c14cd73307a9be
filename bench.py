"""Measure speed, always against something: the machine's own limits, and a baseline run in turns.

    python bench.py train     a training step of the CPU-sized setting, ours and the baseline's
    python bench.py train --config configs/shakespeare_char_fast.py
    python bench.py loss      what the fast setting reaches, and how soon; --compare: beside which setting
    python bench.py sample    tokens per second in fp32, bf16 and int8, against no cache and transformers
    python bench.py start     from the start of train.py to its first step
    python bench.py memory    predicted and measured memory of training, for some shapes
    python bench.py prepare   how fast prepare.py is, against tokenizing alone
    python bench.py scaling   tokens per second of 1, 2, 4, … processes, on the GPUs or on shared cores
    python bench.py network   bandwidth of adding up tensors over processes; across machines under torchrun
    python bench.py gpu       all that a GPU shows in a few minutes, in one file: docs/gpu.md
    python bench.py profile   a trace of training steps of several processes, and what communication costs

Every figure is a median over rounds with its spread (10th to 90th percentile); ours and the baseline take
turns, so a machine that slows down slows both. The baseline is what one writes first: PyTorch's defaults,
AdamW unfused, nothing compiled; for sampling, no cache, and the library transformers if it is installed.
"""

from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial

from engine.command_line import Parser, run_script
from engine.measure.command_speed import measure_loss, measure_preparing, measure_start
from engine.measure.gpu_report import measure_gpu
from engine.measure.memory_check import measure_memory
from engine.measure.parallel_speed import measure_network, measure_profile, measure_scaling
from engine.measure.sampling_speed import measure_sampling
from engine.measure.training_speed import measure_training
from train import update

MEASUREMENTS: dict[str, Callable[[Namespace], None]] = {
    "train": partial(measure_training, update),
    "loss": measure_loss,
    "sample": measure_sampling,
    "start": measure_start,
    "memory": partial(measure_memory, update),
    "prepare": measure_preparing,
    "scaling": partial(measure_scaling, update),
    "network": measure_network,
    "gpu": partial(measure_gpu, update),
    "profile": partial(measure_profile, update),
}


def main(arguments: Sequence[str]) -> None:
    """Run the measurement that the command line names."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("what", choices=tuple(MEASUREMENTS), help="what to measure")
    add("--config", help="train, scaling, profile: a configuration file (default: the plain CPU setting)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps or xpu (default: auto)")
    add("--compare", help="loss: a configuration file to take turns with (default: the plain CPU setting)")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3], help="loss: default 1 2 3")
    add("--rounds", type=int, default=15, help="rounds of taking turns (default: 15)")
    add(
        "--processes", type=int, help="scaling, network, profile, prepare: how many (default: GPUs, or cores)"
    )
    add("--megabytes", type=int, default=2000, help="prepare: size of the text (default: 2000)")
    add("--largest", type=int, default=256, help="network: largest tensor in MiB (default: 256)")
    add("--dataset", help="gpu: a prepared tiny Shakespeare by characters, for the time to a loss")
    add("--output", default="gpu.json", help="gpu: the file to write (default: gpu.json)")
    add("--trace", default="trace.json", help="profile: the file to write (default: trace.json)")
    options = parser.parse_args(arguments)
    MEASUREMENTS[options.what](options)


if __name__ == "__main__":
    run_script(main)
