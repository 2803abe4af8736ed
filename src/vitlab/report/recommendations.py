"""Derive findings and suggestions for the next run from the numbers of a run."""

from math import ceil, sqrt

from omegaconf import OmegaConf

from vitlab.report.run_summary import RunSummary

Finding = tuple[str, str]  # a sentence; what to try next, or an empty string


def recommend(summary: RunSummary) -> list[Finding]:
    """Findings with suggestions, the most important first."""
    rules = FIRST if _at_chance(summary) else FIRST + THEN
    found = [rule(summary) for rule in rules]
    return [finding for finding in found if finding is not None]


def _uncertainty(accuracy: float, images: int) -> float:
    """Two standard errors of an accuracy that was measured on so many images."""
    return 2 * sqrt(accuracy * (1 - accuracy) / max(images, 1))


def _interrupted(summary: RunSummary) -> Finding | None:
    if summary.final:
        return None
    status = {"failed": "failed", "interrupted": "was interrupted"}
    ended = status.get(summary.manifest.get("status", ""), "has not finished")
    return f"The run {ended} after {summary.length}; it was not tested.", "Resume it: see below."


def _limited_data(summary: RunSummary) -> Finding | None:
    keys = ("data.max_train_images", *(f"trainer.limit_{split}_batches" for split in ("train", "val", "test")))
    values = {key: OmegaConf.select(summary.config, key) for key in keys}
    limits = [
        f"{key}={value}"
        for key, value in values.items()
        if value is not None and not (isinstance(value, float) and value == 1)  # 1.0 is all batches, 1 is one
    ]
    if not limits:
        return None
    return (
        f"The run used only part of the images: {', '.join(limits)}.",
        "Train and test on all of them before you draw conclusions.",
    )


def _at_chance(summary: RunSummary) -> Finding | None:
    accuracy, images = (summary.best or {}).get("val/acc"), summary.used("val")
    if accuracy is None:
        accuracy, images = summary.final.get("test/acc"), summary.used("test")
    chance = 1 / len(summary.classes)
    if accuracy is None or accuracy > chance + 3 * sqrt(chance * (1 - chance) / max(images, 1)):
        return None
    return (
        f"The model is no better than chance ({accuracy:.1%}; chance is {chance:.1%}).",
        "More steps, or an optimizer.lr ten times smaller or larger; debug=overfit shows whether the model can learn.",
    )


def _skipped_steps(summary: RunSummary) -> Finding | None:
    skipped = sum(row.get("skipped_steps", 0) for row in summary.epochs)
    if not skipped:
        return None
    return (
        f"{skipped:.0f} steps were skipped because their loss was NaN or infinite.",
        "A smaller optimizer.lr, a longer warm-up, or trainer.precision=32-true.",
    )


def _overfitting(summary: RunSummary) -> Finding | None:
    last = summary.epochs[-1]
    if "val/acc" not in last:
        return None
    gap = last["train/acc"] - last["val/acc"]
    if gap <= max(0.05, _uncertainty(last["val/acc"], summary.used("val"))):
        return None
    return (
        f"The model {'begins to overfit' if gap <= 0.15 else 'overfits'}: in the last epoch {last['train/acc']:.1%} of "
        f"the training images ({summary.training_images}) and {last['val/acc']:.1%} of the validation images are "
        f"classified correctly, a gap of {100 * gap:.0f} points.",
        "More training images if there are any, augment=randaugment, model.drop_path=0.1, a larger "
        "optimizer.weight_decay; or start from pretrained weights (model=vit_pretrained).",
    )


def _underfitting(summary: RunSummary) -> Finding | None:
    last = summary.epochs[-1]
    # The accuracy on strongly augmented or mixed images is low even of a good model: it alone says nothing.
    if "val/acc" not in last or max(last["train/acc"], last["val/acc"]) > 0.9 or _overfitting(summary):
        return None
    augment = OmegaConf.select(summary.config, "augment") or {}
    beyond_basic = [node for name, node in augment.items() if name not in ("crop", "flip")]
    strong = any(node is not None and node.get("p") != 0 for node in beyond_basic)
    first = "Lighter augmentation (augment=basic) or many more epochs" if strong else "Longer training first"
    larger = (
        "model.depth, model.embed_dim" if OmegaConf.select(summary.config, "model.name") is None else "model.name=..."
    )
    slower = ", which takes fewer steps in the same time," if summary.time_limited else ""
    verdict = "does not overfit" if summary.patch_dropout else "underfits"  # with all patches it would be more accurate
    return (
        f"The model {verdict}: in the last epoch {last['train/acc']:.1%} of the training images "
        f"({summary.training_images}) and {last['val/acc']:.1%} of the validation images are classified correctly.",
        f"{first}; then a larger model ({larger}){slower} or another optimizer.lr.",
    )


def _still_improving(summary: RunSummary) -> Finding | None:
    validated = [row for row in summary.epochs if "val/acc" in row]
    curve = [row["val/acc"] for row in validated]
    third = len(curve) // 3
    if not third:
        return None
    gain = max(curve[-third:]) - max(curve[:-third])
    if gain <= max(0.005, _uncertainty(max(curve), summary.used("val")) / 2):
        return None
    since, epochs = (summary.epochs_at(row) for row in (validated[-third - 1], summary.epochs[-1]))
    longer = "a longer trainer.max_time" if summary.time_limited else f"trainer.max_epochs={2 * ceil(epochs)}"
    return (
        f"Validation accuracy was still improving: {100 * gain:.1f} points since epoch {since:g} of {epochs:g}.",
        f"A longer run: start a new one with {longer}, so that the learning rate schedule covers all of it.",
    )


def _early_best(summary: RunSummary) -> Finding | None:
    best, epochs = summary.best, len(summary.epochs)
    if best is None or "val/acc" not in best or epochs < 5 or summary.epochs_at(best) > 0.7 * epochs:
        return None
    return (
        f"The best epoch was {summary.epochs_at(best):g} of {epochs}; later ones did not improve on it.",
        "Stronger augmentation (augment=randaugment) or regularisation rather than more epochs, or a shorter run.",
    )


def _unbalanced_predictions(summary: RunSummary) -> Finding | None:
    classes = summary.details.get("per_class", {})
    often = {name: row for name, row in classes.items() if row["answers"] > 2 * max(row["images"], 10)}
    if not often:
        return None
    counts = ", ".join(
        f"{name} ({row['answers']:,} predictions, {row['images']:,} images)" for name, row in often.items()
    )
    return (
        f"Some classes are predicted more than twice as often as they occur: {counts}. Their accuracy means little.",
        "Longer training, which usually helps; else another optimizer.lr, or more balanced classes.",
    )


def _confusions(summary: RunSummary) -> Finding | None:
    pairs = summary.details.get("most_confused")
    if not pairs:
        return None
    classes = summary.details["per_class"]
    known = {name: row["acc"] for name, row in classes.items() if row["acc"] is not None}
    worst, best = min(known, key=lambda name: known[name]), max(known, key=lambda name: known[name])
    confused = "; ".join(
        f"{pair['class']} as {pair['taken_for']} ({pair['images']:,} of {classes[pair['class']]['images']:,} images)"
        for pair in pairs
    )
    return (
        f"The class with the highest accuracy is {best} ({known[best]:.1%}), the one with the lowest is {worst} "
        f"({known[worst]:.1%}). The most frequent confusions: {confused}.",
        "Look at the most confident errors below: are their labels right, and could you tell the classes apart at "
        "this size?"
        if summary.details["accuracy"] > 0.5
        else "",
    )


def _calibration(summary: RunSummary) -> Finding | None:
    if not summary.details:
        return None
    accuracy, confidence = summary.details["accuracy"], summary.details["confidence"]
    error = f"the calibration error (ECE) is {summary.details['calibration_error']:.1%}"
    images, smoothing = summary.used("test"), summary.config.label_smoothing
    uncertainty = _uncertainty(accuracy, images)
    notable, gap = max(0.03, uncertainty), confidence - accuracy
    means = f"mean confidence {confidence:.1%}, accuracy {accuracy:.1%}; {error}"
    if gap > notable:
        attempts = [] if smoothing >= 0.1 else ["label_smoothing=0.1"]
        attempts += [] if _underfitting(summary) else ["fewer epochs", "stronger augmentation"]
        return f"The model is overconfident: {means}.", f"{', or '.join(attempts)}." if attempts else ""
    if gap < -notable:
        suggestion = f"Less label_smoothing (now {smoothing:g}), if you use the probabilities."
        return f"The model is underconfident: {means}.", suggestion
    if summary.details["calibration_error"] <= notable:
        so_far = f", as far as {images:,} test images can show" if uncertainty > 0.03 else ""
        return f"The model is well calibrated{so_far}: {error}.", ""
    return f"The model is calibrated on average, but not at every confidence: {error}; see the figure below.", ""


def _small_validation_split(summary: RunSummary) -> Finding | None:
    best, images = summary.best or {}, summary.used("val")
    if "val/acc" not in best or (half := _uncertainty(best["val/acc"], images)) <= 0.03:
        return None
    return (
        f"{images:,} validation images measure an accuracy to within {100 * half:.0f} points: smaller differences "
        "between epochs, and between runs, may be chance.",
        "A larger data.val_size.",
    )


def _data_wait(summary: RunSummary) -> Finding | None:
    waits = sorted(row["data_wait"] for row in summary.epochs if "data_wait" in row)
    if not waits or waits[len(waits) // 2] <= 0.1:
        return None
    return (
        f"{waits[len(waits) // 2]:.0%} of the training time passed between steps: batches were fetched and augmented, "
        "callbacks ran.",
        "A larger data.batch_size or lighter augmentation; debug=profile shows where the time goes.",
    )


FIRST = (_interrupted, _limited_data, _at_chance, _skipped_steps)
THEN = (
    *(_overfitting, _underfitting, _still_improving, _early_best),
    *(_unbalanced_predictions, _confusions, _calibration, _small_validation_split, _data_wait),
)
