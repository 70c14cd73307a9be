"""What a data set holds, for a person; and whether its files are still what they were."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from engine.data.dataset import DATA_FOLDER, Dataset, Split, open_dataset, token_files, verify_hashes

SAMPLES = 3
SAMPLE_TOKENS = 60
COUNTED = 2**23  # ids of the training split in which the commonest are looked for
COMMONEST = 20


def describe(name: str, say: Callable[[str], None], root: Path = DATA_FOLDER) -> None:
    """Print counts, sources, a few decoded samples and the commonest tokens. Raises UserError."""
    data = open_dataset(name, 0, root)
    meta = data.meta
    say(
        f"{data.folder}: {data.train.tokens:,} training and "
        f"{data.val.tokens:,} validation tokens ({meta['dtype']})"
    )
    say(f"tokenizer: {meta['tokenizer']['kind']}, {meta['vocab_size']:,} entries")
    for what in ("documents", "characters", "text_bytes"):
        if meta.get(what):
            say(f"{what.replace('text_bytes', 'bytes of text')}: " + _by_split(meta[what]))
    if data.train.is_masked:
        say(
            f"conversations: the longest has {meta['conversations']['longest']:,} tokens; "
            f"{_share_of_targets(data.train):.0%} of the training tokens are targets"
        )
    if meta.get("dropped"):
        say("left out: " + ", ".join(f"{count:,} {reason}" for reason, count in meta["dropped"].items()))
    for source in meta.get("sources", [])[:8]:
        say("source: " + ", ".join(f"{key} {value}" for key, value in source.items()))
    say(f"files: {len(meta['files'])}, fingerprint {data.fingerprint[:16]}")
    for number in range(SAMPLES):
        start = (data.train.tokens - min(SAMPLE_TOKENS, data.train.tokens)) * number // SAMPLES
        text = data.tokenizer.decode(data.train.read(start, min(SAMPLE_TOKENS, data.train.tokens)).tolist())
        say(f"at token {start:,}: {text!r}")
    say(f"commonest tokens: {', '.join(_commonest(data, data.train))}")


def _share_of_targets(split: Split) -> float:
    """The share of targets in a split's beginning."""
    return float(split.are_targets(0, min(split.tokens, COUNTED)).mean())


def _by_split(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} for {split}" for split, count in counts.items())


def _commonest(data: Dataset, split: Split) -> list[str]:
    """The commonest tokens of a split's beginning, with their shares."""
    ids = split.read(0, min(split.tokens, COUNTED))
    split.check_ids(ids)
    counts = np.bincount(ids)
    order = np.argsort(-counts, kind="stable")[:COMMONEST]
    return [
        f"{data.tokenizer.decode([int(one)])!r} {counts[one] / len(ids):.1%}" for one in order if counts[one]
    ]


def verify(name: str, say: Callable[[str], None], root: Path = DATA_FOLDER) -> None:
    """Read every file and compare its SHA-256. Raises UserError for one that differs."""
    data = open_dataset(name, 0, root)
    files = token_files(data.folder, data.meta)
    verify_hashes(files, name)
    say(f"{data.folder}: all {len(files)} files are as they were made")
