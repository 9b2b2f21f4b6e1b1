"""Testing a trained network again, from the checkpoint of its run."""

from dataclasses import dataclass
from pathlib import Path

from sgenas.data import ImageData
from sgenas.device import arithmetic, channels_last_on, find_device
from sgenas.errors import CheckpointError
from sgenas.training.config import TrainImageParts
from sgenas.training.export import network_of, read_run
from sgenas.training.objectives import Arithmetic, Classification, measure


@dataclass(frozen=True)
class TestedRun:
    """The result of the network of a checkpoint on the test images.

    Attributes:
        test_accuracy: Fraction of the test images.
        test_loss: Mean cross-entropy.
        test_images: Number of test images.
        epochs: Epochs of training so far.
        step: Steps of training so far.
        logged_test_accuracy: What the run logged at that step; None in the middle of an epoch.
        equal: Whether the two accuracies are the same number. On the device of the training they are; another
            device may round an image over to another class.
    """

    test_accuracy: float
    test_loss: float
    test_images: int
    epochs: int
    step: int
    logged_test_accuracy: float | None
    equal: bool | None


def evaluate_run(run_dir: str | Path, *, device: str = "auto", images: ImageData | None = None) -> TestedRun:
    """Tests the network of a training run.

    Args:
        run_dir: Run directory.
        device: Where to test, whatever it was trained on.
        images: Images from Python, if the run was started with some.

    Raises:
        InvalidValueError: If this machine has no such device.
        RunDirError: If there is no training run.
        CheckpointError: If its checkpoint is missing, damaged, or of other images.
        DataError: If the images are missing.
    """
    config, facts, state = read_run(run_dir)
    where = find_device(device)
    computed = Arithmetic(where, config.precision, channels_last_on(where))
    parts = TrainImageParts(config, images, where)
    network, _ = network_of(run_dir, config, facts, state)
    if state["own"]["fingerprint"] != parts.facts["fingerprint"]:
        raise CheckpointError(f"checkpoint in {run_dir} was saved with other images than {config.data.data}")
    network = computed.place(network)
    with arithmetic(where, computed.precision, fastest=not config.deterministic):
        found = measure(Classification(), computed, network, parts.test())
    logged = state["history"][-1]["test_accuracy"] if state["history"] and not state["step_in_epoch"] else None
    return TestedRun(
        test_accuracy=found["test_accuracy"],
        test_loss=found["test_loss"],
        test_images=parts.facts["images"]["test"],
        epochs=state["epoch"],
        step=state["step"],
        logged_test_accuracy=logged,
        equal=None if logged is None else logged == found["test_accuracy"],
    )
