"""Checks that all networks share."""

from torch import Tensor

from sgenas.errors import InvalidValueError


def at_least(least: int, **sizes: int) -> None:
    """Raises InvalidValueError for the first of the named sizes that is not an integer >= least."""
    for field, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InvalidValueError(f"{field} must be an integer >= {least}, got {value!r}")


def image_batch(images: Tensor, input_channels: int) -> None:
    """Raises InvalidValueError unless images are (B, input_channels, H, W) with H and W at least 1."""
    if images.ndim != 4 or images.shape[1] != input_channels or min(images.shape[2:]) < 1:
        raise InvalidValueError(
            f"images must have shape (B, {input_channels}, H, W), got {tuple(images.shape)}"
        )
