"""The summary of a dataset, as numbers and as text."""

import json

import pytest
import torch

from sgenas.data import ImageData, ImageSet, summarize


def test_summary_counts_images_and_classes():
    images = torch.tensor([0, 255, 0, 255, 255, 255], dtype=torch.uint8).view(6, 1, 1, 1).repeat(1, 1, 2, 3)
    train = ImageSet(images, torch.tensor([0, 0, 0, 0, 1, 2]))
    test = ImageSet(images[:3], torch.tensor([2, 2, 0]))
    data = ImageData("toy", train, test, ("a", "b", "c"), horizontal_flip=False, origin="here", notes=("one",))
    found = json.loads(json.dumps(summarize(data).to_dict()))
    assert found["mean"] == pytest.approx([2 / 3])
    assert found["std"] == pytest.approx([(2 / 9) ** 0.5])
    assert [list(row.values()) for row in found["classes"]] == [["a", 4, 1], ["b", 1, 0], ["c", 1, 2]]
    assert (found["train_images"], found["test_images"], found["imbalance"]) == (6, 3, 4)
    text = str(summarize(data))
    for words in ("6 training, 3 test; 3 classes", "3 x 2 pixels", "note    one", "imbalance 4: 4 images of a"):
        assert words in text
    assert ["b", "1", "16.7", "%", "0"] in [line.split() for line in text.splitlines()]


def test_text_of_many_classes_has_the_largest_and_the_smallest():
    count = 30
    labels = torch.repeat_interleave(torch.arange(count), torch.arange(1, count + 1))
    names = ("x" * 90, *(f"class-{index}" for index in range(1, count)))
    data = ImageData("toy", ImageSet(torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), labels), None, names)
    lines = str(summarize(data)).splitlines()
    rows = [line.split()[0] for line in lines if line.startswith(("class-", "xxx", "..."))]
    assert rows == [f"class-{i}" for i in range(29, 19, -1)] + ["..."] + [f"class-{i}" for i in range(9, 0, -1)] + [
        "x" * 30
    ]
    assert "consider balanced class weights" in lines[-1]
    assert "no test" in lines[2]
