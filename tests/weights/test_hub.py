"""timm's own weights: from a hub on localhost, from the cache, and where there is neither."""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

NAME = "test_vit.r160_in1k"
FILE = f"timm/{NAME}/resolve/main/model.safetensors"


class Hub(SimpleHTTPRequestHandler):
    """Serves files as the Hugging Face hub does: with the revision and a hash of each."""

    def end_headers(self) -> None:
        file = Path(self.translate_path(self.path))
        if file.is_file():
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", f'"{hashlib.sha256(file.read_bytes()).hexdigest()}"')
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """The address of a hub that has the weights of one small network."""
    file = tmp_path / "hub" / FILE
    file.parent.mkdir(parents=True)
    torch.manual_seed(1)
    save_file(timm.create_model(NAME, pretrained=False).state_dict(), file)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, directory=tmp_path / "hub")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


FETCH = """
import sys, torch
from vitlab.models import timm_facts
from vitlab.weights.hub import fetch
torch.save(fetch(timm_facts(sys.argv[1])), sys.argv[2])
"""


def fetched(folder: Path, endpoint: str) -> dict[str, torch.Tensor]:
    file = folder / "fetched.pt"
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home")}
    subprocess.run([sys.executable, "-c", FETCH, NAME, file], env=environment, check=True, timeout=120)
    state: dict[str, torch.Tensor] = torch.load(file, weights_only=True)
    file.unlink()
    return state


def test_weights_come_from_the_hub_and_then_from_the_cache(hub: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    expected = timm.create_model(NAME, pretrained=False).state_dict()
    unreachable = "http://127.0.0.1:9"
    for endpoint in (hub, unreachable):
        state = fetched(tmp_path, endpoint)
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected)
