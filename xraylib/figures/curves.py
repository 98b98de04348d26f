"""Learning curves and ROC curves."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from pandas import DataFrame
from sklearn.metrics import roc_curve

from xraylib.evaluation import metrics
from xraylib.figures import style
from xraylib.figures.style import DASHES, INK, QUIET, Figure

_GRID = np.linspace(0, 1, 501)
# Runs above which their lines are thin and their median is drawn.
MANY = 5


@style.styled
def learning_curves(named: Mapping[str, DataFrame], title: str, last_kept: bool = False) -> Figure:
    """Loss and accuracy by epoch of each run by name; of more than `MANY`, the median is bold."""
    runs = [run.sort_values("epoch") for run in named.values()]
    many, dashed = len(runs) > MANY, 1 < len(runs) <= len(DASHES)
    fig, (axes,) = style.blank(9.5, 3.8, 1, 2)
    starts = {float(v) - 0.5 for run in runs for v in run.groupby("phase")["epoch"].min().iloc[1:]}
    for ax, measure in zip(axes, ("loss", "accuracy"), strict=True):
        for prefix, colour in (("", "#999999"), ("val_", "#000000")):
            for run, dash in zip(runs, DASHES if dashed else ["-"] * len(runs), strict=False):
                look = {"lw": 0.6, "alpha": 0.3} if many else {"lw": 1.2, "marker": "o" * (len(run) < 8)}
                ax.plot(run["epoch"], run[prefix + measure], linestyle=dash, color=colour, ms=4, **look)
            if many:
                middle = pd.concat(runs).groupby("epoch")[prefix + measure].median()
                ax.plot(middle.index, middle, color=colour, linewidth=2.2)
        for run in [] if many else runs:
            best = run.iloc[int(run["val_loss"].argmin())]
            ring = {"color": INK, "markerfacecolor": "white", "markersize": 6, "zorder": 5}
            ax.plot(best["epoch"], best[f"val_{measure}"], "o", **ring)
        values = pd.concat(runs)[[measure, f"val_{measure}"]].to_numpy(dtype=float)
        # One spike would flatten all the rest.
        if measure == "loss" and np.nanmax(values) > 10 * np.nanmin(values) > 0:
            ax.set_yscale("log")
            ax.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_formatter=NullFormatter())
            ax.yaxis.set_major_formatter("{x:g}")
        # Named above the axes, where no line runs, instead of at ends that lie on each other.
        ax.text(0.8, 1.02, "train ", color=QUIET, transform=ax.transAxes, ha="right", fontweight="bold")
        ax.text(0.8, 1.02, "validation", transform=ax.transAxes, ha="left", fontweight="bold")
        label = "cross-entropy loss" if measure == "loss" else measure
        ax.set(xlabel="epoch", ylabel=label, xlim=(0.5, max(run["epoch"].max() for run in runs) + 0.5))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        for start in starts:
            ax.axvline(start, color=QUIET, linewidth=1, linestyle=":", zorder=0)
    words = zip(named, ("solid", "dashed", "dash-dotted", "dotted"), strict=False)
    note = "; ".join(f"{name}: {word}" for name, word in words) + ". " if dashed else ""
    kept = "The last epoch was kept." if last_kept else "The epoch with the lowest validation loss was kept."
    note += f"Bold: median of {len(runs)} runs. {kept}" if many else f"{kept} Circle: lowest validation loss."
    return style.head(fig, title, note + (" Dotted: a new phase begins." if starts else ""))


@style.styled
def roc(scores: DataFrame, points: DataFrame | None = None) -> Figure:
    """ROC curve of each recipe, and its upper left corner, with AUC and interval.

    `scores` are of one split and protocol; a recipe that gives all images one score is left out, its curve is
    the diagonal. `points` are operating points to mark: `recipe, sensitivity, specificity`.
    """
    scores, looks, entries = _informative(scores), style.recipe_looks(scores["recipe"]), []
    fig, ((ax, corner, key),) = style.blank(10, 4.3, 1, 3, width_ratios=(1.3, 1, 0.85))
    for name, part in scores.groupby("recipe"):
        curves = [roc_curve(seed["label"], seed["score"])[:2] for _, seed in part.groupby("seed")]
        mean = np.mean([np.interp(_GRID, *curve) for curve in curves], axis=0)
        first = np.mean([y[0] for _, y in curves])
        for axes in (ax, corner):
            _draw(axes, curves, np.r_[0, _GRID], np.r_[first, mean], looks[str(name)])
        found = metrics.evaluate(part, split=part["split"].iloc[0], rule=0.5)
        auc = found.loc["auc", ["value", "low", "high"]].to_numpy(dtype=float)
        entries.append((auc[0], str(name), f"AUC {style.estimate(*auc)}"))
    marked = scores.iloc[:0] if points is None else points[points["recipe"].isin(scores["recipe"])]
    for _, point in marked.iterrows():
        look: dict[str, Any] = {
            "color": looks[point["recipe"]][0],
            "markersize": 8,
            "markeredgecolor": "white",
        }
        for axes in (ax, corner):
            axes.plot(1 - point["specificity"], point["sensitivity"], "o", **look, zorder=5)
    ax.plot([0, 1], [0, 1], color=QUIET, linestyle=":", linewidth=1)
    ax.text(0.55, 0.56, "chance", color=QUIET, rotation=45, rotation_mode="anchor", ha="left", va="bottom")
    ax.set(xlim=(0, 1.005), ylim=(0, 1.005), aspect="equal", ylabel="sensitivity")
    corner.set(xlim=(0, 0.6), ylim=(0.7, 1.003), title="upper left corner")
    for axes in (ax, corner):
        axes.set_xlabel("1 − specificity")
    _name_curves(key, entries, looks)
    dots = " Dot: operating point." if points is not None else ""
    note = f"{_sizes(scores)}{dots} In brackets: 95% intervals, patients resampled."
    return style.head(fig, "Sensitivity against false positives, by recipe", note)


def _informative(scores: DataFrame) -> DataFrame:
    return scores[scores.groupby(["recipe", "seed"])["score"].transform("nunique") > 1]


def _draw(ax: Axes, curves: list[Any], x: np.ndarray, y: np.ndarray, look: tuple[str, str]) -> None:
    for curve in curves if len(curves) > 1 else []:
        ax.plot(*curve, color=look[0], linewidth=0.6, alpha=0.45)
    ax.plot(x, y, color=look[0], linestyle=look[1], linewidth=2)


def _sizes(scores: DataFrame) -> str:
    normal, positive = np.bincount(scores.drop_duplicates("image_id")["label"], minlength=2)
    text = f"{scores['split'].iloc[0]}, n = {normal + positive:,} images ({normal:,} normal, "
    seeds = " Bold: mean over seeds; thin: each seed." if scores["seed"].nunique() > 1 else ""
    return f"{text}{positive:,} pneumonia).{seeds}"


def _name_curves(ax: Axes, entries: list[tuple[float, str, str]], looks: dict[str, tuple[str, str]]) -> None:
    """Name the curves, best first, beside the plot: they lie too close to be named where they run."""
    step = min(0.11, 0.96 / len(entries))
    for place, (_, recipe, text) in enumerate(sorted(entries, key=lambda entry: (-entry[0], entry[1]))):
        y = 0.96 - place * step
        ax.plot([0, 0.1], [y, y], color=looks[recipe][0], linestyle=looks[recipe][1], linewidth=2.5)
        ax.text(0.14, y + 0.002, recipe, va="bottom", fontsize=8.5, fontweight="bold", color=INK)
        ax.text(0.14, y - 0.004, text, va="top", fontsize=8, color=INK)
    ax.set(xlim=(0, 1), ylim=(0, 1.02), xticks=[], yticks=[])
    style.bare(ax)
