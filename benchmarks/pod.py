"""What training on 224,000 images would take on a TPU v5e with 1, 8 or 64 chips, on paper.

Writes benchmarks/pod.md. No TPU was at hand. Measured here are the work of one image (FLOPs as XLA
counts them), the size of the weights that the chips exchange, and how many images a second one core
reads from shards. The rest is arithmetic with published numbers of the chip and with shares of its
peak that are assumed, not measured.
"""

import json
import math
import tempfile
import time
from pathlib import Path

import jinja2
import numpy as np

from xraylib import devices, paths, storage
from xraylib.datasets import images, manifest, shards

HARDWARE = devices.use("cpu", "jax")
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from xraylib.training import networks  # noqa: E402
from xraylib.training.recipes import get_recipe  # noqa: E402

IMAGES = 224_000
EPOCHS = 10
IMAGES_A_SHARD = 4096
# docs.cloud.google.com/tpu/docs/v5e: FLOP/s in bfloat16 and bytes of memory a second of one chip.
PEAK = 197e12
BANDWIDTH = 819e9
# Chips and hosts: slices of up to 8 chips are one host, larger ones have 4 chips a host.
SLICES = {"v5e-1": (1, 1), "v5e-8": (8, 1), "v5e-64": (64, 16)}
# Of the peak at best: small and depthwise convolutions fill a matrix unit badly.
SHARE = 0.30
# US dollars a chip and hour: assumed; look up today's.
PRICE = 1.20
# Images a chip in each batch.
RECIPES = {"kerasio-tpu": 128, "flagship": 64}
BATCH_READ = 64


def measure(name: str) -> dict[str, float]:
    """Measure what training on one image asks for: three times the forward pass."""
    recipe = get_recipe(name)
    model = networks.build(recipe.network, recipe.size, recipe.head)
    image = jnp.zeros((1, recipe.size, recipe.size, 1), "uint8")
    forward = jax.jit(lambda batch: model(batch)).lower(image).cost_analysis()
    weights = sum(np.prod(each.shape) for each in model.trainable_variables)
    return {
        "size": recipe.size,
        "gflop": 3 * forward["flops"] / 1e9,
        # Half of the bytes, because they are counted in float32: bfloat16.
        "traffic_mb": 3 * forward["bytes accessed"] / 2 / 1e6,
        "gradients_mb": weights * 4 / 1e6,
        "images_read_a_second": images_a_second(recipe.size),
        "gigabytes": IMAGES * recipe.size**2 / 1e9,
    }


def images_a_second(size: int) -> float:
    """Measure how fast one process reads batches of 64 from shards, in random order."""
    phantom = manifest.load("phantom")
    with tempfile.TemporaryDirectory() as folder:
        shards.write(phantom, size, Path(folder), images.decoded, images_per_shard=256)
        pixels = shards.Shards(Path(folder), size)
        rows = np.random.default_rng(0).permutation(len(phantom))
        whole = len(rows) // BATCH_READ * BATCH_READ
        batches = rows[:whole].reshape(-1, BATCH_READ)
        started = time.perf_counter()
        for batch in batches:
            pixels[batch]
        return whole / (time.perf_counter() - started)


def slice_row(name: str, chips: str, each: dict[str, float]) -> str:
    """Work out one line of the table: a recipe on a slice."""
    count, hosts = SLICES[chips]
    batch = RECIPES[name] * count
    by_memory = BANDWIDTH / each["traffic_mb"] / 1e6
    by_arithmetic = SHARE * PEAK / each["gflop"] / 1e9
    low = count * min(by_memory, by_arithmetic)
    high = count * max(by_memory, by_arithmetic)
    read = each["images_read_a_second"] * hosts
    fewest_hours = IMAGES * EPOCHS / high / 3600
    most_hours = IMAGES * EPOCHS / low / 3600
    cells = [
        f"`{name}`",
        chips,
        f"{hosts}",
        f"{batch:,}",
        f"{IMAGES // batch:,}",
        f"{low:,.0f} to {high:,.0f}",
        f"{low / read:.1f} to {high / read:.1f}",
        f"{fewest_hours * 60:.1f} to {most_hours * 60:.1f}",
        f"{fewest_hours * count * PRICE:.2f} to {most_hours * count * PRICE:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure, work out and write the page."""
    measured = {name: measure(name) for name in RECIPES}
    rows = [slice_row(name, chips, measured[name]) for name in RECIPES for chips in SLICES]
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    page = environment.get_template("pod.md.j2").render(
        images=IMAGES,
        epochs=EPOCHS,
        shard=IMAGES_A_SHARD,
        shards=math.ceil(IMAGES / IMAGES_A_SHARD),
        hardware=HARDWARE,
        share=SHARE,
        price=PRICE,
        measured=measured,
        rows="\n".join(rows),
    )
    with storage.atomic_write(paths.ROOT / "benchmarks" / "pod.md") as file:
        file.write_text(page, encoding="utf-8")
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
