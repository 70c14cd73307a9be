"""What the scripts stand on: settings, data, tokenizers, checkpoints, devices, metrics."""

__version__ = "1.0.0.dev0"
