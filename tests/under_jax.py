"""Everything to be shown under JAX, in one process: the start costs more than the checks.

Called with a folder that holds `manifest.pkl`, and with the folder of the weights that TensorFlow
saved; writes `found.json` into the first.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from xraylib import devices
from xraylib.errors import NotFoundError

folder, saved = map(Path, sys.argv[1:])


def refused(*arguments):
    try:
        return f"not refused: {devices.use(*arguments)}"
    except NotFoundError as error:
        return str(error)


four = devices.use("cpu", "jax", devices=4)
found = {
    "line": str(four),
    "count": four.count,
    "refused": {
        "nine": refused("cpu", "jax", 9),
        "tpu": refused("tpu", "jax"),
        "gpu": refused("gpu", "jax"),
        "tensorflow": refused("cpu", "tensorflow"),
    },
}

import jax  # noqa: E402
import jax.export  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402

from xraylib.datasets import images  # noqa: E402
from xraylib.training import networks  # noqa: E402
from xraylib.training.recipes import Phase, get_recipe  # noqa: E402
from xraylib.training.train import Batches, train  # noqa: E402

manifest = pd.read_pickle(folder / "manifest.pkl")
manifest.attrs = {"dataset": "phantom"}

tiny = get_recipe("tiny-cnn-28")
short = replace(tiny, phases=(Phase(4, 1e-3),))
for name, count in (("one", 1), ("four", 4)):
    run = train(replace(short, name=f"jax-{name}"), manifest, devices.use("cpu", "jax", count))
    found[name] = {
        "hardware": run.settings["hardware"],
        "val_loss": run.history["val_loss"].tolist(),
        "loss": run.history["loss"].tolist(),
        "score": run.scores["score"].tolist(),
        "image_id": run.scores["image_id"].tolist(),
    }

# What TensorFlow saved says the same here.
devices.use("cpu", "jax", devices=1)
pixels = images.load_pixels(manifest, 32)
there = np.load(saved / "scores.npz")
found["apart"] = {}
for name in there.files:
    model = networks.build(name, 32, "sigmoid")
    model.load_weights(saved / f"{name}.weights.h5")
    scores = networks.predict_rows(model, "sigmoid", pixels, np.arange(16), 8)
    found["apart"][name] = float(np.abs(scores - there[name]).max())

# The step as a TPU would get it: bfloat16 inside, float32 where it is kept and summed.
keras.config.set_dtype_policy("mixed_bfloat16")
labels = manifest["label"].to_numpy()
found["tpu"] = {}
for name, head, augmentation, fitted in (
    ("tiny_cnn", "two-logits", None, True),
    ("tiny_cnn", "sigmoid", "geometric", False),
    ("scratch_cnn", "sigmoid", "reframe-render", True),
    ("mobilenetv2", "sigmoid", "flip", False),
):
    model = networks.build(name, 32, head, augmentation=augmentation)
    batches = Batches(pixels, labels, np.arange(8), np.ones(len(labels), np.float32), 8)
    x, y, w = batches[0]
    loss = networks.HEADS[head].loss()
    about = {}
    found["tpu"][f"{name} {head} {augmentation}"] = about
    if fitted:
        model.compile(optimizer="adam", loss=loss)
        before = [np.array(v) for v in model.trainable_variables]
        about["loss"] = float(model.fit(batches, verbose=0).history["loss"][0])
        after = [np.array(v) for v in model.trainable_variables]
        about["moved"] = any((a != b).any() for a, b in zip(after, before, strict=True))

    def step(trainable, rest, x, y, w, model=model, loss=loss):
        outputs, rest = model.stateless_call(trainable, rest, x, training=True)
        return loss(y, outputs, sample_weight=w), rest

    graded = jax.jit(jax.value_and_grad(step, has_aux=True))
    state = [
        [v.value for v in vs] for vs in (model.trainable_variables, model.non_trainable_variables)
    ]
    # Lowering for a TPU needs no TPU. A string, a callback or an open shape would stop it.
    exported = jax.export.export(graded, platforms=["tpu"])(*state, x, y, w)
    inside = {str(layer.compute_dtype) for layer in model.layers if layer.count_params()}
    about |= {
        "platforms": list(exported.platforms),
        "callback": "callback" in exported.mlir_module(),
        "open": "?" in "".join(map(str, exported.in_avals)),
        "inside": sorted(inside),
        "weights": sorted({str(v.dtype) for v in model.trainable_variables}),
        "output": str(model.output.dtype),
        "input": str(model.input.dtype),
    }

(folder / "found.json").write_text(json.dumps(found))
