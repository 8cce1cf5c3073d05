"""Whether a point is seen: `VisibilityHead`."""

from __future__ import annotations

from torch import Tensor, nn

from .checks import check_tensor


class VisibilityHead(nn.Module):
    """A linear layer from a similarity map's mean, maximum and minimum to the logits *occluded* and *far*.

    A new head calls every point visible.
    """

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, -2.0)

    def forward(
        self,
        statistics: Tensor,  # (..., 3) mean, maximum, minimum
    ) -> Tensor:
        """Returns the two logits, (..., 2).

        Raises:
            ValueError: `statistics` are not as above.
        """
        check_tensor("statistics", statistics, "(..., 3)")
        if statistics.shape[-1:] != (3,):
            raise ValueError(f"statistics of shape {tuple(statistics.shape)}; expected (..., 3)")
        return self.linear(statistics.to(self.linear.weight.dtype))
