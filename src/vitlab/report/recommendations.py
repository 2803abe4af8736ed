"""Derive findings and suggestions for the next run from the numbers of a run."""

from collections.abc import Iterator
from math import ceil, sqrt
from statistics import median_high

from vitlab.report.run_summary import RunSummary

MAX_NAMED = 5  # classes in a sentence

Finding = tuple[str, str]  # a sentence; what to try next, or an empty string


def recommend(summary: RunSummary) -> list[Finding]:
    """Findings with suggestions, the most important first."""
    rules = [_incomplete, _at_chance, _skipped_steps]
    # Of a model that learned nothing, the other numbers say nothing.
    if summary.epochs and not any(_at_chance(summary)):
        rules += [_fit, _best_epoch, _classes, _calibration, _measurement]
    return [finding for rule in rules for finding in rule(summary)]


def _uncertainty(accuracy: float, images: int) -> float:
    """Two standard errors of an accuracy that was measured on so many images."""
    return 2 * sqrt(accuracy * (1 - accuracy) / max(images, 1))


def _incomplete(summary: RunSummary) -> Iterator[Finding]:
    if failed := summary.failed_checks:
        yield (
            f"Training did not start: preflight {'check' if len(failed) == 1 else 'checks'} failed "
            f"({', '.join(failed)}).",
            "The preflight checks below say what to change; preflight=warn trains all the same.",
        )
    elif not summary.final:
        status = {"failed": "failed", "interrupted": "was interrupted"}
        ended = status.get(summary.manifest.get("status", ""), "has not finished")
        resume = "Resume it: see below." if summary.resumable else "Start it again: it saved no checkpoint."
        yield f"The run {ended} after {summary.length}; it was not tested.", resume
    limits = []
    for key in ("data.max_train_images", *(f"trainer.limit_{split}_batches" for split in ("train", "val", "test"))):
        value = summary.setting(key)
        if value is not None and not (isinstance(value, float) and value == 1):  # 1.0 is all batches, 1 is one
            limits.append(f"{key}={value}")
    if limits:
        yield (
            f"The run used only part of the images: {', '.join(limits)}.",
            "Train and test on all of them before you draw conclusions.",
        )


def _at_chance(summary: RunSummary) -> Iterator[Finding]:
    accuracy, images = summary.best.get("val/acc"), summary.used("val")
    if accuracy is None:
        accuracy, images = summary.final.get("test/acc"), summary.used("test")
    chance = 1 / len(summary.classes)
    if accuracy is not None and accuracy <= chance + 1.5 * _uncertainty(chance, images):
        yield (
            f"The model is no better than chance ({accuracy:.1%}; chance is {chance:.1%}).",
            "More steps, or an optimizer.lr ten times smaller or larger; debug=overfit shows whether the model can "
            "learn.",
        )


def _skipped_steps(summary: RunSummary) -> Iterator[Finding]:
    if skipped := sum(row.get("skipped_steps", 0) for row in summary.epochs):
        yield (
            f"{skipped:.0f} steps were skipped because their loss was NaN or infinite.",
            "A smaller optimizer.lr, a longer warm-up, or trainer.precision=32-true.",
        )


def _kind_of_fit(summary: RunSummary) -> str:
    """`overfits` if the last training accuracy is notably above that of validation, else `underfits` or `fits`."""
    train, val = summary.epochs[-1]["train/acc"], summary.epochs[-1].get("val/acc")
    if val is None:
        return "not validated"
    if train - val > max(0.05, _uncertainty(val, summary.used("val"))):
        return "overfits"
    # The accuracy on strongly augmented or mixed images is low even of a good model: it alone says nothing.
    return "underfits" if max(train, val) <= 0.9 else "fits"


def _fit(summary: RunSummary) -> Iterator[Finding]:
    kind = _kind_of_fit(summary)
    train, val = (summary.epochs[-1].get(f"{split}/acc", 0.0) for split in ("train", "val"))
    gap = train - val
    accuracies = (
        f"in the last epoch {train:.1%} of the training images ({summary.training_images}) and {val:.1%} of the "
        "validation images are classified correctly"
    )
    if kind == "overfits":
        yield (
            f"The model {'begins to overfit' if gap <= 0.15 else 'overfits'}: {accuracies}, a gap of {100 * gap:.0f} "
            "points.",
            "More training images if there are any, augment=randaugment, model.drop_path=0.1, a larger "
            "optimizer.weight_decay; or start from pretrained weights (model=vit_pretrained).",
        )
    elif kind == "underfits":
        strong = any(name not in ("crop", "flip") for name in summary.augmentations)
        first = "Lighter augmentation (augment=basic) or many more epochs" if strong else "Longer training first"
        larger = "model.depth, model.embed_dim" if summary.setting("model.name") is None else "model.name=..."
        slower = ", which takes fewer steps in the same time," if summary.setting("trainer.max_time") else ""
        # With all patches the training accuracy would be higher.
        verdict = "does not overfit" if summary.setting("model.patch_dropout") else "underfits"
        yield (
            f"The model {verdict}: {accuracies}.",
            f"{first}; then a larger model ({larger}){slower} or another optimizer.lr.",
        )


def _best_epoch(summary: RunSummary) -> Iterator[Finding]:
    validated = [row for row in summary.epochs if "val/acc" in row]
    curve = [row["val/acc"] for row in validated]
    third, epochs = len(curve) // 3, summary.epochs_at(summary.epochs[-1])
    gain = max(curve[-third:]) - max(curve[:-third]) if third else 0.0
    if third and gain > max(0.005, _uncertainty(max(curve), summary.used("val")) / 2):
        timed = summary.setting("trainer.max_time")
        longer = "a longer trainer.max_time" if timed else f"trainer.max_epochs={2 * ceil(epochs)}"
        since = summary.epochs_at(validated[-third - 1])
        yield (
            f"Validation accuracy was still improving: {100 * gain:.1f} points since epoch {since:g} of {epochs:g}.",
            f"A longer run: start a new one with {longer}, so that the learning rate schedule covers all of it.",
        )
    best, count = summary.best, len(summary.epochs)
    if "val/acc" in best and count >= 5 and best["epoch"] <= 0.7 * count:
        yield (
            f"The best epoch was {best['epoch']:g} of {count}; later ones did not improve on it.",
            "Stronger augmentation (augment=randaugment) or regularisation rather than more epochs, or a shorter run.",
        )


def _classes(summary: RunSummary) -> Iterator[Finding]:
    classes, pairs = summary.details.get("per_class", {}), summary.details.get("most_confused")
    often = [
        f"{name} ({row['answers']:,} predictions, {row['images']:,} images)"
        for name, row in classes.items()
        if row["answers"] > 2 * max(row["images"], 10)
    ]
    if often:
        more = f" and {len(often) - MAX_NAMED} more" if len(often) > MAX_NAMED else ""
        yield (
            f"Some classes are predicted more than twice as often as they occur: {', '.join(often[:MAX_NAMED])}{more}. "
            "Their accuracy means little.",
            "Longer training, which usually helps; else another optimizer.lr, or more balanced classes.",
        )
    if pairs:
        known = {name: row["acc"] for name, row in classes.items() if row["acc"] is not None}
        worst, best = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
        images = {name: row["images"] for name, row in classes.items()}
        confused = "; ".join(
            f"{pair['class']} as {pair['taken_for']} ({pair['images']:,} of {images[pair['class']]:,} images)"
            for pair in pairs[:3]
        )
        look = (
            "Look at the most confident errors below: are their labels right, and could you tell the classes apart at "
            "this size?"
        )
        yield (
            f"The class with the highest accuracy is {best} ({known[best]:.1%}), the one with the lowest is {worst} "
            f"({known[worst]:.1%}). The most frequent confusions: {confused}.",
            look if summary.details["accuracy"] > 0.5 else "",
        )


def _calibration(summary: RunSummary) -> Iterator[Finding]:
    if not summary.details:
        return
    accuracy, confidence, ece = (summary.details[key] for key in ("accuracy", "confidence", "calibration_error"))
    images, smoothing = summary.used("test"), summary.setting("loss.label_smoothing") or 0.0
    uncertainty = _uncertainty(accuracy, images)
    notable, gap = max(0.03, uncertainty), confidence - accuracy
    error = f"the calibration error (ECE) is {ece:.1%}"
    means = f"mean confidence {confidence:.1%}, accuracy {accuracy:.1%}; {error}"
    if gap > notable:
        attempts = [] if smoothing >= 0.1 else ["loss.label_smoothing=0.1"]
        attempts += [] if _kind_of_fit(summary) == "underfits" else ["fewer epochs", "stronger augmentation"]
        yield f"The model is overconfident: {means}.", f"{', or '.join(attempts)}." if attempts else ""
    elif gap < -notable:
        suggestion = f"Less loss.label_smoothing (now {smoothing:g}), if you use the probabilities."
        yield f"The model is underconfident: {means}.", suggestion if smoothing > 0 else ""
    elif ece <= notable:
        so_far = f", as far as {images:,} test images can show" if uncertainty > 0.03 else ""
        yield f"The model is well calibrated{so_far}: {error}.", ""
    else:
        yield f"The model is calibrated on average, but not at every confidence: {error}; see the figure below.", ""


def _measurement(summary: RunSummary) -> Iterator[Finding]:
    best, images = summary.best, summary.used("val")
    half = _uncertainty(best["val/acc"], images) if "val/acc" in best else 0.0
    if half > 0.03:
        yield (
            f"{images:,} validation images measure an accuracy to within {100 * half:.0f} points: smaller differences "
            "between epochs, and between runs, may be chance.",
            "A larger data.val_size.",
        )
    wait = median_high([row["data_wait"] for row in summary.epochs if "data_wait" in row] or [0.0])
    if wait > 0.1:
        yield (
            f"{wait:.0%} of the training time passed between steps: batches were fetched and augmented, callbacks ran.",
            "A larger data.batch_size or lighter augmentation; debug=profile shows where the time goes.",
        )
