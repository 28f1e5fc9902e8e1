"""Where a label store is published: a dataset on a hub, or a local folder of the same layout.

On a hub everything changes in one commit, on the condition that nobody else's came between: a reader sees the store before it
or after it. Small files travel in the commit; parts go up first, by the hub's large file storage (Xet where `hf_xet` is
installed). The token is the environment's `HF_TOKEN` and no other; it is in no message. `HF_ENDPOINT` is another hub.
"""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline import __version__, storage
from pipeline.errors import ConfigError, EndorewardError, RunError, StoreError, last_line
from pipeline.store import documents

HUB = "hf://datasets/"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
TOKEN_VARIABLE = "HF_TOKEN"
MOST_FILES = 10_000  # of a commit; a hub takes about 25,000

Files = Mapping[str, str | bytes]  # by name: a local path, or the content


class Dataset(Protocol):
    """`name` is what people read, `hub_name` ORG/NAME, empty for a folder. `public`: whether everyone may read it on a hub, as
    `files` or `change` left it; None where there is none."""

    name: str
    hub_name: str
    public: bool | None

    def files(self) -> set[str]:
        """Names of what is there now, none where there is no dataset. What follows is of this state."""
        ...

    def read(self, name: str) -> bytes: ...

    def download(self, names: Sequence[str], folder: str) -> None:
        """Put copies below a local folder that is there."""
        ...

    def change(self, files: Files, removed: Sequence[str], message: str, public: bool) -> str:
        """Write files and delete others; a dataset that is not there is made. Returns where it is, for people."""
        ...


def dataset_at(place: str, revision: str | None = None) -> Dataset:
    """`ORG/NAME` or `hf://datasets/ORG/NAME` on a hub, or a local folder: `./x`, `/x` or `file:///x`.

    Raises:
        ConfigError: for what is neither, or could be both.
    """
    name = place.removeprefix(HUB)
    if place.startswith(HUB) and not HUB_NAME.fullmatch(name):
        raise ConfigError(f"{place} is no dataset on a hub: that is {HUB}ORG/NAME")
    if place.startswith(HUB) or HUB_NAME.fullmatch(place):
        if name == place and os.path.exists(place):
            raise ConfigError(
                f"{place} is a folder here, and could be a dataset's name on the hub: give ./{place}, or {HUB}{place}"
            )
        return HubDataset(name, revision)
    if not storage.is_local(place) or not place.startswith(("file://", "/", "./", "../", "~")):
        raise ConfigError(
            f"{place} is neither a dataset on the hub, ORG/NAME, nor a local folder, which begins with /, ./, ../ or ~"
        )
    if revision is not None:
        raise ConfigError(f"--revision: {place} is a folder and has none; leave it out")
    return FolderDataset(storage.absolute(place))


class FolderDataset:
    """A local folder."""

    hub_name = ""
    public: bool | None = None

    def __init__(self, folder: str):
        self.name = folder

    def files(self) -> set[str]:
        root = Path(self.name)
        return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}

    def read(self, name: str) -> bytes:
        return Path(self.name, name).read_bytes()

    def download(self, names: Sequence[str], folder: str) -> None:
        for name in names:
            target = Path(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(self.name, name), target)

    def change(self, files: Files, removed: Sequence[str], message: str, public: bool) -> str:
        for name, content in files.items():
            with documents.whole_file(os.path.join(self.name, name)) as path:
                if isinstance(content, bytes):
                    Path(path).write_bytes(content)
                else:
                    shutil.copyfile(content, path)
        for name in removed:
            documents.remove(os.path.join(self.name, name))
        return self.name


class HubDataset:
    """A dataset on a hub, at `revision` (branch, tag or commit), or at the head of its main branch."""

    def __init__(self, name: str, revision: str | None = None):
        from huggingface_hub import HfApi

        self.name = self.hub_name = name
        self.revision = revision
        self.token = os.environ.get(TOKEN_VARIABLE, "").strip()
        self.head: str | None = None
        self.public: bool | None = None
        self.api = HfApi(
            endpoint=os.environ.get("HF_ENDPOINT"),
            token=self.token or False,
            library_name="endoreward",
            library_version=__version__,
        )

    def files(self) -> set[str]:
        from huggingface_hub.errors import RepositoryNotFoundError

        with _sentences(self.name):
            try:
                info = self.api.dataset_info(self.name, revision=self.revision)
                self.head, self.public = info.sha, not info.private
                return set(self.api.list_repo_files(self.name, repo_type="dataset", revision=self.head))
            except RepositoryNotFoundError:
                return set()

    def read(self, name: str) -> bytes:
        with tempfile.TemporaryDirectory() as folder, _sentences(self.name):
            path = self.api.hf_hub_download(self.name, name, repo_type="dataset", revision=self.head, local_dir=folder)
            return Path(path).read_bytes()

    def download(self, names: Sequence[str], folder: str) -> None:
        with _sentences(self.name):
            self.api.snapshot_download(
                self.name, repo_type="dataset", revision=self.head, local_dir=folder, allow_patterns=list(names)
            )
        shutil.rmtree(os.path.join(folder, ".cache"), ignore_errors=True)  # the client's own

    def change(self, files: Files, removed: Sequence[str], message: str, public: bool) -> str:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        self._require_token()
        operations: list[Any] = [CommitOperationAdd(name, content) for name, content in files.items()]
        operations += [CommitOperationDelete(name) for name in removed]
        if len(operations) > MOST_FILES:
            raise StoreError(
                f"{len(operations):,} files are more than a commit on a hub takes; merge them first: endoreward compact"
            )
        with _sentences(self.name):
            if self.head is None:
                self._create(public)
            commit = self.api.create_commit(
                self.name, operations, commit_message=message, repo_type="dataset", parent_commit=self.head
            )
        return str(commit.commit_url)

    def _create(self, public: bool) -> None:
        from huggingface_hub.errors import HfHubHTTPError

        try:
            self.api.create_repo(self.name, repo_type="dataset", private=not public)
        except HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
            raise StoreError(
                f"{self.name} is there already, and this token may not read it; give another --to, or a token with the right "
                f"to it, in {TOKEN_VARIABLE}"
            ) from None
        self.head, self.public = self.api.dataset_info(self.name).sha, public

    def _require_token(self) -> None:
        if not self.token:
            raise ConfigError(
                f"{self.name}: a hub wants a token that may write; put one into the environment, as {TOKEN_VARIABLE}"
            )


@contextlib.contextmanager
def _sentences(name: str) -> Iterator[None]:
    """What a hub refuses, or its client, as a sentence of ours."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except EndorewardError:
        raise
    except OfflineModeIsEnabled:
        raise ConfigError(f"{name}: HF_HUB_OFFLINE is set, and the hub is not asked; unset it") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        words = f": {error.server_message}" if error.server_message else ""
        if status in (401, 403):
            raise StoreError(
                f"{name}: the hub refuses ({status}{words}); it wants a token with the right to it, in {TOKEN_VARIABLE}"
            ) from None
        if status in (409, 412):
            raise StoreError(
                f"{name} changed while it was written, and is as others left it{words}; run the same again"
            ) from None
        remedy = "run the same again" if status >= 500 or status == 429 else "mend what it names"
        raise RunError(f"{name}: the hub answers {status}{words}; {remedy}") from None
    except Exception as error:  # of its HTTP library, whichever that is
        cause = last_line(error.__cause__ or error).rstrip(".")
        raise RunError(f"{name}: the hub gives no answer: {cause}; run the same again") from error
