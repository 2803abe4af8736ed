import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from conftest import SMALL_RUN, Command
from omegaconf import OmegaConf

from vitlab.plots.io import read_figures
from vitlab.report.headline import key_table, what_was_run
from vitlab.report.page import write_report
from vitlab.report.run_summary import read_run_summary
from vitlab.runs.directory import RunDirectory
from vitlab.runs.hparams import all_settings


def words(run: Path) -> str:
    text = unescape((run / "report.html").read_text())
    return " ".join(re.sub(r"<script>.*</script>|<style>.*</style>|<[^>]+>", " ", text, flags=re.DOTALL).split())


def test_the_report_says_what_was_trained_how_well_and_how_to_do_it_again(small_run: Path) -> None:
    said = words(small_run)
    final = json.loads((small_run / "metrics.json").read_text())
    manifest = json.loads((small_run / "manifest.json").read_text())
    assert f"{final['test/acc']:.2%} of the test images recognised" in said
    assert f"A network (VisionTransformer) with {manifest['parameters'] / 1e6:.2f} million parameters" in said
    assert "10 classes of images apart (disc, ring," in said
    assert "for 2 epochs on 360 images of Synthetic, 32 x 32 pixels" in said
    assert "Of 103 test images" in said
    kept = f"those after epoch {final['epoch'] + 1:.0f}, of 2 that were validated."
    assert f"chose the weights that were kept, by val/acc: {kept}" in said
    for row in ("learning rate 0.002 optimizer.lr", "patch size (px) 8 model.patch_size", "epochs at most 2"):
        assert row in said
    assert "augmentation RandomHorizontalFlip, RandomCrop augment" in said
    assert "guessing among 10 classes 10.00% ln(10) = 2.3026" in said
    for what in (manifest["versions"]["torch"], manifest["hardware"]["cpu"], "train.py reproduce="):
        assert what in said
    for figure in read_figures(small_run):
        assert " ".join(figure.caption.split()) in said


def test_settings_beside_the_key_ones_are_told_where_they_act(small_run: Path) -> None:
    plain = read_run_summary(RunDirectory(small_run))
    more = {"data": {"repeated_augmentation": 3}, "callbacks": {"ema": {"decay": 0.99}}}
    run = replace(plain, config=OmegaConf.merge(plain.config, more), epochs=plain.epochs[:1])
    told = what_was_run(run)
    assert "for 1 epoch on 360 images of Synthetic (of which each epoch shows one in 3, 3 times each), 32 x" in told
    assert "callbacks.ema.decay" in key_table(run)
    assert "callbacks.ema" not in key_table(plain)
    settings = all_settings(OmegaConf.to_container(run.config))  # type: ignore[arg-type]
    assert (settings["data.repeated_augmentation"], settings["callbacks.ema.decay"]) == (3, 0.99)


def test_captions_say_what_is_seen_in_this_run(small_run: Path) -> None:
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
    assert said["curves/loss_and_accuracy"].startswith("Guessing has a loss of ln(10) = 2.303 nats.")


def test_a_report_can_be_written_again_from_the_run_directory_alone(small_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(small_run, copy)
    (copy / "report.html").unlink()
    write_report(RunDirectory(copy))
    again, first = words(copy), words(small_run)
    assert again.split("How to do it again")[0] == first.split("How to do it again")[0]


def test_a_run_that_its_time_ended_is_told_so(small_run: Path, tmp_path: Path) -> None:
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
    assert "for 1.4 epochs on 360 images" in said
    assert "no two take the same steps in it" in said
    assert "the same to the last bit" not in said
    assert "training (augmented, 25% of their patches left out" in said
    assert "the same to the last bit" in words(small_run)
    counts = Counter(check["status"] for check in checks(small_run))
    counted = said.split("checks before training")[1]
    assert all(f"{count} {status}" in counted for status, count in counts.items())


def checks(run: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads((run / "preflight.json").read_text())["checks"]
    return found


def test_a_report_that_can_t_be_written_fails_nothing(
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


def test_an_interrupted_run_has_a_report_and_goes_on(in_process: Command, tmp_path: Path) -> None:
    stop = "+callbacks.stop._target_=stoppers.SendSignal +callbacks.stop.number=15 +callbacks.stop.batch=2"
    place = [*stop.split(), "+callbacks.stop.hook=on_train_batch_start", "+callbacks.stop.epoch=1"]
    short = [*SMALL_RUN, "preflight=off", "hydra.run.dir=run", "callbacks.figures.level=light"]
    assert in_process("train.py", *short, *place).returncode == 143
    said = words(tmp_path / "run")
    assert "The run was interrupted after 1 epoch; nothing was tested" in said
    assert "train.py resume=run" in said
    assert in_process("train.py", "resume=run", "callbacks.stop=null").returncode == 0
    said = words(tmp_path / "run")
    assert "of the test images recognised" in said
    assert "interrupted" not in said.split("What was run")[0]
    assert "resumed" in said
