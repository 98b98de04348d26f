"""Dots with their intervals: results, comparisons, subgroups, shifts; and counts and scores by class."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from xraylib.figures import style
from xraylib.figures.style import CLASSES, FAINT, INK, QUIET, SPLIT_COLOURS, Figure

OVER_PATIENTS = "Lines: 95% intervals, patients resampled."


def forest(
    axes: Sequence[Axes],
    panels: Sequence[tuple[pd.DataFrame, str, str]],
    row: str,
    labels: Mapping[Any, str],
    *,
    within: str = "recipe",
    start: float | None = None,
    line: float | None = None,
    text: bool = False,
) -> None:
    """Draw a dot and its interval for each line of some tables, as every figure of intervals does.

    A panel is a table, the column of its dots (intervals: `<column>_low` to `<column>_high`, or `low` to
    `high`) and its x label. The column `row` names the row of a line, `labels` the rows from top to bottom;
    the column `within`, recipe or split, gives the colour, and those of one row stand below each other.
    `start` is the left end of a scale that ends at 1, unless an interval reaches beyond it; `line` is a
    reference value, dotted; with `text`, `0.85 (0.82–0.88)` stands right of the axes.
    """
    rows, colours = list(labels), _colours(panels[0][0], within)
    names = list(colours)
    for ax, (table, value, xlabel) in zip(axes, panels, strict=True):
        low, high = (f"{value}_low", f"{value}_high") if f"{value}_low" in table else ("low", "high")
        several = table.duplicated(row).any()
        for _, one in table.iterrows():
            shift = (names.index(one[within]) - (len(names) - 1) / 2) * 0.7 / len(names) if several else 0.0
            y, colour = rows.index(one[row]) + shift, colours[one[within]]
            ax.plot([one[low], one[high]], [y, y], color=colour, linewidth=1.8, clip_on=False)
            ax.plot(
                one[value], y, "o", color=colour, ms=4 if several and len(names) > 2 else 6, clip_on=False
            )
            if text:
                place: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": 8}
                said, ink = style.estimate(one[value], one[low], one[high]), colour if several else INK
                ax.text(1.03, y, said, color=ink, **place)
        if line is not None:
            ax.axvline(line, color=QUIET, linestyle=":", linewidth=1.2, zorder=0)
        for edge in range(1, len(rows)):
            ax.axhline(edge - 0.5, color=FAINT, linewidth=0.5, zorder=0)
        if start is not None:
            ax.set_xlim(max(0.0, min(start, float(table[low].min()) - 0.03)), 1.0)
        ax.set(xlabel=xlabel, ylim=(len(rows) - 0.5, -0.5))
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        style.bare(ax, "bottom")
    axes[0].set_yticks(range(len(rows)), list(labels.values()))


def _colours(table: pd.DataFrame, within: str) -> dict[str, str]:
    if within == "recipe":
        return style.recipe_colours(table["recipe"])
    return {split: SPLIT_COLOURS[split] for split in style.present(table["split"], SPLIT_COLOURS)}


def _plain(names: pd.Series) -> dict[str, str]:
    return {name: name for name in names.unique()}


@style.styled
def leaderboard(table: pd.DataFrame) -> Figure:
    """AUC and accuracy of every recipe and protocol with intervals, of the leaderboard, best AUC first."""
    table = table.assign(best=-table.groupby("recipe")["auc"].transform("max"))
    table = table.sort_values(["best", "recipe", "protocol", "init"]).reset_index(drop=True)
    table["row"] = table.index
    labels = {}
    for place, one in table.iterrows():
        init = "no network" if one["init"] == "none" else f"{str(one['init']).split(' (')[0]} init"
        seeds = f"{one['seeds']} seed{'' if one['seeds'] == 1 else 's'}"
        labels[place] = f"{one['recipe']}, {one['protocol']}\n{init}, {seeds}, n = {one['n_test']:,}"
    fig, (axes,) = style.blank(10, 1.2 + 0.44 * len(table), 1, 2, sharey=True)
    panels = [(table, "auc", "AUC"), (table, "accuracy", "accuracy")]
    forest(axes, panels, "row", labels, start=0.6, text=True)
    # Under another protocol other images are tested than those of the claim.
    claimed = table[table["claimed_accuracy"].notna() & (table["protocol"] == "published")]
    look: dict[str, Any] = {"color": INK, "markerfacecolor": "none", "markersize": 8, "clip_on": False}
    # An empty line without clipping has no extent, and the layout would collapse.
    if len(claimed):
        axes[1].plot(claimed["claimed_accuracy"], claimed["row"], "D", **look)
    note = f"Test images, best AUC first. {OVER_PATIENTS} Diamond: claimed accuracy."
    return style.head(fig, "How good are the recipes, and what was claimed?", note)


@style.styled
def protocol_comparison(table: pd.DataFrame) -> Figure:
    """Accuracy of each recipe by how it was split and scored, of `comparisons.protocol_comparison`."""
    recipes, labels = table["recipe"].unique(), {}
    for name, part in table.groupby("comparison", sort=False):
        labels[name] = f"{name}\nn = {part['n'].max():,}{' a seed' if part['seeds'].max() > 1 else ''}"
    size = (min(10.0, 3.0 + 2.4 * len(recipes)), 1.5 + 0.45 * len(labels))
    fig, (axes,) = style.blank(*size, 1, len(recipes), sharex=True, sharey=True)
    start = min(0.7, float(table["accuracy_low"].min()) - 0.02)
    for ax, recipe in zip(axes, recipes, strict=True):
        part = table[table["recipe"] == recipe]
        forest([ax], [(part, "accuracy", "accuracy")], "comparison", labels, start=start, text=True)
        ax.set_title(recipe)
    note = f"Mean over seeds. {OVER_PATIENTS}"
    return style.head(fig, "How accurate is a network, by how it is split and scored?", note)


@style.styled
def subgroups(table: pd.DataFrame, title: str, at: str = "the frozen threshold") -> Figure:
    """Share correctly classified at the threshold `at`, of `comparisons.subgroups` or `by_folder`."""
    sizes = table.groupby("subgroup", sort=False)["images"].max()
    labels = {name: f"{name}\nn = {images:,}" for name, images in sizes.items()}
    fig, (axes,) = style.blank(9, 1.7 + (0.25 + 0.13 * table["recipe"].nunique()) * len(labels))
    label = "correctly classified (sensitivity or specificity)"
    forest(axes, [(table, "right", label)], "subgroup", labels, start=1.0)
    return style.head(fig, title, f"At {at}. {OVER_PATIENTS}", style.recipe_colours(table["recipe"]))


@style.styled
def generalisation_gap(table: pd.DataFrame, other: str) -> Figure:
    """AUC and balanced accuracy on the test and on the data set `other`, of `shift.generalisation_gap`."""
    about, ends = table[["recipe", "metric"]], ("", "_low", "_high")
    parts = [
        about.assign(split=split, **{f"value{end}": table[f"{split}{end}"] for end in ends})
        for split in ("test", "external")
    ]
    long, labels = pd.concat(parts), _plain(table["recipe"])
    fig, (axes,) = style.blank(10, 1.4 + 0.42 * len(labels), 1, 2, sharey=True)
    metrics = ("auc", "AUC"), ("balanced_accuracy", "balanced accuracy")
    panels = [(long[long["metric"] == metric], "value", label) for metric, label in metrics]
    forest(axes, panels, "recipe", labels, within="split", start=0.4, line=0.5, text=True)
    note = f"Black: official test; magenta: {other}, at the same threshold. Dotted: chance. {OVER_PATIENTS}"
    return style.head(fig, "How large is the generalisation gap?", note)


@style.styled
def corruption_losses(table: pd.DataFrame) -> Figure:
    """AUC lost and balanced error gained by corruption, averaged, of `shift.corruption_losses`."""
    worse, colours = table[table["corruption"] != "none"], style.recipe_colours(table["recipe"])
    # A corruption of one severity inverts the image: it has its own scale, or it would flatten the others.
    parts = [part for _, part in worse.groupby(worse["severity"] == 1)]
    counts = [part["corruption"].nunique() for part in parts]
    height = 1.3 + 0.5 * len(parts) + (0.14 + 0.07 * len(colours)) * sum(counts)
    fig, axes = style.blank(10, height, len(parts), 2, sharey="row", gridspec_kw={"height_ratios": counts})
    changes = {"delta_auc": "AUC, unmodified − corrupted", "delta_balanced_error": "balanced error gained"}
    for line, part in zip(axes, parts, strict=True):
        panels = [(part, change, label) for change, label in changes.items()]
        forest(line, panels, "corruption", _plain(part["corruption"]), line=0.0)
    note = f"Severities averaged. Dotted: no change. {OVER_PATIENTS}"
    return style.head(fig, "What does a corrupted image cost?", note, colours)


@style.styled
def coverage(table: pd.DataFrame, promised: float, other: str) -> Figure:
    """Share of prediction sets that hold the true class, of `selective.coverage`, and that promised."""
    labels = _plain(table["recipe"])
    fig, (axes,) = style.blank(10, 1.4 + 0.42 * len(labels), 1, 2, sharey=True)
    panels = [(table[table["kind"] == kind], "covered", f"true class in the set, {kind}") for kind in CLASSES]
    forest(axes, panels, "recipe", labels, within="split", start=0.0, line=promised, text=True)
    names = {"test": "black: official test", "external": f"magenta: {other}"}
    said = "; ".join(names[split] for split in _colours(table, "split"))
    note = f"Dotted: nominal; {said}. {OVER_PATIENTS}"
    return style.head(fig, "Do prediction sets reach their nominal coverage?", note)


@style.styled
def ood(table: pd.DataFrame, flagged: pd.DataFrame) -> Figure:
    """OOD scores by group of images, of `shift.ood_scores`, with the share flagged of `shift.ood_flagged`."""
    fig, ((ax,),) = style.blank(9, 1.2 + 0.5 * len(flagged))
    limit, names = flagged["limit"].iloc[0], []
    for y, (_, row) in enumerate(flagged.iterrows()):
        values = table.loc[table["group"] == row["group"], "ood_score"]
        low, first, middle, third, high = values.quantile([0.05, 0.25, 0.5, 0.75, 0.95])
        ax.plot([low, high], [y, y], color=QUIET, linewidth=1.2)
        ax.plot([first, third], [y, y], color=INK, linewidth=7, solid_capstyle="butt")
        ax.plot(middle, y, "o", color="white", markersize=4, zorder=3)
        said = f"{row['flagged']:.0%} flagged ({row['low']:.0%}–{row['high']:.0%})"
        style.beside(ax, said, max(high, limit) if middle < limit else high, y)
        names.append(f"{row['group']}, n = {row['images']:,}")
    ax.axvline(limit, color=style.ALARM, linestyle="--", linewidth=1.2, zorder=0)
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="OOD score (Mahalanobis distance from the training images)", ylim=(len(names) - 0.5, -0.6))
    style.bare(ax, "bottom")
    note = "Bar: quartiles; line: 5th to 95th percentile. Dashed: flags 5% of validation. Brackets: 95% CI."
    return style.head(fig, "Which images are out of distribution?", note)


@style.styled
def score_distribution(scores: pd.DataFrame, threshold: float | pd.Series) -> Figure:
    """Scores of one recipe by kind and split, seeds pooled, with the threshold, or those by seed."""
    points = scores["seed"].map(threshold) if isinstance(threshold, pd.Series) else threshold
    scores = scores.assign(positive=scores["score"] >= points)
    kinds, splits = style.present(scores["kind"], style.KINDS), style.present(scores["split"], style.SPLITS)
    fig, axes = style.blank(9, 1.1 + 1.35 * len(kinds), len(kinds), len(splits), sharex=True, sharey=True)
    for (i, j), ax in np.ndenumerate(axes):
        part = scores[(scores["kind"] == kinds[i]) & (scores["split"] == splits[j])]
        share, n = np.full(len(part), 1 / max(len(part), 1)), part["image_id"].nunique()
        colour, bins = style.KIND_COLOURS[kinds[i]], np.linspace(0, 1, 26).tolist()
        ax.hist(part["score"], bins=bins, weights=share, color=colour)
        for line in np.unique(np.atleast_1d(np.asarray(threshold, dtype=float))):
            ax.axvline(line, color=INK, linewidth=1, linestyle="--")
        positive = f": {part['positive'].mean():.0%} classified as pneumonia" if n else ""
        ax.set_title(f"{kinds[i]}, n = {n:,}{positive}", loc="right", fontsize=8.5, fontweight="normal")
        ax.set_title(f"{splits[j]}\n".replace("val\n", "validation\n") if i == 0 else "")
        ax.yaxis.set_major_formatter("{x:.0%}")
        ax.set(xlim=(0, 1), xlabel="score, P(pneumonia)" if i == len(kinds) - 1 else "")
    fig.supylabel("share of the kind's images", fontsize=9)
    recipe, protocol = scores[["recipe", "protocol"]].iloc[0]
    note = f"{recipe}, protocol {protocol}, {scores['seed'].nunique()} seeds pooled. Dashed: threshold."
    return style.head(fig, "Do normals score alike in validation and test?", note)
