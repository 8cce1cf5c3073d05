"""Reading and writing video files and folders of images. Needs the video extra."""

from .damage import DEFAULT_FPS
from .reading import Video, frame_rate, iter_frames, read_video
from .writing import VIDEO_FORMATS, write_video

__all__ = ["DEFAULT_FPS", "VIDEO_FORMATS", "Video", "frame_rate", "iter_frames", "read_video", "write_video"]
