"""Whether a network takes images of a size, told before anything is trained or written."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import UserError
from ..given import preserved_generators
from ..tracing import ForwardError, meta_copy, trace

__all__ = ["check_forward"]


def check_forward(model: nn.Module, name: str, image_size: int, native: int) -> None:
    """Refuse images that a network cannot take: too small for its strides, or not of its size.

    A structural copy runs on the meta device, in evaluation mode; where it cannot, a copy runs
    for real.

    Args:
        model: the network, of three input channels; it is not touched.
        name: what the user calls it.
        image_size: height and width, in pixels.
        native: those that it was designed for.

    Raises:
        UserError: its forward fails on such an image.
    """
    like = next(model.parameters())
    x = torch.zeros(1, 3, image_size, image_size, dtype=like.dtype, device=like.device)
    with preserved_generators(model), torch.no_grad(), torch.device("meta"):
        try:
            meta_copy(model)(x.to("meta"))
            return
        except Exception as error:
            # Not all that can run runs on the meta device; what cannot fails again below.
            failed = error
    try:
        trace(model, (x,), {})
    except ForwardError as error:
        reason = str(error.__cause__ or failed).strip().partition("\n")[0]
        raise UserError(
            f"{name!r} does not take images of {image_size}×{image_size} ({reason}); it was "
            f"designed for {native}×{native}, so try --image_size {native}"
        ) from error
