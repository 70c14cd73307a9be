"""Folders of files on the Hugging Face hub: listed, and each downloaded while the one before is read.

The environment variable HF_ENDPOINT names another address of the hub, as it does for the hub's own tools.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from engine.download import hub_errors, reach_hub
from engine.errors import UserError
from engine.system import hashes_of


@dataclass(frozen=True)
class HubFolder:
    """A folder in a data set's repository."""

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

    @property
    def address(self) -> str:
        """Where a browser would get it."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repository, self.path, repo_type="dataset", revision=self.commit)


def list_parquet(source: HubFolder) -> list[HubFile]:
    """The Parquet files of a folder, ordered by name. Raises UserError."""
    from huggingface_hub import HfApi, RepoFile

    found = []
    with hub_errors(f"the files of {source.repository} cannot be listed"):
        commit = reach_hub(source.repository, "dataset")
        listing = HfApi().list_repo_tree(
            source.repository, source.folder, revision=commit, repo_type="dataset"
        )
        for entry in listing:
            if isinstance(entry, RepoFile) and entry.path.endswith(".parquet"):
                if entry.lfs is None:
                    raise UserError(f"the hub lists no SHA-256 of {source.repository}/{entry.path}")
                file = HubFile(source.repository, commit, entry.path, entry.size, entry.lfs.sha256)
                found.append(file)
    if not found:
        raise UserError(f"{source.repository} has no Parquet files in {source.folder}")
    return sorted(found, key=lambda file: file.path)


def download(file: HubFile, folder: Path) -> None:
    """Download a file, going on where an earlier attempt stopped, and check its SHA-256. Raises UserError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    with hub_errors(f"{file.address} cannot be downloaded", "; the same command goes on"):
        hf_hub_download(
            file.repository, file.path, repo_type="dataset", revision=file.commit, local_dir=folder
        )
    if hashes_of([folder / file.path]) != [file.sha256]:
        (folder / file.path).unlink()
        raise UserError(f"{file.address} arrived damaged (its SHA-256 differs); run the same command again")


class Downloads:
    """Downloads each file while the one before is read, and deletes those that have been read.

    `files` has None for each input that does not come from the hub.
    """

    def __init__(self, files: list[HubFile | None], folder: Path) -> None:
        self.files, self.folder = files, folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="downloads")
        self._started: dict[int, Future[None]] = {}
        self._read = 0  # so many files, which have been deleted

    def wait_for(self, number: int) -> None:
        """Return when a file is there, and start to download the next. Raises UserError."""
        for file in self.files[self._read : number]:
            if file is not None:
                (self.folder / file.path).unlink(missing_ok=True)
        self._read = number
        for coming in (number, number + 1):
            file = self.files[coming] if coming < len(self.files) else None
            if file is not None and coming not in self._started:
                self._started[coming] = self._thread.submit(download, file, self.folder)
        if number in self._started:
            self._started[number].result()

    def close(self) -> None:
        """Wait for the running download, and start no other."""
        self._thread.shutdown(wait=True, cancel_futures=True)
