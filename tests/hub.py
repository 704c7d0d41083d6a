"""A stand-in for the Hugging Face hub: repositories in memory, behind the few addresses that its library calls."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_" + "secret" * 5


class Hub(ThreadingHTTPServer):
    """The server.

    Attributes:
        repositories: name → branch or commit → file → content.
        private: names that were made private.
        requests: the lines of all requests, and the tokens that came with them.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.requests: list[tuple[str, str]] = []

    @property
    def address(self) -> str:
        """Its address, for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def hub() -> Iterator[Hub]:
    """A running hub."""
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


class Answers(BaseHTTPRequestHandler):
    """What it answers to one request."""

    server: Hub

    def do_POST(self) -> None:
        body = (
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if "Content-Length" in self.headers
            else self._chunks()
        )
        path = self._noted()
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid username or password."}, 401)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'ada'}/{asked['name']}"
            known = name in self.server.repositories
            self.server.repositories.setdefault(name, {"main": {}})
            if asked.get("private") or asked.get("visibility") == "private":
                self.server.private.add(name)
            return self._json({"url": f"{self.server.address}/{name}"}, 409 if known else 200)
        name, what, branch = _parts(path)
        if what == "branch":
            known = branch in self.server.repositories[name]
            self.server.repositories[name].setdefault(branch, {})
            return self._json({}, 409 if known else 200)
        if what == "preupload":
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for file in json.loads(body)["files"]]  # fmt: skip
            return self._json({"files": files})
        if what == "commit":
            content = self.server.repositories[name][branch]
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    content[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            oid = _oid(content)
            self.server.repositories[name][oid] = dict(content)
            return self._json({"commitUrl": f"{self.server.address}/{name}/commit/{oid}", "commitOid": oid})
        return self._json({"error": f"no {path}"}, 404)

    def do_GET(self) -> None:
        path = self._noted()
        if path.startswith("/api/models/"):
            name, _, branch = _parts(path)
            content = self._content(name, branch)
            if content is None:
                return self._json({"error": "Repository not found"}, 401, {"X-Error-Code": "RepoNotFound"})
            files = [{"rfilename": file} for file in content]
            if "/tree/" in path:
                return self._json([{"type": "file", "path": file, "size": len(data), "oid": _sha1(data)}
                                   for file, data in content.items()])  # fmt: skip
            return self._json({"id": name, "modelId": name, "sha": _oid(content), "siblings": files})
        return self._file(path)

    def do_HEAD(self) -> None:
        self._file(self._noted())

    def _file(self, path: str) -> None:
        name, _, rest = path.removeprefix("/").partition("/resolve/")
        branch, _, file = rest.partition("/")
        content = self._content(name, branch)
        if content is None or file not in content:
            return self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        data = content[file]
        self.send_response(200)
        for key, value in {"Content-Length": str(len(data)), "ETag": f'"{_sha1(data)}"',
                           "X-Repo-Commit": _oid(content)}.items():  # fmt: skip
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)
        return None

    def _content(self, name: str, branch: str) -> dict[str, bytes] | None:
        if name in self.server.private and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return None
        return self.server.repositories.get(name, {}).get(branch or "main")

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _noted(self) -> str:
        self.server.requests.append((f"{self.command} {self.path}", self.headers.get("Authorization", "")))
        return self.path.partition("?")[0]

    def _json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for key, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing on stderr."""


def _parts(path: str) -> tuple[str, str, str]:
    """`/api/models/USER/NAME/WHAT/BRANCH` in parts."""
    user, name, *rest = path.removeprefix("/api/models/").split("/")
    return f"{user}/{name}", rest[0] if rest else "", rest[1] if len(rest) > 1 else "main"


def _oid(content: dict[str, bytes]) -> str:
    return _sha1(b"".join(file.encode() + data for file, data in sorted(content.items())))


def _sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
