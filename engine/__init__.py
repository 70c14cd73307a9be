"""What the scripts stand on: settings, data, tokenizers, checkpoints, devices, metrics."""
