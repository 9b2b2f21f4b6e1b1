"""The endless stream: passes, resuming, determinism; and ordered batches."""

import io
import re
from itertools import islice

import pytest
import torch

from sgenas.data import Augmentation, BatchStream, ImageSet, ordered_batches
from sgenas.errors import DataError

# an image's pixels are its number / 255: batches show which images they hold
SHOW = Augmentation(pad=0, mirror=False, mean=(0.0,), std=(1.0,))
CHANGE = Augmentation(pad=1, mirror=True, cutout=1, mean=(0.1,), std=(0.5,))


def stream(data: ImageSet, batch_size: int, augmentation: Augmentation = SHOW, seed: int = 0) -> BatchStream:
    return BatchStream(data, batch_size, augmentation, torch.Generator().manual_seed(seed))


def numbers(images: torch.Tensor) -> list[int]:
    return (images[:, 0, 0, 0] * 255).round().int().tolist()


def take(source: BatchStream, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(islice(source, count))


def same(first, second) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b)
        for one, two in zip(first, second, strict=True)
        for a, b in zip(one, two, strict=True)
    )


def test_a_pass_has_no_repeats_and_drops_the_rest(numbered):
    source = stream(numbered(23), 5)
    assert source.batches_per_pass == 4
    passes = []
    for _ in range(30):
        batches = take(source, 4)
        assert [len(images) for images, _ in batches] == [5] * 4
        seen = [number for images, _ in batches for number in numbers(images)]
        assert len(set(seen)) == 20
        passes.append(tuple(seen))
    assert len(set(passes)) == 30, "passes must differ in order"
    assert {number for one in passes for number in one} == set(range(23)), "no image is dropped for ever"


def test_labels_go_with_their_images(numbered):
    for images, labels in take(stream(numbered(23), 5), 9):
        assert images.dtype == torch.float32
        assert images.shape == (5, 1, 2, 2)
        assert labels.dtype == torch.int64
        assert labels.tolist() == [number % 3 for number in numbers(images)]


def test_one_seed_one_stream(numbered):
    data = numbered(23)
    first = take(stream(data, 5, CHANGE, seed=1), 9)
    assert same(first, take(stream(data, 5, CHANGE, seed=1), 9))
    assert not same(first, take(stream(data, 5, CHANGE, seed=2), 9))


@pytest.mark.parametrize("taken", [0, 1, 3, 4, 5, 8])
def test_resumes_bit_for_bit(numbered, taken):
    data = numbered(23)
    source = stream(data, 5, CHANGE)
    take(source, taken)
    buffer = io.BytesIO()
    torch.save(source.state_dict(), buffer)
    expected = take(source, 10)
    buffer.seek(0)
    resumed = stream(data, 5, CHANGE, seed=1234)
    take(resumed, 2)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    assert same(take(resumed, 10), expected)


def test_state_is_a_copy(numbered):
    source = stream(numbered(23), 5)
    take(source, 1)
    state = source.state_dict()
    expected = take(source, 6)
    again = stream(numbered(23), 5)
    again.load_state_dict(state)
    assert same(take(again, 6), expected)
    again.load_state_dict(state)
    assert same(take(again, 6), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 6}, "batch size of the stream state must be 5, got 6"),
        ({"order": torch.arange(24)}, "stream state must be of 23 images, got one of (24,)"),
        (
            {"order": torch.zeros(23).long()},
            "order in the stream state must be a permutation, got one with repeats",
        ),
        ({"batch": 5}, "batch in the stream state must be from 0 to 4, got 5"),
        ({"batch": -1}, "batch in the stream state must be from 0 to 4, got -1"),
        ({"order": None}, "order in the stream state must be of type Tensor, got NoneType"),
        ({"batch": 1.0}, "batch in the stream state must be of type int, got float"),
    ],
)
def test_refuses_a_state_that_does_not_fit_and_stays_as_it_was(numbered, change, message):
    source = stream(numbered(23), 5)
    take(source, 2)
    state = source.state_dict()
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        source.load_state_dict({**state, **change})
    untouched = stream(numbered(23), 5)
    take(untouched, 2)
    assert same(take(source, 4), take(untouched, 4))


def test_refuses_a_broken_generator_state_or_a_missing_key(numbered):
    source = stream(numbered(23), 5)
    state = source.state_dict()
    with pytest.raises(DataError, match=r"^generator in the stream state cannot be restored"):
        source.load_state_dict({**state, "generator": torch.zeros(3, dtype=torch.uint8)})
    del state["order"]
    with pytest.raises(DataError, match=r"^stream state must have the keys \['batch', 'batch_size', 'gen"):
        source.load_state_dict(state)


@pytest.mark.parametrize("size", [0, -1, 24])
def test_refuses_a_batch_size(numbered, size):
    with pytest.raises(DataError, match=f"^batch size must be from 1 to the 23 images, got {size}$"):
        stream(numbered(23), size)


def test_a_batch_may_be_the_whole_set(numbered):
    source = stream(numbered(23), 23)
    assert source.batches_per_pass == 1
    (first, _), (second, _) = take(source, 2)
    assert sorted(numbers(first)) == sorted(numbers(second)) == list(range(23))
    assert numbers(first) != numbers(second)


def test_ordered_batches_hold_every_image_once_in_order(numbered):
    data = numbered(23)
    batches = list(ordered_batches(data, 5, SHOW))
    assert [len(labels) for _, labels in batches] == [6, 6, 6, 5]
    assert [number for images, _ in batches for number in numbers(images)] == list(range(23))
    assert torch.equal(torch.cat([labels for _, labels in batches]), data.labels)


def test_ordered_batches_are_not_augmented(numbered):
    data = numbered(23)
    for batch_size in (4, 100):
        images = torch.cat([images for images, _ in ordered_batches(data, batch_size, CHANGE)])
        assert torch.equal(images, CHANGE.plain(data.images))


def test_ordered_batches_refuse_a_batch_size_at_once(numbered):
    with pytest.raises(DataError, match=r"^batch size must be at least 1, got 0$"):
        ordered_batches(numbered(3), 0, SHOW)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_same_stream_on_the_gpu(numbered):
    on_cpu = take(stream(numbered(23), 5, CHANGE), 9)
    on_gpu = take(stream(numbered(23).to("cuda"), 5, CHANGE), 9)
    for (images, labels), (gpu_images, gpu_labels) in zip(on_cpu, on_gpu, strict=True):
        torch.testing.assert_close(gpu_images.cpu(), images)
        assert torch.equal(gpu_labels.cpu(), labels)
