"""The page's first words: what was run, and what came out."""

from collections.abc import Iterator
from math import log, sqrt

from omegaconf import OmegaConf

from vitlab.report.html import in_columns, table
from vitlab.report.run_summary import RunSummary
from vitlab.runs.hparams import KEY_SETTINGS


def headline(facts: RunSummary) -> str:
    for split, words in (("test", "test"), ("val", "validation")):
        name = f"{split}/acc{facts.suffix}"
        accuracy = facts.final.get(name, (facts.best or {}).get(name))
        if accuracy is not None:
            return f"{accuracy:.2%} of the {words} images recognised"
    return f"{facts.epochs[-1]['train/acc']:.2%} of the training images recognised"


def what_was_run(facts: RunSummary) -> str:
    parameters = facts.manifest.get("parameters")
    size = f" with {parameters / 1e6:.2f} million parameters" if parameters else ""
    weights = facts.manifest.get("weights")
    origin = f"starting from {weights['from']}" if weights else "from random weights"
    names = ", ".join(facts.classes[:10]) + (" ..." if len(facts.classes) > 10 else "")
    side, repeats = facts.config.data.image_size, OmegaConf.select(facts.config, "data.repeated_augmentation") or 1
    each_epoch = f" (of which each epoch shows one in {repeats}, {repeats} times each)" if repeats > 1 else ""
    return (
        f"A network ({facts.hparams_of['model']}){size} was trained {origin} to tell {len(facts.classes)} classes of "
        f"images apart ({names}), for {facts.length} on {facts.used('train'):,} images of "
        f"{facts.data_set}{each_epoch}, {side} x {side} pixels as the network sees them."
    )


def key_table(facts: RunSummary) -> str:
    rows = [
        (KEY_SETTINGS[path], value if isinstance(value, str) else f"{value:g}", path)
        for path, value in facts.hparams_of.items()
        if path not in ("model", "data")  # said above
    ]
    decay = OmegaConf.select(facts.config, "callbacks.ema.decay")
    if decay is not None:
        rows.append(("average of the weights (EMA)", f"{decay:g}", "callbacks.ema.decay"))
    half = (len(rows) + 1) // 2
    return in_columns(*(table(("setting", "value", "to change it"), part) for part in (rows[:half], rows[half:])))


def outcome(facts: RunSummary) -> Iterator[str]:
    final, best = facts.final, facts.best
    if f"test/acc{facts.suffix}" in final:
        count, there = facts.used("test"), facts.images("test")
        whole = f" (there are {there:,})" if count < there else ""
        accuracy = final[f"test/acc{facts.suffix}"]
        half = 1.96 * sqrt(accuracy * (1 - accuracy) / count)
        yield (
            f"Of {count:,} test images{whole}, never trained or selected on, {accuracy:.2%} are recognised. So many "
            f"test images leave an uncertainty of about {100 * half:.1f} points either way (95 %); another seed would "
            "change it too."
        )
    if best and "val/acc" in best:
        count = sum("val/acc" in row for row in facts.epochs)
        yield (
            f"{facts.used('val'):,} images held out of training chose the weights that were kept, by "
            f"{facts.config.checkpoint.monitor}: those after epoch {facts.passed(best):g}, of {count} that were "
            "validated."
        )


def results(facts: RunSummary) -> str:
    best = facts.best or {}
    values = {**best, **facts.final}
    smoothed = ", with label smoothing" if facts.config.label_smoothing else ""
    meaning = {"train": f"training ({facts.as_trained}{smoothed})", "val": "validation", "test": "test"}
    rows = [
        (words + of, f"{values[f'{split}/acc{suffix}']:.2%}", f"{values[f'{split}/loss{suffix}']:.4f}")
        for split, words in meaning.items()
        for suffix, of in (("", ""), ("_ema", ", by the average of the weights (EMA)"))
        if f"{split}/acc{suffix}" in values
    ]
    count = len(facts.classes)
    rows.append((f"guessing among {count} classes", f"{1 / count:.2%}", f"ln({count}) = {log(count):.4f}"))
    return table(("images", "accuracy", "loss (nats)"), rows)
