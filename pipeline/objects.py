"""An object store by its own client: puts on a condition, retries, errors that name object, operation and remedy.

Every request is tried again with growing, random pauses for up to `RETRY_S` where the store is busy, failing or out of reach.
A put that may or may not have taken effect (a timeout, a connection that broke) is settled by reading back. Credentials and
endpoints come from where the AWS and Google tools take them; nothing that a client is configured with is ever in an error.
"""

import io
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from configparser import Error as ParseError
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl

from pipeline.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from obstore.store import GCSStore, S3Store

SCHEMES = ("s3", "gs", "gcs")
RETRY_S = 120.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
REQUEST_S, LARGE_REQUEST_S = 20.0, 300.0
LARGE = 4 << 20  # bytes from which a request may take longer, and an upload has several parts
OPTIONS = ("region", "scheme", "endpoint_override")
BUSY = {408, 409, 429}
BUSY_CODES = {"RequestTimeout", "SlowDown", "OperationAborted"}
NOT_THERE = {501, 505}  # of the 5xx, what asking again does not change
RIGHTS = {
    "read": ("s3:GetObject (and s3:ListBucket, without which a missing object looks forbidden)", "storage.objects.get"),
    "list": ("s3:ListBucket", "storage.objects.list"),
    "write": ("s3:PutObject", "storage.objects.create and storage.objects.delete"),
    "remove": ("s3:DeleteObject", "storage.objects.delete"),
}
_T = TypeVar("_T")


def is_objects(uri: str) -> bool:
    """Whether it is a place in an object store that puts on a condition: S3 and what speaks its language, Google's."""
    return uri.startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


@dataclass(frozen=True)
class Version:
    """Which content an object had. `modified`, by the store's clock in seconds, is known of what was looked at."""

    e_tag: str | None = None
    number: str | None = None
    modified: float | None = None

    @staticmethod
    def of(meta: Any) -> "Version":
        modified = meta.get("last_modified")
        return Version(meta["e_tag"], meta["version"], modified.timestamp() if modified else None)

    def condition(self) -> Any:
        return {key: value for key, value in (("e_tag", self.e_tag), ("version", self.number)) if value is not None}


@dataclass(frozen=True)
class Entry:
    """One object of a listing; `size` is None for a folder."""

    key: str
    size: int | None
    modified: float = 0.0
    e_tag: str | None = None


class Bucket:
    """The objects of one bucket. Methods raise StorageError, and FileNotFoundError where there is no such object."""

    def __init__(self, root: str, small: Any, large: Any, patient: Any):
        self.root, self._small, self._large, self._patient = root, small, large, patient

    def read(self, key: str) -> tuple[bytes, Version]:
        """The whole object, and which version of it that is."""

        def get() -> tuple[bytes, Version]:
            result = self._large.get(key)
            return bytes(result.bytes()), Version.of(result.meta)

        return self._tried("read", key, get)

    def read_range(self, key: str, start: int, stop: int, version: Version) -> bytes:
        """Bytes `start` to `stop`, of the version that was looked at; another one is an error."""
        options: Any = {"range": (start, stop), "if_match": version.e_tag}
        return self._tried("read", key, lambda: bytes(self._large.get(key, options=options).bytes()))

    def look(self, key: str) -> tuple[int, Version]:
        """Size in bytes, and version."""
        meta = self._tried("read", key, lambda: self._small.head(key))
        return meta["size"], Version.of(meta)

    def version(self, key: str) -> Version | None:
        """None where there is no such object."""
        try:
            return self.look(key)[1]
        except FileNotFoundError:
            return None

    def create(self, key: str, data: bytes, within: float | None = None) -> Version | None:
        """Put an object where there is none; None where there is one. Atomic, whoever else does the same."""
        return self._put(key, data, "create", within)

    def replace(self, key: str, data: bytes, version: Version, within: float | None = None) -> Version | None:
        """Put an object in place of this version of it; None where it is another by now, or gone. As atomic."""
        return self._put(key, data, version.condition(), within)

    def upload(self, key: str, source: Any) -> None:
        """Put an object whatever is there: bytes, or the Path of a file, which goes in parts. Shows when it is whole."""
        size = source.stat().st_size if isinstance(source, Path) else len(source)
        chunk = max(2 * LARGE, size // 5000)  # of parts there may be 10,000
        self._tried("write", key, lambda: self._patient.put(key, source, chunk_size=chunk))

    def writer(self, key: str) -> "Writer":
        """A file to write an object through; it shows when that is closed."""
        from obstore import open_writer

        return Writer(open_writer(self._patient, key), lambda error: self._sentence("write", key, error, 1, 0.0))

    def remove(self, key: str) -> None:
        """Delete an object if it is there."""
        try:
            self._tried("remove", key, lambda: self._small.delete(key))
        except FileNotFoundError:
            return

    def folder(self, key: str) -> list[Entry]:
        """Objects and folders directly below a folder; none where there is no such folder."""
        found = self._listed(key, lambda: self._patient.list_with_delimiter(key or None))
        if found is None:
            return []
        folders = set(found["common_prefixes"])
        entries = [_entry(meta) for meta in found["objects"] if meta["path"] != key and meta["path"] not in folders]
        return entries + [Entry(name, None) for name in sorted(folders)]

    def below(self, key: str) -> list[Entry]:
        """Every object below a folder, at any depth, and the folders in between."""
        metas = self._listed(key, lambda: [meta for chunk in self._patient.list(key or None) for meta in chunk]) or []
        folders = {parent for meta in metas for parent in _parents(meta["path"], key)}
        # an empty object that stands for a folder has a name that ends in /, which the client takes off
        folders |= {m["path"] for m in metas if not m["size"] and m["path"] != key and self.version(m["path"]) is None}
        files = [_entry(meta) for meta in metas if meta["path"] not in folders and meta["path"] != key]
        return files + [Entry(name, None) for name in sorted(folders)]

    def has_folder(self, key: str) -> bool:
        """Whether there is anything below it; an object that stands for an empty folder is nothing."""
        first = self._listed(key, lambda: next(iter(self._patient.list(key or None)), None)) or []
        return any(meta["path"] != key for meta in first)

    def _listed(self, key: str, call: Callable[[], _T]) -> _T | None:
        try:
            return self._tried("list", key, call)
        except FileNotFoundError:  # of the bucket
            return None

    def _put(self, key: str, data: bytes, condition: Any, within: float | None) -> Version | None:
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        store, unsure = self._large if len(data) > LARGE else self._small, False

        def put() -> Version | None:
            nonlocal unsure
            try:
                return Version.of(store.put(key, data, mode=condition, use_multipart=False))
            except (AlreadyExistsError, PreconditionError) as error:
                if _status(error) == 409:  # another put is under way: who wins is not decided yet
                    raise
                if unsure:  # an earlier try of ours may be what stands there
                    result = store.get(key)
                    if bytes(result.bytes()) == data:
                        return Version.of(result.meta)
                return None
            except BaseError:
                unsure = True
                raise

        try:
            return self._tried("write", key, put, within)
        except FileNotFoundError:
            if condition != "create":
                return None
            raise StorageError(
                f"{self._place(key)} cannot be written: there is no such bucket; make it first"
            ) from None

    def _tried(self, deed: str, key: str, call: Callable[[], _T], within: float | None = None) -> _T:
        """Call until it succeeds, for as long as failing may be passing: `within` seconds from the first failure on."""
        from obstore.exceptions import BaseError

        failed, pause, tries = 0.0, FIRST_PAUSE_S, 0
        within = RETRY_S if within is None else within
        while True:
            tries += 1
            try:
                return call()
            except FileNotFoundError:
                raise FileNotFoundError(f"{self._place(key)} is not there") from None
            except BaseError as error:
                if _status(error) == 404:  # of a listing: the bucket
                    raise FileNotFoundError(f"{self._place(key)} is not there") from None
                failed = failed or time.monotonic()
                spent = time.monotonic() - failed
                wait = random.uniform(pause / 2, pause)
                if not _passing(error) or spent + wait > within:
                    raise StorageError(self._sentence(deed, key, error, tries, spent)) from None
            time.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _place(self, key: str) -> str:
        return f"{self.root}/{key}"

    def _sentence(self, deed: str, key: str, error: Exception, tries: int, spent: float) -> str:
        from obstore.exceptions import PermissionDeniedError, PreconditionError, UnauthenticatedError

        place, status, code = self._place(key), _status(error), _code(error)
        answer = " ".join(filter(None, (str(status or ""), code))) or "no answer"
        if _of_credentials(error):
            return f"{place}: no credentials to {deed} it with; set {_credentials_of(self.root)}"
        if isinstance(error, UnauthenticatedError) or code in (
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
            "ExpiredToken",
        ):
            return f"{place}: the credentials are not accepted ({deed}: {answer}); renew {_credentials_of(self.root)}"
        if isinstance(error, PermissionDeniedError) or status == 403:
            if code == "RequestTimeTooSkewed":
                return f"{place}: this machine's clock is wrong ({deed}: {answer}); set it and run the same again"
            right = RIGHTS[deed][0 if self.root.startswith("s3:") else 1]
            return f"{place}: no permission to {deed} it ({answer}); grant {right} on it, and run the same again"
        if isinstance(error, PreconditionError):
            return f"{place} changed while it was read; run the same again"
        if status in NOT_THERE:
            return f"{place}: this object store does not know how to {deed} it that way ({answer}); give another place"
        if not _passing(error):
            return f"{place}: cannot {deed} it ({answer}); mend that and run the same again"
        return (
            f"{place}: cannot {deed} it: {answer}, {tries} tries in {spent:.0f} s; when the object store is well again, run "
            "the same again"
        )


class Writer(io.RawIOBase):
    """An object that is written as it grows; its parts are tried again as those of any upload."""

    def __init__(self, file: Any, sentence: Callable[[Exception], str]):
        self._file, self._sentence = file, sentence

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._do(lambda: int(self._file.write(bytes(data))))

    def close(self) -> None:
        if not self.closed:
            try:
                self._do(self._file.close)
            finally:
                super().close()

    def _do(self, call: Callable[[], _T]) -> _T:
        from obstore.exceptions import BaseError

        try:
            return call()
        except (BaseError, FileNotFoundError) as error:
            raise StorageError(self._sentence(error)) from None


def _credentials_of(root: str) -> str:
    if root.startswith("s3:"):
        return "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role of the machine"
    return "GOOGLE_APPLICATION_CREDENTIALS, or a service account of the machine"


def _status(error: Exception) -> int | None:
    match = re.search(r"status code: (\d{3})", str(error))
    return int(match[1]) if match else None


def _code(error: Exception) -> str | None:
    match = re.search(r"<Code>(\w+)</Code>", str(error))
    return match[1] if match else None


def _of_credentials(error: Exception) -> bool:
    """Whether it is the machine's own credentials that could not be asked for: there are none."""
    return bool(
        re.search(r"//(169\.254\.\d+\.\d+|metadata\.google\.internal|metadata)/", str(error).partition("\n")[0])
    )


def _passing(error: Exception) -> bool:
    """Whether the same request may succeed later: the store is busy, failing, or out of reach."""
    from obstore.exceptions import GenericError

    status = _status(error)
    if _of_credentials(error):
        return False
    if status is None:
        return isinstance(error, GenericError)
    return status in BUSY or (status >= 500 and status not in NOT_THERE) or _code(error) in BUSY_CODES


def _entry(meta: Any) -> Entry:
    return Entry(meta["path"], meta["size"], meta["last_modified"].timestamp(), meta["e_tag"])


def _parents(key: str, top: str) -> Iterator[str]:
    while "/" in key:
        key = key.rpartition("/")[0]
        if len(key) <= len(top):
            return
        yield key


# Opening

_opened_by: set[int] = set()


def bucket(root: str) -> Bucket:
    """The bucket at `s3://NAME?OPTION=...` or `gs://NAME`. Raises ConfigError."""
    if (
        _opened_by and os.getpid() not in _opened_by
    ):  # the client's threads are not in a fork, and it would wait for ever
        raise StorageError(
            f"{root.partition('?')[0]}: this process was forked from one that uses it; start it anew (spawn)"
        )
    _opened_by.add(os.getpid())
    return _bucket(root, os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))


@lru_cache(maxsize=32)
def _bucket(root: str, endpoint: str | None) -> Bucket:
    base, _, query = root.partition("?")
    scheme, _, name = base.partition("://")
    options = dict(parse_qsl(query))
    if "@" in name:
        raise ConfigError(
            f"an address {scheme}://...@... has credentials in it, which would end up in logs and manifests: take them out, "
            f"and set {_credentials_of(base)}"
        )
    if unknown := sorted(options.keys() - set(OPTIONS)):
        raise ConfigError(f"{base}: unknown option {unknown[0]} after the ?; known are {', '.join(OPTIONS)}")
    if place := options.get("endpoint_override"):
        endpoint = place if "://" in place else f"{options.get('scheme', 'https')}://{place}"
    elif scheme != "s3":
        endpoint = None
    open_one = _open_s3 if scheme == "s3" else _open_gcs
    try:
        clients = [open_one(name, options.get("region"), endpoint, requests) for requests in _REQUESTS]
    except ConfigError:
        raise
    except Exception as error:  # of the client's own: it names no secret, but may quote what it was given
        raise ConfigError(f"{base}: no storage can be opened under this address ({type(error).__name__})") from None
    return Bucket(base, *clients)


_REQUESTS = [
    {
        "client_options": {
            "allow_http": True,  # where the endpoint's address says so
            "connect_timeout": timedelta(seconds=5),
            "timeout": timedelta(seconds=seconds),
        },
        "retry_config": {"max_retries": retries, "retry_timeout": timedelta(seconds=RETRY_S)},
    }
    for seconds, retries in ((REQUEST_S, 0), (LARGE_REQUEST_S, 0), (LARGE_REQUEST_S, 8))
]
"""Of small requests, of large ones, and of what is many requests (uploads in parts, listings), each of which the client
tries again by itself."""


def _open_s3(name: str, region: str | None, endpoint: str | None, requests: Any) -> "S3Store":
    from obstore.store import S3Store

    profile = _profile()
    endpoint = endpoint or profile.get("endpoint_url")
    named = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or profile.get("region")
    if region is None:
        region = (None if endpoint else _region_of(name)) or named or "us-east-1"
    more: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    return S3Store(name, region=region, disable_bulk_delete=True, **more, **_credentials(profile), **requests)


def _open_gcs(name: str, _: str | None, endpoint: str | None, requests: Any) -> "GCSStore":
    from obstore.store import GCSStore

    more: dict[str, Any] = {"base_url": endpoint} if endpoint else {}
    return GCSStore(name, **more, **requests)


@lru_cache(maxsize=32)
def _region_of(name: str) -> str | None:
    from pyarrow import fs

    try:
        return str(fs.resolve_s3_region(name))
    except OSError:  # no such bucket, no network: the first request says it
        return None


def _profile() -> dict[str, str]:
    """What AWS's own files have of the profile in use."""
    name = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE") or "default"
    section: dict[str, str] = {}
    for variable, place, title in (
        ("AWS_CONFIG_FILE", "~/.aws/config", name if name == "default" else f"profile {name}"),
        ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials", name),
    ):
        parser, path = ConfigParser(interpolation=None, strict=False), os.environ.get(variable) or place
        try:
            parser.read(os.path.expanduser(path))
        except (ParseError, UnicodeDecodeError):  # its text may be a secret
            raise ConfigError(f"{path} is no file of AWS profiles: mend it, or unset {variable}") from None
        section |= dict(parser[title]) if title in parser else {}
    return section


def _credentials(profile: dict[str, str]) -> dict[str, Any]:
    """Those of the profile, where the environment has none; the client itself asks web identity, container and machine."""
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return {}
    if "aws_access_key_id" in profile:
        names = {"access_key_id": "aws_access_key_id", "secret_access_key": "aws_secret_access_key"}
        names |= {"session_token": "aws_session_token"} if "aws_session_token" in profile else {}
        return {ours: profile.get(theirs, "") for ours, theirs in names.items()}
    ways = ("role_arn", "sso_session", "sso_start_url", "credential_process", "web_identity_token_file")
    if way := next((each for each in ways if each in profile), None):
        try:
            from obstore.auth.boto3 import Boto3CredentialProvider
        except ImportError:
            raise ConfigError(
                f"the AWS profile in use has its credentials by {way}, which needs boto3: pip install boto3, or put them into "
                "the environment: aws configure export-credentials --format env"
            ) from None
        return {"credential_provider": Boto3CredentialProvider()}
    return {}
