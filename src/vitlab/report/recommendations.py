"""What the numbers say, and what they suggest to try next. Nothing here knows more than the run's own files."""

from collections.abc import Callable
from math import ceil, sqrt

from omegaconf import OmegaConf

from vitlab.report.run_summary import RunSummary

Said = tuple[str, str]  # what is the case; what to try, or nothing


def advice(facts: RunSummary) -> list[Said]:
    """Sentences in the order of their weight."""
    found = [rule(facts) for rule in (FIRST if _guessing(facts) else FIRST + THEN)]
    return [said for said in found if said is not None]


def _interrupted(facts: RunSummary) -> Said | None:
    if facts.final:
        return None
    status = facts.manifest.get("status")
    reason = "failed" if status == "failed" else "was interrupted" if status == "interrupted" else "has not ended"
    return f"The run {reason} after {facts.length}; nothing was tested.", "Go on with it: see below."


def _guessing(facts: RunSummary) -> Said | None:
    accuracy, images = _validated(facts)
    chance = 1 / len(facts.classes)
    if accuracy is None or accuracy > chance + 3 * sqrt(chance * (1 - chance) / max(images, 1)):
        return None
    return (
        f"The network is no better than guessing ({accuracy:.1%}, guessing {chance:.1%}).",
        "Another optimizer.lr, ten times smaller or larger; debug=overfit shows whether it can learn at all.",
    )


def _validated(facts: RunSummary) -> tuple[float | None, int]:
    best = facts.best or {}
    if "val/acc" in best:
        return best["val/acc"], facts.used("val")
    return facts.final.get("test/acc"), facts.used("test")


def _uncertainty(accuracy: float, images: int) -> float:
    """Two standard errors of an accuracy that was found on so many images."""
    return 2 * sqrt(accuracy * (1 - accuracy) / max(images, 1))


def _few_validated(facts: RunSummary) -> Said | None:
    best, images = facts.best or {}, facts.used("val")
    if "val/acc" not in best or (half := _uncertainty(best["val/acc"], images)) <= 0.03:
        return None
    return (
        f"{images:,} validation images tell an accuracy to within {100 * half:.0f} points: smaller differences between "
        "epochs, and between runs, may be chance.",
        "A larger data.val_size.",
    )


def _by_heart(facts: RunSummary) -> Said | None:
    last = facts.epochs[-1]
    if "val/acc" not in last:
        return None
    gap = last["train/acc"] - last["val/acc"]
    if gap <= max(0.05, _uncertainty(last["val/acc"], facts.used("val"))):
        return None
    return (
        f"At the end {last['train/acc']:.1%} of the training images ({facts.as_trained}) are recognised, but "
        f"{last['val/acc']:.1%} of the validation images: {100 * gap:.0f} points apart. It "
        f"{'begins to learn' if gap <= 0.15 else 'learns'} the training images by heart.",
        "More training images if there are any, augment=randaugment, model.drop_path=0.1, a larger "
        "optimizer.weight_decay; or start from pretrained weights (model=vit_pretrained).",
    )


def _underfitted(facts: RunSummary) -> Said | None:
    last = facts.epochs[-1]
    # Of strongly augmented or mixed images few are recognised: that alone says nothing.
    if "val/acc" not in last or max(last["train/acc"], last["val/acc"]) > 0.9 or _by_heart(facts):
        return None
    strong = _augmented_strongly(facts)
    first = "Lighter augmentation (augment=basic), or many more epochs" if strong else "Longer training first"
    named = OmegaConf.select(facts.config, "model.name") is not None  # one of timm's
    larger = "model.name=..." if named else "model.depth, model.embed_dim"
    slower = ", which takes fewer steps in the same time," if facts.by_clock else ""
    enough = "" if facts.unseen_patches else ", it has not learned enough"  # with all patches it would recognise more
    return (
        f"Of the training images themselves ({facts.as_trained}) {last['train/acc']:.1%} are recognised, beside "
        f"{last['val/acc']:.1%} of the validation images: it does not learn by heart{enough}.",
        f"{first}; then a larger network ({larger}){slower} or another optimizer.lr.",
    )


def _augmented_strongly(facts: RunSummary) -> bool:
    """Beyond the shift and the mirror of augment=basic."""
    augment = OmegaConf.select(facts.config, "augment") or {}
    further = [node for name, node in augment.items() if name not in ("crop", "flip")]
    return any(node is not None and node.get("p") != 0 for node in further)


def _still_rising(facts: RunSummary) -> Said | None:
    validated = [row for row in facts.epochs if "val/acc" in row]
    curve = [row["val/acc"] for row in validated]
    third = len(curve) // 3
    if not third:
        return None
    gain = max(curve[-third:]) - max(curve[:-third])
    if gain <= max(0.005, _uncertainty(max(curve), facts.used("val")) / 2):
        return None
    since, epochs = (facts.passed(row) for row in (validated[-third - 1], facts.epochs[-1]))
    longer = "a longer trainer.max_time" if facts.by_clock else f"trainer.max_epochs={2 * ceil(epochs)}"
    return (
        f"Validation accuracy was still rising: {100 * gain:.1f} points since epoch {since:g} of {epochs:g}.",
        f"Longer training: a new run with {longer}, over which the learning rate falls anew.",
    )


def _best_early(facts: RunSummary) -> Said | None:
    best, epochs = facts.best, len(facts.epochs)
    if best is None or "val/acc" not in best or epochs < 5 or best["epoch"] + 1 > 0.7 * epochs:
        return None
    return (
        f"The best epoch was {int(best['epoch']) + 1} of {epochs}; what came after did not help.",
        "Stronger augmentation (augment=randaugment) or regularisation rather than more epochs, or a shorter run.",
    )


def _data_wait(facts: RunSummary) -> Said | None:
    waits = sorted(row["data_wait"] for row in facts.epochs if "data_wait" in row)
    if not waits or waits[len(waits) // 2] <= 0.1:
        return None
    return (
        f"{waits[len(waits) // 2]:.0%} of the training time no step ran: it went into fetching and augmenting batches, "
        "and into what surrounds a step.",
        "A larger data.batch_size, lighter augmentation; debug=profile shows where the time goes.",
    )


def _confused(facts: RunSummary) -> Said | None:
    pairs = facts.details.get("most_confused")
    if not pairs:
        return None
    classes = facts.details["per_class"]
    said = [
        f"{true} taken for {pair['taken_for']} ({pair['images']:,} of {classes[true]['images']:,} images)"
        for pair in pairs
        for true in (pair["class"],)
    ]
    known = {name: figures["acc"] for name, figures in classes.items() if figures["acc"] is not None}
    worst, easiest = min(known, key=lambda name: known[name]), max(known, key=lambda name: known[name])
    return (
        f"Of the classes, {easiest} is recognised most often ({known[easiest]:.1%}) and {worst} least "
        f"({known[worst]:.1%}). What is mistaken most: {'; '.join(said)}.",
        "Look at the most confident errors below: are their labels right, and could you tell them apart at this size?"
        if facts.details["accuracy"] > 0.5
        else "",
    )


def _lopsided(facts: RunSummary) -> Said | None:
    classes = facts.details.get("per_class", {})
    often = {name: of for name, of in classes.items() if of["answers"] > 2 * max(of["images"], 10)}
    if not often:
        return None
    said = ", ".join(f"{name} ({of['answers']:,} answers, {of['images']:,} images)" for name, of in often.items())
    return (
        f"Some classes are answered more than twice as often as they are there: {said}. That they are recognised means "
        "little.",
        "Longer training: it goes away as the network learns; else another optimizer.lr, or more even classes.",
    )


def _cut_down(facts: RunSummary) -> Said | None:
    limits = {
        key: value
        for key in ("data.max_train_images", *(f"trainer.limit_{split}_batches" for split in ("train", "val", "test")))
        if (value := OmegaConf.select(facts.config, key)) is not None
        and not (isinstance(value, float) and value == 1)  # 1.0 is all of them, 1 is one batch
    }
    if not limits:
        return None
    typed = ", ".join(f"{key}={value}" for key, value in limits.items())
    return f"The run was cut down: {typed}.", "Without that, before anything else is concluded."


def _calibration(facts: RunSummary) -> Said | None:
    if not facts.details:
        return None
    gap = facts.details["confidence"] - facts.details["accuracy"]
    error = f"the calibration error (ECE) is {facts.details['calibration_error']:.1%}"
    images = facts.used("test")
    uncertainty = _uncertainty(facts.details["accuracy"], images)
    notable = max(0.03, uncertainty)
    if gap > notable:
        smoothing = ["label_smoothing=0.1"] if facts.config.label_smoothing < 0.1 else []
        less_learning = [] if _underfitted(facts) else ["fewer epochs", "stronger augmentation"]
        attempts = ", or ".join([*smoothing, *less_learning])
        return (
            f"The network is surer than it may be: by {100 * gap:.0f} points on average; {error}.",
            f"{attempts}." if attempts else "",
        )
    if gap < -notable:
        return (
            f"The network is more often right than it says: by {-100 * gap:.0f} points on average; {error}.",
            f"Nothing, unless the probabilities are used: then less label_smoothing (it is "
            f"{facts.config.label_smoothing:g}).",
        )
    if facts.details["calibration_error"] <= notable:
        so_far = f", as far as {images:,} test images tell" if uncertainty > 0.03 else ""
        return f"Its probabilities can be taken at their word{so_far}: {error}.", ""
    return f"On average its probabilities fit, but not at each height: {error}; see the figure below.", ""


def _skipped(facts: RunSummary) -> Said | None:
    skipped = sum(row.get("skipped_steps", 0) for row in facts.epochs)
    if not skipped:
        return None
    return (
        f"{skipped:.0f} steps were left out because their loss was no finite number.",
        "A smaller optimizer.lr, a longer warm-up, or trainer.precision=32-true.",
    )


Rule = Callable[[RunSummary], Said | None]
FIRST: tuple[Rule, ...] = (_interrupted, _cut_down, _guessing, _skipped)
THEN: tuple[Rule, ...] = (
    *(_by_heart, _underfitted, _still_rising, _best_early),
    *(_lopsided, _confused, _calibration, _few_validated, _data_wait),
)
