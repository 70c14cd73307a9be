"""Describe a data set to a person, and verify its files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from engine.data.dataset import DATA_FOLDER, open_dataset, verify_hashes

SAMPLES = 3
SAMPLE_TOKENS = 60
COUNTED = 2**23  # ids of the training split in which the commonest are looked for
COMMONEST = 20


def describe(name: str, say: Callable[[str], None], root: Path = DATA_FOLDER) -> None:
    """Print what a data set holds. Raises UserError."""
    data = open_dataset(name, 0, root)
    meta = data.meta
    tokens = f"{data.train.tokens:,} training and {data.val.tokens:,} validation tokens"
    say(f"{data.folder}: {tokens} ({meta['dtype']})")
    say(f"tokenizer: {meta['tokenizer']['kind']}, {meta['vocab_size']:,} entries")
    for what in ("documents", "characters", "text_bytes"):
        if meta.get(what):
            counts = ", ".join(f"{count:,} for {split}" for split, count in meta[what].items())
            say(f"{what.replace('text_bytes', 'bytes of text')}: {counts}")
    counted = min(data.train.tokens, COUNTED)
    if data.train.is_masked:
        say(
            f"conversations: the longest has {meta['conversations']['longest']:,} tokens; "
            f"{data.train.are_targets(0, counted).mean():.0%} of the training tokens are targets"
        )
    if meta.get("dropped"):
        say("left out: " + ", ".join(f"{count:,} {reason}" for reason, count in meta["dropped"].items()))
    for source in meta.get("sources", [])[:8]:
        say("source: " + ", ".join(f"{key} {value}" for key, value in source.items()))
    say(f"files: {len(meta['files'])}, fingerprint {data.fingerprint[:16]}")
    length = min(SAMPLE_TOKENS, data.train.tokens)
    for number in range(SAMPLES):
        start = (data.train.tokens - length) * number // SAMPLES
        say(f"at token {start:,}: {data.tokenizer.decode(data.train.read(start, length).tolist())!r}")
    ids = data.train.read(0, counted)
    data.train.check_ids(ids)
    counts = np.bincount(ids)
    commonest = [int(one) for one in np.argsort(-counts, kind="stable")[:COMMONEST] if counts[one]]
    shares = (f"{data.tokenizer.decode([one])!r} {counts[one] / counted:.1%}" for one in commonest)
    say(f"commonest tokens: {', '.join(shares)}")


def verify(name: str, say: Callable[[str], None], root: Path = DATA_FOLDER) -> None:
    """Compare every file's SHA-256. Raises UserError."""
    data = open_dataset(name, 0, root)
    verify_hashes(data.folder, data.meta, name)
    say(f"{data.folder}: all {len(data.meta['files'])} files are as they were made")
