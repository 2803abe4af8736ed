"""Checks of the images and labels."""

import math

import torch
import torch.nn.functional as F

from vitlab.errors import list_some
from vitlab.preflight.context import CheckContext, CheckResult, failed, ok, skipped, warning

MANY_IMAGES = 512  # enough for statistics
IMBALANCED = 3  # times as many images in the largest class as in the smallest
ADVICE = {
    "not finite": "no model can learn from them. Usual causes: data.std=0, a transform that takes the logarithm "
    "of zero",
    "unscaled": "the model gets unscaled images, with values up to 255. Usual causes: data.mean and data.std are not "
    "on the scale [0, 1], a transform that does not divide by 255",
    "not normalised": "mean and standard deviation are far from 0 and 1: data.mean={mean} data.std={std} do not fit "
    "these images. With data=image_folder or synthetic, data.mean=null data.std=null measures them",
    "not as pretrained": "the pretrained weights expect mean={expected[mean]} std={expected[std]}, not {chosen[mean]} "
    "and {chosen[std]}; data.mean=null data.std=null takes theirs",
    "broken augmentation": "no model can learn from them. Usual cause: an augmentation that divides by zero or takes "
    "its logarithm",
    "too bright": "augmented values are below black or above white. Usual causes: an augmentation that changes "
    "brightness without clamping, or that expects values in [0, 1] and gets 0 to 255",
    "two mixed classes": "with two classes, half of the mixed pairs are of one class, the others have labels near "
    "50:50, which teach little; augment.mixing.p=0 turns mixing off",
    "many duplicates": "the accuracy would measure memorised images (for example {example}). Usual causes: files "
    "copied into train/ and test/, images multiplied before the split",
    "few duplicates": "too few to change the accuracy much (for example {example})",
    "copies": "they count more than once (for example {example}). Remove them, and first those with a wrong label",
    "imbalanced": "accuracy hides the small classes: watch metrics=[balanced_acc,f1], select by "
    "checkpoint.monitor=val/balanced_acc; loss.class_weights=balanced or data.sampling=balanced helps them",
    "unrelated labels": "the labels seem to be unrelated to the images: a model could memorise them but not predict "
    "new images. Usual cause: images shuffled or sorted without their labels. If your classes do not differ in colours "
    "and coarse shapes, this may be a false alarm: preflight=warn trains anyway",
}


def normalisation(context: CheckContext) -> CheckResult:
    """Channels have about zero mean and unit variance, normalised as the pretrained weights expect."""
    images = context.plain_images(MANY_IMAGES)
    if not images.isfinite().all():
        fraction = 1 - images.isfinite().float().mean().item()
        return failed(f"{fraction:.1%} of the pixel values are NaN or infinite", ADVICE["not finite"])
    mean, std = images.mean(dim=(0, 2, 3)).tolist(), images.std(dim=(0, 2, 3)).tolist()
    means, stds = (", ".join(f"{value:.2f}" for value in values) for values in (mean, std))
    figure = f"mean [{means}], standard deviation [{stds}], values {images.min():.2f} to {images.max():.2f}"
    chosen = {key: getattr(context.data.spec, key) for key in ("mean", "std")}
    expected = {key: list(context.expected_input[key]) for key in chosen if context.expected_input.get(key)}
    if images.abs().max() > 20:
        return failed(figure, ADVICE["unscaled"])
    if expected == chosen:
        return ok(f"{figure}, as the pretrained weights expect")
    if max(map(abs, mean)) > 0.5 or min(std) < 0.4 or max(std) > 2.0:
        return failed(figure, ADVICE["not normalised"].format(**chosen))
    if expected:
        return warning(figure, ADVICE["not as pretrained"].format(expected=expected, chosen=chosen))
    return ok(figure)


def augmentation(context: CheckContext) -> CheckResult:
    """Augmented pixel values stay between black and white."""
    images = context.batch.images.float()
    if not images.isfinite().all():
        broken = (~images.flatten(1).isfinite().all(dim=1)).sum().item()
        figure = f"{broken} of {len(images)} augmented images contain NaN or infinite values"
        return failed(figure, ADVICE["broken augmentation"])
    normalize = context.data.transform.normalize
    black, white = (0 - normalize.mean) / normalize.std, (1 - normalize.mean) / normalize.std
    slack = 0.02 * (white - black)  # for rounding to half precision
    figure = f"values {images.min():.2f} to {images.max():.2f}; black is {black.min():.2f}, white {white.max():.2f}"
    is_outside = (images < (black - slack).to(images)).any() or (images > (white + slack).to(images)).any()
    return failed(figure, ADVICE["too bright"]) if is_outside else ok(figure)


def labels(context: CheckContext) -> CheckResult:
    """Every split has every class, and no label outside of them."""
    classes, names = context.num_classes, context.data.spec.classes
    missing = []
    for split, arrays in context.data.splits.items():
        if not len(arrays):
            continue
        low, high = int(arrays.labels.min()), int(arrays.labels.max())
        if low < 0 or high >= classes:
            return failed(
                f"{split} has labels from {low} to {high} for {classes} classes",
                f"labels must go from 0 to {classes - 1}. Usual causes: labels counted from 1, another data set",
            )
        counts = torch.bincount(arrays.labels, minlength=classes)
        missing += [f"{names[c]} in {split}" for c in range(classes) if not counts[c]]
    train = torch.bincount(context.data.splits["train"].labels, minlength=classes)
    figure = f"{classes} classes, {train.min():,} to {train.max():,} training images each"
    advice = f"no image of {list_some(missing)}: it cannot be learned or evaluated"
    if not missing and train.max() > IMBALANCED * train.min():
        return warning(figure, ADVICE["imbalanced"])
    return warning(figure, advice) if missing else ok(figure)


def mixing(context: CheckContext) -> CheckResult | None:
    """Mixed labels are informative: there are more than two classes."""
    mixed = context.data.mixing
    if mixed is None:
        return None
    figure = (
        f"{mixed.p:.0%} of the batches: {mixed.cutmix_share:.0%} CutMix, the others mixup; train/acc counts the class "
        "with the larger weight"
    )
    return warning(figure, ADVICE["two mixed classes"]) if context.num_classes == 2 else ok(figure)


def splits_are_disjoint(context: CheckContext) -> CheckResult:
    """No image is in two splits, or twice in one."""
    splits = context.data.splits
    # Python's hash has 64 bits: the chance of a collision among 60,000 images is 1e-10.
    pixels = {name: split.stored.numpy() for name, split in splits.items()}
    hashes = {
        name: [hash(pixels[name][row].tobytes()) for row in split.rows.tolist()] for name, split in splits.items()
    }
    shared, worst, example = [], 0.0, ""
    for one, other in (("test", "train"), ("test", "val"), ("val", "train")):
        known = dict(zip(hashes[other], splits[other].names, strict=True))
        named = zip(splits[one].names, hashes[one], strict=True)
        twice = [f"{name} is {known[value]}" for name, value in named if value in known]
        if twice:
            shared.append(f"{len(twice)} of {len(hashes[one])} {one} images are also in {other}")
            worst = max(worst, len(twice) / len(hashes[one]))
            example = example or twice[0]
    copies = []
    for name, split in splits.items():
        first: dict[int, int] = {}
        again = [(row, first[value]) for row, value in enumerate(hashes[name]) if first.setdefault(value, row) != row]
        if again:
            wrong = sum(bool(split.labels[one] != split.labels[other]) for one, other in again)
            label = f", {wrong} of them with another label" if wrong else ""
            copies.append(f"{len(again)} of {len(split)} {name} images are copies of others in {name}{label}")
            example = example or "{} is {}".format(*(split.names[row] for row in again[0]))
    if not shared and not copies:
        counts = ", ".join(f"{len(split):,} {name}" for name, split in splits.items() if len(split))
        return ok(f"no duplicates among {counts} images")
    figure, advice = "; ".join([*shared, *copies]), ADVICE["few duplicates" if shared else "copies"]
    if worst <= 0.01:
        return warning(figure, advice.format(example=example))
    return failed(figure, ADVICE["many duplicates"].format(example=example))


def labels_are_learnable(context: CheckContext) -> CheckResult:
    """Labels depend on the images: ridge regression on the pixels of tiny images and their squares beats chance."""
    train, classes = context.data.splits["train"], context.num_classes
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:3000]
    fitted = 2 * len(rows) // 3  # the others are held out
    if len(rows) - fitted < 200:
        return skipped(f"needs more than {len(train)} training images")
    chunks = (train.pick(part) for part in torch.split(rows, 100))  # few at a time: images may be large
    tiny = [F.interpolate(images.float() / 255, size=(8, 8), mode="area") for images in chunks]
    pixels = torch.cat(tiny).flatten(1) - 0.5
    inputs = torch.cat([pixels, pixels.square(), torch.ones(len(rows), 1)], dim=1).double()
    x, y = inputs[:fitted], F.one_hot(train.labels[rows[:fitted]], classes).double()
    ridge = 1e-2 * fitted * torch.eye(x.shape[1], dtype=torch.float64)
    predicted = (inputs[fitted:] @ torch.linalg.solve(x.T @ x + ridge, x.T @ y)).argmax(dim=1)
    truth = train.labels[rows[fitted:]]
    accuracy = (predicted == truth).float().mean().item()
    chance = (torch.bincount(truth, minlength=classes).max() / len(truth)).item()
    figure = f"a linear classifier of 8 px images reaches {accuracy:.1%}, chance is {chance:.1%}"
    is_chance = accuracy < chance + 2 * math.sqrt(chance * (1 - chance) / len(truth))
    return failed(figure, ADVICE["unrelated labels"]) if is_chance else ok(figure)
