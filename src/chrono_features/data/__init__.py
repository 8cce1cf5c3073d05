"""Data sets: a reader for each file format, all of which yield clips."""
