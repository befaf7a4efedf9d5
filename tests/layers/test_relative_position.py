"""Distance buckets, computed by hand for 8 buckets and a largest distance of 16."""

from __future__ import annotations

import torch

from hanlin.layers.relative_position import relative_position_bucket


def test_near_distances_have_their_own_bucket_and_far_ones_share() -> None:
    # half = 4, exact = 2: distances 0, 1 by themselves; from 2 on 2 + int(2 * log(n/2) / log(8)), at most 3.
    offsets = torch.tensor([0, -1, -2, -5, -6, -16, -99, 1, 2, 6, 99])
    assert relative_position_bucket(offsets, 8, 16).tolist() == [0, 1, 2, 2, 3, 3, 3, 5, 6, 7, 7]
