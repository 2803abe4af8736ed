"""Every command in a bash block of a README.md works, cut short."""

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from conftest import HUB_NAME, ROOT, Command, run_here
from data.test_cifar import QuietHandler, write_cifar100
from data.test_torchvision_sets import write_svhn
from fake_hub import WRITER, use_hub
from PIL import Image
from safetensors.torch import save_file

import vitlab

FRONT = ROOT / "README.md"
READMES = [FRONT, ROOT / "outputs" / "README.md"]
READMES += [file for folder in ("conf", "src", "tests") for file in sorted((ROOT / folder).rglob("README.md"))]
COMMANDS = {  # each once, with the page that it is from
    line: file
    for file in reversed(READMES)
    for block in re.findall(r"```bash\n(.*?)```", file.read_text(), flags=re.DOTALL)
    for line in block.splitlines()
}
TOOLS = ("pip", "pytest", "ruff", "mypy")
RUNS = [line for line in COMMANDS if line.startswith(("python ", "vitlab ")) and not line.startswith("python -m venv")]
PYTHON = re.findall(r"```python\n(.*?)```", FRONT.read_text(), flags=re.DOTALL)
SWEEPS = [line for line in RUNS if re.match(r"python train.py (-m|sweep=)", line)]
SEVERAL_PROCESSES = [line for line in RUNS if re.search(r"trainer=(ddp|ddp_cpu|fsdp)\b", line)]
OF_A_RUN = [line for line in RUNS if not line.startswith(("python train.py ", "python -m vitlab.augmentations "))]
OF_A_RUN += [line for line in RUNS if re.search(r" (resume|reproduce|init_from)=", line)]
TRAINING = [line for line in RUNS if line not in {*SWEEPS, *SEVERAL_PROCESSES, *OF_A_RUN}]

SHORT = ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "data.batch_size=10", "data.val_size=10"]
SMALL = ["model.embed_dim=32", "model.depth=1", "model.num_heads=2", "model.patch_size=8"]
SMALL_PRETRAINED = [f"model.name={HUB_NAME}", "trainer.max_steps=2", "trainer.val_check_interval=1"]
PLAIN = ["callbacks.figures.level=off", "preflight=off"]  # saves two seconds
SMALL_SYNTHETIC = ["data.train_images=100", "data.test_images=20"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the READMEs suppose: photos, image files of one's own, weights, a finished run, and an interrupted one."""
    folder = tmp_path_factory.mktemp("readme")
    draw = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 2)):
        for name in ("cat", "dog"):
            images = folder / "data" / "cifar10_jpeg" / split / name
            images.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(images / f"{number}.jpg")
    (folder / "photos").mkdir()
    Image.new("RGB", (200, 100), "green").save(folder / "photos" / "meadow.jpg")
    save_file(timm.create_model(HUB_NAME, pretrained=False).state_dict(), folder / "model.safetensors")

    data = ["data=image_folder", "data.root=data/cifar10_jpeg"]
    finished = folder / "outputs" / "first"
    result = run_here("train.py", *data, *SHORT, *SMALL, *PLAIN, f"hydra.run.dir={finished}", cwd=folder)
    assert result.returncode == 0, result.stderr
    shutil.copytree(finished, folder / "outputs" / "sweeps" / "size" / "0")
    interrupted = folder / "outputs" / "vit_scratch" / "2026-11-28_10-00-00"
    shutil.copytree(finished, interrupted)
    (interrupted / "metrics.json").unlink()
    manifest = json.loads((interrupted / "manifest.json").read_text())
    (interrupted / "manifest.json").write_text(json.dumps({**manifest, "status": "interrupted"}))
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """A copy of it: each command finds the same."""
    return Path(shutil.copytree(prepared, tmp_path / "here"))


@pytest.fixture(scope="module")
def download(cifar_archive: Path) -> Iterator[list[str]]:
    """Overrides that make the download of CIFAR-10 that of a small archive served on localhost."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=cifar_archive.parent)) as http:
        # A client that hangs up is the server's affair; what the tests read is the command's own terminal.
        http.handle_error = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=partial(http.serve_forever, 0.02), daemon=True).start()  # seconds to `shutdown`
        md5 = hashlib.md5(cifar_archive.read_bytes()).hexdigest()
        yield [f"data.url=http://127.0.0.1:{http.server_port}/{cifar_archive.name}", f"data.md5={md5}"]
        http.shutdown()


def words(line: str) -> list[str]:
    """The arguments of Python for a command."""
    program, *arguments = shlex.split(line)
    return arguments if program == "python" else ["-m", program, *arguments]


def check(result: subprocess.CompletedProcess[str]) -> None:
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    # A commit made while the tests run is another revision than that of the prepared run.
    lines = [line for line in result.stderr.lower().splitlines() if "revision changed" not in line]
    assert not [line for line in lines if "warn" in line]


def test_the_front_page_is_short() -> None:
    text = FRONT.read_text()
    assert len(text.splitlines()) <= 180
    assert len(text.split()) <= 1600


@pytest.mark.parametrize("file", READMES, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(file: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", file.read_text()):
        if "://" in target:
            continue
        path, _, heading = target.partition("#")
        linked = (file.parent / path).resolve() if path else file
        assert linked.exists(), target
        if heading:
            page = linked if linked.is_file() else linked / "README.md"
            headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", h).lower().replace(" ", "-") for h in headings}, target


@pytest.mark.parametrize("file", READMES, ids=lambda file: str(file.relative_to(ROOT)))
def test_modules_that_a_page_names_exist(file: Path) -> None:
    text = file.read_text().partition("If you come from")[0]  # then come the files of another project
    for name in re.findall(r"`([\w./]+\.py)`", text):
        assert any((base / name).exists() for base in (file.parent, ROOT, ROOT / "src" / "vitlab", ROOT / "tests")), (
            name
        )


@pytest.mark.parametrize(
    "file", [file for file in READMES if file.parent.parent.name == "vitlab"], ids=lambda f: f.parent.name
)
def test_a_room_lists_its_files(file: Path) -> None:
    names = {module.name for module in file.parent.glob("*.py")} - {"__init__.py"}
    assert {name for name in names if f"`{name}`" not in file.read_text()} == set()


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith(TOOLS)])
def test_tool(line: str) -> None:
    """Installing, testing and checking: CI runs the same, or the line names tests that exist."""
    steps = [part for script in (ROOT / ".ci" / "run").read_text().splitlines() for part in script.split(" && ")]
    if not any(step == line or step.startswith(f"{line} #") for step in steps):
        tests = [argument for argument in shlex.split(line) if argument.startswith("tests/")]
        assert line.startswith("pytest ")
        assert tests
        assert all((ROOT / test).exists() for test in tests)


def test_every_command_is_tried() -> None:
    others = {line for line in COMMANDS if line not in RUNS and not line.startswith(TOOLS)}
    assert others == {"python -m venv .venv && source .venv/bin/activate", "tensorboard --logdir outputs"}


@pytest.mark.parametrize("line", SWEEPS)
def test_sweep(line: str, folder: Path, in_process: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first job of a sweep is planned; none is run. Of several seeds it has the first, of folds the first two."""
    sources: list[Any] = []
    monkeypatch.setattr("vitlab.sweeps.runner.run_jobs", lambda *arguments: sources.append(arguments[2]))
    monkeypatch.setattr("vitlab.sweeps.search.run_jobs", lambda *arguments: sources.append(arguments[2]))
    sweep = folder / "outputs" / "sweeps" / "size"
    if "sweep=resume:" in line:
        record = {"arguments": ["seed=0,1"], "cwd": str(folder), "jobs": []}
        (sweep / "sweep.json").write_text(json.dumps(record))
    shutil.rmtree(sweep / "0")
    arguments = words(re.sub(r"fold=0,1,[\d,]+", "fold=0,1", line.replace("seed=0,1,2", "seed=0")))
    if "sweep=augmentation" in line:
        arguments.append("hydra.sweeper.params.seed=0")
    result = in_process(*arguments, cwd=folder)
    assert result.returncode == 0, result.stderr
    (source,) = sources
    first = source.next()
    assert first.number == 0
    assert first.overrides


@pytest.mark.parametrize("line", SEVERAL_PROCESSES)
def test_several_processes(line: str, in_process: Command) -> None:
    """The config composes; tests/distributed trains with several processes."""
    check(in_process(*words(line), "--cfg", "job"))


@pytest.mark.parametrize("line", TRAINING)
def test_training(
    line: str, folder: Path, download: list[str], hub: str, in_process: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(hub, folder / "huggingface", monkeypatch)
    shutil.rmtree(folder / "outputs")
    script, *arguments = words(line)
    if script == "-m":
        arguments += [*download, "data.batch_size=10", "data.val_size=10"]
    elif not {"--help", "--cfg"} & set(arguments):
        pretrained = "model=vit_pretrained" in line or "finetune" in line
        arguments += [*SHORT, *(SMALL_PRETRAINED if pretrained else SMALL)]
        if "time_budget" in line or "_30min" in line:
            arguments = [a for a in arguments if not a.startswith(("trainer.max_time=", "trainer.max_epochs=1"))]
            arguments.append("trainer.max_time=00:00:00:01")
        if "debug=profile" in line:
            arguments.remove("trainer.limit_train_batches=2")
        if "preflight" not in line and "experiment=demo" not in line:
            arguments += PLAIN
        if "experiment=demo" in line:
            arguments += SMALL_SYNTHETIC
        elif "data=cifar100" in arguments:
            write_cifar100(folder / "data")
            arguments += ["data.md5=other", "data.batch_size=20", "data.val_size=100"]
        elif "data=torchvision" in arguments:
            write_svhn(folder / "data", monkeypatch)
            arguments += ["data.batch_size=10", "data.val_size=5"]
        elif "data=csv" in arguments:
            files = sorted(file.relative_to(folder) for file in (folder / "data").rglob("*.jpg"))
            lines = ["path,label,split", *(f"{file},{file.parts[-2]},{file.parts[-3]}" for file in files)]
            (folder / "labels.csv").write_text("\n".join(lines))
        elif "data=image_folder" not in arguments:
            arguments += download
    check(in_process(script, *arguments, cwd=folder))


@pytest.mark.parametrize("line", OF_A_RUN)
def test_command_on_a_run(
    line: str, folder: Path, hub: str, in_process: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(hub, folder / "huggingface", monkeypatch)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    script, *arguments = words(line)
    if "trainer.max_epochs=40" in arguments:
        arguments.append("trainer.max_epochs=2")
    if "init_from" in line:
        data = ["data=image_folder", "data.root=data/cifar10_jpeg"]
        arguments += [*data, *SHORT, *SMALL, *PLAIN]
    check(in_process(script, *arguments, cwd=folder))


@pytest.mark.parametrize("program", PYTHON)
def test_python(
    program: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(vitlab, "train", partial(vitlab.train, *SHORT, *SMALL, *SMALL_SYNTHETIC, *PLAIN), raising=False)
    (folder / "photos" / "meadow.jpg").rename(folder / "photos" / "cat.jpg")
    found: dict[str, Any] = {}
    exec(program, found)
    assert found["result"].run.parent.name == "demo"
    assert "photos/cat.jpg" in capsys.readouterr().out
    assert found["features"].shape == (1, 32)
    assert (folder / "attention.png").exists()


def test_tensorboard_serves_the_runs(prepared: Path) -> None:
    binary = Path(sys.executable).with_name("tensorboard")
    server = subprocess.Popen(
        [binary, "--logdir", "outputs", "--port", "0"], cwd=prepared, stderr=subprocess.PIPE, text=True
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
        assert "first/" in runs
    finally:
        server.terminate()
        server.wait(30)


def test_every_group_and_choice_is_listed() -> None:
    page = (ROOT / "conf" / "README.md").read_text()
    for group in (ROOT / "conf").iterdir():
        if group.is_dir() and group.name != "hydra":
            (row,) = [line for line in page.splitlines() if line.startswith(f"| `{group.name}` |")]
            choices = set(re.findall(r"`(\w+)`", row.split("|")[2]))
            assert choices == {file.stem for file in group.glob("*.yaml")}
