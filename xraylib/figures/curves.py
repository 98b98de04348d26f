"""Curves: learning, ROC, precision and recall, calibration, decisions, selective prediction, corruptions."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from pandas import DataFrame
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

from xraylib.evaluation import metrics
from xraylib.figures import style
from xraylib.figures.style import DASHES, FAINT, INK, QUIET, Figure

# Runs above which their lines are thin and their median is drawn.
MANY = 5
_GRID = np.linspace(0, 1, 501)


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


@style.styled
def precision_recall(scores: DataFrame) -> Figure:
    """Precision-recall curve of each recipe, with its average precision and range over seeds; see `roc`."""
    scores, looks, entries = _informative(scores), style.recipe_looks(scores["recipe"]), []
    prevalence = float(scores["label"].mean())
    fig, ((ax, key),) = style.blank(9, 5.0, 1, 2, width_ratios=(1.65, 1))
    for name, part in scores.groupby("recipe"):
        seeds = [seed for _, seed in part.groupby("seed")]
        found = [precision_recall_curve(seed["label"], seed["score"])[:2] for seed in seeds]
        # Without the end at recall 0, which no threshold reaches.
        curves = [(recall[-2::-1], precision[-2::-1]) for precision, recall in found]
        # Precision is no line between two thresholds: at each recall, that of the highest one to reach it.
        steps = [y[np.searchsorted(x, _GRID[5:]).clip(max=len(x) - 1)] for x, y in curves]
        _draw(ax, curves, _GRID[5:], np.mean(steps, axis=0), looks[str(name)])
        areas = [float(average_precision_score(seed["label"], seed["score"])) for seed in seeds]
        text = f"AP {np.mean(areas):.2f} (seeds {min(areas):.2f}–{max(areas):.2f})"
        entries.append((float(np.mean(areas)), str(name), text if len(areas) > 1 else text[:7]))
    ax.axhline(prevalence, color=QUIET, linestyle=":", linewidth=1)
    everything = f"every image classified as pneumonia: {prevalence:.2f}"
    ax.text(0.03, prevalence + 0.006, everything, color=QUIET, ha="left", va="bottom")
    ax.set(xlim=(0, 1.005), ylim=(max(0.0, prevalence - 0.2), 1.005))
    ax.set(xlabel="recall = sensitivity", ylabel="precision (positives that are pneumonia)")
    _name_curves(key, entries, looks)
    return style.head(fig, "Precision against recall, by recipe", f"{_sizes(scores)} AP: average precision.")


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


@style.styled
def reliability(tables: dict[str, DataFrame]) -> Figure:
    """Observed share of pneumonia by score, of the tables of `calibration.reliability` by recipe."""
    fig, panels = style.panels(tables, 2.5, ("mean score of the bin", "share with pneumonia"))
    for ax, table, colour in panels:
        ax.plot([0, 1], [0, 1], color=FAINT, linewidth=1, zorder=0)
        ax.vlines(table["score"], table["low"], table["high"], color=colour, linewidth=1.6)
        sizes = 14 + 160 * table["images"] / table["images"].sum()
        ax.scatter(table["score"], table["share"], s=sizes, color=colour, zorder=3, alpha=0.8, linewidth=0)
        ax.set(xlim=(-0.08, 1.08), ylim=(-0.08, 1.08), aspect="equal", xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    note = (
        "Dot: a bin, its size by images. Diagonal: perfect calibration. Lines: 95% intervals over patients."
    )
    return style.head(fig, "Does a score of 0.8 mean pneumonia in 80%?", note)


@style.styled
def decision_curve(tables: dict[str, DataFrame]) -> Figure:
    """Net benefit by threshold probability, of the tables of `calibration.decision_curve` by recipe."""
    fig, panels = _bands(tables, "cut", "benefit", ("threshold probability", "net benefit"))
    for ax, table, _ in panels:
        ax.plot(table["cut"], table["all"], color=QUIET, linestyle="--", linewidth=1)
        ax.axhline(0, color=QUIET, linestyle=":", linewidth=1)
        ax.set(xlim=(0, 1), ylim=(-0.2, 0.05 + max(one["high"].max() for one in tables.values())))
    note = "Dashed: treat all. Dotted: treat none. Bands: 95% intervals, patients resampled."
    return style.head(fig, "At which threshold does a score beat treating all or none?", note)


@style.styled
def risk_coverage(tables: dict[str, DataFrame]) -> Figure:
    """Share misclassified of the images answered, of the tables of `selective.risk_coverage` by recipe."""
    fig, panels = _bands(tables, "answered", "error", ("images answered", "of these misclassified"))
    for ax, _, _ in panels:
        for other in tables.values():
            ax.plot(other["answered"], other["error"], color=FAINT, linewidth=0.9, zorder=0)
        ax.xaxis.set_major_formatter("{x:.0%}")
        ax.yaxis.set_major_formatter("{x:.0%}")
        ax.set(xlim=(0, 1.02), ylim=(0, None))
    note = "The most confident images are answered first. Grey: the other recipes. Bands: 95% intervals, "
    return style.head(
        fig, "Are the most confident predictions the correct ones?", note + "patients resampled."
    )


def _bands(tables: dict[str, DataFrame], x: str, y: str, labels: tuple[str, str]) -> tuple[Figure, Any]:
    fig, panels = style.panels(tables, 2.2, labels, sharex=True, sharey=True)
    for ax, table, colour in panels:
        ax.fill_between(table[x], table["low"], table["high"], color=colour, alpha=0.2, linewidth=0)
        ax.plot(table[x], table[y], color=colour, linewidth=1.8)
    return fig, panels


@style.styled
def corruption_severity(table: DataFrame) -> Figure:
    """AUC of each recipe under every corruption by severity, of `shift.corruption_losses`."""
    clean = table[table["corruption"] == "none"].set_index("recipe")["auc"]
    worse = table[table["corruption"] != "none"]
    parts = {str(name): part for name, part in worse.groupby("corruption", sort=False)}
    fig, panels = style.panels(parts, 1.75, ("severity", "AUC"), 6, sharex=True)
    colours = style.recipe_colours(table["recipe"])
    # A corruption of one severity inverts the image: on the scale of the others it would flatten them.
    usual = pd.concat([clean, *(part["auc"] for part in parts.values() if part["severity"].max() > 1)])
    for ax, part, _ in panels:
        for recipe, own in part.groupby("recipe"):
            values, severity = np.r_[clean[recipe], own["auc"]], np.r_[0, own["severity"]]
            ax.plot(severity, values, "o-", color=colours[str(recipe)], ms=3, lw=1.3, clip_on=False)
        ax.axhline(0.5, color=QUIET, linestyle=":", linewidth=1)
        several = part["severity"].max() > 1
        ax.set(xticks=range(6), ylim=(usual.min() - 0.02, usual.max() + 0.02) if several else (0, 1))
        if several and not ax.get_ylabel():
            ax.set_yticklabels([])
    note = f"n = {table['n'].iloc[0]:,} test images, one seed. Severity 0: unmodified. Dotted: chance."
    return style.head(fig, "How does the AUC fall with severity?", note, colours)
