"""Testing a supernet on the validation images."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from sgenas import data
from sgenas.engine.parallel import Processes


class Validation:
    """The images that a supernet is tested on, in batches of a fixed order and without augmentation."""

    def __init__(self, images: data.ImageSet, batch_size: int, augmentation: data.Augmentation) -> None:
        self._images, self._batch_size, self._augmentation = images, batch_size, augmentation

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(images, labels), every image once."""
        return data.ordered_batches(self._images, self._batch_size, self._augmentation)

    @torch.no_grad()
    def test(self, forward: Callable[[Tensor], Tensor], processes: Processes) -> tuple[float, float]:
        """(mean cross-entropy, accuracy) of `forward`, images -> logits; the processes share the batches."""
        losses, hits = [], []
        for index, (images, labels) in enumerate(self.batches()):
            if index % processes.size == processes.rank:
                logits = forward(images)
                losses.append(F.cross_entropy(logits, labels, reduction="sum"))
                hits.append((logits.argmax(dim=1) == labels).sum().float())
            else:
                # another process has this one: the total over all fills it in
                losses.append(torch.zeros((), device=labels.device))
                hits.append(torch.zeros((), device=labels.device))
        each, found = processes.total([torch.stack(losses), torch.stack(hits)])
        # one after the other: the order in which a single process adds
        loss = sum(each.unbind(), torch.zeros((), device=each.device))
        count = len(self._images)
        return loss.item() / count, found.long().sum().item() / count
