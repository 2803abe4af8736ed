"""The projection of features, compared with the eigenvectors of their covariance."""

import numpy as np
import pytest
import torch

from vitlab.plots.io import render
from vitlab.plots.projection import describe_projection, draw_projection, project


def some_features(classes: int, count: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    centers = 3 * torch.randn(classes, 12, generator=draw)
    return centers[labels] + torch.randn(count, 12, generator=draw), labels


def test_the_points_are_those_of_the_covariance_matrix() -> None:
    features, _ = some_features(5)
    points, explained = project(features)
    values, vectors = np.linalg.eigh(np.cov(features.double().numpy().T))
    wanted = (features - features.mean(0)).double().numpy() @ vectors[:, ::-1][:, :4]
    signs = np.sign((wanted * points.numpy()).sum(axis=0))
    np.testing.assert_allclose(points.numpy(), wanted * signs, atol=1e-4)
    np.testing.assert_allclose(explained.numpy(), values[::-1][:4] / values.sum(), rtol=1e-5)
    assert (points.dtype, explained.dtype) == (torch.float32, torch.float32)


def test_the_sign_of_a_component_does_not_depend_on_the_order_of_the_images() -> None:
    features, _ = some_features(5)
    torch.testing.assert_close(project(features.flip(0))[0].flip(0), project(features)[0], atol=1e-4, rtol=1e-4)


def test_equal_features_and_few_images_are_no_error() -> None:
    points, explained = project(torch.ones(5, 12))
    assert points.abs().max() < 1e-6
    assert explained.tolist() == [0.0] * 4
    assert project(torch.randn(2, 12))[0].shape == (2, 2)


@pytest.mark.parametrize(("classes", "named"), [(2, 2), (10, 10), (20, 20), (21, 9), (1000, 9)])
def test_any_number_of_classes_has_a_legend_that_fits(classes: int, named: int) -> None:
    features, labels = some_features(classes)
    names = [f"class {number} $_{{x}}$ {'long name' * 20}" for number in range(classes)]
    found = []

    def draw() -> object:
        figure = draw_projection(project(features)[0], labels, names)
        found.extend(text.get_text() for text in figure.legends[0].get_texts())
        looks = {
            (tuple(points.get_facecolor()[0]), points.get_paths()[0].vertices.tobytes())
            for points in figure.axes[0].collections
        }
        assert len(looks) == named  # no two classes look the same
        return figure

    image = render(draw, "Features")  # type: ignore[arg-type]
    assert len(found) == named
    assert image.width < 1600
    assert len(image.getcolors(image.width * image.height)) > 50
    if classes > 20:
        assert f"{classes - 8:,} others" in found


def test_the_caption_says_what_is_shown() -> None:
    told = describe_projection(torch.tensor([0.5, 0.25]), 1000, 10_000)
    assert "50%, 25%" in told
    assert "1,000 of the 10,000" in told
    assert "random" not in describe_projection(torch.tensor([0.5]), 100, 100)
