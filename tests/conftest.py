"""What the tests share: commands run as a person would, small data sets, a finished run."""

import logging
import os

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; before torch counts them
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pickle
import runpy
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from fake_hub import Hub, HubServer
from PIL import Image
from safetensors.torch import save_file

from vitlab.arguments.entry_points import CONSOLE_SCRIPT


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs, also from processes that tests start: what is compared bit by bit is meant for the CPU."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also if nohup started the tests: runs would ignore it as well


ROOT = Path(__file__).parent.parent
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

# A run of some seconds: a small network, few images.
SMALL_MODEL = ["model.embed_dim=32", "model.depth=2", "model.num_heads=2", "model.patch_size=8"]
SMALL_RUN = [
    "experiment=demo",
    "data.train_images=400",
    "data.test_images=103",
    "data.eval_batch_size=50",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=2",
    "callbacks.figures.level=off",  # each run's would take a second
    *SMALL_MODEL,
]

HUB_NAME = "test_vit.r160_in1k"  # a small network of timm's
HUB_FILE = f"timm/{HUB_NAME}/resolve/main/model.safetensors"

Result = subprocess.CompletedProcess[str]
Command = Callable[..., Result]


def run_script(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 300) -> Result:
    """`python <arguments>` in `cwd`; an entry point is named by its file name, or as `-m <module>`."""
    script, *rest = arguments
    return subprocess.run(
        [sys.executable, script if script == "-m" else str(ROOT / script), *rest],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Runs an entry point in an empty folder."""
    return lambda *arguments, **options: run_script(*arguments, **{"cwd": tmp_path, **options})


@pytest.fixture
def in_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    """As `command`, without a process of its own: saves the seconds of importing torch."""

    handlers = list(logging.root.handlers)

    def run_here(script: str, *arguments: str, cwd: Path = tmp_path) -> Result:
        logging.root.handlers[:] = handlers  # not those of an earlier run, which write to its run.log
        monkeypatch.chdir(cwd)
        for variable, value in (("HYDRA_FULL_ERROR", "1"), (CONSOLE_SCRIPT, "")):
            monkeypatch.setenv(variable, value)  # the entry point sets it: undone with the test
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        capsys.readouterr()
        go = partial(runpy.run_path, str(ROOT / script))
        if script == "-m":
            monkeypatch.setattr(sys, "argv", list(arguments))
            go = partial(runpy.run_module, arguments[0], alter_sys=True)
        with pytest.raises(SystemExit) as end:
            go(run_name="__main__")
        return Result(sys.argv, int(end.value.code or 0), *capsys.readouterr())

    yield run_here
    logging.captureWarnings(False)
    # Hydra's write to this test's terminal, which is closed with it.
    logging.root.handlers[:] = handlers


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run on synthetic data, with its figures, outputs/demo/<time> of its folder."""
    folder = tmp_path_factory.mktemp("small_run")
    result = run_script("train.py", *SMALL_RUN, "callbacks.figures.level=light", cwd=folder)
    assert result.returncode == 0, result.stderr
    return next((folder / "outputs" / "demo").iterdir())


@pytest.fixture(scope="session")
def cifar_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive in CIFAR-10's official format with 5 x 20 images to train on and 20 to test on."""
    folder = tmp_path_factory.mktemp("cifar")
    batches = folder / "cifar-10-batches-py"
    batches.mkdir()
    draw = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        labels = [i % 10 for i in range(20)]
        # Each image has its label's colour, so that images and labels can be told to belong together.
        pixels = np.repeat(np.array(labels, dtype=np.uint8)[:, None] * 20, 3072, axis=1)
        pixels += draw.integers(0, 20, pixels.shape, dtype=np.uint8)
        (batches / name).write_bytes(pickle.dumps({"data": pixels, "labels": labels}, protocol=2))
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": CLASSES}, protocol=2))
    archive = folder / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(batches, "cifar-10-batches-py")
    return archive


@pytest.fixture
def image_root(tmp_path: Path) -> Path:
    """Image files of three classes: 12 to train on and 4 to test on of each, 32 px, PNG."""
    root = tmp_path / "images"
    draw = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name in ("ant", "bee", "cow"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number:02d}.png")
    return root


@pytest.fixture
def hub_server(tmp_path: Path) -> Iterator[HubServer]:
    """A hub that has the weights of one small network."""
    file = tmp_path / "hub" / HUB_FILE
    file.parent.mkdir(parents=True)
    torch.manual_seed(1)
    save_file(timm.create_model(HUB_NAME, pretrained=False).state_dict(), file)
    with HubServer(partial(Hub, directory=tmp_path / "hub")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def hub(hub_server: HubServer) -> str:
    """Its address."""
    return hub_server.address
