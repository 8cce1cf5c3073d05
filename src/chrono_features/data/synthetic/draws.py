"""Random draws from an explicit CPU generator: the same numbers on every machine, nothing global touched."""

import math

import torch
from torch import Generator, Tensor


def uniform(generator: Generator, low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def log_uniform(generator: Generator, low: float, high: float) -> float:
    return math.exp(uniform(generator, math.log(low), math.log(high)))


def integer(generator: Generator, low: int, high: int) -> int:
    """An integer in [low, high], both ends included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def chance(generator: Generator, probability: float) -> bool:
    return uniform(generator, 0.0, 1.0) < probability


def uniforms(generator: Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def direction(generator: Generator, dims: int = 3) -> Tensor:
    """A unit vector, all directions alike.  # [dims]"""
    vector = torch.randn(dims, generator=generator, dtype=torch.float64)
    return vector / vector.norm().clamp_min(1e-6)


def branch(generator: Generator) -> Generator:
    """A new generator: what is drawn from it does not change what is drawn after it."""
    return torch.Generator().manual_seed(integer(generator, 0, 2**31 - 1))
