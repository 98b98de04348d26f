"""Figures of a data set: how many images, how they differ, what crosses between splits, how to balance."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from xraylib.figures import style
from xraylib.figures.style import CLASS_COLOURS, CLASSES, Figure


@style.styled
def label_distribution(manifest: pd.DataFrame) -> Figure:
    """Images by split and kind, with n and prevalence of each split."""
    splits = style.present(manifest["split"], style.SPLITS)
    kinds = style.present(manifest["kind"], style.KINDS)
    fig, ((ax,),) = style.blank(9, 4.2)
    names = []
    for i, split in enumerate(splits):
        part = manifest[manifest["split"] == split]
        names.append(f"{split}\nn = {len(part):,}, {part['label'].mean():.1%} pneumonia")
        for j, kind in enumerate(kinds):
            count, x = int((part["kind"] == kind).sum()), i + (j - (len(kinds) - 1) / 2) * 0.27
            ax.bar(x, count, 0.25, color=style.KIND_COLOURS[kind])
            above: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 8.5}
            ax.annotate(f"{kind}\n{count:,}", (x, count), (0, 2), **above)
    ax.set_xticks(range(len(splits)), names)
    ax.set(ylabel="images", xlim=(-0.5, len(splits) - 0.5))
    ax.yaxis.set_major_formatter("{x:,.0f}")
    ax.margins(y=0.14)
    ax.tick_params(axis="x", length=0)
    note = f"n = {len(manifest):,} images."
    return style.head(fig, "How many images of each kind does each split hold?", note)


@style.styled
def intensities(pixels: np.ndarray, manifest: pd.DataFrame) -> Figure:
    """Distribution of each image's mean intensity by class, a panel a split; uint8 pixels of these rows."""
    means = np.array([float(image.mean()) for image in pixels])
    edges = np.linspace(np.floor(means.min() - 0.5), np.ceil(means.max() + 0.5), 31).tolist()
    splits = style.present(manifest["split"], style.SPLITS)
    fig, axes = style.blank(9, 0.9 + 1.45 * len(splits), len(splits), 1, sharex=True)
    for ax, split in zip(axes[:, 0], splits, strict=True):
        for value, (name, colour) in enumerate(CLASS_COLOURS.items()):
            own = means[((manifest["split"] == split) & (manifest["label"] == value)).to_numpy()]
            if not len(own):
                continue
            share = np.full(len(own), 1 / len(own))
            ax.hist(own, bins=edges, weights=share, color=colour, alpha=0.35)
            ax.hist(own, bins=edges, weights=share, color=colour, histtype="step", linewidth=1.2)
            ax.axvline(np.median(own), color=colour, linewidth=1.5, linestyle="--")
            label = f"{name}, n = {len(own):,}\nmedian {np.median(own):.0f}"
            ax.text(1.01, 0.95 - 0.45 * value, label, transform=ax.transAxes, color=colour, va="top")
        ax.yaxis.set_major_formatter("{x:.0%}")
        ax.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        ax.set_title(split)
    axes[-1, 0].set_xlabel("mean intensity of an image (0 black, 255 white)")
    fig.supylabel("share of the class's images", fontsize=9)
    return style.head(fig, "Does the brightness shift from train to test?", "Dashed: median of the class.")


@style.styled
def mean_images(pixels: np.ndarray, labels: np.ndarray) -> Figure:
    """Mean normal radiograph, mean pneumonia, and their difference; uint8 `(n, h, w, 1)`, labels of both."""
    means = [pixels[labels == value, ..., 0].mean(axis=0, dtype=np.float64) for value in (0, 1)]
    fig, (axes,) = style.blank(10, 4.5, 1, 3)
    for value, (name, colour) in enumerate(CLASS_COLOURS.items()):
        gray = axes[value].imshow(means[value], cmap="gray", vmin=0, vmax=255)
        axes[value].set_title(f"mean {name}, n = {(labels == value).sum():,}", color=colour)
    difference = means[1] - means[0]
    reach = max(float(np.abs(difference).max()), 1.0)
    change = axes[2].imshow(difference, cmap="RdBu_r", vmin=-reach, vmax=reach)
    axes[2].set_title("pneumonia − normal", color=style.INK)
    for ax in axes:
        ax.set(xticks=[], yticks=[])
        style.bare(ax)
    bars: dict[str, Any] = {"shrink": 0.8, "orientation": "horizontal", "aspect": 30}
    fig.colorbar(gray, ax=list(axes[:2]), label="intensity (0 black, 255 white)", **bars)
    fig.colorbar(change, ax=axes[2], label="gray levels; red: brighter in pneumonia", **bars)
    return style.head(fig, "Where do the classes differ on average?")


@style.styled
def file_properties(table: pd.DataFrame) -> Figure:
    """File size and image size by class and split, of the table of `audit.file_properties`."""
    megapixels = table["width"] * table["height"] / 1e6
    values = {"file size (kB)": table["bytes"] / 1000, "image size (megapixels)": megapixels}
    groups = [(split, label) for split in style.present(table["split"], style.SPLITS) for label in (0, 1)]
    inside = {group: (table["split"] == group[0]) & (table["label"] == group[1]) for group in groups}
    names = [f"{s}, {CLASSES[label]}\nn = {inside[s, label].sum():,}" for s, label in groups]
    fig, (axes,) = style.blank(10, 1.3 + 0.45 * len(groups), 1, 2, sharey=True)
    for ax, (label, value) in zip(axes, values.items(), strict=True):
        for y, group in enumerate(groups):
            own: dict[str, Any] = {"color": CLASS_COLOURS[CLASSES[group[1]]], "linewidth": 1.4}
            parts = {f"{part}props": own for part in ("box", "whisker", "cap", "median")}
            box: dict[str, Any] = {"positions": [y], "widths": 0.6, "whis": (5, 95), "manage_ticks": False}
            ax.boxplot(value[inside[group]], orientation="horizontal", showfliers=False, **box, **parts)
        ax.set(xlabel=label, ylim=(len(groups) - 0.5, -0.5))
        ax.set_xlim(left=0)
        style.bare(ax, "bottom")
    axes[0].set_yticks(range(len(groups)), names)
    note = "Box: quartiles and median; whiskers: 5th to 95th percentile."
    return style.head(fig, "Do file and image size betray the class?", note)


@style.styled
def leakage(table: pd.DataFrame, title: str = "Which images are known from another split?") -> Figure:
    """Share of each split's images that another split knows, of the table of `audit.leakage`."""
    groups = list(table.groupby("check", sort=False))
    sizes = {"height_ratios": [len(rows) for _, rows in groups], "sharex": True}
    fig, axes = style.blank(8.5, 1.1 + 0.42 * len(groups) + 0.26 * len(table), len(groups), 1, **sizes)
    for ax, (check, rows) in zip(axes[:, 0], groups, strict=True):
        for y, (_, row) in enumerate(rows.iterrows()):
            ax.barh(y, row["share"], 0.62, color=style.ALARM)
            text = f"{row['images']:,} images ({row['share']:.1%})" if row["images"] else "0"
            style.beside(ax, text, row["share"], y)
        ax.set_yticks(range(len(rows)), rows["splits"])
        ax.set(ylim=(len(rows) - 0.4, -0.6), xlim=(0, max(np.ceil(table["share"].max() * 10) / 10, 0.05)))
        ax.set_title(str(check))
        style.bare(ax, "left bottom" if ax is axes[-1, 0] else "left")
        ax.tick_params(length=0)
    axes[-1, 0].xaxis.set_major_formatter("{x:.0%}")
    axes[-1, 0].xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes[-1, 0].set_xlabel("share of the images of the split named second")
    return style.head(fig, title)


@style.styled
def balance(table: pd.DataFrame) -> Figure:
    """Images an epoch by `method` (None for none) and `label`, with their `weight` in the loss."""
    table = table.assign(method=table["method"].astype(object).where(table["method"].notna(), "none"))
    methods = list(table["method"].unique())
    fig, ((ax,),) = style.blank(8.5, 1.3 + 0.72 * len(methods))
    for _, row in table.iterrows():
        name, y = CLASSES[row["label"]], methods.index(row["method"]) - 0.19 + 0.38 * row["label"]
        effective = row["images"] * row["weight"]
        ax.barh(y, row["images"], 0.34, color=CLASS_COLOURS[name])
        ax.barh(y, effective, 0.34, fill=False, edgecolor=style.INK, linewidth=1.1)
        text = f"{name} {row['images']:,.0f}"
        if not np.isclose(row["weight"], 1):
            text += f" × weight {row['weight']:.2f} = {effective:,.0f}"
        style.beside(ax, text, max(row["images"], effective), y)
    ax.set_yticks(range(len(methods)), [str(method).replace("_", " ") for method in methods])
    ax.set(ylim=(len(methods) - 0.5, -0.5), xlabel="images an epoch")
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.margins(x=0.02)
    style.bare(ax, "bottom")
    note = "Filled: images per epoch. Outlined: images times their weight, what the loss sees."
    return style.head(fig, "What does each class-imbalance method change?", note)
