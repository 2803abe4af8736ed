"""The TensorBoard event files of a run."""

from pathlib import Path

import pytest
import yaml
from conftest import ROOT, SMALL_RUN, Command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata
from tensorboard.util.tensor_util import make_ndarray

from vitlab.report.tensorboard import LAYOUT
from vitlab.runs.directory import RunDirectory


@pytest.fixture(scope="module")
def events(small_run: Path) -> EventAccumulator:
    return read(small_run)


@pytest.fixture(scope="module")
def validation(small_run: Path) -> EventAccumulator:
    return read(small_run / "val")


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def test_curves_and_layers(events: EventAccumulator) -> None:
    tags = set(events.Tags()["scalars"])
    for kind in ("gradient_norm", "weight_norm", "update_to_weight"):
        layers = {tag.rpartition("/")[2] for tag in tags if tag.startswith(f"weights/{kind}/")}
        assert layers == {"patch_embed", "blocks.00", "blocks.01", "norm", "head", "all"}
    assert [event.step for event in events.Scalars("weights/gradient_norm/all")] == [1, 3, 5, 7, 9]
    assert [event.step for event in events.Scalars("train/lr")] == [1, 3, 4, 5, 7, 9]  # at the epochs' ends too, once
    assert all(0 < event.value < 1 for event in events.Scalars("weights/update_to_weight/all"))


def test_epochs_count_from_one_as_on_the_terminal(
    events: EventAccumulator, validation: EventAccumulator, small_run: Path
) -> None:
    assert "epoch" not in events.Tags()["scalars"]  # a straight line
    assert {event.value for event in validation.Scalars("val-best/epoch")} <= {1.0, 2.0}
    rows = RunDirectory(small_run).epoch_rows()
    assert [row["epoch"] for row in rows] == [1, 2]
    kept = RunDirectory(small_run).final_metrics()["epoch"]
    assert f"weights kept: epoch {kept} of 2" in (small_run / "run.log").read_text()


def test_charts_show_training_and_validation_together(events: EventAccumulator) -> None:
    (event,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    assert charts["loss (nats), train and val"] == ["train/loss$", "val/loss$", "val/loss_ema$"]
    assert [category.title for category in layout.category] == list(LAYOUT)


def test_texts_hold_config_manifest_environment_and_resume_command(events: EventAccumulator, small_run: Path) -> None:
    said = {
        tag: events.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0].decode()
        for tag in ("config", "manifest", "environment", "resume", "preflight")
    }
    assert yaml.safe_load(said["config"].strip("`").removeprefix("yaml"))["model"]["depth"] == 2
    assert '"dirty"' in said["manifest"]
    assert "| torch | " in said["environment"]
    assert f"python {ROOT / 'train.py'} resume=outputs/demo/" in said["resume"]  # it was started from elsewhere
    assert small_run.name in said["resume"]


def test_figures_and_precision_recall_curves_of_the_test(events: EventAccumulator, small_run: Path) -> None:
    images = set(events.Tags()["images"])
    assert {"view/plan/learning_rate", "view/data/first_batch"} <= images
    last = {"confusion_matrix", "accuracy_by_class", "reliability", "most_confident_errors", "hardest_and_most_typical"}
    assert {f"view/test/{name}" for name in last} <= images
    curves = [tag for tag in events.Tags()["tensors"] if tag.startswith("precision_recall/")]
    assert len(curves) == 10
    for tag in curves:
        (event,) = events.Tensors(tag)
        tp, fp, tn, fn, precision, recall = make_ndarray(event.tensor_proto)
        assert set(tp + fp + tn + fn) == {103}
        assert recall == pytest.approx(tp / (tp + fn))
        assert precision == pytest.approx(tp / (tp + fp).clip(1))
        assert len(tp) == 1001  # thresholds a thousandth apart
    assert len(list((small_run / "figures").glob("*.png"))) >= 8
    (shown,) = events.Images("view/test/confusion_matrix")
    assert shown.step == 10


def hyperparameters(run: EventAccumulator) -> dict[str, object]:
    raw = run.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    start = metadata.parse_session_start_info_plugin_data(raw)
    return {key: value.number_value or value.string_value for key, value in start.hparams.items()}


SHOWN = [f"val-best/{name}" for name in ("acc", "acc_test", "epoch", "loss", "loss_test")]  # the first by their names


def test_the_hparams_table_has_the_settings_by_their_own_names(validation: EventAccumulator) -> None:
    names = list(hyperparameters(validation))
    assert {"optimizer.lr", "augment", "model", "data.batch_size", "trainer.max_epochs"} <= set(names)
    assert {"seed", "model.patch_size", "model.depth", "optimizer.weight_decay"} <= set(names)
    assert not [name for name in names if "_target_" in name or name.startswith(("callbacks", "logger", "run_dir"))]
    assert sorted(validation.Tags()["scalars"])[:5] == SHOWN


def test_the_hparams_table_has_the_final_metrics(validation: EventAccumulator, small_run: Path) -> None:
    values = hyperparameters(validation)
    assert values["optimizer.lr"] == pytest.approx(2e-3)
    assert values["model.pool"] == "mean"
    assert (values["model"], values["optimizer"], values["data"]) == ("VisionTransformer", "AdamW", "Synthetic")
    assert values["augment"] == "RandomHorizontalFlip, RandomCrop"
    assert values["model.qk_norm"] == "false"
    best = {tag: validation.Scalars(tag)[-1].value for tag in SHOWN}
    assert best["val-best/acc"] == max(event.value for event in validation.Scalars("val/acc"))
    accuracies = [event.value for event in validation.Scalars("val/acc")]
    assert best["val-best/epoch"] == 1 + accuracies.index(max(accuracies))  # as in the report
    final = RunDirectory(small_run).final_metrics()
    assert best["val-best/acc_test"] == pytest.approx(final["test/acc"])
    assert metadata.SESSION_END_INFO_TAG in validation.summary_metadata


def test_a_failed_run_is_in_the_hparams_table(in_process: Command, tmp_path: Path) -> None:
    poison = [f"+callbacks.poison.{key}" for key in ("_target_=stoppers.PoisonBatch", "epoch=1", "batch=2")]
    result = in_process("train.py", *SMALL_RUN, *poison, "preflight=off", "hydra.run.dir=run")
    assert result.returncode == 2
    validation = read(tmp_path / "run" / "val")
    values = hyperparameters(validation)
    assert values["optimizer.lr"] == pytest.approx(2e-3)
    assert len(validation.Scalars("val/acc")) == 1
    (best,) = validation.Scalars("val-best/acc")
    assert (best.step, best.value) == (validation.Scalars("val/acc")[0].step, validation.Scalars("val/acc")[0].value)
    assert metadata.SESSION_END_INFO_TAG not in validation.summary_metadata
    assert "The run failed after 1 epoch;" in (tmp_path / "run" / "report.html").read_text()
