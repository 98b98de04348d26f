"""Figures of a data set: how many images, how they differ, what crosses between splits, how to balance."""

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.ticker import FuncFormatter, MaxNLocator

from xraylib.figures.style import (
    ALARM,
    CLASS_COLOURS,
    CLASSES,
    INK,
    KIND_COLOURS,
    KINDS,
    SPLITS,
    Figure,
    bare,
    beside,
    blank,
    equally_many,
    head,
    need,
    percents,
    present,
    radiographs,
    records,
    styled,
    thousands,
)
from xraylib.storage import DataInvalid


@styled
def label_distribution(
    manifest: pd.DataFrame, title: str = "How many images of each kind does each split hold?"
) -> Figure:
    """Images by split and kind, with n and prevalence of each split.

    Parameters
    ----------
    manifest
        With `split`, `kind` and `label`.

    Raises
    ------
    DataInvalid
        When a column is missing or there is no row.
    """
    need(manifest, ("split", "kind", "label"), "images")
    splits, kinds = present(manifest["split"], SPLITS), present(manifest["kind"], KINDS)
    fig, ((ax,),) = blank(9, 4.2)
    names = []
    for i, split in enumerate(splits):
        side = manifest[manifest["split"] == split]
        names.append(f"{split}\nn = {len(side):,}, {side['label'].mean():.1%} pneumonia")
        for j, kind in enumerate(kinds):
            count, x = int((side["kind"] == kind).sum()), i + (j - (len(kinds) - 1) / 2) * 0.27
            ax.bar(x, count, 0.25, color=KIND_COLOURS.get(kind, KIND_COLOURS["unknown"]))
            where: dict[str, Any] = {
                "xytext": (0, 2),
                "textcoords": "offset points",
                "ha": "center",
                "fontsize": 8.5,
            }
            ax.annotate(f"{kind}\n{count:,}", (x, count), **where)
    ax.set_xticks(range(len(splits)), names)
    ax.set(ylabel="images", xlim=(-0.5, len(splits) - 0.5))
    ax.yaxis.set_major_formatter(FuncFormatter(thousands))
    ax.margins(y=0.14)
    ax.tick_params(axis="x", length=0)
    head(fig, title, f"n = {len(manifest):,} images.")
    return fig


@styled
def intensities(
    pixels: np.ndarray, manifest: pd.DataFrame, title: str = "Does the brightness shift from train to test?"
) -> Figure:
    """Distribution of each image's mean intensity by class, one panel a split.

    Parameters
    ----------
    pixels
        uint8 `(n, h, w)` or `(n, h, w, 1)`.
    manifest
        Of the same rows, with `split` and `label`.

    Raises
    ------
    DataInvalid
        For other pixels, another number of rows, a missing column or no row.
    """
    need(manifest, ("split", "label"), "images")
    grays = radiographs(pixels)
    equally_many(images=len(grays), rows=len(manifest))
    means = np.array([float(image.mean()) for image in grays])
    edges = np.linspace(np.floor(means.min() - 0.5), np.ceil(means.max() + 0.5), 31)
    splits = present(manifest["split"], SPLITS)
    fig, axes = blank(9, 0.9 + 1.45 * len(splits), len(splits), 1, sharex=True)
    for ax, split in zip(axes[:, 0], splits, strict=True):
        for value, name in enumerate(CLASSES):
            own = means[((manifest["split"] == split) & (manifest["label"] == value)).to_numpy()]
            if not len(own):
                continue
            colour, share = CLASS_COLOURS[name], np.full(len(own), 1 / len(own))
            ax.hist(own, bins=edges, weights=share, color=colour, alpha=0.35)
            ax.hist(own, bins=edges, weights=share, color=colour, histtype="step", linewidth=1.2)
            ax.axvline(np.median(own), color=colour, linewidth=1.5, linestyle="--")
            label = f"{name}, n = {len(own):,}\nmedian {np.median(own):.0f}"
            ax.text(1.01, 0.95 - 0.45 * value, label, transform=ax.transAxes, color=colour, va="top")
        ax.yaxis.set_major_formatter(FuncFormatter(percents))
        ax.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        ax.set_title(split)
    axes[-1, 0].set_xlabel("mean intensity of an image (0 black, 255 white)")
    fig.supylabel("share of the class's images", fontsize=9)
    head(fig, title, "Dashed: median of the class.")
    return fig


@styled
def mean_images(
    pixels: np.ndarray, labels: np.ndarray, title: str = "Where do the classes differ on average?"
) -> Figure:
    """Mean normal radiograph, mean pneumonia, and their difference.

    Parameters
    ----------
    pixels
        uint8 `(n, h, w)` or `(n, h, w, 1)`.
    labels
        0/1 `(n,)`, both of them present.

    Raises
    ------
    DataInvalid
        For other pixels, another number of labels, or one class only.
    """
    grays, labels = radiographs(pixels), np.asarray(labels)
    equally_many(images=len(grays), labels=len(labels))
    if set(np.unique(labels)) != {0, 1}:
        raise DataInvalid("mean images need normals (0) and pneumonias (1). Fix: pass images of both.")
    means = [grays[labels == value].mean(axis=0, dtype=np.float64) for value in (0, 1)]
    fig, axes = blank(10, 4.5, 1, 3)
    for value, name in enumerate(CLASSES):
        gray = axes[0, value].imshow(means[value], cmap="gray", vmin=0, vmax=255)
        axes[0, value].set_title(f"mean {name}, n = {(labels == value).sum():,}", color=CLASS_COLOURS[name])
    difference = means[1] - means[0]
    reach = max(float(np.abs(difference).max()), 1.0)
    change = axes[0, 2].imshow(difference, cmap="RdBu_r", vmin=-reach, vmax=reach)
    axes[0, 2].set_title("pneumonia − normal", color=INK)
    for ax in axes[0]:
        ax.set(xticks=[], yticks=[])
        bare(ax)
    bars: dict[str, Any] = {"shrink": 0.8, "orientation": "horizontal", "aspect": 30}
    fig.colorbar(gray, ax=list(axes[0, :2]), label="intensity (0 black, 255 white)", **bars)
    fig.colorbar(change, ax=axes[0, 2], label="gray levels; red: brighter in pneumonia", **bars)
    head(fig, title)
    return fig


@styled
def file_statistics(table: pd.DataFrame, title: str = "Do file and image size betray the class?") -> Figure:
    """File size and image size by class and split.

    Parameters
    ----------
    table
        One row an image: `width` and `height` in pixels, `bytes`, `label`, `split`.

    Raises
    ------
    DataInvalid
        When a column is missing or there is no row.
    """
    need(table, ("width", "height", "bytes", "label", "split"), "files")
    labels = table["label"].astype(int)
    table = table.assign(
        kilobytes=table["bytes"] / 1000,
        megapixels=table["width"] * table["height"] / 1e6,
        row=[f"{split}, {CLASSES[label]}" for split, label in zip(table["split"], labels, strict=True)],
    )
    order = [f"{s}, {name}" for s in present(table["split"], SPLITS) for name in CLASSES]
    order = [row for row in order if (table["row"] == row).any()]
    colours = {row: CLASS_COLOURS[row.rsplit(", ", 1)[1]] for row in order}
    points = pd.concat([part.sample(min(300, len(part)), random_state=0) for _, part in table.groupby("row")])
    panels = {"kilobytes": "file size (kB)", "megapixels": "image size (megapixels)"}
    # What is the same for every image needs no panel.
    same = [column for column in panels if table[column].nunique() == 1]
    panels = {column: label for column, label in panels.items() if column not in same[:1]}
    fig, axes = blank(3 + 3.5 * len(panels), 1.3 + 0.45 * len(order), 1, len(panels), sharey=True)
    for ax, (column, label) in zip(axes[0], panels.items(), strict=True):
        common: dict[str, Any] = {"x": column, "y": "row", "hue": "row", "order": order, "palette": colours}
        common |= {"ax": ax, "legend": False}
        sns.stripplot(points, **common, size=2, alpha=0.35, jitter=0.25, zorder=1)
        sns.boxplot(table, **common, width=0.6, fill=False, fliersize=0, linewidth=1.2, zorder=3)
        ax.set(xlabel=label, ylabel="", xlim=(0, float(table[column].max()) * 1.05))
        bare(ax, "bottom")
    names = [f"{row}\nn = {(table['row'] == row).sum():,}" for row in order]
    axes[0, 0].set_yticks(range(len(order)), names)
    for text, row in zip(axes[0, 0].get_yticklabels(), order, strict=True):
        text.set_color(colours[row])
    sizes = {
        "megapixels": f"{table['width'].iloc[0]:,} × {table['height'].iloc[0]:,} pixels",
        "kilobytes": f"{table['kilobytes'].iloc[0]:.1f} kB",
    }
    note = "".join(f" Every image has {sizes[column]}." for column in same)
    head(fig, title, "Box: quartiles and median. Points: at most 300 images a box." + note)
    return fig


@styled
def leakage(table: pd.DataFrame, title: str = "Which images are known from another split?") -> Figure:
    """Share of each split's images that are concerned, by check and pair of splits.

    Parameters
    ----------
    table
        From `splits.leakage`: `check, between, images, share`.

    Raises
    ------
    DataInvalid
        When a column is missing or there is no row.
    """
    need(table, ("check", "between", "images", "share"), "leaks")
    groups = list(table.groupby("check", sort=False))
    sizes = {"height_ratios": [len(rows) for _, rows in groups], "sharex": True}
    fig, axes = blank(8.5, 1.1 + 0.42 * len(groups) + 0.26 * len(table), len(groups), 1, **sizes)
    for ax, (check, rows) in zip(axes[:, 0], groups, strict=True):
        for y, row in enumerate(records(rows)):
            ax.barh(y, row["share"], 0.62, color=ALARM)
            images = f"{row['images']:,} image{'s' if row['images'] != 1 else ''}"
            beside(ax, f"{images} ({row['share']:.1%})" if row["images"] else "0", row["share"], y)
        ax.set_yticks(range(len(rows)), rows["between"])
        ax.set(ylim=(len(rows) - 0.4, -0.6), xlim=(0, max(float(table["share"].max()), 0.05)))
        ax.set_title(str(check))
        last = ax is axes[-1, 0]
        ax.spines["bottom"].set_visible(last)
        ax.tick_params(axis="y", length=0)
        ax.tick_params(axis="x", length=3.5 if last else 0)
    axes[-1, 0].xaxis.set_major_formatter(FuncFormatter(percents))
    axes[-1, 0].xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes[-1, 0].set_xlabel("share of the images of the split named second")
    head(fig, title)
    return fig


@styled
def balance(table: pd.DataFrame, title: str = "What does each remedy make of the imbalance?") -> Figure:
    """Images an epoch of each class under each remedy, and what they weigh in the loss.

    Parameters
    ----------
    table
        One row a remedy (None for none) and class: `remedy, label` (0/1), `images` an epoch, and `weight`
        of an image in the loss, which is 1 where the column is missing.

    Raises
    ------
    DataInvalid
        When a column is missing or there is no row.
    """
    need(table, ("remedy", "label", "images"), "remedies")
    table = table.assign(
        weight=table.get("weight", 1.0),
        remedy=table["remedy"].astype(object).where(table["remedy"].notna(), "none").astype(str),
    )
    remedies = list(dict.fromkeys(table["remedy"]))
    fig, ((ax,),) = blank(8.5, 1.3 + 0.72 * len(remedies))
    for row in records(table):
        name, y = CLASSES[int(row["label"])], remedies.index(row["remedy"]) - 0.19 + 0.38 * int(row["label"])
        effective = row["images"] * row["weight"]
        ax.barh(y, row["images"], 0.34, color=CLASS_COLOURS[name])
        ax.barh(y, effective, 0.34, fill=False, edgecolor=INK, linewidth=1.1)
        text = f"{name} {row['images']:,.0f}"
        if not np.isclose(row["weight"], 1):
            text += f" × weight {row['weight']:.2f} = {effective:,.0f}"
        beside(ax, text, max(row["images"], effective), y)
    ax.set_yticks(range(len(remedies)), [remedy.replace("_", " ") for remedy in remedies])
    ax.set(ylim=(len(remedies) - 0.5, -0.5), xlabel="images an epoch")
    ax.xaxis.set_major_formatter(FuncFormatter(thousands))
    ax.margins(x=0.02)
    bare(ax, "bottom")
    head(fig, title, "Filled: images drawn. Outlined: images times their weight, what the loss sees.")
    return fig
