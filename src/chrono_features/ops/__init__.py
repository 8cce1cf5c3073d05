"""Primitives: one module each. Nothing here knows of models."""
