"""The structure of the pages: contents list, headings, links, figures, for finished and unfinished runs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import SMALL_RUN, Command
from pages import Page, check_page
from PIL import Image

from vitlab.plots.io import FigureText, save
from vitlab.report.html import render_report, write_report
from vitlab.report.run_summary import RunSummary, read_run_summary
from vitlab.runs.directory import RunDirectory


def open_report(run: Path) -> Page:
    page = Page((run / "report.html").read_text())
    check_page(page, run)
    return page


@pytest.fixture(scope="module")
def summary(small_run: Path) -> RunSummary:
    return read_run_summary(RunDirectory(small_run))


def test_a_finished_run(small_run: Path) -> None:
    page = open_report(small_run)
    assert page.sections[:3] == ["Setup", "Results", "Findings and suggestions"]
    assert page.sections[3:6] == ["Training images and schedule", "Training curves", "Test images"]
    assert page.sections[-3:] == ["Details", "Reproduce this run", "Files of this run"]
    links = {unquote(given["href"]) for _, given, _ in page.all("a")}
    figures = {f"figures/{file.name}" for file in small_run.glob("figures/*.png")}
    assert len(figures) >= 8
    expected = {"config.yaml", "manifest.json", "metrics.csv", "metrics.json", "run.log", "checkpoints/best.ckpt"}
    assert figures | expected | {"preflight.json", "confusion_test.csv", "figures/"} <= links
    assert [head for _, _, head in page.all("th") if head in ("recall", "true class")] == ["recall", "true class"]


def test_links_work_in_a_moved_folder_and_name_only_what_is_there(small_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "a folder with #, % and ü"
    shutil.copytree(small_run, copy)
    (copy / "run.log").unlink()
    (copy / "preflight.json").unlink()
    (copy / "checkpoints" / "epoch 1%.ckpt").touch()
    write_report(RunDirectory(copy))
    links = [unquote(given["href"]) for _, given, _ in open_report(copy).all("a")]
    assert "checkpoints/epoch 1%.ckpt" in links
    assert not {"run.log", "preflight.json"} & set(links)


def test_a_run_refused_by_preflight_says_which_check_failed(in_process: Command, tmp_path: Path) -> None:
    result = in_process("train.py", *SMALL_RUN, "preflight=strict", "optimizer.lr=1000", "hydra.run.dir=run")
    assert result.returncode == 2
    page = open_report(tmp_path / "run")
    assert page.sections[:2] == ["Setup", "Preflight checks"]
    assert not {"Results", "Training curves", "Test images"} & set(page.sections)
    cells = [text for _, _, text in page.all("td")]
    failed = cells.index("failed")
    assert cells[failed + 1] == "learning rate"
    assert "ok" not in cells[:failed]  # failed checks come first
    assert not any(key in command for command in page.commands for key in ("resume=", "reproduce=", "run=run"))
    notices = [text for _, given, text in page.all("p") if given.get("class") == "notice"]
    assert ["(learning rate)" in text for text in notices] == [True]


def test_a_run_that_failed_in_its_first_epoch_has_a_report(in_process: Command, tmp_path: Path) -> None:
    poison = [f"+callbacks.poison.{key}" for key in ("_target_=stoppers.PoisonBatch", "epoch=0", "batch=2")]
    result = in_process("train.py", *SMALL_RUN, *poison, "hydra.run.dir=run")
    assert result.returncode == 2
    page = open_report(tmp_path / "run")
    assert "no finished epoch" in page.all("h1")[0][2]
    notices = [text for _, given, text in page.all("p") if given.get("class") == "notice"]
    assert "no checkpoint" in notices[0]
    assert not any("resume=" in command for command in page.commands)


def test_many_classes_are_folded_and_their_confusions_listed(summary: RunSummary, small_run: Path) -> None:
    names = [f"class {number}" for number in range(100)]
    row = {"images": 10, "answers": 10, "acc": 0.5, "precision": 0.5, "f1": 0.5}
    pairs = [{"class": names[n], "taken_for": names[n + 1], "images": 5} for n in range(10)]
    details = {**summary.details, "per_class": dict.fromkeys(names, row), "most_confused": pairs}
    page = Page(render_report(replace(summary, details=details), small_run))
    folded = [text for tag, given, text in page.all("details") if "open" not in given]
    assert [text.startswith("All 100 classes") for text in folded].count(True) == 1
    shown = " ".join(text for _, _, text in page.all("main"))
    assert "class 9 class 10 5 50.0%" in shown


def test_a_figure_of_any_section_has_a_place(small_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(small_run, copy)
    tags = ("setup/mine", "mine/first", "test/mine")
    for tag in tags:
        text = FigureText(tag, f"Title of {tag}", "A caption.")
        save(Image.new("RGB", (600, 300)), copy / "figures" / f"99_{tag.replace('/', '_')}.png", text)
    write_report(RunDirectory(copy))
    page = open_report(copy)
    assert {"setup", "mine"} < set(page.sections)
    assert {f"Title of {tag}" for tag in tags} < {given["alt"] for _, given, _ in page.all("img")}


def test_commands_are_those_of_the_manifest_one_by_one(small_run: Path) -> None:
    page = open_report(small_run)
    manifest = json.loads((small_run / "manifest.json").read_text())
    assert manifest["command"] in page.commands
    assert len([1 for _, given, _ in page.all("button") if given.get("class") == "copy"]) == len(page.commands)
    assert all("\n" not in command for command in page.commands if "reproduce=" in command)
