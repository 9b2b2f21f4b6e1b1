"""Training the network of a genotype from scratch, and testing it: how good a found cell really is."""

import dataclasses
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgenas import data, trees
from sgenas.engine import parts
from sgenas.engine.average import RunningAverage
from sgenas.engine.loop import Observer, Run, Silent, load_checkpoint, same_shapes
from sgenas.engine.run_folder import Recorder, RunFolder, environment, existing, read_train_config
from sgenas.engine.train_config import TrainConfig
from sgenas.errors import ConfigError, DataError, InvalidValueError
from sgenas.nets import build
from sgenas.nets.darts import AUXILIARY_SIDE, DartsNetwork
from sgenas.spaces import Genotype


@dataclass(frozen=True)
class TrainResult:
    """What a training came to. `finished` is False where it was stopped and can be resumed from `path`.

    `epochs` holds the epoch rows written by this process, the last one with `test_accuracy`, a fraction.
    """

    path: Path
    genotype: Genotype
    finished: bool
    epochs: tuple[dict[str, Any], ...]


def run_training(
    config: TrainConfig,
    out: str | Path,
    *,
    overwrite: bool = False,
    observer: Observer | None = None,
    stop: Callable[[], bool] = lambda: False,
    images: data.ImageData | None = None,
) -> TrainResult:
    """Trains the network of `config.genotype` into the new run folder `out`.

    `images` (of `sgenas.data.from_dataset`, for example) take the place of those that `config.data.data`
    names; the run folder then has their name, and whoever resumes or evaluates hands them over again.

    `stop` is asked after every step; once it answers True, a checkpoint is written and the training returns
    unfinished. Raises ConfigError, DataError, GenotypeError or RunFolderError before anything is written,
    DivergenceError when a loss stops being finite.
    """
    folder = RunFolder(out)
    folder.check(overwrite=overwrite)
    config = parts.with_absolute_paths(config, images)
    training = Training(config, folder, images=images)
    training.check_environment()
    with folder.held():
        folder.create(config, environment(training.device) | training.describe(), overwrite=overwrite)
        folder.write_genotype(config.genotype)
        return training.run(observer or Silent(), stop)


def resume_training(
    path: str | Path,
    *,
    observer: Observer | None = None,
    stop: Callable[[], bool] = lambda: False,
    images: data.ImageData | None = None,
) -> TrainResult:
    """Goes on with the training in the run folder `path`, exactly where its checkpoint stands.

    One that has finished is returned as it is. Raises RunFolderError when there is none, CheckpointError
    when its checkpoint is missing, damaged, or belongs to other settings or other images. images: those that
    `run_training` was given.
    """
    folder = existing(path)
    with folder.held():
        return _load(folder, None, images).run(observer or Silent(), stop)


def load_training(
    path: str | Path, *, device: str | None = None, images: data.ImageData | None = None
) -> "Training":
    """The training in the run folder `path` as its checkpoint has it; raises as `resume_training`.

    device: in place of that of its settings.
    """
    return _load(existing(path), device, images)


def _load(folder: RunFolder, device: str | None, images: data.ImageData | None) -> "Training":
    config = read_train_config(folder.path)
    state = load_checkpoint(folder, config)
    if device is not None:
        config = dataclasses.replace(config, device=device)
    training = Training(config, folder, images=images)
    training.load_state_dict(state)
    return training


class Training(Run):
    """A training in the middle of its work. Made from its settings; nothing is written before `run`.

    make_network: makes another network than the genotype's, to be trained in its place by the same settings;
    it gives logits, or a pair with those of an auxiliary head. The run folder does not know of it and cannot
    be resumed: it is for comparisons. images: in place of those that `--data` names.
    """

    noun: ClassVar[str] = "training"
    remedy: ClassVar[str] = "a lower --lr"
    smaller: ClassVar[str] = "a lower --batch-size or --channels"
    summed: ClassVar[tuple[str, ...]] = ("loss", "accuracy")
    config: TrainConfig

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        *,
        make_network: Callable[[data.ImageData], nn.Module] | None = None,
        images: data.ImageData | None = None,
    ) -> None:
        super().__init__(config, folder, test=True, images=images)
        self.test = self._test_images().to(self.device)
        self._augment = parts.make_augmentation(config, self.images, self.images.train)
        self._class_weights = parts.class_weights(config, self.images, self.device)
        batch_size, count = config.data.batch_size, len(self.images.train)
        if count < batch_size:
            raise ConfigError(f"--batch-size must be at most the {count} images that train, got {batch_size}")
        self.stream = data.BatchStream(
            self.images.train.to(self.device),
            batch_size,
            self._augment,
            parts.generator(config.seed, "training batches"),
        )
        self.steps_per_epoch = self.stream.batches_per_pass
        network = self._network() if make_network is None else make_network(self.images)
        # typed for tensors alone upstream
        self.network: nn.Module = network.to(
            self.device,
            memory_format=torch.channels_last,  # type: ignore[call-overload]
        )
        average = config.optimizer.ema
        self.average = None if average is None else RunningAverage(self.network, average)
        self.drop_path_draws = parts.generator(config.seed, "drop path")
        if isinstance(self.network, DartsNetwork):
            self.network.drop_path_generator = self.drop_path_draws
        self._forward: Callable[[Tensor], Any] = (
            torch.compile(self.network, dynamic=False) if config.compile else self.network
        )
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=config.optimizer.lr,
            momentum=config.optimizer.momentum,
            weight_decay=config.optimizer.weight_decay,
            nesterov=config.optimizer.nesterov,
        )
        self.best_test_accuracy = 0.0

    def describe(self) -> dict[str, Any]:
        """What the training was given: classes, images, the network's input and its number of weights."""
        return {
            "classes": list(self.images.classes),
            "images": {"training": len(self.images.train), "test": len(self.test)},
            "input": [self.images.channels, self.images.height, self.images.width],
            "mean": list(self._augment.mean),
            "std": list(self._augment.std),
            "weights": sum(tensor.numel() for tensor in self.network.parameters()),
        }

    # -- making the parts ---------------------------------------------------------------------------------

    def _test_images(self) -> data.ImageSet:
        settings, test = self.config.data, self.images.test
        if test is None:
            raise DataError(f"--data {settings.data} must have test images, got none")
        if settings.test_images is None or settings.test_images >= len(test):
            return test
        draw = parts.generator(self.config.seed, "test sample")
        try:
            return test.subset(data.sample_stratified(test.labels, settings.test_images, draw))
        except DataError as error:
            raise DataError(f"--data {settings.data} --test-images {settings.test_images}: {error}") from None

    def _network(self) -> nn.Module:
        config = self.config
        auxiliary = config.auxiliary_weight > 0
        # both reductions round up: the smallest side that leaves AUXILIARY_SIDE pixels
        least = 4 * (AUXILIARY_SIDE - 1) + 1
        if auxiliary and min(self.images.height, self.images.width) < least:
            raise ConfigError(
                f"--auxiliary-weight must be 0 with images of less than {least} x {least} pixels, got"
                f" {config.auxiliary_weight}"
            )
        try:
            return build(
                config.genotype,
                channels=config.network.channels,
                layers=config.network.layers,
                classes=len(self.images.classes),
                input_channels=self.images.channels,
                auxiliary=auxiliary,
                generator=parts.generator(config.seed, "weights"),
            )
        except InvalidValueError as error:
            raise ConfigError(f"--{error}") from None

    # -- schedules ----------------------------------------------------------------------------------------

    def learning_rate(self) -> float:
        """Of the next step: a warm-up in equal steps to lr, then a cosine from lr to lr_min.

        With t the time in epochs, whole epochs alone under `--schedule epoch`, d the time between two
        changes, W warm-up epochs of E: lr (t + d) / W while t < W, else lr_min + (lr - lr_min)
        (1 + cos(pi (t - W) / (E - W))) / 2.
        """
        settings = self.config.optimizer
        change = 1.0 if settings.schedule == "epoch" else 1 / self.steps_per_epoch
        time = self.epoch + (0.0 if settings.schedule == "epoch" else self.step_in_epoch * change)
        if time < settings.warmup:
            return settings.lr * min(1.0, (time + change) / settings.warmup)
        done = (time - settings.warmup) / (self.config.epochs - settings.warmup)
        return settings.lr_min + (settings.lr - settings.lr_min) * (1 + math.cos(math.pi * done)) / 2

    def drop_path(self) -> float:
        """Of the present epoch: p_max epoch / epochs, as in the DARTS code."""
        return self.config.drop_path * self.epoch / self.config.epochs

    # -- the mathematics of one step ----------------------------------------------------------------------

    def loss(self, output: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(what is minimised, logits): smoothed cross-entropy, plus that of the auxiliary head, weighed.

        Both with the class weights of `--class-weights`, as PyTorch's `weight`.
        """
        cross_entropy = partial(
            F.cross_entropy,
            target=labels,
            weight=self._class_weights,
            label_smoothing=self.config.optimizer.label_smoothing,
        )
        if not isinstance(output, tuple):
            return cross_entropy(output.float()), output
        main, auxiliary = (cross_entropy(logits.float()) for logits in output)
        return main + self.config.auxiliary_weight * auxiliary, output[0]

    def _take_step(self) -> dict[str, Tensor]:
        images, labels = next(self.stream)
        self.network.train()
        if isinstance(self.network, DartsNetwork):
            self.network.drop_path = self.drop_path()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        with self._precision():
            output = self._forward(images.contiguous(memory_format=torch.channels_last))
        loss, logits = self.loss(output, labels)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if self.config.optimizer.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.optimizer.grad_clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.network)
        correct = (logits.detach().argmax(dim=1) == labels).float().mean()
        return {"loss": loss.detach(), "accuracy": correct}

    def _precision(self) -> AbstractContextManager[Any]:
        name = self.config.precision
        if name == "bfloat16" or (name == "auto" and self.device.type == "cuda"):
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    @property
    def result(self) -> nn.Module:
        """The network that counts: the running average of the weights where there is one."""
        return self.network if self.average is None else self.average.network

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """(mean cross-entropy, accuracy) of `result` on the test images, with running statistics."""
        network = self.result.eval()
        loss = torch.zeros((), device=self.device)
        correct = torch.zeros((), dtype=torch.long, device=self.device)
        for images, labels in data.ordered_batches(self.test, self.config.data.batch_size, self._augment):
            with self._precision():
                logits = network(images.contiguous(memory_format=torch.channels_last)).float()
            loss += F.cross_entropy(logits, labels, reduction="sum")
            correct += (logits.argmax(dim=1) == labels).sum()
        return loss.item() / len(self.test), correct.item() / len(self.test)

    # -- the loop -----------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.epoch >= self.config.epochs

    @property
    def genotype(self) -> Genotype:
        """The cell that is trained."""
        return self.config.genotype

    def run(self, observer: Observer, stop: Callable[[], bool]) -> TrainResult:
        """Steps until the last epoch is done or `stop` says so; writes the run folder on the way."""
        rows = self._loop(observer, stop)
        return TrainResult(self.folder.path, self.genotype, self.finished, rows)

    def convolutions(self) -> AbstractContextManager[None]:
        if self.config.deterministic:
            return parts.exact_convolutions(self.device)
        return parts.fast_convolutions(self.device)

    def _end_epoch(self, recorder: Recorder, observer: Observer) -> dict[str, Any]:
        drop_path = self.drop_path()
        test_loss, test_accuracy = self.evaluate()
        best = max(self.best_test_accuracy, test_accuracy)
        row = {
            "kind": "epoch",
            "epoch": self.epoch,
            "step": self.step,
            "train_loss": self._mean("loss"),
            "train_accuracy": self._mean("accuracy"),
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "best_test_accuracy": best,
            "drop_path": drop_path,
            **self.meter.read(),
            "forward": self.step,
            "backward": self.step,
            "images": self.step * self.config.data.batch_size,
        }
        self._require_finite(row)
        self.best_test_accuracy = best
        self._next_epoch()
        recorder.write(row)
        observer.row(row, self.genotype)
        return row

    # -- checkpoints --------------------------------------------------------------------------------------

    def _norms(self) -> dict[str, float]:
        return {"norm of the weights": trees.norm(dict(self.network.named_parameters())).item()}

    def _own_state(self) -> dict[str, Any]:
        return {
            "input": self.describe()["input"],
            "classes": list(self.images.classes),
            "network": dict(self.network.state_dict()),
            "average": None if self.average is None else dict(self.average.network.state_dict()),
            "average_updates": 0 if self.average is None else self.average.updates,
            "optimizer": self.optimizer.state_dict(),
            "stream": self.stream.state_dict(),
            "drop_path": self.drop_path_draws.get_state(),
            "best_test_accuracy": self.best_test_accuracy,
        }

    def _load_own_state(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(same_shapes(dict(self.network.state_dict()), state["network"]))
        if self.average is not None:
            average = same_shapes(dict(self.average.network.state_dict()), state["average"])
            self.average.network.load_state_dict(average)
            self.average.updates = state["average_updates"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.stream.load_state_dict(state["stream"])
        self.drop_path_draws.set_state(state["drop_path"])
        self.best_test_accuracy = state["best_test_accuracy"]
