"""Studies of Kermany's files."""

from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm, rankdata
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from xraylib import paths
from xraylib.datasets import audit, manifest, splits
from xraylib.datasets.framing import SHARES
from xraylib.datasets.manifest import series_and_number
from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.evaluation import forensics, metrics
from xraylib.evaluation.comparisons import _right
from xraylib.evaluation.ood import frozen_features
from xraylib.evaluation.resampling import RESAMPLES, bootstrap_weights, interval
from xraylib.evaluation.views import ABOUT, CLEAN, _resized


def by_folder(scores: pd.DataFrame) -> pd.DataFrame:
    """Share correctly classified among images that an image-level random split tested, by official folder.

    Of one recipe under `random-per-image` (at a threshold of 0.5) and `strict`, whose test tells the folder: `recipe,
    subgroup` (class and folder)`, images, patients, right, right_low, right_high`, each image by all the seeds that
    tested it.
    """
    random, strict = (scores[scores["protocol"] == name] for name in ("random-per-image", "strict"))
    test = random[random["split"] == "test"]
    official = test["image_id"].isin(strict.loc[strict["split"] == "test", "image_id"])
    rows = []
    for folder, inside in (("train", ~official), ("test", official)):
        for label, name in enumerate(("normal", "pneumonia")):
            row = {
                "recipe": scores["recipe"].iloc[0],
                "subgroup": f"{name}, from the {folder} folder",
            }
            rows.append(row | _right(test[inside & (test["label"] == label)], 0.5))
    return pd.DataFrame(rows)


def leaked(scores: pd.DataFrame, manifest: pd.DataFrame) -> pd.DataFrame:
    """Ask within an image-level random split whether images of patients who were trained on are classified better.

    Of one recipe, at a threshold of 0.5, among images of the official training folder, with the splits of its seeds
    made anew from `manifest`: a row a class, `recipe, diagnosis, leaked, unleaked` (images, counted once a seed)`,
    right_leaked, right_unleaked, difference, low, high` over patients. `InvalidDataError` where the images differ.
    """
    own = scores[(scores["protocol"] == "random-per-image") & (scores["split"] == "test")]
    official, parts, rows = manifest.set_index("image_id")["split"], [], []
    for seed in own["seed"].unique():
        one, assigned = own[own["seed"] == seed], splits.assign(manifest, "random-per-image", seed)
        if {*assigned.loc[assigned["split"] == "test", "image_id"]} != {*one["image_id"]}:
            raise InvalidDataError(
                "these are not the images that were divided. Fix: use those the runs were trained on."
            )
        trained = assigned.loc[assigned["split"] == "train", "patient"]
        one = one[one["image_id"].map(official) != "test"]
        parts.append(
            one.assign(
                leaked=one["patient"].isin(trained), right=(one["score"] >= 0.5) == one["label"]
            )
        )
    table = pd.concat(parts)
    for label, name in enumerate(("normal", "pneumonia")):
        part = table[table["label"] == label]
        names, mine = np.unique(part["patient"], return_inverse=True)
        weights = np.vstack([np.ones(len(names)), bootstrap_weights(len(names), RESAMPLES)])[
            :, mine
        ]
        right, inside = part["right"].to_numpy(dtype=float), part["leaked"].to_numpy(dtype=float)
        with np.errstate(invalid="ignore"):
            shares = [weights @ (right * side) / (weights @ side) for side in (inside, 1 - inside)]
        low, high = interval((shares[0] - shares[1])[1:])
        row = {"recipe": part["recipe"].iloc[0], "diagnosis": name}
        row |= {"leaked": int(inside.sum()), "unleaked": int((1 - inside).sum())}
        row |= {"right_leaked": shares[0][0], "right_unleaked": shares[1][0]}
        rows.append(row | {"difference": shares[0][0] - shares[1][0], "low": low, "high": high})
    return pd.DataFrame(rows)


# Height and width, at 224 pixels, of a device's text and of the corner in which it stands.
TEXT, CORNER = (11, 17), (28, 38)


def numbering(manifest: pd.DataFrame) -> pd.DataFrame:
    """Where the official splits lie in each series of numbers: a row a series and split.

    `series, split, images, first, last`, and `inside`: the share of the other splits' images of the series whose number
    lies between the two. Blocks that share no number may differ in date, device or ward.
    """
    table, rows = manifest[["split"]].join(series_and_number(manifest)).dropna(), []
    for (name, split), own in table.groupby(["series", "split"]):
        first, last = own["number"].min(), own["number"].max()
        others = table[(table["series"] == name) & (table["split"] != split)]["number"]
        rows.append(
            (name, split, len(own), int(first), int(last), others.between(first, last).mean())
        )
    return pd.DataFrame(rows, columns=["series", "split", "images", "first", "last", "inside"])


def overlay(
    manifest: pd.DataFrame, pixels: np.ndarray, film: str, limit: float = 0.6
) -> pd.DataFrame:
    """Find films whose lower right corner bears the text that stands at the end of that of `film`, an `image_id`.

    `pixels` is uint8 (n, size, size, 1) of the manifest's rows. The text, `TEXT` pixels, is looked for in the last
    `CORNER`; some of the films where it correlates at 0.7 are the templates of the second search. One row a film that
    correlates at `limit` with one of them: `image_id, split, label, correlation`.
    """
    corner = pixels[:, -CORNER[0] :, -CORNER[1] :, 0].astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(corner, TEXT, axis=(1, 2))
    # Where there is nothing but noise, nothing correlates.
    spread, (row,) = (
        np.maximum(windows.std((3, 4)), 8.0),
        np.flatnonzero(manifest["image_id"] == film),
    )
    templates = corner[row][None, -TEXT[0] - 1 : -1, -TEXT[1] :]
    for chosen in (0.7, limit):
        flat = templates.reshape(len(templates), -1)
        flat = (flat - flat.mean(1, keepdims=True)) / flat.std(1, keepdims=True) / flat.shape[1]
        like = (
            np.stack([(film.reshape(*spread.shape[1:], -1) @ flat.T).max(-1) for film in windows])
            / spread
        )
        best = like.reshape(len(like), -1)
        found = np.flatnonzero(best.max(axis=1) >= chosen)
        some = found[:: max(1, len(found) // 8)]
        templates = np.stack(
            [windows[i][np.unravel_index(best[i].argmax(), like.shape[1:])] for i in some]
        )
    return manifest.iloc[found][["image_id", "split", "label"]].assign(
        correlation=best[found].max(axis=1)
    )


def acquisition(external: pd.DataFrame, films: pd.DataFrame, pixels: np.ndarray) -> pd.DataFrame:
    """Whether another data set can tell what its films show from how they were taken.

    `films` is its manifest, `pixels` uint8 `(n, size, size, 1)` of it. One row a feature (mean intensity, its standard
    deviation, file size, and an 8 × 8 thumbnail, out of fold by patient) and a recipe: `of, auc, low, high` over
    patients, `auc_within_intensity` and `auc_within_size` (mean over quintiles that hold both classes, weighted by
    images), and `correlation`, Spearman's, with the standard deviation.
    """
    flat = pixels.reshape(len(pixels), -1)
    small = _resized(pixels, 8).reshape(len(pixels), -1) / 255
    labels, patients = films["label"].to_numpy(), films["patient"].to_numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = {"groups": patients, "cv": GroupKFold(5), "method": "predict_proba"}
    values = {
        "mean intensity": flat.mean(axis=1),
        "standard deviation": flat.std(axis=1),
        "file size": audit.file_properties(films)["bytes"].to_numpy(dtype=float),
        "8 × 8 thumbnail": cross_val_predict(model, small, labels, **folds)[:, 1],
    }
    strata = {
        name: pd.qcut(values[of], 5, labels=False, duplicates="drop")
        for name, of in (("intensity", "mean intensity"), ("size", "file size"))
    }
    spread = pd.Series(values["standard deviation"])
    mean = external.groupby(["recipe", "image_id"], sort=False)["score"].mean()
    values |= {
        str(name): part.droplevel(0)[films["image_id"]].to_numpy()
        for name, part in mean.groupby("recipe")
    }
    rows = []
    for name, value in values.items():
        auc, low, high = metrics.auc_interval(labels, value, patients)
        row = {"of": name, "n": len(films), "auc": auc, "low": low, "high": high}
        for stratum, member in strata.items():
            inside = [(member == each) for each in np.unique(member)]
            both = [part for part in inside if len(set(labels[part])) == 2]
            aucs = [roc_auc_score(labels[part], value[part]) for part in both]
            row[f"auc_within_{stratum}"] = float(
                np.average(aucs, weights=[part.sum() for part in both])
            )
        rows.append(row | {"correlation": spread.corr(pd.Series(value), method="spearman")})
    return pd.DataFrame(rows)


def identity(films: pd.DataFrame, features: np.ndarray | None = None) -> pd.DataFrame:
    """Test whether equal numbers are one child: is an image more like its namesake than like others.

    `films` is a manifest, `features` `(n, k)` of its rows, by default `frozen_features`. Two images of one person and
    kind, copies left out, are paired, where the answer is known; then the first images of one number in two series. A
    row a pairing: `pairing, pairs, auc, low, high`: how often the namesake's correlation exceeds that with another
    child's image of the same series (chance: 0.5), averaged over pairs, with a normal interval over them.
    """
    named = (
        series_and_number(films)
        .reset_index(drop=True)[~films["sha256"].duplicated().to_numpy()]
        .dropna()
    )
    known = (frozen_features(films) if features is None else features).astype(np.float64)[
        named.index
    ]
    known = StandardScaler().fit_transform(
        known - pd.DataFrame(known).groupby(named["series"].to_numpy()).transform("mean")
    )
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    order = named.assign(row=range(len(named)), nth=named.groupby(["series", "number"]).cumcount())
    image = order.pivot(index="number", columns=["series", "nth"], values="row")
    names = sorted(named["series"].unique())
    pairings = {f"{name}: two images of one number": ((name, 0), (name, 1)) for name in names}
    pairings |= {f"{a} and {b}: one number": ((a, 0), (b, 0)) for a, b in combinations(names, 2)}
    rows = []
    for pairing, columns in pairings.items():
        pairs = image.reindex(columns=columns).dropna().to_numpy(dtype=int)
        if len(pairs) < 10:
            continue
        like = known[pairs[:, 0]] @ known[pairs[:, 1]].T
        own = np.diag(like)[:, None]
        above = ((like < own).sum(axis=1) + ((like == own).sum(axis=1) - 1) / 2) / (len(pairs) - 1)
        half = norm.ppf(0.975) * above.std(ddof=1) / np.sqrt(len(pairs))
        rows.append((pairing, len(pairs), above.mean(), above.mean() - half, above.mean() + half))
    return pd.DataFrame(rows, columns=["pairing", "pairs", "auc", "low", "high"])


def marked_films(dataset: str) -> pd.DataFrame:
    """The films with a device's text that `forensics.overlay` found, as notebook 01 wrote them into the report."""
    if not (file := paths.REPORTS / dataset / "tables" / "overlay.csv").exists():
        raise NotFoundError(
            f"{file} is missing. Fix: run notebook 01 on {dataset}, which has Kermany's only."
        )
    return pd.read_csv(file)


def _device_views(
    dataset: str, whole: pd.DataFrame, films: np.ndarray
) -> tuple[str, dict[str, Any]]:
    """Swap a device's text and its rendering between films: views of uint8 `(n, SIZE, SIZE, 1)`.

    Each film is given the histogram (mean over films, by quantile) of the training normals, or of the training films
    with the text, all pneumonias; its corner is blackened, which takes the text away; or the text is put there.
    """
    marked, train = (
        whole["image_id"].isin(marked_films(dataset)["image_id"]),
        whole["split"] == "train",
    )
    levels = np.linspace(0, 1, 257)

    def render(pixels: np.ndarray, model: pd.Series) -> np.ndarray:
        wanted = np.quantile(films[np.flatnonzero(model)], levels, axis=(1, 2, 3)).mean(axis=1)
        rank = [rankdata(film) / film.size for film in pixels]
        return np.rint(np.interp(rank, levels, wanted)).astype(np.uint8).reshape(pixels.shape)

    def corner(pixels: np.ndarray, text: np.ndarray) -> np.ndarray:
        changed = pixels.copy()
        changed[:, -len(text) :, -text.shape[1] :] = text
        return changed

    text = films[np.flatnonzero(marked & train)[0], -forensics.TEXT[0] - 1 :, -forensics.TEXT[1] :]
    return "val test", {
        "rendered as training normals": partial(render, model=train & (whole["label"] == 0)),
        "rendered as the device's films": partial(render, model=train & marked),
        "corner black": partial(corner, text=np.zeros((16, 24, 1), np.uint8)),
        "text in the corner": partial(corner, text=text),
    }


def device_response(views: pd.DataFrame, scores: pd.DataFrame, marked: pd.Series) -> pd.DataFrame:
    """How films are classified with a device's text and rendering and without, of `load_views(…, "device")`.

    `marked`: ids of the films with the text; `scores` are those of the report, which tell the split. A row a recipe,
    group of images and view: `recipe, films, view, runs, images, right` (specificity or sensitivity at the frozen
    threshold) with its interval over runs and patients, `right_low, right_high`.
    """
    strict = scores.loc[scores["protocol"] == "strict"].loc[
        lambda own: own["split"].isin(["val", "test"])
    ]
    views = views.merge(strict[["recipe", "seed", "image_id", "split"]]).assign(
        text=lambda all: all["image_id"].isin(marked)
    )
    rows: list[dict[str, object]] = []
    for (recipe, split, label, text), part in views.groupby(["recipe", "split", "label", "text"]):
        films = f"{split}, {'pneumonia' if label else 'normal'}, {'with' if text else 'without'} the text"
        metric = "sensitivity" if label else "specificity"
        part = part.rename(columns={CLEAN: "as it is"})
        for view in part.columns.drop([*ABOUT, "split", "text"]):
            one = part.assign(score=part[view], protocol="strict")
            found = metrics.evaluate(one, split=str(split), resamples=500, ranking=False).rename(
                {metric: "right"}
            )
            row = {"recipe": recipe, "films": films, "view": view, "runs": one["seed"].nunique()}
            rows.append(row | {"images": one["image_id"].nunique()} | metrics.ends(found, "right"))
    return pd.DataFrame(
        rows,
        columns=["recipe", "films", "view", "runs", "images", "right", "right_low", "right_high"],
    )


def framing_explained(
    views: pd.DataFrame, scores: pd.DataFrame, aspects: pd.DataFrame
) -> pd.DataFrame:
    """How much of the fall in specificity from validation to the official test the framing explains.

    `views` are of `load_views`, `scores` the report's, `aspects` of `aspect_ratios`. Each normal has the specificity of
    validation normals cut to its aspect ratio (linear between doses): `at_validation_framing`, `at_test_framing`. The
    difference of these two as a share of the fall from `validation` to `test` is `explained`, so that folders framed
    alike explain nothing. Its interval adds Student's over runs and the bootstrap's over patients.
    """
    ratio = aspects.set_index("image_id")["aspect"]
    usual = aspects.loc[(aspects["label"] == 0) & (aspects["split"] != "test"), "aspect"].mean()
    steps, rows = np.array([*SHARES[::-1], 1.0]), []
    for recipe, part in views[views["label"] == 0].groupby("recipe", sort=False):
        own = scores[
            (scores["recipe"] == recipe) & (scores["protocol"] == "strict") & (scores["label"] == 0)
        ]
        patients = np.unique([*part["patient"], *own["patient"]])
        drawn = np.vstack([np.ones(len(patients)), bootstrap_weights(len(patients), 500)])

        def means(
            films: pd.DataFrame, values: Any, patients: Any = patients, drawn: Any = drawn
        ) -> np.ndarray:
            weights = drawn[:, np.searchsorted(patients, films["patient"])]
            with np.errstate(invalid="ignore"):  # a resample without these patients
                return weights @ values / weights.sum(axis=1, keepdims=True)

        by_run = []
        for seed, one in part.groupby("seed"):
            test = own[(own["seed"] == seed) & (own["split"] == "test")]
            cut = one[[*(f"rows {share}" for share in SHARES[::-1]), CLEAN]]
            curve, at = means(one, cut.lt(one["threshold"], axis=0).to_numpy(dtype=float)), []
            for films in (one, test):
                kept = np.minimum(1.0, usual / ratio[films["image_id"]].to_numpy())
                near = np.stack(
                    [np.interp(kept, steps, dose) for dose in np.eye(len(steps))], axis=1
                )
                at.append((curve * means(films, near)).sum(axis=1))
            found = means(test, (test["score"] < test["threshold"]).to_numpy(dtype=float)[:, None])[
                :, 0
            ]
            fall, predicted = curve[:, -1] - found, at[0] - at[1]
            share = predicted[0] / fall[0]
            # Of resamples the linear part: where the fall is small, a ratio has no bounds.
            by_run.append((curve[:, -1], *at, found, share + (predicted - share * fall) / fall[0]))
        values = np.array(by_run)  # runs, quantities, resamples
        names = ("validation", "at_validation_framing", "at_test_framing", "test", "explained")
        row = {"recipe": recipe, "runs": len(values)} | dict(
            zip(names, values[:, :, 0].mean(axis=0), strict=True)
        )
        spread = student.ppf(0.975, max(1, len(values) - 1)) * pd.Series(values[:, -1, 0]).sem()
        half = np.hypot(spread, norm.ppf(0.975) * np.nanstd(values[:, -1, 1:].mean(axis=0)))
        rows.append(
            row
            | {"explained_low": row["explained"] - half, "explained_high": row["explained"] + half}
        )
    return pd.DataFrame(rows)


def aspect_ratios(dataset: str) -> pd.DataFrame:
    """Aspect ratio (width by height) of every film as it was taken: `image_id, split, label, aspect, error`.

    Read off the files where they differ in it. Of copies of one size it is estimated: the list of original files
    (`audit.originals`) trains a ridge regression of its logarithm on `OOD_RECIPE`'s features, and `error` is the root
    mean square error out of fold, by patient (0 where read). `known`: whether the film is one of these.
    """
    whole = manifest.load(dataset)
    files = audit.file_properties(whole)
    table = whole[["image_id", "split", "label"]].assign(
        aspect=files["width"] / files["height"], error=0.0
    )
    if table["aspect"].nunique() > 1:
        return table.assign(known=True)
    if (listed := audit.originals(dataset)) is None:
        raise NotFoundError(
            f"{dataset}: its images have one size. Fix: use the original files, or their list."
        )
    truth = dict(zip(listed["image_id"], np.log(listed["width"] / listed["height"]), strict=True))
    features = frozen_features(whole)
    there = whole["image_id"].isin(truth).to_numpy()
    target = np.array([truth[name] for name in whole.loc[there, "image_id"]])
    groups = whole.loc[there, "patient"]
    model = make_pipeline(StandardScaler(), RidgeCV(10.0 ** np.arange(0, 6)))
    held_out = cross_val_predict(model, features[there], target, groups=groups, cv=GroupKFold(5))
    table["aspect"] = np.exp(model.fit(features[there], target).predict(features))
    # Films that trained the regression keep their estimate out of fold.
    table.loc[there, "aspect"] = np.exp(held_out)
    error = float(np.sqrt(np.mean((np.exp(held_out) - np.exp(target)) ** 2)))
    return table.assign(error=error, known=there)
