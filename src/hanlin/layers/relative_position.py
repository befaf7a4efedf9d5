"""Distances between positions -> rows of a position bias table."""

from __future__ import annotations

import math

import torch


def relative_position_bucket(offset: torch.Tensor, num_buckets: int, max_distance: int) -> torch.Tensor:
    """The bucket of key position minus query position; half of the buckets are for keys behind the query.

    Short distances have a bucket each, longer ones share buckets of logarithmic width (Raffel et al. 2020, section
    2.1, in the two-sided form). The logarithm is taken in fp32 whatever the model's dtype: a bucket is an integer.
    """
    half = num_buckets // 2
    exact = half // 2
    distance = offset.abs()
    ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (ratio * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(distance < exact, distance, far) + half * (offset > 0)
