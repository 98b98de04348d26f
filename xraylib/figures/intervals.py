"""Figures of results: trivial features, confusion, distributions of scores, the leaderboard."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MultipleLocator

from xraylib.evaluation.scores import check_scores
from xraylib.figures.style import (
    CLASSES,
    FAINT,
    INK,
    KIND_COLOURS,
    KINDS,
    QUIET,
    SPLITS,
    Figure,
    bare,
    beside,
    blank,
    head,
    need,
    percents,
    present,
    recipe_looks,
    records,
    styled,
)
from xraylib.storage import DataInvalid

_SIDES = {"train": "#AAAAAA", "val": "#777777", "test": "#000000"}


@styled
def shortcuts(
    table: pd.DataFrame, title: str = "How well do trivial features tell the classes apart?"
) -> Figure:
    """AUC of features that know nothing of lungs, with intervals.

    Parameters
    ----------
    table
        One row a feature and split: `feature, split, auc, low, high`, all in [0, 1].

    Raises
    ------
    DataInvalid
        When a column is missing or there is no row.
    """
    need(table, ("feature", "split", "auc", "low", "high"), "shortcuts")
    features, splits = list(dict.fromkeys(table["feature"])), present(table["split"], SPLITS)
    fig, ((ax,),) = blank(8, 1.4 + 0.25 * len(features) * max(2, len(splits)))
    for row in records(table):
        shift = (splits.index(row["split"]) - (len(splits) - 1) / 2) * 0.6 / len(splits)
        y = features.index(row["feature"]) + shift
        colour = _SIDES.get(row["split"], INK)
        ax.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=1.6)
        ax.plot(row["auc"], y, "o", color=colour, markersize=6)
        beside(ax, f"{row['split']} {row['auc']:.2f}", row["high"], y)
    ax.axvline(0.5, color=QUIET, linestyle=":", linewidth=1.2, zorder=0)
    ax.text(0.5, -0.62, "chance ", ha="right", va="top", color=QUIET, fontsize=8.5)
    ax.set_yticks(range(len(features)), features)
    ax.set(ylim=(len(features) - 0.4, -0.65), xlabel="AUC")
    ax.set_xlim(min(0.44, float(table["low"].min()) - 0.03), 1.0)
    ax.xaxis.set_major_locator(MultipleLocator(0.1))
    bare(ax, "bottom")
    head(fig, title, "Lines: 95% intervals.")
    return fig


@styled
def confusion(
    matrices: Mapping[str, np.ndarray], title: str = "Which class is taken for which?", columns: int = 4
) -> Figure:
    """Confusion matrices with counts and the share of each true class.

    Parameters
    ----------
    matrices
        By name, each `(2, 2)`: rows truth, columns call, normal before pneumonia. Means over seeds may be
        fractions.
    columns
        Matrices a row.

    Raises
    ------
    DataInvalid
        When there is none, or one has another shape or a negative count.
    """
    if not matrices:
        raise DataInvalid("there is no confusion matrix to draw. Fix: pass at least one.")
    columns = min(columns, len(matrices))
    rows = -(-len(matrices) // columns)
    fig, axes = blank(max(4.5, 1.0 + 2.2 * columns), 0.9 + 2.8 * rows, rows, columns)
    for ax in axes.flat[len(matrices) :]:
        ax.remove()
    for place, (ax, (name, matrix)) in enumerate(zip(axes.flat, matrices.items(), strict=False)):
        _matrix(ax, name, np.asarray(matrix, dtype=float))
        first = place % columns == 0
        ax.set_yticks([0, 1], CLASSES if first else ["", ""], rotation=90, va="center")
        ax.set_ylabel("true class" if first else "")
        last = place + columns >= len(matrices)
        ax.set_xticks([0, 1], CLASSES if last else ["", ""])
        ax.set_xlabel("predicted class" if last else "")
    head(
        fig, title, "Counts: mean over seeds. Percent: of the true class; diagonal: specificity, sensitivity."
    )
    return fig


def _matrix(ax: Axes, name: str, matrix: np.ndarray) -> None:
    if matrix.shape != (2, 2) or not (matrix >= 0).all():
        raise DataInvalid(
            f"{name}: a confusion matrix of shape {matrix.shape} cannot be drawn. Fix: pass (2, 2) counts."
        )
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros_like(matrix), where=totals > 0)
    ax.imshow(shares, cmap="Greys", vmin=0, vmax=1.25)
    digits = 0 if np.allclose(matrix, matrix.round()) else 1
    for (truth, call), count in np.ndenumerate(matrix):
        share = shares[truth, call]
        ink: dict[str, Any] = {"color": "white" if share > 0.72 else INK, "ha": "center"}
        weight = "bold" if truth == call else "normal"
        ax.text(call, truth - 0.08, f"{count:,.{digits}f}", fontsize=13, fontweight=weight, **ink)
        ax.text(call, truth + 0.2, f"{share:.1%}", fontsize=9, **ink)
    ax.set_title(name)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set(visible=True, color=FAINT)


@styled
def score_distribution(
    scores: pd.DataFrame,
    threshold: float | pd.Series,
    title: str = "Do normals score alike in validation and test?",
) -> Figure:
    """Distribution of one recipe's scores by kind (rows) and split (columns), with the operating point.

    Parameters
    ----------
    scores
        Scores table of one recipe and protocol; several seeds are pooled.
    threshold
        One for all seeds, or by seed as `metrics.thresholds` gives them.

    Raises
    ------
    DataInvalid
        What `scores.check_scores` refuses, more than one recipe or protocol, or a seed without threshold.
    """
    check_scores(scores)
    for column in ("recipe", "protocol"):
        if scores[column].nunique() > 1:
            raise DataInvalid(f"these are scores of several {column}s. Fix: pass those of one {column}.")
    points = scores["seed"].map(threshold) if isinstance(threshold, pd.Series) else threshold
    if np.isnan(points).any():
        raise DataInvalid("a seed has no threshold. Fix: pass those of `metrics.thresholds` for all seeds.")
    scores = scores.assign(called=scores["score"] >= points)
    kinds, splits = present(scores["kind"], KINDS), present(scores["split"], SPLITS)
    fig, axes = blank(9, 1.1 + 1.35 * len(kinds), len(kinds), len(splits), sharex=True, sharey=True)
    for i, kind in enumerate(kinds):
        for j, split in enumerate(splits):
            _scores_of(axes[i, j], scores[(scores["kind"] == kind) & (scores["split"] == split)], kind)
            for line in np.unique(np.atleast_1d(np.asarray(threshold, dtype=float))):
                axes[i, j].axvline(line, color=INK, linewidth=1, linestyle="--")
    for ax, split in zip(axes[0], splits, strict=True):
        ax.set_title({"val": "validation"}.get(split, split))
    for ax in axes[-1]:
        ax.set(xlabel="score, P(pneumonia)", xlim=(0, 1))
    fig.supylabel("share of the kind's images", fontsize=9)
    first, seeds = scores.iloc[0], scores["seed"].nunique()
    pooled = f" {seeds} seeds pooled." if seeds > 1 else ""
    head(fig, title, f"{first['recipe']}, protocol {first['protocol']}. Dashed: threshold.{pooled}")
    return fig


def _scores_of(ax: Axes, part: pd.DataFrame, kind: str) -> None:
    ax.yaxis.set_major_formatter(FuncFormatter(percents))
    text = f"{kind}: none"
    if len(part):
        colour, share = KIND_COLOURS.get(kind, KIND_COLOURS["unknown"]), np.full(len(part), 1 / len(part))
        ax.hist(part["score"], bins=np.linspace(0, 1, 26).tolist(), weights=share, color=colour)
        text = f"{kind}, n = {part['image_id'].nunique():,}: {part['called'].mean():.0%} called pneumonia"
    ax.set_title(text, loc="right", fontsize=9, fontweight="normal")


@styled
def leaderboard(
    table: pd.DataFrame, title: str = "How good are the recipes, and what was claimed?"
) -> Figure:
    """Accuracy and AUC of every recipe with intervals, beside the claimed accuracy.

    Parameters
    ----------
    table
        One row a recipe, protocol and initialisation: `recipe, protocol, init, seeds, n_test, auc, auc_low,
        auc_high, accuracy, accuracy_low, accuracy_high, claimed_accuracy` (NaN where nothing was claimed).

    Raises
    ------
    DataInvalid
        When a column is missing or there is no row.
    """
    drawn = {name: [name, f"{name}_low", f"{name}_high"] for name in ("accuracy", "auc")}
    drawn["accuracy"].append("claimed_accuracy")
    need(
        table, ["recipe", "protocol", "init", "seeds", "n_test", *drawn["accuracy"], *drawn["auc"]], "results"
    )
    table = table.assign(best=-table.groupby("recipe")["auc"].transform("max"))
    table = table.sort_values(["best", "recipe", "protocol", "init"], ignore_index=True)
    fig, axes = blank(10, 1.4 + 0.52 * len(table), 1, 2, sharey=True)
    for ax, (metric, columns) in zip(axes[0], drawn.items(), strict=True):
        _forest(ax, table, metric)
        low = float(np.nanmin(table[columns].to_numpy(dtype=float)))
        ax.set(xlabel={"auc": "AUC"}.get(metric, metric), xlim=(max(0.0, low - 0.03), 1.0))
        bare(ax, "bottom")
    axes[0, 0].set_yticks(range(len(table)), [_row_name(row) for row in records(table)])
    axes[0, 0].set_ylim(len(table) - 0.5, -0.5)
    head(
        fig,
        title,
        "Test images, best AUC first. Lines: 95% intervals, patients resampled. Diamond: claimed accuracy.",
    )
    return fig


def _forest(ax: Axes, table: pd.DataFrame, metric: str) -> None:
    looks, before = recipe_looks(table["recipe"]), table["recipe"].iloc[0]
    for y, row in enumerate(records(table)):
        colour, low, high = looks[row["recipe"]][0], row[f"{metric}_low"], row[f"{metric}_high"]
        ax.plot([low, high], [y, y], color=colour, linewidth=2)
        ax.plot(row[metric], y, "o", color=colour, markersize=7)
        text = f"{row[metric]:.3f} ({low:.3f}–{high:.3f})"
        ax.text(1.02, y, text, transform=ax.get_yaxis_transform(), va="center", fontsize=8.5)
        if metric == "accuracy" and pd.notna(row["claimed_accuracy"]):
            claim = row["claimed_accuracy"]
            above: dict[str, Any] = {"xytext": (5, 7), "textcoords": "offset points", "ha": "right"}
            ax.plot(claim, y, "D", color=INK, markerfacecolor="none", markersize=8)
            ax.annotate(f"claimed {claim:.3g}", (claim, y), fontsize=7.5, color=QUIET, **above)
        if row["recipe"] != before:
            ax.axhline(y - 0.5, color="#DDDDDD", linewidth=0.8)
        before = row["recipe"]


def _row_name(row: Mapping[str, object]) -> str:
    seeds = f"{row['seeds']} seed{'' if row['seeds'] == 1 else 's'}"
    init = "no network" if row["init"] == "none" else f"{str(row['init']).split(' (')[0]} init"
    return f"{row['recipe']}, {row['protocol']}\n{init}, {seeds}, n = {row['n_test']:,}"
