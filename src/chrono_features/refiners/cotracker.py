"""CoTracker2 and CoTracker3, offline and online: features at stride 4 with 128 channels.

CoTracker hands its network flattened pieces of a clip. Their frames are answered from one pass over the clip, or,
online, over the window and the frames before it that reach it through the adapters.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import ChronoBackbone
from .provider import FeatureProvider

BACKBONE = ("fnet",)
RETRAIN = ("updateformer", "corr_mlp", "norm", "track_feat_updater", "vis_predictor")


class ClipFeatures(nn.Module):
    """In the place of `fnet`: told of each clip before the tracker sees it, it answers for its frames in their order.

    Args:
        chrono: The backbone.
        stride, channels: As the tracker has them.
        step: Frames between two windows.
        shortest: Least number of frames that the tracker looks at; with fewer it returns zeros.
    """

    def __init__(self, chrono: ChronoBackbone, stride: int, channels: int, step: int, shortest: int) -> None:
        super().__init__()
        self.provider = FeatureProvider(chrono, stride, channels, "BTCHW")
        self.step, self.shortest = step, shortest
        self.memory = len(chrono.adapters) * chrono.config.window[0]  # frames that reach a frame from before
        self._past: Tensor | None = None  # (B, t, 3, H, W) frames before the window, online
        self._maps: Tensor | None = None  # (B, T, C, h, w) of the clip in hand
        self._answered = 0

    def forward(
        self,
        frames: Tensor,  # (B * F, 3, H, W): the next F frames of the clip; beyond its end, copies of the last
    ) -> Tensor:  # (B * F, C, h, w)
        if self._maps is None:
            raise RuntimeError("fnet was called outside of the tracker's forward, which would have told it the clip")
        batch, length = self._maps.shape[:2]
        count = len(frames) // batch
        index = torch.arange(self._answered, self._answered + count, device=frames.device).clamp(max=length - 1)
        self._answered += count
        return self._maps[:, index].flatten(0, 1)

    def begin(self, video: Tensor, online_at: int | None) -> Tensor:  # (B, T, 3, H, W) 0 … 255
        """Computes the features of a clip, or of a window that starts at a frame; returns the frames looked at."""
        if online_at is None and video.shape[1] < self.shortest:
            raise ValueError(
                f"video of length {video.shape[1]}; expected at least {self.shortest} frames, with fewer this tracker "
                f"has no window: repeat the last frame, or take a smaller window_len"
            )
        if not online_at:
            self._past = None
        seen = (video / 255).clamp(0, 1)
        seen = seen if self._past is None else torch.cat([self._past, seen], dim=1)
        self._maps, self._answered = self.provider(seen)[:, seen.shape[1] - video.shape[1] :], 0
        return seen

    def keep(self, seen: Tensor, window: int) -> None:
        """Keeps, of what was looked at, the frames before the next window."""
        before = seen[:, : seen.shape[1] - window + self.step]
        self._past = before[:, max(0, before.shape[1] - self.memory) :].detach()

    def end(self) -> None:
        self._maps = None


def attach(tracker: Any, chrono: ChronoBackbone) -> None:
    step = tracker.window_len // 2
    windowed = not any(c.__name__ == "CoTrackerThreeOffline" for c in type(tracker).__mro__)
    shortest = tracker.window_len - step + 1 if windowed else 1
    tracker.fnet = ClipFeatures(chrono, tracker.stride, tracker.latent_dim, step, shortest)
    tracker.forward = partial(_forward, tracker)  # no hook: its predictors call `forward` itself


def detach(tracker: Any) -> None:
    del tracker.forward


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    own = type(self).forward
    call = inspect.signature(own).bind(self, *args, **kwargs).arguments
    online_at = self.online_ind if call.get("is_online", False) else None
    seen = self.fnet.begin(call["video"], online_at)
    try:
        out = own(self, *args, **kwargs)
    finally:
        self.fnet.end()
    if online_at is not None:  # only now: what failed can be tried again
        self.fnet.keep(seen, call["video"].shape[1])
    return out


def own_features(tracker: Any, video: Tensor) -> Tensor:  # (B, T, H, W, 3) in [-1, 1] -> (B, T, h, w, C)
    maps = tracker.fnet(video.movedim(-1, 2).flatten(0, 1))
    return maps.unflatten(0, video.shape[:2]).movedim(2, -1)
