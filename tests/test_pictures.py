"""The pictures of a run: nothing cut off, and whole epochs on the axis."""

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="it draws the pictures")

from gpuconv.training import pictures
from gpuconv.training.run import Record


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn, laid out as in the files."""
    figures, png = [], pictures.png

    def keep(figure):
        figures.append(figure)
        return png(figure)

    monkeypatch.setattr(pictures, "png", keep)
    return figures


@pytest.mark.parametrize("wrong", [0, 1, 3, 60])
def test_title_of_the_mistakes_fits_into_the_picture(drawn, wrong):
    labels = np.zeros(1000, int)
    labels[:wrong] = 1
    scores = np.tile([1.0, 0.0], (1000, 1))
    pictures.misclassified(np.ones((1000, 1, 8, 8)), labels, scores, "mnist5k, batch-gd, seed 0")
    assert drawn[0]._suptitle.get_window_extent().x1 <= drawn[0].bbox.x1


@pytest.mark.parametrize("epochs", [1, 2, 12])
def test_epochs_on_the_axis_are_whole(drawn, epochs):
    records = [Record(i + 1, i + 1, 1 / (i + 1), 0.5, 0.5, 0.1, 1.0) for i in range(epochs)]
    pictures.learning_curve(records, "a run")
    for axes in drawn[0].axes:
        ticks = axes.get_xticks()
        assert (ticks == np.round(ticks)).all()


def test_data_whose_name_has_dollar_signs_is_no_formula():
    title, scores = r"$\bad$.npz, sgd, seed 0", np.tile([1.0, 0.0], (4, 1))
    records = [Record(1, 1, 1.0, 0.5, 0.5, 0.1, 1.0)]
    assert pictures.learning_curve(records, title).startswith(b"\x89PNG")
    assert pictures.misclassified(np.ones((4, 1, 8, 8)), np.zeros(4, int), scores, title).startswith(
        b"\x89PNG"
    )
