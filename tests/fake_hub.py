"""A Hugging Face hub on localhost: downloads, and uploads by users with a token, as huggingface_hub asks for them."""

import hashlib
import json
import re
from base64 import b64decode
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

WRITER, READER = "hf_writer", "hf_reader"  # tokens of the user called "user"
LICENCES = ("mit", "apache-2.0")


class Hub(SimpleHTTPRequestHandler):
    """Serves the files in its directory, `<user>/<name>/resolve/main/<file>`, with the revision and a hash of each.

    Requests that change something need a token. `server.commits` lists what each commit of a repository did.
    """

    server: "HubServer"

    def translate_path(self, path: str) -> str:
        return super().translate_path(re.sub(r"/resolve/[^/]+/", "/resolve/main/", path))

    def end_headers(self) -> None:
        file = Path(self.translate_path(self.path))
        if file.is_file():
            repo = self.path.split("/resolve/")[0].strip("/")
            self.send_header("X-Repo-Commit", self._revision(repo))
            self.send_header("ETag", f'"{hashlib.sha256(file.read_bytes()).hexdigest()}"')
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        repo, _, file = self.path.strip("/").partition("/resolve/")
        if not file:
            return super().send_error(code, message, explain)
        return self._refuse(404, "not found", "EntryNotFound" if self._files(repo).is_dir() else "RepoNotFound")

    def do_GET(self) -> None:
        if not (found := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(/revision/main)?", self.path)):
            return super().do_GET()
        repo = found[1]
        if self._token() not in (None, WRITER, READER):
            return self._refuse(401, "Invalid credentials in Authorization header")
        if not (self._files(repo).is_dir() or repo in self.server.commits):
            return self._refuse(404, "Repository not found", code="RepoNotFound")
        files = sorted(file.name for file in self._files(repo).glob("*"))
        private = repo in self.server.private
        about = {"id": repo, "private": private, "sha": self._revision(repo), "tags": [], "downloads": 0, "likes": 0}
        return self._answer({**about, "siblings": [{"rfilename": name} for name in files]})

    def do_PUT(self) -> None:
        self.server.uploads[self.path.rpartition("/")[2]] = self._body()
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        path = self.path.partition("?")[0]
        if self._token() not in (WRITER, READER):
            return self._refuse(401, "Invalid credentials in Authorization header")
        if path == "/api/validate-yaml":
            licence = re.search(r"^license: (.*)$", json.loads(body)["content"], flags=re.MULTILINE)
            wrong = licence is not None and licence[1] not in LICENCES
            errors = [{"message": f'"license" must be one of [{", ".join(LICENCES)}]'}] if wrong else []
            return self._answer({"errors": errors, "warnings": []}, 400 if wrong else 200)
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            if asked["organization"] != "user" or self._token() == READER:
                return self._refuse(403, "You don't have the rights to create a model under this namespace")
            self.server.commits[repo] = []
            if asked.get("visibility") == "private" or asked.get("private"):
                self.server.private.add(repo)
            return self._answer({"url": f"{self.server.address}/{repo}"})
        if found := re.fullmatch(r"/(.*)\.git/info/lfs/objects/batch", path):
            objects = json.loads(body)["objects"]
            upload = [{**o, "actions": {"upload": {"href": f"{self.server.address}/lfs/{o['oid']}"}}} for o in objects]
            return self._answer({"transfer": "basic", "objects": upload})
        found = re.fullmatch(r"/api/models/(user/[\w.-]+)/(preupload|commit)/main", path)
        if found is None or self._token() == READER:
            return self._refuse(403, "Forbidden: you must use a write token")
        if found[2] == "preupload":
            files = [{"path": f["path"], "uploadMode": self._mode(f["path"])} for f in json.loads(body)["files"]]
            return self._answer({"files": [{**file, "shouldIgnore": False} for file in files]})
        return self._commit(found[1], [json.loads(line) for line in body.splitlines()])

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        folder = self._files(repo)
        folder.mkdir(parents=True, exist_ok=True)
        for key, value in ((line["key"], line["value"]) for line in lines):
            if key == "file":
                (folder / value["path"]).write_bytes(b64decode(value["content"]))
            elif key == "lfsFile":
                (folder / value["path"]).write_bytes(self.server.uploads[value["oid"]])
            elif key == "deletedFile":
                (folder / value["path"]).unlink()
        self.server.commits.setdefault(repo, []).append(
            {f"{line['key']} {line['value'].get('path')}" for line in lines}
        )
        sha = self._revision(repo)
        self._answer({"success": True, "commitOid": sha, "commitUrl": f"{self.server.address}/{repo}/commit/{sha}"})

    @staticmethod
    def _mode(path: str) -> str:
        return "lfs" if path.endswith((".safetensors", ".onnx", ".pt2")) else "regular"

    def _files(self, repo: str) -> Path:
        return Path(self.directory, repo, "resolve", "main")

    def _revision(self, repo: str) -> str:
        return f"{len(self.server.commits.get(repo, [])):040x}"

    def _token(self) -> str | None:
        header = self.headers.get("Authorization")
        return header.removeprefix("Bearer ") if header else None

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _refuse(self, status: int, message: str, code: str | None = None) -> None:
        self._answer(
            {"error": message}, status, {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        )

    def _answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(text))}.items():
            self.send_header(name, value)
        super().end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)


class HubServer(ThreadingHTTPServer):
    """A hub, and what was done to it."""

    def __init__(self, handler: Any) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.commits: dict[str, list[set[str]]] = {}  # of each repository that was created here
        self.private: set[str] = set()
        self.uploads: dict[str, bytes] = {}


def use_hub(address: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process's huggingface_hub talk to the hub at `address`, without a token."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # Xet is a protocol of its own, with other servers
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
