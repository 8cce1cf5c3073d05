"""CoTracker2 and CoTracker3, offline and online: features at stride 4 with 128 channels.

CoTracker hands its network flattened pieces of a clip. Their frames are answered from one pass over the clip, or,
online, over the window and the frames before it that reach it through the adapters.
"""

from __future__ import annotations

import inspect
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
        self._clip: Tensor | None = None  # (B, T, 3, H, W) in [0, 1]
        self._past: Tensor | None = None  # frames before the window, online
        self._maps: Tensor | None = None  # (B, T, C, h, w)
        self._answered, self._online = 0, False
        self.handles: tuple[Any, ...] = ()

    def forward(
        self,
        frames: Tensor,  # (B * F, 3, H, W): the next F frames of the clip; beyond its end, copies of the last
    ) -> Tensor:  # (B * F, C, h, w)
        if self._clip is None:
            raise RuntimeError("fnet was called outside of the tracker's forward, which would have told it the clip")
        if self._maps is None:
            before = self._past
            video = self._clip if before is None else torch.cat([before, self._clip], dim=1)
            self._maps = self.provider(video)[:, video.shape[1] - self._clip.shape[1] :]
        batch, length = self._clip.shape[:2]
        count = len(frames) // batch
        index = torch.arange(self._answered, self._answered + count, device=frames.device).clamp(max=length - 1)
        self._answered += count
        return self._maps[:, index].flatten(0, 1)

    def begin(self, tracker: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A hook before the tracker's forward."""
        call = inspect.signature(tracker.forward).bind(*args, **kwargs).arguments
        online, frames = call.get("is_online", False), call["video"].shape[1]
        if not online and frames < self.shortest:
            raise ValueError(
                f"video of {frames} frames; expected at least {self.shortest}, with fewer this tracker has no window: "
                f"repeat the last frame, or take a smaller window_len"
            )
        if not online or tracker.online_ind == 0:
            self._past = None
        self._clip, self._maps, self._answered = (call["video"] / 255).clamp(0, 1), None, 0
        self._online = online

    def end(self, *_: Any) -> None:
        """A hook after it: what the next window needs is kept, all else let go."""
        if self._online and self._clip is not None and self.memory:
            seen = self._clip[:, : self.step]
            seen = seen if self._past is None else torch.cat([self._past, seen], dim=1)
            self._past = seen[:, -self.memory :].detach()
        self._clip = self._maps = None


def attach(tracker: Any, chrono: ChronoBackbone) -> None:
    step = tracker.window_len // 2
    windowed = not any(c.__name__ == "CoTrackerThreeOffline" for c in type(tracker).__mro__)
    shortest = tracker.window_len - step + 1 if windowed else 1
    features = ClipFeatures(chrono, tracker.stride, tracker.latent_dim, step, shortest)
    tracker.fnet = features
    features.handles = (
        tracker.register_forward_pre_hook(features.begin, with_kwargs=True),
        tracker.register_forward_hook(features.end, always_call=True),
    )


def detach(tracker: Any) -> None:
    for hook in tracker.fnet.handles:
        hook.remove()


def own_features(tracker: Any, video: Tensor) -> Tensor:  # (B, T, H, W, 3) in [-1, 1] -> (B, T, h, w, C)
    maps = tracker.fnet(video.movedim(-1, 2).flatten(0, 1))
    return maps.unflatten(0, video.shape[:2]).movedim(2, -1)
