"""Testing a trained network again, from the checkpoint of its run alone."""

from dataclasses import dataclass
from pathlib import Path

from sgenas.data import ImageData
from sgenas.engine.train import Training, load_training


@dataclass(frozen=True)
class Evaluation:
    """What the network of a checkpoint reaches on the test images.

    `logged_test_accuracy` is what metrics.jsonl says of the same step, None where the checkpoint stands in
    the middle of an epoch; `equal`: whether the two accuracies are the same number, None without a logged
    one. On the device that trained they are; another one may round an image over to another class.
    """

    test_accuracy: float
    test_loss: float
    test_images: int
    epochs: int
    step: int
    logged_test_accuracy: float | None
    equal: bool | None


def evaluate_run(path: str | Path, *, device: str = "auto", images: ImageData | None = None) -> Evaluation:
    """Tests the network in the training run `path`, on `device` whatever it was trained on.

    images: those that `run_training` was given, if it was.

    Raises ConfigError when this machine has no such device, RunFolderError when there is no run,
    CheckpointError when its checkpoint is missing, damaged or belongs to other settings or images,
    DataError where the images cannot be had.
    """
    training = load_training(path, device=device, images=images)
    with training.convolutions():
        loss, accuracy = training.evaluate()
    logged = _logged(training)
    return Evaluation(
        test_accuracy=accuracy,
        test_loss=loss,
        test_images=len(training.test),
        epochs=training.epoch,
        step=training.step,
        logged_test_accuracy=logged,
        equal=None if logged is None else logged == accuracy,
    )


def _logged(training: Training) -> float | None:
    """The test accuracy of the epoch that ended with the training's step."""
    if training.step_in_epoch or not training.epoch:
        return None
    found = [row for row in training.logged() if (row["kind"], row["step"]) == ("epoch", training.step)]
    return found[-1]["test_accuracy"] if found else None
