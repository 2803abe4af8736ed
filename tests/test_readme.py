"""Every command in the README runs."""

import hashlib
import re
import shlex
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from conftest import HUB_NAME, ROOT, Command
from data.test_cifar10 import QuietHandler
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file

BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
SHORT = "trainer.max_epochs=1 data.batch_size=10 data.val_size=10"
SMALL = "model.embed_dim=32 model.depth=1 model.num_heads=2 model.patch_size=8"
SMALL_PRETRAINED = f"model.name={HUB_NAME} trainer.max_steps=2 trainer.val_check_interval=1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the README supposes: photos, and image files of one's own."""
    folder = tmp_path_factory.mktemp("readme")
    draw = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 2)):
        for name in ("cat", "dog"):
            place = folder / "data" / "cifar10_jpeg" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(place / f"{number}.jpg")
    (folder / "photos").mkdir()
    save_file(timm.create_model(HUB_NAME, pretrained=False).state_dict(), folder / "model.safetensors")
    Image.new("RGB", (200, 100), "green").save(folder / "photos" / "meadow.jpg")
    return folder


@pytest.fixture(scope="module")
def download(cifar_archive: Path) -> Iterator[list[str]]:
    """Overrides that make the download of CIFAR-10 that of a small archive served on localhost."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=cifar_archive.parent)) as http:
        # A client that hangs up is the server's affair; what the tests read is the command's own terminal.
        http.handle_error = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=http.serve_forever, daemon=True).start()
        md5 = hashlib.md5(cifar_archive.read_bytes()).hexdigest()
        yield [f"data.url=http://127.0.0.1:{http.server_port}/{cifar_archive.name}", f"data.md5={md5}"]
        http.shutdown()


def test_the_fresh_machine_s_commands_are_what_ci_runs() -> None:
    installs = [line for line in COMMANDS if line.startswith("pip ")]
    assert len(installs) == 2
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    assert all(line in ci for line in installs)


SWEEPS = [line for line in COMMANDS if re.match(r"python train.py (-m|sweep=)", line)]


@pytest.mark.parametrize("line", SWEEPS)
def test_sweep(line: str, folder: Path, in_process: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    sources: list[Any] = []
    monkeypatch.setattr("vitlab.sweeps.runner.run_jobs", lambda *arguments: sources.append(arguments[2]))
    monkeypatch.setattr("vitlab.sweeps.search.run_jobs", lambda *arguments: sources.append(arguments[2]))
    result = in_process(*shlex.split(line)[1:], cwd=folder)
    assert result.returncode == 0, result.stderr
    (source,) = sources
    first = source.next()
    assert first.number == 0
    assert first.overrides


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("python ") and line not in SWEEPS])
def test_command(
    line: str, folder: Path, download: list[str], hub: str, in_process: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = line.replace("sweeps/<time>", "vit_scratch")  # the README's sweeps are not made here
    if match := re.search(r"outputs/(\w+)/<time>", line):
        runs = sorted((folder / "outputs" / match[1]).iterdir())
        line = line.replace("<time>", runs[0].name)
    script, *arguments = shlex.split(line)[1:]
    goes_on = any(argument.startswith(("resume=", "reproduce=")) for argument in arguments)
    if script == "train.py" and "--help" not in arguments and not goes_on:
        pretrained = "model=vit_pretrained" in line or "finetune" in line
        arguments += [*SHORT.split(), *(SMALL_PRETRAINED if pretrained else SMALL).split()]
        if "time_budget" in line:
            arguments = [a for a in arguments if not a.startswith(("trainer.max_time=", "trainer.max_epochs=1"))]
            arguments.append("trainer.max_time=00:00:00:01")
        if "callbacks.figures.level" not in line:
            arguments.append("callbacks.figures.level=off")  # saves a second each
        if "data=image_folder" not in arguments:
            arguments += download
    if script == "-m" and "vitlab.augmentations" in arguments:
        arguments += [*download, "data.batch_size=10", "data.val_size=10"]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "huggingface"))
    monkeypatch.setattr(constants, "ENDPOINT", hub)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub + "/{repo_id}/resolve/{revision}/{filename}")
    result = in_process(script, *arguments, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert "warn" not in result.stderr.lower()


def test_tensorboard_serves_the_runs(folder: Path) -> None:
    assert "tensorboard --logdir outputs" in COMMANDS
    binary = Path(sys.executable).with_name("tensorboard")
    server = subprocess.Popen(
        [binary, "--logdir", "outputs", "--port", "0"], cwd=folder, stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr is not None
        address = next(match[0] for line in server.stderr if (match := re.search(r"http://\S+", line)))
        deadline = time.monotonic() + 60
        while True:
            runs = urllib.request.urlopen(f"{address}data/plugin/scalars/tags").read().decode()
            if "val/acc" in runs:
                break
            assert time.monotonic() < deadline, runs
            time.sleep(0.5)
        assert "vit_scratch/" in runs
    finally:
        server.terminate()
        server.wait(30)


def test_every_group_and_choice_is_in_the_map() -> None:
    readme = (ROOT / "README.md").read_text()
    for group in (ROOT / "conf").iterdir():
        if group.is_dir() and group.name != "hydra":
            (row,) = [line for line in readme.splitlines() if line.startswith(f"| `{group.name}` |")]
            choices = set(re.findall(r"`(\w+)`", row.split("|")[2]))
            assert choices == {file.stem for file in group.glob("*.yaml")}
