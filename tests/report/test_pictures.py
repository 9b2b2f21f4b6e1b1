import numpy as np
import torch

from sgenas.data import ImageData, ImageSet
from sgenas.report.pictures import draw_pictures


def data(channels: int, classes: int, each: int = 12) -> ImageData:
    """Images of 4 x 6 whose pixels are their number."""
    labels = torch.arange(classes).repeat_interleave(each)
    images = torch.arange(len(labels)).view(-1, 1, 1, 1).expand(-1, channels, 4, 6) % 251
    names = tuple(f"class ${index}" for index in range(classes))
    return ImageData("toy", ImageSet(images.to(torch.uint8), labels), None, names, mirror=True)


def test_a_row_of_images_for_each_class() -> None:
    for channels in (1, 3):
        figure = draw_pictures(data(channels, 3))
        axes = figure.axes[0]
        shown = np.asarray(axes.images[0].get_array())
        assert shown.shape[:2] == (3 * 5, 10 * 7)
        # ten of twelve, from the first to the last; then the gap
        tops = shown[1::5, ::7].reshape(3, 10, -1)[..., 0]
        for row, values in enumerate(tops):
            assert (values[0], values[-1]) == (12 * row, 12 * row + 11)
            assert (np.diff(values.astype(int)) > 0).all()
        assert (shown[4] == 255).all()
        assert [label.get_text() for label in axes.get_yticklabels()] == [
            rf"class \${row}" for row in range(3)
        ]
        figure.draw_without_rendering()


def test_few_images_and_many_classes() -> None:
    axes = draw_pictures(data(1, 30, each=1)).axes[0]
    assert len(axes.get_yticks()) == 25
    assert axes.get_title() == "training images of toy, the first 25 classes of 30"
    shown = np.asarray(axes.images[0].get_array())
    assert shown[0, 0] == 0
    assert (shown[:, 7:] == 255).all()
