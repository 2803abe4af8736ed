"""Findings and suggestions follow from the numbers."""

from dataclasses import replace
from typing import Any

import pytest
from omegaconf import OmegaConf

from vitlab.report.recommendations import recommend
from vitlab.report.run_summary import RunSummary

CONFIG = OmegaConf.create(
    {
        "data": {"classes": ["cat", "dog"], "batch_size": 10, "eval_batch_size": 50},
        "checkpoint": {"monitor": "val/acc", "mode": "max"},
        "loss": {"label_smoothing": 0.1},
        "trainer": {"accumulate_grad_batches": 2},
        "augment": {"flip": {"p": 0.5}, "mixing": {"p": 0.0}},
    }
)


def facts(
    train: list[float], val: list[float], details: dict[str, Any] | None = None, images: int = 1000, **row: float
) -> RunSummary:
    epochs = [
        {"epoch": float(e), "step": 5.0 * e, "train/acc": t, "val/acc": v, "seconds": 1.0, **row}
        for e, (t, v) in enumerate(zip(train, val, strict=True), start=1)
    ]
    counts = {"train": 105, "val": images, "test": 1000}  # of training images 10 batches, 5 steps
    manifest = {"status": "finished", "data": {split: {"images": count} for split, count in counts.items()}}
    best = max(range(len(val)), key=val.__getitem__)
    return RunSummary(CONFIG, manifest, epochs, {"epoch": best + 1, "test/acc": 0.9}, details or {})


def details(confidence: float, accuracy: float, ece: float = 0.04) -> dict[str, Any]:
    classes = {"cat": {"images": 500, "answers": 400, "acc": 0.8}, "dog": {"images": 500, "answers": 600, "acc": 1.0}}
    pairs = [{"class": "cat", "taken_for": "dog", "images": 100}]
    figures = {"confidence": confidence, "accuracy": accuracy, "calibration_error": ece}
    return {**figures, "per_class": classes, "most_confused": pairs}


FLAT = [0.9] * 6
LEARNED = [0.91] * 6
FINE = facts([0.92] * 6, [0.897, 0.898, 0.899, 0.9, 0.9005, 0.901])
LOPSIDED = {
    **details(0.5, 0.3),
    "per_class": {"cat": {"images": 80, "answers": 10, "acc": 0.1}, "dog": {"images": 20, "answers": 90, "acc": 1.0}},
}
LIMITS = {"data": {"max_train_images": 500}, "trainer": {"limit_test_batches": 2, "limit_train_batches": None}}
CUT_DOWN = replace(facts(FLAT, FLAT), config=OmegaConf.merge(CONFIG, LIMITS))
NOT_LEARNED = facts([0.6, 0.61], [0.7, 0.705], details(0.9, 0.7))
LITTLE_TESTED = replace(
    facts(FLAT, FLAT, details(0.86, 0.9)),
    manifest={"data": {"train": {"images": 105}, "val": {"images": 1000}, "test": {"images": 100}}},
)


def with_config(run: RunSummary, **groups: Any) -> RunSummary:
    return replace(run, config=OmegaConf.merge(run.config, groups))


def cut_by_time(run: RunSummary) -> RunSummary:
    """After three fifths of its last epoch."""
    rows = [*run.epochs[:-1], {**run.epochs[-1], "step": run.epochs[-1]["step"] - 2}]
    return replace(with_config(run, trainer={"max_time": "00:00:20:00"}), epochs=rows)


RISING = facts(FLAT, [0.6, 0.7, 0.75, 0.8, 0.82, 0.84])
MIXED = {"crop": {"p": 1.0}, "operations": None, "erasing": {"p": 0.0}, "mixing": {"p": 0.5}}
BASIC = {"crop": {"padding": 4}, "flip": {"p": 0.5}, "operations": None, "erasing": {"p": 0.0}, "mixing": {"p": 0.0}}
CASES = [
    (facts([0.51, 0.5], [0.5, 0.51]), "no better than chance (51.0%; chance is 50.0%)"),
    (facts([0.8, 0.99], [0.75, 0.76]), "The model overfits: in the last epoch 99.0% of the training images"),
    (facts([0.8, 0.88], [0.75, 0.8]), "The model begins to overfit: in the last epoch 88.0%"),
    (facts([0.8, 0.99], [0.75, 0.76]), "a gap of 23 points"),
    (facts([0.6, 0.61], [0.7, 0.705]), "The model underfits"),
    (facts([0.7, 0.76], [0.7, 0.7], images=100), "The model underfits"),  # six points may be chance
    (facts(FLAT, FLAT, images=100), "100 validation images measure an accuracy to within 6 points"),
    (RISING, "still improving: 4.0 points since epoch 4 of 6"),
    (RISING, "trainer.max_epochs=12"),
    (
        cut_by_time(RISING),
        "still improving: 4.0 points since epoch 4 of 5.6. A longer run: start a new one with a",
    ),
    (cut_by_time(NOT_LEARNED), "(model.depth, model.embed_dim), which takes fewer steps in the same time, or another"),
    (
        with_config(NOT_LEARNED, model={"patch_dropout": 0.5}),
        "does not overfit: in the last epoch 61.0% of the training images (augmented, 50% of their patches dropped) "
        "and 70.5% of the validation images are classified correctly. Longer",
    ),
    (with_config(NOT_LEARNED, augment={"flip": None, "mixing": {"p": 0.5}}), "61.0% of the training images (mixed)"),
    (with_config(NOT_LEARNED, augment={"flip": None}), "61.0% of the training images (not augmented)"),
    (facts(FLAT, [0.7, 0.9, 0.8, 0.8, 0.8, 0.8]), "The best epoch was 2 of 6; later ones did not improve on it"),
    (facts(FLAT, FLAT, data_wait=0.4), "40% of the training time passed between steps"),
    (facts(FLAT, FLAT, skipped_steps=1), "6 steps were skipped"),
    (
        facts(FLAT, FLAT, details(0.95, 0.9)),
        "overconfident: mean confidence 95.0%, accuracy 90.0%; the calibration error",
    ),
    (facts(FLAT, FLAT, details(0.8, 0.9)), "The model is underconfident: mean confidence 80.0%, accuracy 90.0%"),
    (facts(FLAT, FLAT, details(0.9, 0.9, 0.02)), "well calibrated: the calibration error (ECE) is 2.0%"),
    (facts(FLAT, FLAT, details(0.9, 0.9)), "not at every confidence: the calibration error (ECE) is 4.0%"),
    (facts(FLAT, FLAT, LOPSIDED), "more than twice as often as they occur: dog (90 predictions, 20 images)"),
    (NOT_LEARNED, "Longer training first; then a larger model (model.depth, model.embed_dim)"),
    (with_config(NOT_LEARNED, augment=MIXED), "Lighter augmentation (augment=basic) or many more epochs; then"),
    (with_config(NOT_LEARNED, augment=BASIC), "Longer training first"),  # a lighter one than basic would not help
    (with_config(NOT_LEARNED, model={"name": "vit_tiny_patch16_224"}), "a larger model (model.name=...)"),
    (facts(LEARNED, LEARNED, details(0.95, 0.9)), "fewer epochs, or stronger augmentation."),
    (
        with_config(facts(LEARNED, LEARNED, details(0.95, 0.9)), loss={"label_smoothing": 0.0}),
        "loss.label_smoothing=0.1, or fewer epochs",
    ),
    (with_config(NOT_LEARNED, loss={"label_smoothing": 0.0}), "overconfident: mean confidence 90.0%, accuracy 70.0%"),
    (LITTLE_TESTED, "well calibrated, as far as 100 test images can show"),  # four points of six may be chance
    (with_config(FINE, trainer={"limit_val_batches": 1}), "used only part of the images: trainer.limit_val_batches=1"),
    (CUT_DOWN, "used only part of the images: data.max_train_images=500, trainer.limit_test_batches=2"),
    (facts(FLAT, FLAT, details(0.9, 0.9)), "cat as dog (100 of 500 images)"),
]


@pytest.mark.parametrize(("run", "sentence"), CASES, ids=[sentence for _, sentence in CASES])
def test_findings_follow_from_the_numbers(run: RunSummary, sentence: str) -> None:
    assert sentence in " ".join(part for said in recommend(run) for part in said)


def test_a_run_without_peculiarities_has_no_findings() -> None:
    assert recommend(FINE) == []
    assert recommend(with_config(FINE, trainer={"limit_val_batches": 1.0, "limit_test_batches": 1.0})) == []


def test_suggestions_do_not_contradict_each_other() -> None:
    tried = " ".join(attempt for _, attempt in recommend(NOT_LEARNED))
    assert "Longer training" in tried
    assert "fewer epochs" not in tried
    assert "label_smoothing" not in tried  # it is 0.1


def test_less_label_smoothing_is_suggested_only_if_there_is_some() -> None:
    run = facts(FLAT, FLAT, details(0.8, 0.9))
    for smoothing, suggested in ((0.1, True), (0.0, False)):
        tried = " ".join(attempt for _, attempt in recommend(with_config(run, loss={"label_smoothing": smoothing})))
        assert ("label_smoothing" in tried) == suggested


def test_a_run_without_validation_has_no_findings() -> None:
    run = facts([0.9, 0.92], [0.5, 0.5])
    for row in run.epochs:
        del row["val/acc"]
    assert recommend(run) == []


@pytest.mark.parametrize(("limit", "used"), [(None, 1000), (2, 100), (0.5, 500), (100, 1000), (0, 0)])
def test_batch_limits_reduce_the_number_of_used_images(limit: float | None, used: int) -> None:
    limits = {"trainer": {"limit_test_batches": limit}, "data": {"eval_batch_size": 50, "batch_size": 10}}
    run = replace(facts(FLAT, FLAT), config=OmegaConf.merge(CONFIG, limits))
    assert run.used("test") == used
    assert run.images("test") == 1000


def test_training_leaves_out_images_that_fill_no_batch() -> None:
    for limit, used in ((0.9, 90), (1.0, 105)):  # of 105 images, 10 at a time; all are drawn in some epoch
        assert with_config(FINE, trainer={"limit_train_batches": limit}).used("train") == used


def test_a_run_without_an_epoch_was_refused_or_ended_early() -> None:
    checks = [{"check": "labels", "status": "ok"}, {"check": "learning rate", "status": "failed"}]
    run = replace(FINE, epochs=[], final={}, checks=checks, resumable=False)
    ((refused, try_this),) = recommend(with_config(run, preflight="on"))
    assert "(learning rate)" in refused
    assert "preflight=warn" in try_this
    ((ended, try_this),) = recommend(with_config(run, preflight="warn"))
    assert "less than 1 epoch" in ended
    assert "no checkpoint" in try_this
