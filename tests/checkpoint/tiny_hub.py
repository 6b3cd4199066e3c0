"""A hub of a few endpoints on this machine, as far as huggingface_hub asks for them to fetch and to push."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from huggingface_hub import constants

Files = dict[str, bytes]
TOKEN = "hf_writes"


class TinyHub:
    """Repositories by name, branches by name, files by path; and what was asked for."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Files]] = {}
        self.private: set[str] = set()
        self.messages: list[str] = []
        self.asked: list[str] = []
        """The path of every request to read."""

    def at(self, name: str, revision: str) -> tuple[str, Files] | None:
        """The commit and the files of a branch or a commit."""
        for branch, files in self.repositories[name].items():
            commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
            if revision in (branch, commit):
                return commit, files
        return None


@contextmanager
def tiny_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[TinyHub]:
    """The hub while it serves, and the only one that huggingface_hub knows; snapshots go to `cache`."""
    hub = TinyHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    point_to(f"http://127.0.0.1:{server.server_port}", monkeypatch)
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `HF_ENDPOINT` does at the start of a program."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )


class _Handler(BaseHTTPRequestHandler):
    hub: TinyHub

    def do_GET(self) -> None:
        self.hub.asked.append(self.path)
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        owner, repository, *rest = parts[2:] if is_api else parts
        name = f"{owner}/{repository}"
        if name not in self.hub.repositories:
            return self._answer({}, 404, {"X-Error-Code": "RepoNotFound"})
        found = self.hub.at(name, rest[1] if rest else "main")
        if found is None:
            return self._answer({}, 404, {"X-Error-Code": "RevisionNotFound"})
        commit, files = found
        if not is_api:
            path = "/".join(rest[2:])
            etag = hashlib.sha1(files[path]).hexdigest()
            return self._answer(files[path], 200, {"ETag": f'"{etag}"', "X-Repo-Commit": commit})
        if rest[:1] == ["tree"]:
            return self._answer(
                [
                    {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for path, data in files.items()
                ]
            )
        return self._answer({"id": name, "sha": commit, "siblings": []})

    do_HEAD = do_GET  # noqa: N815 - the name http.server looks for

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self._answer({"error": "Invalid username or password."}, 401)
        url = f"http://{self.headers['Host']}"
        path = unquote(self.path)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.hub.repositories.setdefault(name, {"main": {}})
            if asked.get("visibility") == "private":
                self.hub.private.add(name)
            return self._answer({"url": f"{url}/{name}"})
        if path == "/api/validate-yaml":
            return self._answer({"warnings": [], "errors": []})
        _, _, _, owner, repository, verb, branch = path.split("/", 6)
        branches = self.hub.repositories[f"{owner}/{repository}"]
        if verb == "branch":
            branches.setdefault(branch, dict(branches["main"]))
            return self._answer({})
        if verb == "preupload":
            files = [{**f, "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]]
            return self._answer({"files": files})
        for line in map(json.loads, body.splitlines()):
            match line["key"], line["value"]:
                case "header", header:
                    self.hub.messages.append(header["summary"])
                case "file", file:
                    branches[branch][file["path"]] = base64.b64decode(file["content"])
                case "deletedFile", file:
                    del branches[branch][file["path"]]
        commit = self.hub.at(f"{owner}/{repository}", branch)[0]
        return self._answer({"commitUrl": f"{url}/{owner}/{repository}/commit/{commit}", "commitOid": commit})

    def _answer(self, body: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing: the tests ask the hub itself."""
