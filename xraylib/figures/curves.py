"""Curves: learning curves, the path of a linear head's penalty, ROC, and precision against recall."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

from xraylib.evaluation import metrics
from xraylib.evaluation.scores import check_scores
from xraylib.figures.style import (
    DASHES,
    INK,
    QUIET,
    Figure,
    bare,
    beside,
    blank,
    head,
    need,
    recipe_looks,
    records,
    styled,
)
from xraylib.storage import DataInvalid

_SIDES = {"train": "#999999", "validation": "#000000"}
_MEASURES = {"loss": "cross-entropy loss", "accuracy": "accuracy"}
_HISTORY = ("loss", "accuracy", "val_loss", "val_accuracy")
# Runs above which their lines are thin and their median is drawn.
MANY = 5
_GRID = np.linspace(0, 1, 501)


@styled
def learning_curves(
    histories: Mapping[str, pd.DataFrame] | pd.DataFrame,
    title: str = "Does validation follow training?",
    last_kept: bool = False,
) -> Figure:
    """Loss and accuracy by epoch on train and validation, one line a run; of many runs, the median is bold.

    Parameters
    ----------
    histories
        A table of each run by its name (`training.Run.history`: `epoch, phase, loss, accuracy, val_loss,
        val_accuracy`), or one long table of all with `seed` as well.
    title
        Above the figure.
    last_kept
        Whether the last epoch was kept, whatever validation said; for the note below.

    Raises
    ------
    DataInvalid
        When there is no run, or a table is empty, lacks a column or holds no validation loss.
    """
    runs = _runs(histories, "epoch", ("epoch", "phase", *_HISTORY))
    named = list(histories) if isinstance(histories, Mapping) and 1 < len(runs) <= len(DASHES) else []
    fig, axes = _paths(runs, "epoch", DASHES if named else ())
    starts = {float(v) - 0.5 for run in runs for v in run.groupby("phase")["epoch"].min().iloc[1:]}
    for ax in axes:
        for start in starts:
            ax.axvline(start, color=QUIET, linewidth=1, linestyle=":", zorder=0)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if max(len(run) for run in runs) == 1:
            ax.set(xlim=(0.5, 1.5), xticks=[1])
    note = f"{len(runs)} runs, one line each. " if 1 < len(runs) <= MANY else ""
    if named:
        looks = ("solid", "dashed", "dash-dotted", "dotted")
        note = "; ".join(f"{name}: {look}" for name, look in zip(named, looks, strict=False)) + ". "
    kept = "The last epoch was kept." if last_kept else "The epoch with the lowest validation loss was kept."
    circle = "Circle: lowest validation loss." if last_kept else "Circle: there."
    note += f"Bold: median of {len(runs)} runs. {kept}" if len(runs) > MANY else f"{kept} {circle}"
    head(fig, title, note + (" Dotted: a new phase begins." if starts else ""))
    return fig


@styled
def penalty_path(
    history: Mapping[str, pd.DataFrame] | pd.DataFrame, title: str = "Which penalty generalises best?"
) -> Figure:
    """Loss and accuracy of a linear head on train and validation by strength of its penalty.

    Parameters
    ----------
    history
        One row a penalty (`training.Run.history` of a linear head): `strength` (inverse penalty, above 0),
        `loss, accuracy, val_loss, val_accuracy`; with `seed` as well, or a table by name, for several heads.

    Raises
    ------
    DataInvalid
        As for `learning_curves`.
    """
    fig, axes = _paths(_runs(history, "strength", ("strength", *_HISTORY)), "strength")
    for ax in axes:
        ax.set(xscale="log", xlabel="inverse penalty C (log scale; right: weaker penalty)")
    head(fig, title, "Circle: the penalty with the lowest validation loss, which is kept.")
    return fig


def _runs(
    histories: Mapping[str, pd.DataFrame] | pd.DataFrame, x: str, columns: Sequence[str]
) -> list[pd.DataFrame]:
    named: dict[Any, pd.DataFrame]
    if isinstance(histories, pd.DataFrame):
        need(histories, columns, "training's history")
        named = dict(list(histories.groupby("seed"))) if "seed" in histories else {"the run": histories}
    else:
        named = dict(histories)
    if not named:
        raise DataInvalid("there is no training's history to draw. Fix: train a recipe first.")
    for name, run in named.items():
        need(run, columns, f"training's history, {name},")
        if run["val_loss"].isna().all():
            raise DataInvalid(f"the history of {name} holds no validation loss. Fix: train it again.")
    return [run.sort_values(x) for run in named.values()]


def _paths(runs: list[pd.DataFrame], x: str, dashes: Sequence[str] = ()) -> tuple[Figure, np.ndarray]:
    """Draw the loss, then the accuracy, of train and validation over `x`, the best of each run circled."""
    fig, axes = blank(9.5, 3.8, 1, 2)
    marker = "o" if max(len(run) for run in runs) < 8 else ""
    for ax, (measure, label) in zip(axes[0], _MEASURES.items(), strict=True):
        columns = dict(zip(_SIDES, (measure, f"val_{measure}"), strict=True))
        for number, run in enumerate(runs):
            for side, column in columns.items():
                look = {"color": _SIDES[side], "linewidth": 1.2, "marker": marker, "markersize": 4}
                look |= {"linewidth": 0.6, "alpha": 0.3} if len(runs) > MANY else {}
                ax.plot(run[x], run[column], dashes[number] if dashes else "-", **look)
            if len(runs) > MANY:
                continue
            best = run.iloc[int(run["val_loss"].argmin())]
            ring = {"color": INK, "markerfacecolor": "white", "markersize": 8, "zorder": 5}
            ax.plot(best[x], best[columns["validation"]], "o", **ring)
        if len(runs) > MANY:
            middle = pd.concat(runs).groupby(x)[list(columns.values())].median()
            for side, column in columns.items():
                ax.plot(middle.index, middle[column], color=_SIDES[side], linewidth=2.2)
            _name_ends(ax, middle.reset_index().iloc[-1], x, columns)
            ax.set(xlabel=x, ylabel=label)
            continue
        _name_ends(ax, max(runs, key=lambda run: float(run[x].max())).iloc[-1], x, columns)
        ax.set(xlabel=x, ylabel=label)
    return fig, axes[0]


def _name_ends(ax: Axes, last: pd.Series, x: str, columns: dict[str, str]) -> None:
    """Write `train` and `validation` beside the ends of their lines, never on each other."""
    low, high = ax.get_ylim()
    lower, upper = sorted(columns, key=lambda side: float(last[columns[side]]))
    gap = float(last[columns[upper]]) - float(last[columns[lower]])
    push = max(0.0, 0.08 * (high - low) - gap) / 2
    # Never on the axis below.
    raised = max(0.0, low + 0.05 * (high - low) - (float(last[columns[lower]]) - push))
    for side, up in ((lower, raised - push), (upper, raised + push)):
        ink = QUIET if side == "train" else _SIDES[side]
        beside(ax, f" {side}", last[x], float(last[columns[side]]) + up, color=ink, fontweight="bold")


@styled
def roc(
    scores: pd.DataFrame,
    points: pd.DataFrame | None = None,
    title: str = "Sensitivity against false alarms, by recipe",
) -> Figure:
    """ROC curve of each recipe: bold the mean over its seeds, thin each seed, with AUC and interval.

    Parameters
    ----------
    scores
        Scores table of one split and one protocol.
    points
        Operating points to mark: `recipe, sensitivity, specificity`.

    Raises
    ------
    DataInvalid
        What `scores.check_scores` refuses, or more than one split or protocol.
    """
    split, looks, entries = _one_side(scores), recipe_looks(scores["recipe"]), []
    fig, ((ax, key),) = blank(9, 5.4, 1, 2, width_ratios=(1.65, 1))
    for name, part in scores.groupby("recipe"):
        curves = [roc_curve(seed["label"], seed["score"])[:2] for _, seed in part.groupby("seed")]
        _draw(ax, curves, looks[str(name)])
        auc, low, high = metrics.evaluate(part, split=split, rule=0.5).loc["auc"].to_numpy(dtype=float)[:3]
        entries.append((float(auc), str(name), f"AUC {auc:.3f} ({low:.3f}–{high:.3f})"))
    for point in _operating(points):
        _mark(ax, 1 - point["specificity"], point["sensitivity"], looks.get(point["recipe"]))
    ax.plot([0, 1], [0, 1], color=QUIET, linestyle=":", linewidth=1)
    ax.text(0.8, 0.77, "chance", color=QUIET, rotation=45, rotation_mode="anchor", ha="center", va="top")
    ax.set(xlim=(0, 1.005), ylim=(0, 1.005), aspect="equal")
    ax.set(xlabel="1 − specificity (normals called pneumonia)", ylabel="sensitivity (pneumonias found)")
    _name_curves(key, entries, looks)
    head(fig, title, f"{_sizes(scores, split, points)} In brackets: 95% interval, patients resampled.")
    return fig


@styled
def precision_recall(
    scores: pd.DataFrame,
    points: pd.DataFrame | None = None,
    title: str = "Precision against sensitivity, by recipe",
) -> Figure:
    """Precision-recall curve of each recipe, with its average precision and range over seeds.

    Parameters and errors are those of `roc`.
    """
    split, looks, entries = _one_side(scores), recipe_looks(scores["recipe"]), []
    prevalence = float(scores["label"].mean())
    fig, ((ax, key),) = blank(9, 5.4, 1, 2, width_ratios=(1.65, 1))
    for name, part in scores.groupby("recipe"):
        seeds = [seed for _, seed in part.groupby("seed")]
        pairs = [precision_recall_curve(seed["label"], seed["score"])[:2] for seed in seeds]
        _draw(ax, [(recall[::-1], precision[::-1]) for precision, recall in pairs], looks[str(name)])
        areas = [float(average_precision_score(seed["label"], seed["score"])) for seed in seeds]
        spread = f" (seeds {min(areas):.3f}–{max(areas):.3f})" if len(areas) > 1 else ""
        entries.append((float(np.mean(areas)), str(name), f"AP {np.mean(areas):.3f}{spread}"))
    for point in _operating(points):
        hits, alarms = point["sensitivity"] * prevalence, (1 - point["specificity"]) * (1 - prevalence)
        if hits + alarms > 0:
            _mark(ax, point["sensitivity"], hits / (hits + alarms), looks.get(point["recipe"]))
    ax.axhline(prevalence, color=QUIET, linestyle=":", linewidth=1)
    everything = f"every image called pneumonia: {prevalence:.3f}"
    ax.text(0.03, prevalence + 0.006, everything, color=QUIET, ha="left", va="bottom")
    ax.set(xlim=(0, 1.005), ylim=(max(0.0, prevalence - 0.2), 1.005))
    ax.set(xlabel="recall = sensitivity (pneumonias found)", ylabel="precision (calls that are right)")
    _name_curves(key, entries, looks)
    head(fig, title, f"{_sizes(scores, split, points)} AP: average precision.")
    return fig


def _one_side(scores: pd.DataFrame) -> str:
    check_scores(scores)
    for column in ("split", "protocol"):
        found = sorted(scores[column].unique())
        if len(found) > 1:
            raise DataInvalid(f"these are scores of several {column}s ({', '.join(found)}). Fix: pass one.")
    return str(scores["split"].iloc[0])


def _draw(ax: Axes, curves: list[tuple[np.ndarray, np.ndarray]], look: tuple[str, str]) -> None:
    for x, y in curves if len(curves) > 1 else []:
        ax.plot(x, y, color=look[0], linewidth=0.6, alpha=0.45)
    mean = np.mean([np.interp(_GRID, x, y) for x, y in curves], axis=0)
    first = np.mean([y[0] for _, y in curves])
    ax.plot(np.r_[0, _GRID], np.r_[first, mean], color=look[0], linestyle=look[1], linewidth=2)


def _operating(points: pd.DataFrame | None) -> list[dict[str, Any]]:
    if points is None:
        return []
    need(points, ("recipe", "sensitivity", "specificity"), "operating points")
    return records(points)


def _mark(ax: Axes, x: float, y: float, look: tuple[str, str] | None) -> None:
    colour = look[0] if look else INK
    ax.plot(x, y, "o", color=colour, markersize=9, markeredgecolor="white", zorder=5, clip_on=False)


def _sizes(scores: pd.DataFrame, split: str, points: pd.DataFrame | None) -> str:
    images = scores.drop_duplicates("image_id")["label"]
    sick = int(images.sum())
    seeds = scores.groupby("recipe")["seed"].nunique().max()
    text = f"{split}, n = {len(images):,} images ({len(images) - sick:,} normal, {sick:,} pneumonia)."
    text += " Bold: mean over seeds; thin: each seed." if seeds > 1 else ""
    return text + (" Dot: operating point." if points is not None else "")


def _name_curves(ax: Axes, entries: list[tuple[float, str, str]], looks: dict[str, tuple[str, str]]) -> None:
    """Name the curves, best first, beside the plot: they lie too close to be named where they run."""
    step = min(0.11, 0.96 / len(entries))
    for place, (_, recipe, text) in enumerate(sorted(entries, key=lambda entry: (-entry[0], entry[1]))):
        y = 0.96 - place * step
        ax.plot([0, 0.1], [y, y], color=looks[recipe][0], linestyle=looks[recipe][1], linewidth=2.5)
        ax.text(0.14, y + 0.002, recipe, va="bottom", fontweight="bold", color=INK)
        ax.text(0.14, y - 0.004, text, va="top", fontsize=8.5, color=INK)
    ax.set(xlim=(0, 1), ylim=(0, 1.02), xticks=[], yticks=[])
    bare(ax)
