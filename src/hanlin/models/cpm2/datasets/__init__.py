"""The nine data sets of CPM-2, one small file per template, by the names that the original's scripts give them."""

from __future__ import annotations

from collections.abc import Mapping

from . import adgen, c3, ccpm, kdconv, lcqmc, sogou, text_to_text
from .dataset import RawDataset

DATA_SETS: Mapping[str, RawDataset] = {
    "c3": c3.DATA_SET,
    "ccpm": ccpm.DATA_SET,
    "kdconv": kdconv.DATA_SET,
    "lcqmc": lcqmc.DATA_SET,
    "sogou-log": sogou.DATA_SET,
    "math": text_to_text.MATH,
    "lcsts": text_to_text.LCSTS,
    "adgen": adgen.DATA_SET,
    "wmtencn": text_to_text.WMT,
}

__all__ = ["DATA_SETS", "RawDataset"]
