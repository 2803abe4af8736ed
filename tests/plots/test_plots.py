"""Statistics of predictions, and figures of unusual ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image
from torch import Tensor

from vitlab.plots.classification import (
    Predictions,
    draw_class_accuracy,
    draw_confusion_matrix,
    draw_reliability,
    draw_worst_classes,
    wilson_interval,
)
from vitlab.plots.curves import compute_lr_schedule, draw_curves
from vitlab.plots.image_grid import draw_batch, draw_errors, draw_extremes, draw_predictions
from vitlab.plots.io import render


def predict(probabilities: Tensor, labels: list[int], classes: int | None = None) -> Predictions:
    names = [f"class {number}" for number in range(classes or probabilities.shape[1])]
    return Predictions(probabilities, probabilities.argmax(dim=1), torch.tensor(labels), names)


FOUR = predict(
    torch.tensor([[0.9, 0.1, 0.0], [0.62, 0.28, 0.1], [0.2, 0.7, 0.1], [0.83, 0.1, 0.07]]),
    [0, 1, 1, 2],
)


def test_confusions_by_hand() -> None:
    assert FOUR.confusion_matrix.tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 0]]
    assert FOUR.recall.tolist() == [1.0, 0.5, 0.0]
    assert FOUR.confused_pairs() == [("class 1", "class 0", 1), ("class 2", "class 0", 1)]


def test_calibration_by_hand() -> None:
    # Each image has a bin of its own: the distances are 0.1, 0.62, 0.3 and 0.83.
    assert FOUR.calibration_error == pytest.approx((0.1 + 0.62 + 0.3 + 0.83) / 4, abs=1e-6)
    count, confidence, accuracy = FOUR.bins
    assert count.tolist() == [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 1, 1, 0]
    distance = (confidence - accuracy).abs().nan_to_num()
    assert (distance * count).sum().item() / 4 == pytest.approx(FOUR.calibration_error, abs=1e-6)


def test_details_count_images_by_class() -> None:
    said = predict(FOUR.probabilities, [0, 1, 1, 0]).as_data()
    assert said["accuracy"] == 0.75
    assert said["per_class"]["class 2"] == {"images": 0, "answers": 0, "acc": None, "precision": None, "f1": None}
    assert said["most_confused"] == [{"class": "class 1", "taken_for": "class 0", "images": 1}]


def test_wilson_s_interval() -> None:
    low, high = wilson_interval(np.array([0.5, 1.0]), np.array([100, 10]))
    assert low == pytest.approx([0.4038, 0.7225], abs=1e-4)  # Newcombe 1998, method 3
    assert high == pytest.approx([0.5962, 1.0], abs=1e-4)


@pytest.mark.parametrize(("classes", "right"), [(2, 0.5), (10, 0.0), (10, 1.0), (40, 0.5)])
def test_all_kinds_of_predictions_can_be_drawn(classes: int, right: float) -> None:
    torch.manual_seed(0)
    labels = torch.arange(50) % classes
    labels[labels == 1] = 0  # a class without images
    answers = torch.where(torch.rand(50) < right, labels, (labels + 1) % classes)
    logits = torch.randn(50, classes) + 20 * torch.nn.functional.one_hot(answers, classes)
    found = predict(logits.softmax(dim=1), labels.tolist())
    images = torch.zeros(50, 3, 8, 8, dtype=torch.uint8)
    for draw in (draw_confusion_matrix, draw_worst_classes, draw_class_accuracy, draw_reliability):
        assert np.asarray(render(lambda draw=draw: draw(found), "x")).std() > 0  # type: ignore[misc]
    for draw in (draw_errors, draw_extremes):
        assert max(render(lambda draw=draw: draw(found, images), "x").size) < 2500  # type: ignore[misc]


@pytest.mark.parametrize(("size", "dark"), [((1, 900), 250), ((900, 1), 250), ((30, 40), 188 * 250)])
def test_images_of_any_shape_are_drawn_whole(size: tuple[int, int], dark: int, tmp_path: Path) -> None:
    Image.new("RGB", size, "black").save(tmp_path / "a.png")
    (axes,) = draw_predictions([(tmp_path / "a.png", "cat", 0.5)]).axes
    assert (np.asarray(axes.images[0].get_array()) == 0).all(axis=2).sum() == dark


def test_of_many_classes_the_worst_are_named_with_their_percentages() -> None:
    # Of 30 classes of two images, all of the first 25 are predicted as the last one; the last five are correct.
    labels = torch.arange(60) % 30
    answers = torch.where(labels < 25, torch.full_like(labels, 29), labels)
    answers[0] = 1  # an image of class 0, predicted as class 1
    figure = draw_worst_classes(predict(torch.nn.functional.one_hot(answers, 30).float(), labels.tolist()))
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"class {number}" for number in range(20)]
    assert axes.get_xticklabels()[-1].get_text() == "another class"
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells[1, 0] == cells[20, 0] == "50"
    assert [cells[20, row] for row in range(1, 20)] == ["100"] * 19
    assert len(cells) == 21


def test_a_matrix_of_few_classes_has_room_for_counts() -> None:
    cells = {text.get_position(): text.get_text() for text in draw_confusion_matrix(FOUR).axes[0].texts}
    assert cells == {(0, 0): "100%\n1", (0, 1): "50%\n1", (1, 1): "50%\n1", (0, 2): "100%\n1"}


def test_a_matrix_is_white_without_images_blue_if_correct_and_orange_if_not() -> None:
    figure = draw_confusion_matrix(FOUR)
    pixels = figure.axes[0].images[0].get_array()
    assert pixels is not None
    assert (pixels[FOUR.confusion_matrix.numpy() == 0] == 1).all()
    (red, _, blue, _), (error_red, _, error_blue, _) = pixels[0, 0], pixels[2, 0]  # 100 % each
    assert red < 0.2 < 0.6 < blue
    assert error_blue < 0.2 < 0.6 < error_red
    assert [axes.get_ylabel() for axes in figure.axes] == ["true class", "correct", "errors"]


def test_numbers_in_a_matrix_have_contrast() -> None:
    def luminance(color: Any) -> float:
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(color)]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    labels = torch.arange(1000) % 10
    answers = torch.where(
        torch.rand(1000, generator=torch.Generator().manual_seed(0)) < labels / 10, labels, labels // 2
    )
    axes = draw_confusion_matrix(predict(torch.nn.functional.one_hot(answers, 10).float(), labels.tolist())).axes[0]
    pixels = axes.images[0].get_array()
    assert pixels is not None
    assert len(axes.texts) > 15
    for text in axes.texts:
        column, row = (int(place) for place in text.get_position())
        low, high = sorted(luminance(color) for color in (text.get_color(), pixels[row, column, :3]))
        assert (high + 0.05) / (low + 0.05) > 4.5


def test_rare_errors_have_a_visible_colour() -> None:
    labels = torch.arange(1000) % 2
    answers = labels.clone()
    answers[:20] = 0  # ten of 500 images
    figure = draw_confusion_matrix(predict(torch.nn.functional.one_hot(answers, 2).float(), labels.tolist()))
    pixels = figure.axes[0].images[0].get_array()
    assert pixels is not None
    assert pixels[1, 0].min() < 0.85


def test_predictions_of_one_confidence_leave_room_for_the_reliability_diagram() -> None:
    figure = draw_reliability(predict(torch.full((50, 10), 0.1), [0] * 50))
    render(lambda: figure, "x")
    assert figure.axes[0].get_position().height > 0.4


def test_few_classes_are_rows_and_many_are_columns() -> None:
    for classes, heads in ((3, ["hardest", "2nd"]), (7, ["class 0", "class 1"])):
        labels = torch.arange(70) % classes
        found = predict(torch.nn.functional.one_hot(labels, classes).float(), labels.tolist())
        axes = draw_extremes(found, torch.zeros(70, 3, 8, 8, dtype=torch.uint8)).axes[0]
        assert [text.get_text() for text in axes.texts if "%" not in text.get_text()][:2] == heads


def test_bars_of_few_images_are_pale() -> None:
    confidence = torch.tensor([0.95] * 10 + [0.75] * 9)
    probabilities = torch.stack([confidence, 1 - confidence], dim=1)
    bars = draw_reliability(predict(probabilities, [0] * 19)).axes[0].patches
    looks = {round(bar.get_x() + bar.get_width() / 2, 2): bar.get_alpha() for bar in bars}
    assert looks == {0.77: 0.3, 0.97: 1}


@pytest.mark.parametrize(("scale", "shown"), [(1.0, True), (0.05, False)])
def test_curves_show_chance_if_they_are_near_it(scale: float, shown: bool) -> None:
    rows = [{"train/loss": scale * (2.2 - 0.3 * e), "train/acc": 0.5, "lr": 0.1} for e in range(4)]
    axes = draw_curves(rows, [1, 2, 3, 3.6], 3.6, 10).axes[0]
    lines = {str(line.get_label()): line for line in axes.lines}
    assert lines["train"].get_xdata()[-1] == lines["kept"].get_xdata()[0] == 3.6  # its time ended the run
    assert (np.log(10) in [line.get_ydata()[0] for line in axes.lines if line.get_label() == "chance"]) is shown


def test_mixed_labels_name_both_classes() -> None:
    labels = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.0, 1.0]])
    figure = draw_batch(torch.rand(2, 3, 8, 8), labels, ["cat", "dog", "$"])
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert {"cat 70%\ndog 30%", "$ 100%"} <= texts


def test_the_planned_rates_are_those_of_the_optimizer() -> None:
    def schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.StepLR:
        return torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.1)

    rates = compute_lr_schedule(lambda groups: torch.optim.SGD(groups, lr=1.0), schedule, 5, {"lr": 0.5})
    assert rates == pytest.approx([0.5, 0.5, 0.05, 0.05, 0.005])


def test_curves_without_validation_can_be_drawn() -> None:
    rows = [{"train/loss": 1.0, "train/acc": 0.5, "lr": 0.1}] * 3
    assert render(lambda: draw_curves(rows, [1, 2, 3], None, 10), "x").size[0] > 500


def test_an_image_of_a_small_class_appears_on_one_side() -> None:
    # Class 1 has two images: the one with 0.28 is the harder. The others have one each.
    figure = draw_extremes(FOUR, torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
    places = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    middle = (places["hardest"][0] + places["most typical"][0]) / 2
    assert places["28.0%\nclass 0"][0] < middle < places["70.0%"][0]
    assert [text for text in places if text.endswith("%")] == ["90.0%", "70.0%"]


def test_long_names_do_not_overlap() -> None:
    names = ["german short-haired pointer", "german long-haired pointer", "x"]
    found = Predictions(FOUR.probabilities, FOUR.predicted, FOUR.labels, names)
    figure = draw_errors(found, torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
    assert max(len(text.get_text()) for text in figure.axes[0].texts) <= 20
