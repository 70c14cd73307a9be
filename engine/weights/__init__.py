"""Weights on disk: checkpoints, and GPT-2 in and out."""
