"""The report's sentences follow from the numbers."""

from dataclasses import replace
from typing import Any

import pytest
from omegaconf import OmegaConf

from vitlab.report.recommendations import advice
from vitlab.report.run_summary import RunSummary

CONFIG = OmegaConf.create(
    {
        "data": {"classes": ["cat", "dog"], "batch_size": 10, "eval_batch_size": 50},
        "checkpoint": {"monitor": "val/acc", "mode": "max"},
        "label_smoothing": 0.1,
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
    (facts([0.51, 0.5], [0.5, 0.51]), "no better than guessing (51.0%, guessing 50.0%)"),
    (facts([0.8, 0.99], [0.75, 0.76]), "23 points apart. It learns the training images by heart"),
    (facts([0.8, 0.88], [0.75, 0.8]), "8 points apart. It begins to learn the training images by heart"),
    (facts([0.6, 0.61], [0.7, 0.705]), "it does not learn by heart, it has not learned enough"),
    (facts([0.7, 0.76], [0.7, 0.7], images=100), "it has not learned enough"),  # six points may be chance
    (facts(FLAT, FLAT, images=100), "100 validation images tell an accuracy to within 6 points"),
    (RISING, "still rising: 4.0 points since epoch 4 of 6"),
    (RISING, "trainer.max_epochs=12"),
    (cut_by_time(RISING), "still rising: 4.0 points since epoch 4 of 5.6. Longer training: a new run with a longer tr"),
    (cut_by_time(NOT_LEARNED), "(model.depth, model.embed_dim), which takes fewer steps in the same time, or another"),
    (
        with_config(NOT_LEARNED, model={"patch_dropout": 0.5}),
        "(augmented, 50% of their patches left out) 61.0% are recognised, beside 70.5% of the validation images: it "
        "does not learn by heart. Longer",
    ),
    (with_config(NOT_LEARNED, augment={"flip": None, "mixing": {"p": 0.5}}), "themselves (mixed) 61.0%"),
    (with_config(NOT_LEARNED, augment={"flip": None}), "themselves (as they are) 61.0%"),
    (facts(FLAT, [0.7, 0.9, 0.8, 0.8, 0.8, 0.8]), "The best epoch was 2 of 6; what came after did not help"),
    (facts(FLAT, FLAT, data_wait=0.4), "40% of the training time no step ran"),
    (facts(FLAT, FLAT, skipped_steps=1), "6 steps were left out"),
    (facts(FLAT, FLAT, details(0.95, 0.9)), "The network is surer than it may be: by 5 points"),
    (facts(FLAT, FLAT, details(0.8, 0.9)), "more often right than it says: by 10 points"),
    (facts(FLAT, FLAT, details(0.9, 0.9, 0.02)), "taken at their word: the calibration error (ECE) is 2.0%"),
    (facts(FLAT, FLAT, details(0.9, 0.9)), "not at each height: the calibration error (ECE) is 4.0%"),
    (facts(FLAT, FLAT, LOPSIDED), "more than twice as often as they are there: dog (90 answers, 20 images)"),
    (NOT_LEARNED, "Longer training first; then a larger network (model.depth, model.embed_dim)"),
    (with_config(NOT_LEARNED, augment=MIXED), "Lighter augmentation (augment=basic), or many more epochs; then"),
    (with_config(NOT_LEARNED, augment=BASIC), "Longer training first"),  # a lighter one than basic would not help
    (with_config(NOT_LEARNED, model={"name": "vit_tiny_patch16_224"}), "a larger network (model.name=...)"),
    (facts(LEARNED, LEARNED, details(0.95, 0.9)), "fewer epochs, or stronger augmentation."),
    (
        with_config(facts(LEARNED, LEARNED, details(0.95, 0.9)), label_smoothing=0.0),
        "label_smoothing=0.1, or fewer epochs",
    ),
    (with_config(NOT_LEARNED, label_smoothing=0.0), "surer than it may be: by 20 points"),
    (LITTLE_TESTED, "taken at their word, as far as 100 test images tell"),  # four points of six may be chance
    (with_config(FINE, trainer={"limit_val_batches": 1}), "The run was cut down: trainer.limit_val_batches=1"),
    (CUT_DOWN, "The run was cut down: data.max_train_images=500, trainer.limit_test_batches=2"),
    (facts(FLAT, FLAT, details(0.9, 0.9)), "cat taken for dog (100 of 500 images)"),
]


@pytest.mark.parametrize(("run", "sentence"), CASES, ids=[sentence for _, sentence in CASES])
def test_what_the_numbers_say(run: RunSummary, sentence: str) -> None:
    assert sentence in " ".join(part for said in advice(run) for part in said)


def test_nothing_is_said_that_the_numbers_do_not_say() -> None:
    assert advice(FINE) == []
    assert advice(with_config(FINE, trainer={"limit_val_batches": 1.0, "limit_test_batches": 1.0})) == []


def test_no_advice_speaks_against_another() -> None:
    tried = " ".join(attempt for _, attempt in advice(NOT_LEARNED))
    assert "Longer training" in tried
    assert "fewer epochs" not in tried
    assert "label_smoothing" not in tried  # it is 0.1


def test_a_run_without_validation_has_a_report() -> None:
    run = facts([0.9, 0.92], [0.5, 0.5])
    for row in run.epochs:
        del row["val/acc"]
    assert advice(run) == []


@pytest.mark.parametrize(("limit", "used"), [(None, 1000), (2, 100), (0.5, 500), (100, 1000), (0, 0)])
def test_images_that_were_left_out_don_t_count(limit: float | None, used: int) -> None:
    limits = {"trainer": {"limit_test_batches": limit}, "data": {"eval_batch_size": 50, "batch_size": 10}}
    run = replace(facts(FLAT, FLAT), config=OmegaConf.merge(CONFIG, limits))
    assert run.used("test") == used
    assert run.images("test") == 1000
