"""What stands beneath the figures: what each shows, and how it is read."""

from typing import TypedDict


class About(TypedDict):
    """As `publish` takes it."""

    tag: str
    title: str
    caption: str


PLAN: About = {
    "tag": "plan/learning_rate",
    "title": "Learning rate as planned",
    "caption": (
        "The whole schedule, drawn before the first step. Where layers learn at rates of their own, a line for "
        "each, named by its multiple of optimizer.lr."
    ),
}
FIRST_BATCH: About = {
    "tag": "data/first_batch",
    "title": "First training batch as the network sees it",
    "caption": (
        "After augmentation and mixing, at the network's image size, with the normalisation undone for the eye. Look "
        "for: images that still show their class, augmentation that is there and not too strong, labels that fit, of "
        "mixed images with their shares."
    ),
}
CONFUSIONS: About = {
    "tag": "confusion_matrix",
    "title": "Confusion matrix: percent of each true class's images",
    "caption": (
        "Of each true class's images (a row), the share that got each answer (a column), by colour, and in percent "
        "where there is room for numbers (half a percent or less goes without one). On the diagonal stands what was "
        "recognised; a cell off it that is brighter than those around it is a pair of classes that is mixed up."
    ),
}
LEAST_RECOGNISED: About = {
    "tag": "confusion_matrix_least_recognised",
    "title": "Confusion matrix of the twenty least recognised classes",
    "caption": (
        "As the whole confusion matrix, of the classes that are recognised least, the least recognised first, with "
        "their names and the shares in percent. In the last column: answers that are none of these classes."
    ),
}
PER_CLASS: About = {
    "tag": "accuracy_by_class",
    "title": "Accuracy of each class",
    "caption": (
        "The share of each class's images that was recognised, the least recognised class at the bottom, with the "
        "number of images; of more than twenty classes, the least recognised ones. The thin line is the 95 % interval "
        "of an accuracy on so many images."
    ),
}
RELIABILITY: About = {
    "tag": "reliability",
    "title": "Can the probabilities be trusted?",
    "caption": (
        "Images grouped by the probability of their answer: how many of a group were right. Bars below the dashed "
        "line: the network is surer than it may be. Above: it is too modest, as label smoothing makes it. ECE, the "
        "expected calibration error, is the mean distance from the line, weighted by the images below. "
        "Pale bars stand on fewer than ten images and tell little."
    ),
}
MISTAKES: About = {
    "tag": "test/surest_mistakes",
    "title": "Surest mistakes: the answer above, the true class below",
    "caption": (
        "Drawn are the wrong answers with the highest probabilities. Above each test image the answer, below it the "
        "true class, with their probabilities. Wrong labels in the data show up here first."
    ),
}
EXTREMES: About = {
    "tag": "test/hardest_and_most_typical",
    "title": "Hardest and most typical images, with the true class's probability",
    "caption": (
        "For each class the test images whose true class got the smallest probability (left) and the largest (right), "
        "with that probability, and beneath it the answer where it was another class. Of many classes, the ten least "
        "recognised."
    ),
}
CURVES: About = {
    "tag": "curves/loss_and_accuracy",
    "title": "Loss, accuracy and learning rate by epoch",
    "caption": (
        "Accuracy that still rises at the right end asks for more epochs; "
        "a validation loss that turns up while the training loss falls is learning by heart. The dotted line is the "
        "epoch whose weights were kept, the dashed line what guessing comes to, where the curve is near it. "
        "The learning rate is that at the epoch's end."
    ),
}
