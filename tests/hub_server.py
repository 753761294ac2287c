"""A small Hub on this machine: enough of its HTTP and LFS API for huggingface_hub 1.33 to push a model (not through Xet).

    with HubServer() as hub:
        hub.faults.append(Fault("PUT", "/lfs/", "cut"))       # the next upload is cut off in the middle
        ... HF_ENDPOINT=hub.url HF_HUB_DISABLE_XET=1 HF_TOKEN=hub.token ...
        assert hub.files("user/repo")["README.md"] == ...

It answers what the client asks for and knows nothing of the code under test. Large files (.safetensors, .gguf) go by LFS
in parts of `part_bytes`; everything else is part of the commit.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import yaml

LARGE = (".safetensors", ".gguf")
SIGNATURE = "s1gnature"  # as in the addresses of the real storage: whoever has one may write


@dataclass
class Fault:
    """What happens to the next `times` requests of that method whose path holds `where`.

    A status; or "cut": the connection ends in the middle of the request; or "lost": it ends when all is done, unsaid.
    """

    method: str
    where: str
    what: int | str
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Repository:
    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0
    writable: bool = True


class HubServer(ThreadingHTTPServer):
    """token: the one it knows. who: its answer to whoami-v2. requests: (method, path, bytes of the body), in order."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, token: str = "hf_" + "s3cret" * 6, part_bytes: int | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.token, self.lock = token, threading.Lock()
        self.forget(part_bytes)

    def forget(self, part_bytes: int | None = None) -> None:
        """As on the first day."""
        self.part_bytes = part_bytes
        self.who: dict[str, Any] = {
            "type": "user", "name": "user", "orgs": [{"name": "team", "roleInOrg": "write"}, {"name": "readers", "roleInOrg": "read"}],
            "auth": {"type": "access_token", "accessToken": {"displayName": "mine", "role": "write"}},
        }  # fmt: skip
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # LFS, by SHA-256
        self.parts: dict[str, dict[int, bytes]] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, int]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, repo: str) -> dict[str, bytes]:
        return self.repositories[repo].files

    def sent(self, method: str, where: str) -> list[int]:
        """Bytes of each request of that method whose path holds `where`."""
        return [size for done, path, size in self.requests if done == method and where in path]

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.method == method and fault.where in path and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that the client gave up is no error of the test."""

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer("GET")

    def do_POST(self) -> None:
        self.answer("POST")

    def do_PUT(self) -> None:
        self.answer("PUT")

    def log_message(self, *_: object) -> None:
        """Silence."""

    def answer(self, method: str) -> None:
        path = urlsplit(self.path).path
        length = int(self.headers.get("Content-Length") or 0)
        fault = self.server.fault_for(method, path)
        if fault and fault.what == "cut":
            got = len(self.rfile.read(length // 2))
            self.server.requests.append((method, path, got))
            self.close_connection = True
            self.connection.close()
            return
        body = self.chunks() if "chunked" in self.headers.get("Transfer-Encoding", "") else self.rfile.read(length)
        self.server.requests.append((method, path, len(body)))
        if fault and fault.what != "lost":
            said = f"the test says {fault.what} to {self.headers.get('Authorization')}"  # servers may be that careless
            self.reply(int(fault.what), {"error": said}, fault.headers)
            return
        if not path.startswith("/lfs/") and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self.reply(401, {"error": "Invalid username or password."})
            return
        for pattern, of_method, handle in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and of_method == method:
                with self.server.lock:
                    status, data, headers = handle(self.server, body, *match.groups())
                if fault:
                    self.close_connection = True
                    self.connection.close()
                    return
                self.reply(status, data, headers)
                return
        self.reply(404, {"error": f"no such page: {method} {path}"})

    def chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def reply(self, status: int, data: Any, headers: dict[str, str] | None = None) -> None:
        text = json.dumps(data).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


Answer = tuple[int, Any, dict[str, str]]


def missing(repo: str) -> Answer:
    return 404, {"error": f"Repository {repo} not found"}, {"X-Error-Code": "RepoNotFound"}


def whoami(hub: HubServer, body: bytes) -> Answer:
    return 200, hub.who, {}


def create(hub: HubServer, body: bytes) -> Answer:
    wish = json.loads(body)
    repo = f"{wish.get('organization') or hub.who['name']}/{wish['name']}"
    if repo in hub.repositories:
        return 409, {"error": "You already created this model repo", "url": f"{hub.url}/{repo}"}, {}
    hub.repositories[repo] = Repository(private=wish.get("visibility") == "private")
    return 200, {"url": f"{hub.url}/{repo}", "name": repo}, {}


def validate_yaml(hub: HubServer, body: bytes) -> Answer:
    """The metadata have to be YAML between two lines of `---`, with texts where the Hub wants texts."""
    content = json.loads(body)["content"]
    match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    errors = []
    try:
        data = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError as error:
        data, errors = None, [{"message": str(error)}]
    if isinstance(data, dict):
        wrong = [key for key in ("license", "library_name", "pipeline_tag") if not isinstance(data.get(key), str)]
        base = data.get("base_model", "a/b")
        wrong += [] if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base) else ["base_model"]
        errors += [{"message": f'"{key}" must be a string the Hub knows'} for key in wrong]
    warnings = [] if data else [{"message": "empty or missing yaml metadata in repo card"}]
    return (400 if errors else 200), {"errors": errors, "warnings": warnings}, {}


def info(hub: HubServer, body: bytes, repo: str) -> Answer:
    if repo not in hub.repositories:
        return missing(repo)
    found = hub.repositories[repo]
    siblings = [{"rfilename": name} for name in found.files]
    sha = hashlib.sha1(str(found.commits).encode()).hexdigest()
    return 200, {"id": repo, "private": found.private, "sha": sha, "siblings": siblings, "tags": []}, {}


def auth_check(hub: HubServer, body: bytes, repo: str) -> Answer:
    if repo not in hub.repositories:
        return missing(repo)
    return (200, {}, {}) if hub.repositories[repo].writable else (403, {"error": "Forbidden"}, {})


def preupload(hub: HubServer, body: bytes, repo: str) -> Answer:
    """Which files go by LFS, and the object id of what is there already: of LFS the SHA-256, else git's."""
    if repo not in hub.repositories:
        return missing(repo)
    answer = []
    for wish in json.loads(body)["files"]:
        large, there = wish["path"].endswith(LARGE), hub.files(repo).get(wish["path"])
        entry = {"path": wish["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        if there is not None:
            git = hashlib.sha1(b"blob %d\0" % len(there) + there).hexdigest()
            entry["oid"] = hashlib.sha256(there).hexdigest() if large else git
        answer.append(entry)
    return 200, {"files": answer}, {}


def batch(hub: HubServer, body: bytes, repo: str) -> Answer:
    """Where each object is to be sent; nothing for one that is here. In parts where it is larger than one part."""
    objects = []
    for wish in json.loads(body)["objects"]:
        oid, size = wish["oid"], wish["size"]
        entry: dict[str, Any] = {"oid": oid, "size": size}
        if oid not in hub.objects:
            upload: dict[str, Any] = {"href": f"{hub.url}/lfs/{oid}?signature={SIGNATURE}"}
            if hub.part_bytes and size > hub.part_bytes:
                count = -(-size // hub.part_bytes)
                upload["href"] = f"{hub.url}/lfs/{oid}/whole"
                upload["header"] = {"chunk_size": str(hub.part_bytes)}
                upload["header"] |= {str(n): f"{hub.url}/lfs/{oid}/{n}" for n in range(1, count + 1)}
            entry["actions"] = {"upload": upload, "verify": {"href": f"{hub.url}/{repo}/verify"}}
        objects.append(entry)
    return 200, {"transfer": "basic", "objects": objects}, {}


def take(hub: HubServer, body: bytes, oid: str) -> Answer:
    if hashlib.sha256(body).hexdigest() != oid:
        return 400, {"error": "these are not the bytes they claim to be"}, {}
    hub.objects[oid] = body
    return 200, {}, {}


def take_part(hub: HubServer, body: bytes, oid: str, number: str) -> Answer:
    hub.parts.setdefault(oid, {})[int(number)] = body
    return 200, {}, {"ETag": hashlib.md5(body).hexdigest()}


def join_parts(hub: HubServer, body: bytes, oid: str) -> Answer:
    return take(hub, b"".join(hub.parts[oid][part["partNumber"]] for part in json.loads(body)["parts"]), oid)


def verify(hub: HubServer, body: bytes, repo: str) -> Answer:
    wish = json.loads(body)
    return (200, {}, {}) if len(hub.objects.get(wish["oid"], b"")) == wish["size"] else (404, {"error": "absent"}, {})


def commit(hub: HubServer, body: bytes, repo: str) -> Answer:
    if repo not in hub.repositories:
        return missing(repo)
    found, files = hub.repositories[repo], {}
    if not found.writable:
        return 403, {"error": "Forbidden: you must use a write token to upload to a repository."}, {}
    for line in body.decode().splitlines():
        entry = json.loads(line)
        value = entry["value"]
        if entry["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif entry["key"] == "lfsFile":
            if value["oid"] not in hub.objects:
                return 400, {"error": f"LFS object of {value['path']} was never sent"}, {}
            files[value["path"]] = hub.objects[value["oid"]]
    found.files |= files
    found.commits += 1
    oid = hashlib.sha1(str(found.commits).encode()).hexdigest()
    return 200, {"success": True, "commitOid": oid, "commitUrl": f"{hub.url}/{repo}/commit/{oid}"}, {}


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, str, Callable[..., Answer]]] = [
    (r"/api/whoami-v2", "GET", whoami),
    (r"/api/repos/create", "POST", create),
    (r"/api/validate-yaml", "POST", validate_yaml),
    (rf"/api/models/{REPO}/auth-check/write", "GET", auth_check),
    (rf"/api/models/{REPO}/preupload/main", "POST", preupload),
    (rf"/api/models/{REPO}/commit/main", "POST", commit),
    (rf"/api/models/{REPO}(?:/revision/main)?", "GET", info),
    (rf"/{REPO}\.git/info/lfs/objects/batch", "POST", batch),
    (rf"/{REPO}/verify", "POST", verify),
    (r"/lfs/([0-9a-f]{64})", "PUT", take),
    (r"/lfs/([0-9a-f]{64})/(\d+)", "PUT", take_part),
    (r"/lfs/([0-9a-f]{64})/whole", "POST", join_parts),
]
