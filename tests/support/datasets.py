"""Small data sets for tests."""

from pathlib import Path

from engine.preparation.pipeline import prepare
from engine.preparation.request import Request


def quiet(_: str) -> None:
    """Say nothing."""


def write_dataset(name: str, text: str, tokenizer: str, val: float, root: Path = Path("data")) -> Path:
    """data/NAME from a text: its first part for training, the last `val` for validation."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / f"{name}.txt"
    path.write_bytes(text.encode("utf-8"))
    try:
        return prepare(Request(name, [str(path)], tokenizer, val=val), quiet, root)
    finally:
        path.unlink()
