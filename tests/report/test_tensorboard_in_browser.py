"""TensorBoard, opened in a browser.

VITLAB_SCREENSHOTS names a folder that keeps the screenshots.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium"),
]
SECONDS = 60  # at most, until a page shows what it should
TABS = {
    "SCALARS": ["train", "train/loss", "val", "val/acc", "val-best", "weights", "workload"],
    "CUSTOM SCALARS": ["learning", "loss (nats), train and val", "accuracy, train and val", "update / weight"],
    "IMAGES": ["view", "view/data/first_batch", "view/learnt/attention_rollout"],
    "TEXT": ["config", "environment", "manifest", "preflight", "resume"],
    "PR CURVES": ["precision_recall/crescent", "precision_recall/two_dots"],
    "HPARAMS": ["optimizer.lr", "model.depth", "val-best/acc", "val-best/acc_test"],
}


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        software = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]  # WebGL, which the Projector needs
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *software])
        yield browser.new_page(viewport={"width": 1500, "height": 1100})
        browser.close()


@pytest.fixture(scope="module")
def dashboard(small_run: Path) -> Iterator[str]:
    """The address of a TensorBoard that shows one run."""
    outputs = small_run.parent.parent
    binary = Path(sys.executable).with_name("tensorboard")
    command = [str(binary), "--logdir", str(outputs), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        yield next(match[0] for line in server.stderr if (match := re.search(r"http://\S+", line)))
        server.terminate()


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("VITLAB_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def take(page: Page, file: Path, **options: bool) -> None:
    page.screenshot(path=file, **options)  # type: ignore[arg-type]
    assert np.asarray(Image.open(file).convert("L")).std() > 5, f"{file} shows nothing"


def test_every_tab_shows_the_run_and_two_colours_in_one_chart(page: Page, dashboard: str, screenshots: Path) -> None:
    page.goto(dashboard)
    for tab, shown in TABS.items():
        name = re.compile(rf"^\s*{tab}\s*$", re.IGNORECASE)  # a style makes it upper case
        page.get_by_role("tab", name=name).click(timeout=SECONDS * 1000)
        for text in shown:
            page.get_by_text(text, exact=True).locator("visible=true").first.wait_for(timeout=SECONDS * 1000)
        if tab == "CUSTOM SCALARS":  # of one chart's curves, train and val
            found = page.wait_for_function(COLOURS, timeout=SECONDS * 1000).json_value()
            assert {name.partition("/")[0] for name in found} == {"train", "val"}
            assert len(found) == len(set(found.values())) == 2
        if tab == "IMAGES":
            page.wait_for_function(LOADED, timeout=SECONDS * 1000)
        take(page, screenshots / f"{tab.lower().replace(' ', '_')}.png")


def test_it_opens_on_training_and_validation_of_runs_with_short_names(
    page: Page, dashboard: str, small_run: Path, screenshots: Path
) -> None:
    page.goto("about:blank")
    page.goto(dashboard)
    page.locator("scalar-card").nth(4).wait_for(timeout=SECONDS * 1000)
    cards = ["".join(text.split()) for text in page.locator("scalar-card .tag").all_inner_texts()]
    assert {tag.partition("/")[0] for tag in cards} == {"train", "val"}
    assert {"train/loss", "val/acc"} <= set(cards)
    runs = page.locator("runs-data-table").inner_text().split()
    assert [f"demo/{small_run.name}", f"demo/{small_run.name}/val"] == [run for run in runs if run.startswith("demo/")]
    take(page, screenshots / "time_series.png")


# The curves of the first chart with several, by their names, and their colours.
COLOURS = """() => {
  const roots = [document];
  for (const root of roots) for (const node of root.querySelectorAll("*")) {
    if (node.shadowRoot) roots.push(node.shadowRoot);
    if (node.tagName.toLowerCase() !== "tf-custom-scalar-multi-line-chart-card") continue;
    const curves = [...node.shadowRoot.querySelectorAll(".match-list-entry")];
    const names = curves.map(curve => curve.textContent.trim().split(/\\s+/).slice(1).join(" "));
    if (curves.length > 1 && curves.every(curve => curve.style.color))
      return Object.fromEntries(names.map((name, index) => [name, curves[index].style.color]));
  }
}"""


# An image has arrived, wherever in the components of the page.
LOADED = """() => {
  const roots = [document], images = [];
  for (const root of roots) for (const node of root.querySelectorAll("*")) {
    if (node.shadowRoot) roots.push(node.shadowRoot);
    if (node.tagName === "IMG") images.push(node);
  }
  return images.some(image => image.naturalWidth > 400);
}"""


def test_the_projector_shows_the_test_images(page: Page, dashboard: str, screenshots: Path) -> None:
    page.goto(f"{dashboard}#projector")  # TensorBoard lists the tab once it has looked for files of embeddings
    name = re.compile("projector", re.IGNORECASE)
    for _ in range(SECONDS // 5):
        if page.get_by_role("tab", name=name).count():
            break
        page.wait_for_timeout(5000)
        page.reload()
    page.get_by_role("tab", name=name).click()
    plugin = page.frame_locator("iframe").frame_locator("iframe")
    for text in ("Points: 103", "Dimension: 32"):
        plugin.get_by_text(text).first.wait_for(timeout=SECONDS * 1000)
    page.wait_for_timeout(3000)  # it draws on a canvas
    take(page, screenshots / "projector.png")
