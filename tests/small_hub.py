"""A small server on loopback that speaks as much of a model hub's API as datasets need: repositories, trees, commits on the
condition of their parent, Git LFS, downloads. What is private is shown to those with the token alone."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

TOKEN = "hf_w0rd"
LFS = (".parquet", ".segment")
Tree = dict[str, bytes]


@dataclass
class Repository:
    private: bool
    foreign: bool = False  # shown to no token that is ours
    commits: list[tuple[str, Tree]] = field(default_factory=list)  # id and files, the newest last

    def add(self, tree: Tree) -> str:
        name = hashlib.sha1(repr([len(self.commits), sorted(tree)]).encode()).hexdigest()
        self.commits.append((name, tree))
        return name

    def tree(self, revision: str) -> tuple[str, Tree]:
        return next((c for c in self.commits if c[0] == revision), self.commits[-1])


@dataclass
class Hub:
    url: str = ""
    storage: str = ""  # another host for the client, which must not see the token
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)  # of LFS, by sha256
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, authorization
    ill: int = 0  # a status that everything is answered with
    before_commit: Any = None  # called once, before the next commit is looked at


def _sha(data: bytes, name: str) -> str:
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return hashlib.sha256(data).hexdigest() if name.endswith(LFS) else blob


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def _answer(self, status: int, body: Any = None, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        if "content_length" not in headers:
            self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.headers.get("transfer-encoding") == "chunked":
            body = b"".join(iter(self._chunk, b""))
        url = urlsplit(self.path)
        path = unquote(url.path)
        authorization = self.headers.get("authorization")
        self.hub.requests.append((self.command, path, authorization))
        if self.hub.ill:
            self._answer(self.hub.ill, {"error": "not now"})
            return
        for pattern, method in ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                method(self, body, parse_qs(url.query), *match.groups())
                return
        self._answer(404, {"error": f"no route {self.command} {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = _respond

    def _chunk(self) -> bytes:
        size = int(self.rfile.readline(), 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data

    @property
    def _may(self) -> bool:
        return self.headers.get("authorization") == f"Bearer {TOKEN}"

    def _repository(self, name: str, write: bool = False) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None or repository.foreign or (repository.private and not self._may):
            self._answer(404 if self._may else 401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return None
        if write and not self._may:
            self._answer(403, {"error": "You don't have the rights to write"})
            return None
        return repository

    def create(self, body: bytes, query: Any) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if not self._may:
            self._answer(401, {"error": "Invalid credentials"})
        elif name in self.hub.repositories:
            self._answer(409, {"error": "You already created this dataset repo", "url": name})
        else:
            assert asked["type"] == "dataset"
            self.hub.repositories[name] = Repository(
                asked.get("visibility") == "private" or asked.get("private", False)
            )
            self.hub.repositories[name].add({".gitattributes": b"*.parquet filter=lfs\n"})
            self._answer(200, {"url": f"{self.hub.url}/datasets/{name}", "name": name, "id": name})

    def info(self, body: bytes, query: Any, name: str, revision: str = "main") -> None:
        if repository := self._repository(name):
            sha, tree = repository.tree(revision)
            siblings = [{"rfilename": each} for each in tree]
            self._answer(200, {"id": name, "sha": sha, "private": repository.private, "siblings": siblings, "tags": []})

    def tree(self, body: bytes, query: Any, name: str, revision: str) -> None:
        if repository := self._repository(name):
            _, tree = repository.tree(revision)
            self._answer(200, [self._entry(each, data) for each, data in tree.items()])

    def _entry(self, name: str, data: bytes) -> dict[str, Any]:
        entry = {"type": "file", "path": name, "size": len(data), "oid": _sha(data, "")}
        if name.endswith(LFS):
            entry["lfs"] = {"oid": _sha(data, name), "size": len(data), "pointerSize": 130}
        return entry

    def card(self, body: bytes, query: Any) -> None:
        """Front matter has to be YAML that is a mapping."""
        text = json.loads(body)["content"]
        matter = yaml.safe_load(text.split("---")[1]) if text.startswith("---\n") else None
        errors = [] if isinstance(matter, dict) else [{"message": "no metadata"}]
        self._answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def preupload(self, body: bytes, query: Any, name: str, revision: str) -> None:
        if repository := self._repository(name, write=True):
            _, tree = repository.tree(revision)
            files = [
                {
                    "path": (path := each["path"]),
                    "uploadMode": "lfs" if path.endswith(LFS) else "regular",
                    "shouldIgnore": False,
                    "oid": _sha(tree[path], path) if path in tree else None,
                }
                for each in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})

    def batch(self, body: bytes, query: Any, name: str) -> None:
        if self._repository(name, write=True):
            objects = [
                {
                    **each,
                    **(
                        {}
                        if each["oid"] in self.hub.blobs
                        else {"actions": {"upload": {"href": f"{self.hub.storage}/storage/{each['oid']}"}}}
                    ),
                }
                for each in json.loads(body)["objects"]
            ]
            self._answer(200, {"transfer": "basic", "objects": objects})

    def put(self, body: bytes, query: Any, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.blobs[oid] = body
        self._answer(200, {})

    def get(self, body: bytes, query: Any, oid: str) -> None:
        self._answer(200, self.hub.blobs[oid], content_type="application/octet-stream")

    def commit(self, body: bytes, query: Any, name: str, revision: str) -> None:
        repository = self._repository(name, write=True)
        if repository is None:
            return
        if self.hub.before_commit:
            self.hub.before_commit, call = None, self.hub.before_commit
            call()
        lines = [json.loads(line) for line in body.splitlines()]
        head, tree = repository.commits[-1]
        if lines[0]["value"].get("parentCommit", head) != head:
            self._answer(412, {"error": "The repository changed since"})
            return
        tree = dict(tree)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                tree[value["path"]] = self.hub.blobs[value["oid"]]
            else:
                del tree[value["path"]]
        sha = repository.add(tree)
        url = f"{self.hub.url}/datasets/{name}/commit/{sha}"
        self._answer(200, {"commitUrl": url, "commitOid": sha, "pullRequestUrl": None})

    def resolve(self, body: bytes, query: Any, name: str, revision: str, path: str) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        sha, tree = repository.tree(revision)
        if path not in tree:
            self._answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
            return
        data = tree[path]
        headers = {"X_Repo_Commit": sha, "ETag": f'"{_sha(data, path)}"'}
        if path.endswith(LFS):
            linked = {"X_Linked_Etag": headers["ETag"], "X_Linked_Size": str(len(data))}
            self._answer(302, b"", Location=f"{self.hub.storage}/storage/{_sha(data, path)}", **headers, **linked)
        else:
            length = {"content_length": str(len(data))} if self.command == "HEAD" else {}
            self._answer(200, data, **headers, **length)

    def log_message(self, *arguments: Any) -> None: ...


REPOSITORY = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.card),
    (rf"GET /api/datasets/{REPOSITORY}", _Handler.info),
    (rf"GET /api/datasets/{REPOSITORY}/revision/([\w.-]+)", _Handler.info),
    (rf"GET /api/datasets/{REPOSITORY}/tree/([\w.-]+)", _Handler.tree),
    (rf"POST /api/datasets/{REPOSITORY}/preupload/([\w.-]+)", _Handler.preupload),
    (rf"POST /datasets/{REPOSITORY}\.git/info/lfs/objects/batch", _Handler.batch),
    (rf"POST /api/datasets/{REPOSITORY}/commit/([\w.-]+)", _Handler.commit),
    (r"PUT /storage/([0-9a-f]{64})", _Handler.put),
    (r"(?:GET|HEAD) /storage/([0-9a-f]{64})", _Handler.get),
    (rf"(?:GET|HEAD) /datasets/{REPOSITORY}/resolve/([\w.-]+)/(.+)", _Handler.resolve),
]


@contextlib.contextmanager
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub, and an environment in which this process's client speaks to it, with the token, by LFS rather than Xet."""
    from huggingface_hub import constants

    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        hub.storage = f"http://localhost:{server.server_port}"
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield hub
        server.shutdown()
