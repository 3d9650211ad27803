"""A Hub on this machine, for tests: repositories in memory, tokens, private repositories, and failures on demand.

It speaks what `huggingface_hub` asks when it makes a repository, uploads with LFS, lists and downloads. Every upload
goes through the classic path: the chunked storage that the real Hub also has is not imitated.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

WRITE, READ = "hf_write_secret", "hf_read_secret"
KINDS = {"models": "model", "datasets": "dataset"}


@dataclass
class Commit:
    files: dict[str, bytes]
    title: str
    parent: str | None


@dataclass
class Repo:
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes], title: str) -> str:
        parent = self.branches.get(branch)
        name = hashlib.sha1(f"{parent}{title}{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[name] = Commit(files, title, parent)
        self.branches[branch] = name
        return name

    def resolve(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


class Failure(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


def is_large(path: str) -> bool:
    return path.endswith((".parquet", ".safetensors"))


def git_name(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def entry(path: str, content: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_name(content)}
    if is_large(path):
        found["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
    return found


class LocalHub:
    """The server; `failures` and `before_commit` make it misbehave.

    Attributes:
        failures: (method, part of the path) -> how many such requests get a 503.
        before_commit: called once, before the next commit is looked at.
        echo_token: put the caller's token into error texts, as a careless proxy would.
        requests: (method, path, status) of everything that was asked.
    """

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.failures: dict[tuple[str, str], int] = {}
        self.before_commit: Callable[[], None] | None = None
        self.echo_token = False
        self.requests: list[tuple[str, str, int]] = []
        self.lock = threading.RLock()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def handle_one(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with hub.lock:
                    status, headers, content = hub.answer(self.command, self.path, dict(self.headers.items()), body)
                hub.requests.append((self.command, self.path, status))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in headers:
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_HEAD = do_POST = do_PUT = handle_one

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def files(self, name: str, kind: str = "dataset", revision: str = "main") -> dict[str, bytes]:
        repo = self.repos[kind, name]
        return repo.commits[repo.branches[revision]].files

    def titles(self, name: str, kind: str = "dataset") -> list[str]:
        return [commit.title for commit in self.repos[kind, name].commits.values()]

    def count(self, method: str, part: str) -> int:
        return sum(m == method and part in path for m, path, _ in self.requests)

    # -- answering

    def answer(
        self, method: str, target: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        headers = {name.lower(): value for name, value in headers.items()}
        token = headers.get("authorization", "").removeprefix("Bearer ")
        url = urlsplit(target)
        try:
            for (verb, part), left in self.failures.items():
                if verb == method and part in url.path and left > 0:
                    self.failures[verb, part] = left - 1
                    raise Failure(503, f"busy{' ' + token if self.echo_token else ''}")
            if token and token not in (WRITE, READ):
                raise Failure(401, "Invalid credentials in Authorization header")
            parts = [unquote(part) for part in url.path.strip("/").split("/")]
            found = self.route(method, parts, {k: v[0] for k, v in parse_qs(url.query).items()}, headers, body, token)
        except Failure as failure:
            text = json.dumps({"error": str(failure)}).encode()
            return failure.status, {"X-Error-Code": failure.code, "X-Error-Message": str(failure)}, text
        if isinstance(found, tuple):
            return found
        return 200, {"Content-Type": "application/json"}, json.dumps(found).encode()

    def route(
        self, method: str, parts: list[str], query: dict[str, str], headers: dict[str, str], body: bytes, token: str
    ) -> Any:
        if parts == ["api", "validate-yaml"]:
            return {"errors": [], "warnings": []}
        if parts == ["api", "repos", "create"]:
            return self.create(json.loads(body), token)
        if parts[0] == "blobs":
            if sha256(body) != parts[1]:
                raise Failure(400, "the content has another checksum")
            self.blobs[parts[1]] = body
            return {}
        if parts[-3:] == ["lfs", "objects", "batch"]:
            return self.batch(json.loads(body))
        if parts[0] == "api" and len(parts) >= 4 and parts[1] in KINDS:
            repo = self.repo(KINDS[parts[1]], "/".join(parts[2:4]), token)
            return self.api(method, repo, parts, query, body, token)
        kind = "dataset" if parts[0] == "datasets" else "model"
        rest = parts[1:] if kind == "dataset" else parts
        if len(rest) > 4 and rest[2] == "resolve":
            repo = self.repo(kind, "/".join(rest[:2]), token)
            return self.serve(repo, rest[3], "/".join(rest[4:]), headers)
        raise Failure(404, f"{method} {'/'.join(parts)} is not here")

    def repo(self, kind: str, name: str, token: str) -> Repo:
        repo = self.repos.get((kind, name))
        if repo is None or (repo.private and not token):
            # The real one does not tell a stranger which of the two it is.
            raise Failure(404 if token else 401, "Repository Not Found", "RepoNotFound")
        return repo

    def create(self, asked: dict[str, Any], token: str) -> Any:
        if not token:
            raise Failure(401, "Invalid username or password.")
        kind, name = asked.get("type", "model"), f"{asked.get('organization') or 'me'}/{asked['name']}"
        url = f"{self.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if (kind, name) in self.repos:
            conflict = {"error": "You already created this repo", "url": url, "id": name}
            return 409, {"Content-Type": "application/json"}, json.dumps(conflict).encode()
        if token != WRITE:
            raise Failure(403, "You don't have the rights to create a repository here")
        repo = self.repos[kind, name] = Repo(bool(asked.get("private")) or asked.get("visibility") == "private")
        repo.commit("main", {".gitattributes": b"*.parquet filter=lfs\n"}, "initial commit")
        return {"url": url, "id": name}

    def batch(self, asked: dict[str, Any]) -> Any:
        objects = []
        for item in asked["objects"]:
            found: dict[str, Any] = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.blobs:
                found["actions"] = {"upload": {"href": f"{self.url}/blobs/{item['oid']}"}}
            objects.append(found)
        return {"transfer": "basic", "objects": objects}

    def api(self, method: str, repo: Repo, parts: list[str], query: dict[str, str], body: bytes, token: str) -> Any:
        verb, arguments = (parts[4], parts[5:]) if len(parts) > 4 else ("revision", ["main"])
        if verb == "branch":
            if arguments[0] in repo.branches:
                raise Failure(409, "Reference already exists")
            repo.branches[arguments[0]] = repo.branches["main"]
            return {}
        revision = arguments[0] if arguments else "main"
        if verb == "commit" and self.before_commit is not None:
            call, self.before_commit = self.before_commit, None
            call()
        commit = repo.resolve(revision)
        if commit is None:
            raise Failure(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        files = repo.commits[commit].files
        if verb == "revision":
            siblings = [{"rfilename": path} for path in sorted(files)]
            return {"id": "/".join(parts[2:4]), "sha": commit, "private": repo.private, "siblings": siblings}
        if verb == "tree":
            inside = "/".join([*arguments[1:], ""]).lstrip("/")
            rows = [entry(path, content) for path, content in sorted(files.items()) if path.startswith(inside)]
            if inside and not rows:
                raise Failure(404, f"{inside} does not exist", "EntryNotFound")
            folders = {path.rsplit("/", 1)[0] for path in files if "/" in path and path.startswith(inside)}
            return rows + [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
        if verb == "paths-info":
            asked = json.loads(body) if body[:1] == b"{" else {"paths": parse_qs(body.decode()).get("paths", [])}
            return [entry(path, files[path]) for path in asked["paths"] if path in files]
        if verb == "preupload":
            modes = []
            for item in json.loads(body)["files"]:
                path = item["path"]
                oid = (sha256 if is_large(path) else git_name)(files[path]) if path in files else None
                mode = "lfs" if is_large(path) else "regular"
                modes.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            return {"files": modes}
        if verb == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            where = "/".join(parts[2 if parts[1] == "models" else 1 : 4])
            return self.commit(repo, revision, commit, lines, token, where)
        raise Failure(501, f"{method} {verb} is not here")

    def commit(self, repo: Repo, branch: str, head: str, lines: list[dict[str, Any]], token: str, where: str) -> Any:
        if token != WRITE:
            raise Failure(403, "You need write access")
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, head):
            raise Failure(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.commits[head].files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                assert line["key"] == "file", line["key"]
                files[value["path"]] = base64.b64decode(value["content"])
        name = repo.commit(branch, files, header["summary"])
        return {"success": True, "commitOid": name, "commitUrl": f"{self.url}/{where}/commit/{name}", "hookOutput": ""}

    def serve(self, repo: Repo, revision: str, path: str, headers: dict[str, str]) -> Any:
        commit = repo.resolve(revision)
        if commit is None:
            raise Failure(404, "Invalid rev id", "RevisionNotFound")
        content = repo.commits[commit].files.get(path)
        if content is None:
            raise Failure(404, "Entry not found", "EntryNotFound")
        tag = f'"{sha256(content)}"'
        facts = {"X-Repo-Commit": commit, "ETag": tag, "X-Linked-Etag": tag, "X-Linked-Size": str(len(content))}
        if "range" in headers:
            first, _, last = headers["range"].removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(content)), len(content) - 1)
            return 206, {**facts, "Content-Range": f"bytes {start}-{end}/{len(content)}"}, content[start : end + 1]
        return 200, {**facts, "Content-Length": str(len(content)), "Accept-Ranges": "bytes"}, content
