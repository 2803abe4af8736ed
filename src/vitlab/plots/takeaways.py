"""What a figure shows in this run, in a sentence of its numbers."""

from vitlab.plots.predictions import Outcome

SURE = 0.9  # a probability


def of_first_batch(patch_dropout: float) -> str:
    if not patch_dropout:
        return ""
    return (
        f"The network gets each image without {patch_dropout:.0%} of its patches, others each time, which is not drawn."
    )


def of_confusions(outcome: Outcome) -> str:
    pairs = outcome.confused_pairs(1)
    if not pairs:
        return "Here every image was recognised."
    true, said, images = pairs[0]
    there = int((outcome.labels == list(outcome.classes).index(true)).sum())
    return f"Here {true} is taken for {said} most often: {images:,} of {there:,} images."


def of_classes(outcome: Outcome) -> str:
    low, high = outcome.recall.nan_to_num(2.0).argmin(), outcome.recall.nan_to_num(-1.0).argmax()
    worst, best = (f"{outcome.classes[int(place)]} ({outcome.recall[place]:.1%})" for place in (low, high))
    return f"Here from {worst} to {best}."


def of_reliability(outcome: Outcome) -> str:
    confidence, accuracy = outcome.confidence.mean().item(), outcome.correct.float().mean().item()
    return f"Here the mean probability of an answer is {confidence:.1%}, and {accuracy:.1%} of the answers are right."


def of_mistakes(outcome: Outcome) -> str:
    wrong = ~outcome.correct
    sure = int((wrong & (outcome.confidence > SURE)).sum())
    return f"Here {int(wrong.sum()):,} of {len(wrong):,} answers are wrong, {sure:,} of them surer than {SURE:.0%}."
