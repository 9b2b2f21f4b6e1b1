"""The endless stream: passes, resuming, determinism, class weights; and ordered batches."""

import io
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from pretended_gpu import gpu_machine

from sgenas.data import Augmentation, BatchStream, ImageSet, balanced, ordered_batches
from sgenas.errors import DataError, InvalidValueError
from sgenas.losses import cross_entropy

# an image's pixels are its number / 255: batches show which images they hold
SHOW = Augmentation(pad=0, horizontal_flip=False, mean=(0.0,), std=(1.0,))
CHANGE = Augmentation(pad=1, horizontal_flip=True, cutout=1, mean=(0.1,), std=(0.5,))


def stream(images: ImageSet, size: int, augmentation: Augmentation = SHOW, seed: int = 0, **more) -> BatchStream:
    return BatchStream(images, size, augmentation, torch.Generator().manual_seed(seed), **more)


def numbers(images: torch.Tensor) -> list[int]:
    return (images[:, 0, 0, 0] * 255).round().int().tolist()


def take(source: BatchStream, count: int) -> list[tuple[torch.Tensor, ...]]:
    return list(islice(source, count))


def same(first, second) -> bool:
    return len(first) == len(second) and all(
        len(one) == len(two) and all(map(torch.equal, one, two)) for one, two in zip(first, second, strict=True)
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
    assert {number for one in passes for number in one} == set(range(23)), "an image is always dropped"


def test_labels_belong_to_their_images(numbered):
    for images, labels in take(stream(numbered(23), 5), 9):
        assert (images.dtype, images.shape) == (torch.float32, (5, 1, 2, 2))
        assert labels.dtype == torch.int64
        assert labels.tolist() == [number % 3 for number in numbers(images)]


def test_batches_depend_on_the_seed_alone(numbered):
    data = numbered(23)
    first = take(stream(data, 5, CHANGE, seed=1), 9)
    assert same(first, take(stream(data, 5, CHANGE, seed=1), 9))
    assert not same(first, take(stream(data, 5, CHANGE, seed=2), 9))


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 3.0])])
@pytest.mark.parametrize("taken", [0, 1, 4, 5, 8])
def test_stream_resumes_bit_for_bit(numbered, taken, weights):
    data = numbered(23)
    source = stream(data, 5, CHANGE, class_weights=weights)
    take(source, taken)
    buffer = io.BytesIO()
    torch.save(source.state_dict(), buffer)
    expected = take(source, 10)
    buffer.seek(0)
    resumed = stream(data, 5, CHANGE, seed=1234, class_weights=weights)
    take(resumed, 2)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    assert same(take(resumed, 10), expected)


def test_state_is_a_copy(numbered):
    source = stream(numbered(23), 5)
    take(source, 1)
    state = source.state_dict()
    expected = take(source, 6)
    again = stream(numbered(23), 5)
    for _ in range(2):
        again.load_state_dict(state)
        assert same(take(again, 6), expected)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"batch_size": 6}, "batch size"),
        ({"order": torch.arange(24)}, "23 images"),
        ({"order": torch.zeros(23).long()}, "permutation"),
        ({"order": None}, "NoneType"),
        ({"batch": 5}, "from 0 to 4"),
        ({"batch": -1}, "from 0 to 4"),
        ({"batch": 1.0}, "from 0 to 4"),
        ({"generator": torch.zeros(3, dtype=torch.uint8)}, "RNG state"),
    ],
)
def test_damaged_state_is_refused_and_changes_nothing(numbered, change, word):
    source = stream(numbered(23), 5)
    take(source, 2)
    state = {**source.state_dict(), **change}
    with pytest.raises(DataError, match=word):
        source.load_state_dict(state)
    with pytest.raises(DataError, match="order"):
        source.load_state_dict({name: value for name, value in state.items() if name != "order"})
    untouched = stream(numbered(23), 5)
    take(untouched, 2)
    assert same(take(source, 4), take(untouched, 4))


@pytest.mark.parametrize("size", [0, -1, 24])
def test_batch_size_out_of_range_is_refused(numbered, size):
    with pytest.raises(InvalidValueError) as caught:
        stream(numbered(23), size)
    assert caught.value.field == "batch_size"


def test_a_batch_may_be_the_whole_set(numbered):
    source = stream(numbered(23), 23)
    (first, _), (second, _) = take(source, 2)
    assert sorted(numbers(first)) == sorted(numbers(second)) == list(range(23))
    assert numbers(first) != numbers(second)


def test_balanced_weights_are_n_over_k_n_c():
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    found = balanced(labels, 3)
    assert found.tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    assert found[labels].mean().item() == pytest.approx(1)


def test_factors_give_torchs_weighted_cross_entropy(numbered):
    weights = torch.tensor([0.5, 1.0, 4.0])
    weighted, plain = (stream(numbered(23), 7, class_weights=each) for each in (weights, None))
    for (images, labels, factors), (other, _) in zip(take(weighted, 5), take(plain, 5), strict=True):
        assert torch.equal(images, other), "weights must not change the batches"
        logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
        found = cross_entropy(lambda _, logits=logits: logits, (images, labels, factors))
        torch.testing.assert_close(found, F.cross_entropy(logits, labels, weight=weights))


def test_ordered_batches_hold_every_image_once_in_order(numbered):
    data = numbered(23)
    batches = list(ordered_batches(data, 5, SHOW))
    assert [len(labels) for _, labels in batches] == [6, 6, 6, 5]
    assert [number for images, _ in batches for number in numbers(images)] == list(range(23))
    assert torch.equal(torch.cat([labels for _, labels in batches]), data.labels)
    with pytest.raises(InvalidValueError):
        ordered_batches(data, 0, SHOW)


def test_ordered_batches_have_the_factors_of_class_weights(numbered):
    data, weights = numbered(23), torch.tensor([1.0, 2.0, 3.0])
    for _, labels, factors in ordered_batches(data, 5, SHOW, class_weights=weights):
        torch.testing.assert_close(factors, weights[labels] * len(labels) / weights[labels].sum())


def test_ordered_batches_are_not_augmented(numbered):
    data = numbered(23)
    for batch_size in (4, 100):
        images = torch.cat([images for images, _ in ordered_batches(data, batch_size, CHANGE)])
        assert torch.equal(images, CHANGE.plain(data.images))


@pytest.mark.parametrize("free", [10**6, 700])
def test_gpu_batches_equal_cpu_batches_wherever_the_images_are(numbered, free, monkeypatch):
    """23 images of 4 bytes on the GPU, or in the machine's memory if they would take half of what is free."""
    weights = torch.tensor([1.0, 2.0, 3.0])
    data, gpu = numbered(23), torch.device("cuda", 0)
    expected = take(stream(data, 5, CHANGE, class_weights=weights), 6)
    ordered = list(ordered_batches(data, 5, CHANGE))
    with gpu_machine() as machine:
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (free // 4, 10**9))
        near = data.near(gpu)
        assert near.images.device.type == ("cuda" if free > 1000 else "cpu")
        source = stream(near, 5, CHANGE, class_weights=weights, device=gpu)
        machine.reset()
        batches = take(source, 6)
        tests = list(ordered_batches(near, 5, CHANGE, gpu))
        assert not any("batches" in place or "augmentation" in place for place in machine.waits), machine.waits
        assert {part.device for batch in batches + tests for part in batch} == {gpu}
        for found, wanted in ((batches, expected), (tests, ordered)):
            assert same([[part.cpu() for part in batch] for batch in found], wanted)


def test_batch_on_a_gpu_takes_few_launches(numbered):
    """Two gathers of images and labels, a copy, seven launches for crop, flip and normalization, three for cutout."""
    with gpu_machine() as machine:
        source = stream(numbered(23).near(torch.device("cuda", 0)), 5, CHANGE)
        take(source, 1)
        machine.reset()
        take(source, 3)
        assert machine.launches <= 3 * 13
        assert sum(machine.copies.values()) == 3, "one copy to the GPU per batch"
