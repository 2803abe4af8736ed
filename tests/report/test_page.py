import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL_RUN, Command
from omegaconf import OmegaConf

from vitlab.plots.classification import wilson_interval
from vitlab.plots.io import read_figures
from vitlab.report.html import render_report, write_report
from vitlab.report.run_summary import read_run_summary
from vitlab.runs.directory import RunDirectory
from vitlab.runs.hparams import all_settings


def words(run: Path) -> str:
    return words_of((run / "report.html").read_text())


def words_of(page: str) -> str:
    text = unescape(page)
    return " ".join(re.sub(r"<script>.*</script>|<style>.*</style>|<[^>]+>", " ", text, flags=re.DOTALL).split())


def test_the_report_has_setup_results_and_the_command_to_reproduce(small_run: Path) -> None:
    said = words(small_run)
    final = json.loads((small_run / "metrics.json").read_text())
    manifest = json.loads((small_run / "manifest.json").read_text())
    assert f"{final['test/acc']:.2%} test accuracy" in said
    assert f"VisionTransformer with {manifest['parameters'] / 1e6:.2f} million parameters" in said
    assert "into 10 classes (disc, ring," in said
    assert "2 epochs on 360 images of Synthetic, at 32 x 32 pixels" in said
    low, high = wilson_interval(np.array([final["test/acc"]]), np.array([103]))
    assert f"(95% confidence interval {low[0]:.1%} to {high[0]:.1%}), measured on 103 test images" in said
    assert f"Of 2 validated epochs, epoch {final['epoch']:.0f} had the best val/acc on 40 validation images" in said
    for row in ("learning rate optimizer.lr 0.002", "patch size (px) model.patch_size 8", "trainer.max_epochs 2"):
        assert row in said
    assert "augmentation augment RandomHorizontalFlip, RandomCrop" in said
    assert "chance, 10 classes 10.00% ln(10) = 2.3026" in said
    for what in (manifest["versions"]["torch"], manifest["hardware"]["cpu"], "train.py reproduce="):
        assert what in said
    for figure in read_figures(small_run):
        assert " ".join(figure.caption.split()) in said


def test_repeated_augmentation_and_ema_are_named_if_they_are_used(small_run: Path) -> None:
    plain = read_run_summary(RunDirectory(small_run))
    more = {"data": {"repeated_augmentation": 3}, "callbacks": {"ema": {"decay": 0.99}}}
    run = replace(plain, config=OmegaConf.merge(plain.config, more), epochs=plain.epochs[:1])
    said = words_of(render_report(run, small_run))
    assert "1 epoch on 360 images of Synthetic (each epoch shows one in 3 of them, 3 times each), at 32 x" in said
    assert "EMA decay of the weights callbacks.ema.decay 0.99" in said
    assert "callbacks.ema" not in words_of(render_report(plain, small_run))
    settings = all_settings(OmegaConf.to_container(run.config))  # type: ignore[arg-type]
    assert (settings["data.repeated_augmentation"], settings["callbacks.ema.decay"]) == (3, 0.99)


def test_a_fine_tuned_run_says_from_what_and_how(small_run: Path) -> None:
    plain = read_run_summary(RunDirectory(small_run))
    config = OmegaConf.merge(plain.config, {"finetune": {"layer_decay": 0.75, "freeze_epochs": "all"}})
    run = replace(plain, config=config, manifest={**plain.manifest, "weights": {"from": "vit.safetensors"}})
    said = words_of(render_report(run, small_run))
    assert "trained starting from vit.safetensors" in said
    assert "layer-wise learning rate decay finetune.layer_decay 0.75" in said
    assert "finetune.freeze_epochs all" in said
    assert "finetune." not in words_of(render_report(plain, small_run)).split("Details")[0]


def test_captions_name_the_numbers_of_this_run(small_run: Path) -> None:
    said = {figure.tag: figure.caption for figure in read_figures(small_run)}
    details = json.loads((small_run / "test_details.json").read_text())
    pair = details["most_confused"][0]
    taken = f"{pair['class']} predicted as {pair['taken_for']}: {pair['images']} of "
    assert f"{taken}{details['per_class'][pair['class']]['images']} images." in said["test/confusion_matrix"]
    wrong = round(103 * (1 - details["accuracy"]))
    assert f"{wrong} of 103 predictions are wrong" in said["test/most_confident_errors"]
    assert f"the accuracy {details['accuracy']:.1%}" in said["test/reliability"]
    known = [of["acc"] for of in details["per_class"].values()]
    assert f"({min(known):.1%}) to " in said["test/accuracy_by_class"]
    assert said["curves/loss_and_accuracy"].startswith("Chance has a loss of ln(10) = 2.303 nats.")


def test_a_report_needs_only_the_run_directory(small_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(small_run, copy)
    (copy / "report.html").unlink()
    write_report(RunDirectory(copy))
    again, first = words(copy), words(small_run)
    assert again.split("Reproduce this run")[0] == first.split("Reproduce this run")[0]


def test_a_time_limited_run_has_no_exact_reproduction(small_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "timed"
    shutil.copytree(small_run, copy)
    config = OmegaConf.load(copy / "config.yaml")
    timed = {"data": {"batch_size": 72}, "trainer": {"max_time": "00:00:01:00"}, "model": {"patch_dropout": 0.25}}
    OmegaConf.save(OmegaConf.merge(config, timed), copy / "config.yaml")
    first, last = [line.split(",") for line in (copy / "metrics.csv").read_text().splitlines()[1:]]
    heading = (copy / "metrics.csv").read_text().splitlines()[0].split(",")
    for row, step in ((first, "5"), (last, "7")):
        row[heading.index("step")] = step
    (copy / "metrics.csv").write_text("".join(f"{','.join(row)}\n" for row in (heading, first, last)))
    write_report(RunDirectory(copy))
    said = words(copy)
    assert "1.4 epochs on 360 images" in said
    assert "a time limit ends the run" in said
    assert "bitwise equal" not in said
    assert "training (augmented, 25% of their patches dropped" in said
    assert "bitwise equal" in words(small_run)
    counts = Counter(check["status"] for check in checks(small_run))
    counted = said.split("preflight checks")[1]
    assert all(f"{count} {status}" in counted for status, count in counts.items())


def checks(run: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads((run / "preflight.json").read_text())["checks"]
    return found


def test_a_report_that_cannot_be_written_is_only_a_warning(
    small_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "broken"
    shutil.copytree(small_run, copy)
    before = (copy / "report.html").read_bytes()
    (copy / "metrics.csv").write_text("epoch,train/acc\nx,y\n")
    write_report(RunDirectory(copy))
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("report.html is left out: ValueError: could not convert string to float")
    assert (copy / "report.html").read_bytes() == before


def test_an_interrupted_run_has_a_report_with_the_command_to_resume(in_process: Command, tmp_path: Path) -> None:
    stop = "+callbacks.stop._target_=stoppers.SendSignal +callbacks.stop.number=15 +callbacks.stop.batch=2"
    place = [*stop.split(), "+callbacks.stop.hook=on_train_batch_start", "+callbacks.stop.epoch=1"]
    short = [*SMALL_RUN, "hydra.run.dir=run"]
    assert in_process("train.py", *short, *place).returncode == 143
    said = words(tmp_path / "run")
    assert "The run was interrupted after 1 epoch; it was not tested" in said
    assert "train.py resume=run" in said
    assert in_process("train.py", "resume=run", "callbacks.stop=null").returncode == 0
    said = words(tmp_path / "run")
    assert "test accuracy" in said
    assert "interrupted" not in said.split("Setup")[0]
    assert "resumed" in said


def test_the_report_escapes_names(small_run: Path) -> None:
    plain = read_run_summary(RunDirectory(small_run))
    hostile = "<script>alert('&')</script>"
    names = {"name": hostile, "data": {"classes": [hostile, *plain.classes[1:]]}}
    page = render_report(replace(plain, config=OmegaConf.merge(plain.config, names)), small_run)
    assert hostile not in page
    assert page.count("<script>") == 1
    assert unescape(page).count(hostile) >= 3  # in the title, the heading and the setup
