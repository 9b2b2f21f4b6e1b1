"""Whether alphas and derivatives stay where a search makes sense: looked at after every epoch."""

import warnings
from dataclasses import dataclass, field

from sgenas.errors import RangeWarning

ALPHA = 10.0
"""Size of an alpha from which softmax (or sigmoid) is flat: what stands beside it has exp(-10) = 5e-5 of its
weight, and as little of the derivative."""
CLIPPED = 10.0
"""Times `--grad-clip`: then less than a tenth of the mean gradient is left, and the clipping says how long a
step is, not the learning rate."""
INDIRECT = 100.0
"""Times the direct part. The noise of ten random directions alone makes about 5 times for 224 alphas."""


@dataclass
class Ranges:
    """What is out of its range at the end of an epoch; each kind is warned of once.

    quiet: no warnings, for all processes of a search but one.
    """

    quiet: bool = False
    _said: set[str] = field(default_factory=set)

    def look(
        self,
        alpha_size: float,
        gradient: float | None,
        grad_clip: float | None,
        direct: float | None,
        indirect: float | None,
    ) -> list[str]:
        """Lines about what is out of its range, for the log; a RangeWarning for a kind that is so first.

        alpha_size: of the largest alpha. gradient, direct, indirect: mean lengths over the steps of the epoch
        of L_train's gradient in the weights before clipping and of the hypergradient's parts; None where no
        step had one.
        """
        found = {}
        if alpha_size > ALPHA:
            found["alphas"] = (
                f"the largest alpha is {alpha_size:.3g} in size, over {ALPHA:g}: the mixing weights are all"
                " but decided and hardly move; try a lower --alpha-lr or a higher --alpha-weight-decay"
            )
        if gradient is not None and grad_clip is not None and gradient > CLIPPED * grad_clip:
            found["gradient"] = (
                f"the gradient of the weights is {gradient:.3g} long in the mean, over {CLIPPED:g} times"
                f" --grad-clip {grad_clip:g}: the clipping says how long a step is; try a lower --lr"
            )
        if direct is not None and indirect is not None and indirect > INDIRECT * direct:
            found["hypergradient"] = (
                f"the indirect part of the hypergradient is {indirect:.3g} long in the mean, over"
                f" {INDIRECT:g} times its direct part of {direct:.3g}: most of it must be noise; try a larger"
                " --smoothing or a lower --lr"
            )
        for kind, line in found.items():
            if kind not in self._said and not self.quiet:
                warnings.warn(line, RangeWarning, stacklevel=2)
            self._said.add(kind)
        return list(found.values())
