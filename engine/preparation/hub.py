"""Folders of files on the Hugging Face hub: listed, and each downloaded while the one before is read.

The environment variable HF_ENDPOINT names another address of the hub, as it does for the hub's own tools.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from engine.download import hub_errors, reach_hub
from engine.errors import UserError
from engine.system import hashes_of


@dataclass(frozen=True)
class HubFolder:
    """A folder in a data set's repository on the Hugging Face hub."""

    repository: str
    folder: str


@dataclass(frozen=True)
class HubFile:
    """A file in a data set's repository, as it is at one commit."""

    repository: str
    commit: str
    path: str
    size: int  # bytes
    sha256: str
    address: str  # where a browser would get it
    downloads: Path  # the folder that it is downloaded to

    @property
    def place(self) -> Path:
        """Where the file is once it is downloaded."""
        return self.downloads / self.path


def list_parquet(source: HubFolder, downloads: Path) -> list[HubFile]:
    """The Parquet files of a folder, ordered by name. Raises UserError."""
    from huggingface_hub import HfApi, RepoFile, hf_hub_url

    name, found = source.repository, []
    with hub_errors(f"the files of {name} cannot be listed"):
        commit = reach_hub(name, "dataset")
        for entry in HfApi().list_repo_tree(name, source.folder, revision=commit, repo_type="dataset"):
            if isinstance(entry, RepoFile) and entry.path.endswith(".parquet"):
                if entry.lfs is None:
                    raise UserError(f"the hub lists no SHA-256 of {name}/{entry.path}")
                address = hf_hub_url(name, entry.path, repo_type="dataset", revision=commit)
                known = (entry.path, entry.size, entry.lfs.sha256)
                found.append(HubFile(name, commit, *known, address, downloads))
    if not found:
        raise UserError(f"{name} has no Parquet files in {source.folder}")
    return sorted(found, key=lambda file: file.path)


def download(file: HubFile) -> None:
    """Download a file, resuming an earlier attempt, and check its SHA-256. Raises UserError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    with hub_errors(f"{file.address} cannot be downloaded", "; the same command goes on"):
        hf_hub_download(
            file.repository, file.path, repo_type="dataset", revision=file.commit, local_dir=file.downloads
        )
    if hashes_of([file.place]) != [file.sha256]:
        file.place.unlink()
        raise UserError(f"{file.address} arrived damaged (its SHA-256 differs); run the same command again")


def wait_for_each(files: Sequence[HubFile | None], first: int) -> Iterator[int]:
    """The numbers of the files from `first` on, each once it is there; those before it are deleted."""
    thread = ThreadPoolExecutor(1)
    started = {}
    try:
        for number in range(len(files)):
            before = files[number - 1] if number else None
            if before is not None:
                before.place.unlink(missing_ok=True)
            if number < first:
                continue
            for coming in range(number, min(number + 2, len(files))):
                file = files[coming]
                if file is not None and coming not in started:
                    started[coming] = thread.submit(download, file)
            if number in started:
                started[number].result()
            yield number
    finally:
        thread.shutdown(cancel_futures=True)
