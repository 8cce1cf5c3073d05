"""Measuring tracks."""
