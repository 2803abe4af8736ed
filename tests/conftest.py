"""What the tests share: commands run as a person would, small data sets, a finished run."""

import logging
import os

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; before torch counts them
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import io
import pickle
import runpy
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from functools import cache, partial
from importlib.metadata import distributions
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import yaml
from fake_hub import Hub, HubServer
from filelock import FileLock
from PIL import Image
from safetensors.torch import save_file

from vitlab.arguments.entry_points import CONSOLE_SCRIPT


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs, also from processes that tests start: what is compared bit by bit is meant for the CPU."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also if nohup started the tests: runs would ignore it as well


def pytest_collection_finish() -> None:
    """Keep the garbage collector out of what was imported, as a command does: these are a million live objects."""
    gc.collect()
    gc.freeze()


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
    "preflight=off",  # as do the checks; `small_run` has both
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
        [sys.executable, script if script in ("-m", "-c") else str(ROOT / script), *rest],
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


def run_here(script: str, *arguments: str, cwd: Path, patch: pytest.MonkeyPatch | None = None) -> Result:
    """As `run_script`, without a process of its own: saves the seconds of importing torch.

    The caller's `patch` undoes the change of folder, arguments and environment; without one, they are undone here.
    """
    if patch is None:
        with pytest.MonkeyPatch.context() as patch:
            return run_here(script, *arguments, cwd=cwd, patch=patch)
    patch.chdir(cwd)
    for variable, value in (("HYDRA_FULL_ERROR", "1"), (CONSOLE_SCRIPT, "")):
        patch.setenv(variable, value)  # the entry point sets it
    patch.setattr(sys, "argv", [script, *arguments])
    go = partial(runpy.run_path, str(ROOT / script))
    if script == "-m":
        patch.setattr(sys, "argv", list(arguments))
        go = partial(runpy.run_module, arguments[0], alter_sys=True)
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="", write_through=True) for _ in range(2))
    handlers = list(logging.root.handlers)
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
            go(run_name="__main__")
    finally:
        logging.captureWarnings(False)
        logging.root.handlers[:] = handlers  # the run's write to `err` and to its run.log
    texts = (stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]
    return Result(sys.argv, int(end.value.code or 0), *texts)


@pytest.fixture
def in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """As `command`, in this process."""
    return lambda *arguments, cwd=tmp_path: run_here(*arguments, cwd=cwd, patch=monkeypatch)


@pytest.fixture(scope="session", autouse=True)
def _c_parses_yaml() -> Iterator[None]:
    """Composing a config takes a fifth less; thousands are composed. Processes of their own parse it in Python."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml, "SafeLoader", yaml.CSafeLoader)  # which OmegaConf's loader inherits from
        yield


@pytest.fixture(scope="session", autouse=True)
def _packages_are_listed_once() -> Iterator[None]:
    """Each run lists the installed packages for TensorBoard: a tenth of a small run. Here they stay the same."""
    packages = cache(lambda: [SimpleNamespace(metadata=found.metadata) for found in distributions()])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitlab.report.tensorboard.distributions", packages)
        yield


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run on synthetic data, with its figures, outputs/demo/<time> of its folder.

    That folder also has what the run wrote, as `stdout` and `stderr`.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    with FileLock(f"{shared}.lock"):  # one worker trains, each has a copy
        if not shared.exists():
            shared.mkdir()
            choices = ["callbacks.figures.level=light", "preflight=strict"]
            result = run_script("train.py", *SMALL_RUN, *choices, cwd=shared)
            assert result.returncode == 0, result.stderr
            for name in ("stdout", "stderr"):
                (shared / name).write_text(getattr(result, name))
    folder = shutil.copytree(shared, tmp_path_factory.mktemp("small_run") / "here", symlinks=True)
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
        every = 0.01  # s, in which it notices its end; 0.5 by default
        threading.Thread(target=server.serve_forever, args=[every], daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def hub(hub_server: HubServer) -> str:
    """Its address."""
    return hub_server.address
