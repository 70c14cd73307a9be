"""Token files of other programs are read as they are, and what is wrong with them is named."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.commands import command
from support.gpt2 import needs_gpt2_vocabulary
from support.random_models import save_run

import convert
import prepare as script
import sample
from engine.data.dataset import open_dataset
from engine.errors import UserError
from engine.preparation.recipes import prepare_recipe
from engine.preparation.token_files import describe_token_files, largest_id
from engine.text.byte_pairs import OwnBytePairTokenizer, ranks_text
from engine.text.characters import NumberTokenizer
from engine.weights.pretrained import read_pretrained
from model import GPTConfig

GOOD = (np.arange(600) * 37 % 200).astype("<u2")


def quiet(_: str) -> None:
    """Say nothing."""


def shard(path: Path, ids: np.ndarray, magic: int, version: int = 1) -> None:
    """A shard as llm.c writes it: 256 int32, then the ids."""
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(ids)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.tobytes() + ids.tobytes())


def numbers(tmp_path: Path, name: str) -> tuple[list[int], list[int]]:
    """The ids of both splits, as training would read them."""
    data = open_dataset(name, 16, tmp_path / "data")
    return tuple(split.read(0, split.tokens).tolist() for split in (data.train, data.val))


@pytest.mark.parametrize(
    ("magic", "dtype", "largest"), [(20240520, "<u2", 50257), (20240801, "<u4", 128_256)]
)
def test_shards_with_a_header_are_read_in_place(tmp_path: Path, magic: int, dtype: str, largest: int) -> None:
    parts = [np.random.randint(0, largest, 300 + number).astype(dtype) for number in range(4)]
    for number, part in enumerate(parts):
        name = f"fineweb_{'val' if number == 0 else 'train'}_{number:06}.bin"
        shard(tmp_path / "shards" / name, part, magic, 7 if magic == 20240801 else 1)
    describe_token_files("web", [str(tmp_path / "shards")], "numbers", quiet, tmp_path / "data")
    assert numbers(tmp_path, "web") == (np.concatenate(parts[1:]).tolist(), parts[0].tolist())
    data = open_dataset("web", 16, tmp_path / "data")
    text = data.tokenizer.decode(parts[0])
    assert data.tokenizer.encode(text).tolist() == parts[0].tolist()
    assert data.bytes_per_token(data.val) is None
    assert all((data.folder / file["path"]).is_symlink() for file in data.meta["files"])
    assert not (data.folder / ".partial").exists()


def test_bare_ids_in_the_data_folder_are_described_by_the_command_and_by_training(tmp_path: Path) -> None:
    train, val = (np.random.randint(0, 256, count).astype("<u2") for count in (5000, 700))
    (tmp_path / "data" / "one").mkdir(parents=True)
    train.tofile(tmp_path / "data/one/train.bin")
    val.tofile(tmp_path / "data/one/val.bin")
    shard(tmp_path / "data/two/train.bin", train.astype("<u4"), 20240801)
    shard(tmp_path / "data/two/val.bin", val.astype("<u4"), 20240801)
    finished = command(tmp_path, "prepare.py", "one", "--tokenizer", "bytes")
    assert finished.returncode == 0, finished.stderr
    assert numbers(tmp_path, "one") == (train.tolist(), val.tolist())
    assert (tmp_path / "data/one/train.bin").read_bytes() == train.tobytes()
    small = (
        "--max_iters=2",
        "--n_layer=1",
        "--n_embd=32",
        "--eval_iters=1",
        "--compile=False",
        "--device=cpu",
        "--threads=1",
    )
    trained = command(tmp_path, "train.py", "--dataset=two", *small)
    assert trained.returncode == 0, trained.stderr
    assert numbers(tmp_path, "two") == (train.tolist(), val.tolist())


@needs_gpt2_vocabulary
def test_ids_without_a_word_about_their_vocabulary_are_those_of_gpt2(tmp_path: Path) -> None:
    shard(tmp_path / "data/a/x_train_000000.bin", GOOD, 20240520)
    (tmp_path / "data/b").mkdir()
    GOOD.tofile(tmp_path / "data/b/train.bin")
    for name in ("a", "b"):
        (tmp_path / "data" / name / "val.bin").write_bytes(GOOD.tobytes())
        prepare_recipe(name, quiet, tmp_path / "data")
        assert open_dataset(name, 16, tmp_path / "data").meta["tokenizer"] == {"kind": "gpt2"}
        assert numbers(tmp_path, name) == (GOOD.tolist(), GOOD.tolist())
    too_large = np.full(99, 50_257, dtype="<u2")
    (tmp_path / "data/c").mkdir()
    for split in ("train", "val"):
        too_large.tofile(tmp_path / f"data/c/{split}.bin")
    with pytest.raises(UserError, match="token id 50,257"):
        prepare_recipe("c", quiet, tmp_path / "data")


def test_a_larger_vocabulary_comes_from_a_file(tmp_path: Path) -> None:
    tokenizer = OwnBytePairTokenizer([bytes([byte]) for byte in range(256)] + [b"ab", b"abc"])
    (tmp_path / "own.tiktoken").write_bytes(ranks_text(tokenizer))
    ids = tokenizer.encode_document("abcab and abc").astype("<u4")
    for split in ("train", "val"):
        shard(tmp_path / f"{split}.bin", ids, 20240801)
    paths = [str(tmp_path / f"{split}.bin") for split in ("train", "val")]
    describe_token_files("own", paths, str(tmp_path / "own.tiktoken"), quiet, tmp_path / "data")
    data = open_dataset("own", 2, tmp_path / "data")
    assert data.tokenizer.decode(data.train.read(0, data.train.tokens)) == "abcab and abc<|endoftext|>"


def test_the_largest_id_is_found_in_any_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.preparation.token_files.READ_AT_ONCE", 7)
    for _ in range(20):
        ids = np.random.randint(0, 60_000, np.random.randint(1, 40)).astype("<u2")
        ids.tofile(tmp_path / "a.bin")
        assert largest_id(tmp_path / "a.bin", np.dtype("<u2"), 0, len(ids)) == ids.max()


@pytest.mark.parametrize(
    ("spoil", "options", "said"),
    [
        (lambda folder: None, ("--tokenizer", "char"), "--tokenizer FILE"),
        (lambda folder: (folder / "val.bin").unlink(), ("--tokenizer", "bytes"), "for val"),
        (lambda folder: (folder / "val.bin").write_bytes(b"abc"), ("--tokenizer", "bytes"), "has 3 bytes"),
        (lambda folder: GOOD.astype("<u4").tofile(folder / "val.bin"), ("--tokenizer", "bytes"), ""),
        (
            lambda folder: (GOOD + 300).astype("<u2").tofile(folder / "val.bin"),
            ("--tokenizer", "bytes"),
            "token id",
        ),
        (
            lambda folder: shard(folder / "val.bin", GOOD.astype("<u4"), 20240801),
            ("--tokenizer", "bytes"),
            "apart",
        ),
        (lambda folder: cut_short(folder / "val.bin"), ("--tokenizer", "bytes"), "its header says"),
        (lambda folder: (folder / "meta.pkl").write_bytes(b""), (), r"meta\.pkl, which is not read"),
    ],
)
def test_what_is_wrong_with_token_files_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails: Callable[..., str],
    spoil: Callable[[Path], object],
    options: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "a"
    for split in ("train", "val"):
        shard(folder / f"{split}.bin", GOOD, 20240520)
    spoil(folder)
    if said:
        assert re.search(said, fails(script.main, "a", *options))
        assert not (folder / "meta.json").exists() and not (folder / ".partial").exists()
    else:  # uint32 ids without a header look like twice as many uint16 ids
        script.main(["a", *options])
        assert open_dataset("a", 16).val.tokens == 1200


def cut_short(path: Path) -> None:
    """Take the last bytes away."""
    shard(path, GOOD, 20240520)
    path.write_bytes(path.read_bytes()[:-10])


def test_a_folder_of_token_files_is_known_by_what_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        shard(tmp_path / f"shards/{split}.bin", GOOD.astype("<u4"), 20240801)
    script.main(["a", "--input", "shards"])
    script.main(["b", "--input", "shards/train.bin", "--val", "shards/val.bin"])
    for name in ("a", "b"):
        assert numbers(tmp_path, name) == (GOOD.tolist(), GOOD.tolist())
    shard(tmp_path / "shards/val.bin", GOOD[:1].astype("<u4"), 20240801)
    assert "has 1 of the 2 tokens" in fails(script.main, "c", "--input", "shards")
    assert not (tmp_path / "data/c").exists()


def test_a_model_of_numbers_writes_numbers_and_goes_elsewhere_without_a_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str], capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = NumberTokenizer(300)
    ids = np.random.randint(0, 300, 40).tolist()
    assert "".join(tokenizer.decode([index]) for index in ids) == tokenizer.decode(ids)
    assert tokenizer.encode(tokenizer.decode(ids)).tolist() == ids
    config = GPTConfig(vocab_size=300, block_size=16, n_layer=1, n_head=1, n_embd=8)
    save_run(config, tokenizer, tmp_path / "run", 1)
    options = ("--init_from=run", "--device=cpu", "--num_samples=1", "--max_new_tokens=9", "--threads=1")
    sampled = command(tmp_path, "sample.py", "--start=11 12", *options)
    found = [int(word) for word in sampled.stdout.split()]
    assert found[:2] == [11, 12] and len(found) == 11 and max(found) < 300, sampled.stderr
    assert "write token ids below 300" in fails(sample.main, "--start=ROMEO:", *options)
    for kind, said in (("hf", "no tokenizer was written"), ("run", "vocabulary 300")):
        convert.main(["run", "--to", kind, f"as_{kind}"])
        assert said in capfd.readouterr().out
    assert read_pretrained("as_run").tokenizer.to_dict() == tokenizer.to_dict()
    assert read_pretrained("as_hf").tokenizer is None


@pytest.mark.parametrize("how", ["data/a", "data/a/", "--input"])
def test_files_in_their_place_stay_themselves_however_they_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        shard(Path(f"data/a/{split}.bin"), GOOD.astype("<u4"), 20240801)
    files = ["data/a/train.bin", "data/a/val.bin"]
    script.main(["a", "--input", *files] if how == "--input" else [how])
    assert numbers(tmp_path, "a") == (GOOD.tolist(), GOOD.tolist())
    assert not any(Path(file).is_symlink() for file in files)


def test_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        shard(tmp_path / folder / "train.bin", GOOD, 20240520)
    with pytest.raises(UserError, match="same name"):
        describe_token_files("x", [str(tmp_path / "a"), str(tmp_path / "b")], None, quiet, tmp_path / "data")
