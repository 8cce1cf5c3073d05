"""Reading and writing video files and folders of images. Needs the video extra."""

from .reading import *
