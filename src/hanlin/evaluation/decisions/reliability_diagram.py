"""A picture of how sure a model is and how often it is right, before and after calibration."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

from .calibration import NUM_BINS, Trial, crossed, reliability

__all__ = ["draw_reliability"]


def draw_reliability(trials: Sequence[Trial]) -> bytes:
    """Two diagrams as one PNG: the share of right answers by confidence; what lies on the diagonal is calibrated."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    sides = {"before": [(trial, 1.0) for trial in trials], "after": crossed(trials)}
    for number, (name, tried) in enumerate(sides.items(), start=1):
        chances = [trial.chances(temperature) for trial, temperature in tried]
        right = [bool(own.argmax() == trial.gold) for own, (trial, _) in zip(chances, tried, strict=True)]
        bins = reliability([float(own.max()) for own in chances], right)
        axes = figure.add_subplot(1, 2, number)
        axes.plot([0, 1], [0, 1], color="gray", linestyle="--", linewidth=1)
        axes.bar([sure for _, sure, _ in bins], [accuracy for _, _, accuracy in bins], width=0.8 / NUM_BINS)
        for count, sure, accuracy in bins:
            axes.text(sure, min(accuracy + 0.01, 0.96), str(count), ha="center", fontsize=7)
        axes.set(title=name, xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
