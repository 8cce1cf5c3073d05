"""Reading and writing video files and folders of images. Needs the video extra."""

from .reading import VIDEO_FORMATS, Video, frame_rate, iter_frames, read_video, write_video

__all__ = ["VIDEO_FORMATS", "Video", "frame_rate", "iter_frames", "read_video", "write_video"]
