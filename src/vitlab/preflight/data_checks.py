"""Checks of the images and labels."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from vitlab.data.arrays import ImageArrays
from vitlab.preflight.check_result import CheckResult, failed, ok, skipped, some, warning
from vitlab.preflight.context import CheckContext

MANY_IMAGES = 512  # enough for statistics
SAID_TOGETHER = ("mean", "std")


def normalised_input(subject: CheckContext) -> Iterator[CheckResult]:
    """About zero mean and unit variance in each channel, and what pretrained weights were trained with."""
    check = "normalised input"
    images = subject.plain_images(MANY_IMAGES).float()
    if not images.isfinite().all():
        share = (~images.isfinite()).float().mean().item()
        yield failed(
            check,
            f"{share:.1%} of the values are NaN or infinite",
            "no network learns from these. Usual causes: a division by data.std=0, a transform that takes a logarithm "
            "or a root of zero",
        )
        return
    mean, std = images.mean(dim=(0, 2, 3)).tolist(), images.std(dim=(0, 2, 3)).tolist()
    figure = f"mean {_list(mean)}, standard deviation {_list(std)}, values {images.min():.2f} to {images.max():.2f}"
    chosen = {key: getattr(subject.data.spec, key) for key in SAID_TOGETHER}
    expected = {key: list(subject.expected_input[key]) for key in SAID_TOGETHER if subject.expected_input.get(key)}
    if images.abs().max() > 20:
        yield failed(
            check,
            figure,
            "the images reach the network unscaled, as values up to 255. Usual causes: data.mean and data.std on the "
            "scale [0, 255] instead of [0, 1], a transform that leaves out the division by 255",
        )
    elif expected == chosen:
        yield ok(check, f"{figure}, as the pretrained weights had it")
    elif max(map(abs, mean)) > 0.5 or min(std) < 0.4 or max(std) > 2.0:
        yield failed(
            check,
            figure,
            f"not near mean 0 and standard deviation 1: data.mean={chosen['mean']} data.std={chosen['std']} are not "
            "those of these images. data.mean=null data.std=null measures them (with data=image_folder or synthetic)",
        )
    elif expected:
        yield warning(
            check,
            figure,
            f"the pretrained weights were trained with mean={expected['mean']} std={expected['std']}, not with "
            f"{chosen['mean']} and {chosen['std']}; data.mean=null data.std=null takes theirs",
        )
    else:
        yield ok(check, figure)


def augmented_range(subject: CheckContext) -> Iterator[CheckResult]:
    """Augmentation keeps the values within those of unaugmented pixels."""
    check = "augmentation"
    images = subject.batch.images.float()
    if not images.isfinite().all():
        broken = (~images.flatten(1).isfinite().all(dim=1)).sum().item()
        yield failed(
            check,
            f"{broken} of {len(images)} augmented images hold NaN or infinite values",
            "no network learns from these. Usual causes: a division by zero or a logarithm in an augmentation",
        )
        return
    normalize = subject.data.transform.normalize
    black, white = (0 - normalize.mean) / normalize.std, (1 - normalize.mean) / normalize.std
    slack = 0.02 * (white - black)  # half precision rounds
    below = (images < (black - slack).to(images)).any().item()
    above = (images > (white + slack).to(images)).any().item()
    figure = f"values {images.min():.2f} to {images.max():.2f}; black is {black.min():.2f}, white {white.max():.2f}"
    if below or above:
        yield failed(
            check,
            figure,
            "augmented images leave the range from black to white. Usual causes: an augmentation that changes "
            "brightness without clamping, or that works on [0, 1] where it gets 0 to 255",
        )
    else:
        yield ok(check, figure)


def labels(subject: CheckContext) -> Iterator[CheckResult]:
    """Every class is there, and no label beyond them."""
    check, classes = "labels", subject.num_classes
    names = subject.data.spec.classes
    missing = []
    for split, arrays in subject.data.splits.items():
        if not len(arrays):
            continue
        low, high = int(arrays.labels.min()), int(arrays.labels.max())
        if low < 0 or high >= classes:
            yield failed(
                check,
                f"{split} has labels from {low} to {high} for {classes} classes",
                f"they must go from 0 to {classes - 1}. Usual causes: labels counted from 1, another data set",
            )
            return
        counts = torch.bincount(arrays.labels, minlength=classes)
        missing += [f"{names[c]} in {split}" for c in range(classes) if not counts[c]]
    train = torch.bincount(subject.data.splits["train"].labels, minlength=classes)
    figure = f"{classes} classes, {train.min():,} to {train.max():,} training images each"
    if missing:
        yield warning(check, figure, f"no image of {some(missing)}: it can't be learned, or not be judged")
    else:
        yield ok(check, figure)


def mixing(subject: CheckContext) -> Iterator[CheckResult]:
    """Mixed labels say something: there are more than two classes."""
    check, mixed = "mixing", subject.data.mixing
    if mixed is None:
        return
    figure = (
        f"{mixed.p:.0%} of the batches: CutMix {mixed.cutmix_share:.0%} of them, mixup the others; train/acc goes by "
        "the class with the larger share"
    )
    if subject.num_classes == 2:
        yield warning(
            check,
            figure,
            "of two classes, half of the pairs are of one class, and the others' labels say that both are there: a "
            "weak lesson. augment.mixing.p=0 mixes nothing",
        )
    else:
        yield ok(check, figure)


def shared_images(subject: CheckContext) -> Iterator[CheckResult]:
    """No image stands in two splits."""
    check = "splits are apart"
    splits = {name: split for name, split in subject.data.splits.items() if len(split)}
    prints = {name: _fingerprints(split) for name, split in splits.items()}
    shared, worst, example = [], 0.0, ""
    for one, other in (("test", "train"), ("test", "val"), ("val", "train")):
        if one not in prints or other not in prints:
            continue
        places = {fingerprint: place for place, fingerprint in enumerate(prints[other])}
        twice = [(place, places[f]) for place, f in enumerate(prints[one]) if f in places]
        if twice:
            shared.append(f"{len(twice)} of {len(prints[one])} {one} images are also in {other}")
            worst = max(worst, len(twice) / len(prints[one]))
            place, twin = twice[0]
            example = example or f"{splits[one].names[place]} is {splits[other].names[twin]}"
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in splits.items())
    if not shared:
        yield ok(check, f"no image twice among {sizes}")
    elif worst > 0.01:
        yield failed(
            check,
            "; ".join(shared),
            f"the accuracy measured would be that of remembering ({example}). Usual causes: files copied into train/ "
            "and test/, a split made after images were multiplied",
        )
    else:
        yield warning(check, "; ".join(shared), f"too few to matter much ({example})")


def labels_are_learnable(subject: CheckContext) -> Iterator[CheckResult]:
    """Labels have something to do with the images: even a linear look at tiny images beats guessing."""
    check = "labels fit images"
    train = subject.data.splits["train"]
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:3000]
    fitted, judged = rows[: 2 * len(rows) // 3], rows[2 * len(rows) // 3 :]
    if len(judged) < 200:
        yield skipped(check, f"{len(train)} training images are too few to tell")
        return
    classes = subject.num_classes
    right = (_guess(train, fitted, judged, classes) == train.labels[judged]).float().mean().item()
    guessing = (torch.bincount(train.labels[judged], minlength=classes).max() / len(judged)).item()
    noise = math.sqrt(guessing * (1 - guessing) / len(judged))
    figure = f"a linear classifier of 8 px images: {right:.1%} right, guessing {guessing:.1%}"
    if right < guessing + 2 * noise:
        yield failed(
            check,
            figure,
            "the labels seem to have nothing to do with the images: a network can learn them by heart and says nothing "
            "of new images. Usual causes: images shuffled or sorted without their labels. If your classes can't be "
            "told by colours and coarse shapes, all may be well",
        )
    else:
        yield ok(check, figure)


def _guess(train: ImageArrays, fitted: Tensor, judged: Tensor, classes: int) -> Tensor:
    """Ridge regression of the classes on pixels and their squares."""

    def features(rows: Tensor) -> Tensor:
        small = F.interpolate(train.pick(rows).float() / 255, size=(8, 8), mode="area") - 0.5
        pixels = small.flatten(1)
        return torch.cat([pixels, pixels.square(), torch.ones(len(rows), 1)], dim=1).double()

    x, y = features(fitted), F.one_hot(train.labels[fitted], classes).double()
    ridge = 1e-2 * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
    return (features(judged) @ torch.linalg.solve(x.T @ x + ridge, x.T @ y)).argmax(dim=1)


def _fingerprints(split: ImageArrays) -> list[int]:
    # Python's hash of bytes has 64 bits: 60,000 different images are taken for others with a chance of 1e-10.
    return [hash(image.tobytes()) for images in split.chunks() for image in images.numpy()]


def _list(values: list[float]) -> str:
    return "[" + ", ".join(f"{value:.2f}" for value in values) + "]"
