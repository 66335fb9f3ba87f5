"""A Hub on this machine: as much of its HTTP interface as pushing and loading models takes."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


TOKENS = {"hf_owner": "owner", "hf_stranger": "stranger", "hf_me": "me"}


@dataclass
class Repository:
    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])  # path to content, oldest first

    def read(self, revision: str) -> tuple[str, dict[str, bytes]]:
        """The full name of a revision, and its files."""
        number = len(self.commits) - 1 if revision in ("main", "HEAD") else int(revision, 16)
        return f"{number:040x}", self.commits[number]


class Hub:
    """Repositories in memory, served on a port of this machine until `close`.

    Attributes:
        repositories: by their names; those of Spaces with `spaces/` before them.
        failures: what happens to the next requests whose method and address match a pattern: for each pattern how many
            requests fail, and how: by an HTTP status, or by a connection that is dropped (status 0).
        log: methods and addresses of all requests.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.failures: dict[str, tuple[int, int]] = {}
        self.blobs: dict[str, bytes] = {}
        self.log: list[str] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments) -> None:
        self.hub.log.append(f"{self.command} {self.path}")

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self) -> None:
        body = self._read_body()
        path = self.path.split("?")[0]
        for pattern, (count, status) in self.hub.failures.items():
            if count > 0 and re.search(pattern, f"{self.command} {path}"):
                self.hub.failures[pattern] = (count - 1, status)
                if status == 0:
                    self.close_connection = True
                    return
                return self._answer(status, {"error": "the server is down"})
        for pattern, method in _ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                return method(self, body, *match.groups())
        self._answer(404, {"error": f"no such address: {self.command} {path}"})

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status: int, content: object = None, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    @property
    def _user(self) -> str | None:
        return TOKENS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def _find(self, name: str, writes: bool = False) -> Repository | None:
        """The repository, if this user may do what is asked; else the request is answered."""
        repository, owner = self.hub.repositories.get(name), name.removeprefix("spaces/").split("/")[0]
        if self._user is None and (repository is None or repository.private or writes):
            self._answer(401, {"error": "Invalid username or password."}, X_Error_Code="RepoNotFound")
        elif repository is None or (repository.private and self._user != owner):
            self._answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        elif writes and self._user != owner:
            self._answer(403, {"error": f"You have no write access to {name}."})
        else:
            return repository
        return None

    def _set_failures(self, body: bytes) -> None:
        self.hub.failures.update({pattern: tuple(failure) for pattern, failure in json.loads(body).items()})
        self._answer(200)

    def _whoami(self, body: bytes) -> None:
        if self._user is None:
            return self._answer(401, {"error": "Invalid username or password."})
        self._answer(200, {"name": self._user, "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def _create(self, body: bytes) -> None:
        request = json.loads(body)
        owner = request.get("organization") or self._user
        name = f"{owner}/{request['name']}"
        if self._user is None:
            return self._answer(401, {"error": "Invalid username or password."})
        if self._user != owner:
            return self._answer(403, {"error": f"You have no write access to {name}."})
        key = f"spaces/{name}" if request.get("type") == "space" else name
        is_new = key not in self.hub.repositories
        if is_new:
            self.hub.repositories[key] = Repository(private=request.get("visibility") == "private")
        self._answer(200 if is_new else 409, {"url": f"{self.hub.url}/{name}", "id": name, "name": name})

    def _validate_card(self, body: bytes) -> None:
        self._answer(200, {"errors": [], "warnings": []})

    def _preupload(self, body: bytes, name: str, revision: str) -> None:
        if self._find(name, writes=True):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".bin")) else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})

    def _lfs_batch(self, body: bytes, name: str) -> None:
        if self._find(name, writes=True):
            objects = [
                {**file, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{file['oid']}", "header": {}}}}
                for file in json.loads(body)["objects"]
            ]
            self._answer(200, {"transfer": "basic", "objects": objects})

    def _store_blob(self, body: bytes, oid: str) -> None:
        self.hub.blobs[oid] = body
        is_whole = hashlib.sha256(body).hexdigest() == oid
        self._answer(200 if is_whole else 400, {})

    def _commit(self, body: bytes, name: str, revision: str) -> None:
        if repository := self._find(name, writes=True):
            files = dict(repository.commits[-1])
            for line in body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = self.hub.blobs[value["oid"]]
                elif entry["key"] == "deletedFile":
                    del files[value["path"]]
            repository.commits.append(files)
            sha, _ = repository.read("main")
            url = f"{self.hub.url}/{name}/commit/{sha}"
            self._answer(200, {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def _info(self, body: bytes, name: str, revision: str | None = None) -> None:
        if repository := self._find(name):
            sha, files = repository.read(revision or "main")
            siblings = [{"rfilename": path} for path in sorted(files)]
            facts = {"_id": name, "id": name, "modelId": name, "sha": sha, "private": repository.private}
            self._answer(200, {**facts, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0})

    def _tree(self, body: bytes, name: str, revision: str, folder: str | None = None) -> None:
        if repository := self._find(name):
            _, files = repository.read(revision)
            if folder is not None:
                return self._answer(404, {"error": "no such folder"}, X_Error_Code="EntryNotFound")
            entries = [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in sorted(files.items())
            ]
            self._answer(200, entries)

    def _file(self, body: bytes, name: str, revision: str, path: str) -> None:
        if repository := self._find(name):
            sha, files = repository.read(revision)
            if path not in files:
                return self._answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
            etag = f'"{hashlib.sha256(files[path]).hexdigest()}"'
            self._answer(200, files[path], X_Repo_Commit=sha, ETag=etag)


_NAME, _REVISION = r"((?:spaces/)?[\w.-]+/[\w.-]+)", r"([\w.-]+)"
_ROUTES = [
    (r"POST /failures", _Handler._set_failures),  # no part of the Hub: how the client's process asks for them
    (r"GET /api/whoami-v2", _Handler._whoami),
    (r"POST /api/repos/create", _Handler._create),
    (r"POST /api/validate-yaml", _Handler._validate_card),
    (rf"POST /api/(?:models/)?{_NAME}/preupload/{_REVISION}", _Handler._preupload),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", _Handler._lfs_batch),
    (r"PUT /lfs/(\w+)", _Handler._store_blob),
    (rf"POST /api/(?:models/)?{_NAME}/commit/{_REVISION}", _Handler._commit),
    (rf"GET /api/(?:models/)?{_NAME}", _Handler._info),
    (rf"GET /api/(?:models/)?{_NAME}/revision/{_REVISION}", _Handler._info),
    (rf"GET /api/(?:models/)?{_NAME}/tree/{_REVISION}", _Handler._tree),
    (rf"GET /api/(?:models/)?{_NAME}/tree/{_REVISION}/(.+)", _Handler._tree),
    (rf"(?:HEAD|GET) /{_NAME}/resolve/{_REVISION}/(.+)", _Handler._file),
]
