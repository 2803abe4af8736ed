"""The page for trying a model: `python -m vitlab.app`."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
from conftest import Command
from PIL import Image

import vitlab
from vitlab.app import describe
from vitlab.arguments.command import read_command
from vitlab.errors import INTERRUPTED
from vitlab.loaded_model import open_model

SECONDS = 120  # at most, until the page shows what it should
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ATTENTION = "[...document.images].find(image => image.naturalWidth > 500)?.src"  # the only wide image


@dataclass
class Served:
    process: subprocess.Popen[str]
    address: str
    uploads: Path  # folder of temporary files


@pytest.fixture(scope="module")
def served(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The page of a run."""
    pytest.importorskip("gradio")
    uploads = tmp_path_factory.mktemp("uploads")
    command = [sys.executable, "-m", "vitlab.app", f"run={small_run}", "top_k=3", "examples=4"]
    environment = {**os.environ, "TMPDIR": str(uploads)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        address = next(match[1] for line in process.stdout if (match := re.search(r"open (http://\S+)/ in", line)))
        yield Served(process, address, uploads)
        process.terminate()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of the kinds that are easily read in a wrong way."""
    folder = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    noise = Image.fromarray(draw.integers(0, 256, (40, 60, 4), dtype=np.uint8))
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    noise.convert("RGB").save(folder / "turned.jpg", exif=exif)
    noise.save(folder / "see_through.png")
    Image.fromarray(np.linspace(0, 65535, 900).reshape(30, 30).astype(np.uint16)).save(folder / "deep.png")
    (folder / "broken.jpg").write_bytes((folder / "turned.jpg").read_bytes()[:300])
    return {file.stem: file for file in folder.iterdir()}


@pytest.fixture(scope="module")
def client(served: Served) -> Any:
    return pytest.importorskip("gradio_client").Client(served.address, verbose=False, analytics_enabled=False)


@pytest.mark.parametrize("name", ["turned", "see_through", "deep"])
def test_an_upload_gets_the_probabilities_of_predict(
    client: Any, photos: dict[str, Path], small_run: Path, name: str
) -> None:
    from gradio_client import handle_file

    preview, label, attention, message = client.predict(handle_file(photos[name]), api_name="/classify")
    assert message == ""
    expected = vitlab.load(small_run).predict(photos[name])
    assert label["label"] == expected.label
    shown = {entry["label"]: entry["confidence"] for entry in label["confidences"]}
    assert shown == pytest.approx(dict(list(expected.probabilities.items())[:3]), abs=1e-6)
    with Image.open(preview) as image, Image.open(attention) as figure:
        assert image.size == {"turned": (40, 60), "see_through": (60, 40), "deep": (30, 30)}[name]  # upright
        assert figure.width > 500


def test_an_unreadable_image_is_a_sentence_on_the_page(client: Any, served: Served, photos: dict[str, Path]) -> None:
    from gradio_client import handle_file

    *shown, message = client.predict(handle_file(photos["broken"]), api_name="/classify")
    assert not any(shown)
    assert "can't be read" in message
    assert str(served.uploads) not in message


def test_the_page_reads_no_other_files_of_the_computer(served: Served, photos: dict[str, Path]) -> None:
    upload = {"path": str(photos["deep"]), "meta": {"_type": "gradio.FileData"}, "orig_name": "deep.png"}
    call = f"{served.address}/gradio_api/call/classify"  # a client of gradio's would upload the file
    head = {"Content-Type": "application/json"}
    with urlopen(Request(call, json.dumps({"data": [upload]}).encode(), head)) as response:
        event = json.load(response)["event_id"]
    with urlopen(f"{call}/{event}") as response:
        said = response.read().decode()
    assert "event: error" in said
    assert "confidences" not in said


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
def test_a_browser_shows_classes_and_attention(served: Served, photos: dict[str, Path]) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 400, "height": 900})  # a phone's
        page.set_default_timeout(SECONDS * 1000)
        fetched: list[str] = []
        page.on("request", lambda request: fetched.append(request.url))
        page.goto(served.address)
        page.get_by_text("The model knows 10 classes").wait_for()
        page.locator(".examples img").nth(3).wait_for()
        assert page.locator(".examples img").count() == 4
        page.locator("input[type=file]").first.set_input_files(photos["turned"])
        page.locator("[data-testid=label-output-value]").wait_for()
        first = page.wait_for_function(ATTENTION).json_value()
        page.locator(".examples button").nth(1).click()
        page.wait_for_function(f"(() => {{ const now = {ATTENTION}; return now && now !== {json.dumps(first)} }})()")
        assert page.get_by_text("Error", exact=True).count() == 0
        assert {url.split("/")[2] for url in fetched if url.startswith("http")} == {served.address.split("/")[2]}
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        browser.close()


def test_a_taken_port_and_ctrl_c(served: Served, small_run: Path, in_process: Command) -> None:
    port = served.address.rpartition(":")[2]
    taken = in_process("-m", "vitlab.app", f"run={small_run}", "examples=0", f"port={port}")
    assert taken.returncode == 2
    assert f"port={port}" in taken.stderr
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(timeout=SECONDS) == INTERRUPTED
    assert list(served.uploads.iterdir()) == []  # no image is kept


def test_without_gradio_the_command_says_how_to_install_it(
    in_process: Command, small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = in_process("-m", "vitlab.app", f"run={small_run}")
    assert result.returncode == 2
    assert "pip install" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_accuracy_is_shown_with_the_checkpoint_that_was_tested(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(small_run, tmp_path / "run")
    best = run / "checkpoints" / "best.ckpt"
    shutil.copy(best, tmp_path / "copy.ckpt")
    monkeypatch.chdir(tmp_path)

    def shown(checkpoint: str) -> bool:
        command, overrides = read_command("app", ["run=run", f"checkpoint={checkpoint}", "trainer=cpu"])
        return "test accuracy" in dict(describe(open_model(command, overrides, quiet=True))[1])

    assert [shown(checkpoint) for checkpoint in ("best", str(best), "copy.ckpt")] == [True, True, False]
    shutil.rmtree(best.parent)
    assert not shown("copy.ckpt")


def test_the_accuracy_is_that_of_the_weights_on_the_page(small_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(small_run, tmp_path / "run")
    metrics, config = run / "metrics.json", run / "config.yaml"
    metrics.write_text(json.dumps({**json.loads(metrics.read_text()), "test/acc": 0.25, "test/acc_ema": 0.75}))
    config.write_text(config.read_text().replace("monitor: val/acc", "monitor: val/acc_ema"))
    assert "monitor: val/acc_ema\n" in config.read_text()
    command, overrides = read_command("app", [f"run={run}", "weights=raw", "trainer=cpu"])
    facts = dict(describe(open_model(command, overrides, quiet=True))[1])
    assert facts["test accuracy"].startswith("25.00%")
    assert "raw weights" in facts["checkpoint"]


@pytest.mark.parametrize(
    "wrong", ["port=0", "port=seven", "port=70000", "top_k=0", "share=perhaps", "examples=-1", "top_k=all"]
)
def test_wrong_values_are_named(wrong: str, in_process: Command) -> None:
    result = in_process("-m", "vitlab.app", "run=x", wrong)
    assert result.returncode == 2
    assert wrong.partition("=")[0] in result.stderr
