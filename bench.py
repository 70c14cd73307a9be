"""Measure speed, always against something: the machine's own limits, and a baseline run in turns.

    python bench.py train     a training step of the CPU-sized setting, ours and the baseline's
    python bench.py train --config configs/shakespeare_char_fast.py
    python bench.py loss      what the fast setting reaches, and how soon; --compare: beside which setting
    python bench.py sample    tokens per second with the KV cache, small model and GPT-2's shape
    python bench.py start     from the start of train.py to its first step
    python bench.py memory    predicted and measured memory of training, for some shapes
    python bench.py prepare   how fast prepare.py is, against tokenizing alone
    python bench.py scaling   tokens per second of 1, 2, 4, … processes, on the GPUs or on shared cores
    python bench.py network   bandwidth of adding up tensors over processes; across machines under torchrun
    python bench.py profile   a trace of training steps of several processes, and what communication hides

Every figure is a median over rounds with its spread (10th to 90th percentile); ours and the baseline take
turns in processes of their own, so a machine that slows down slows both. The baseline is what one writes
first: fp32 products by the default library, scaled_dot_product_attention, AdamW unfused, memory as the C
library handles it; for sampling, no cache.
"""

from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from typing import Any

from engine.command_line import Parser, run_script
from engine.measure.loss_speed import measure_loss
from engine.measure.memory_check import measure_memory
from engine.measure.parallel_speed import measure_network, measure_profile, measure_scaling
from engine.measure.prepare_speed import measure_preparing
from engine.measure.sampling_speed import measure_sampling
from engine.measure.start_speed import measure_start
from engine.measure.training_speed import measure_training, work


def main(arguments: Sequence[str]) -> None:
    """Run the measurement that the command line names."""
    parser = Parser(description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("what", choices=(*measurements(), "worker"), help="what to measure")
    parser.add_argument(
        "--config", help="train, scaling, profile: a configuration file (default: the plain CPU setting)"
    )
    parser.add_argument(
        "--compare", help="loss: a configuration file to take turns with (default: the plain CPU setting)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="loss: default 1 2 3")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of taking turns (default: 15)")
    parser.add_argument(
        "--kind", choices=("ours", "baseline"), default="ours", help="worker: which of the two to be"
    )
    parser.add_argument(
        "--processes", type=int, help="scaling, network, profile: how many (default: GPUs, or cores)"
    )
    parser.add_argument(
        "--megabytes", type=int, default=2000, help="prepare: size of the text (default: 2000)"
    )
    parser.add_argument(
        "--largest", type=int, default=256, help="network: largest tensor in MiB (default: 256)"
    )
    parser.add_argument(
        "--trace", default="trace.json", help="profile: the file to write (default: trace.json)"
    )
    options = parser.parse_args(arguments)
    if options.what == "worker":
        work(options.kind, options.config)
    else:
        measurements()[options.what](options)


def measurements() -> dict[str, Callable[[Any], None]]:
    """What can be measured, by name."""
    return {
        "train": measure_training,
        "loss": measure_loss,
        "sample": measure_sampling,
        "start": measure_start,
        "memory": measure_memory,
        "prepare": measure_preparing,
        "scaling": measure_scaling,
        "network": measure_network,
        "profile": measure_profile,
    }


if __name__ == "__main__":
    run_script(main)
