"""What training on 224,000 films would take on a TPU v5e with 1, 8 or 64 chips: a page on paper, benchmarks/pod.md.

No TPU was at hand. Measured here are the work of one film (FLOPs as XLA counts them), the size of the weights that the
chips exchange, and how many films a second one core reads from shards. The rest is arithmetic with published figures of
the chip and with shares of its peak that are assumed, not measured.
"""

import json
import tempfile
import time
from pathlib import Path

import numpy as np

from xraylib import devices, paths, storage
from xraylib.datasets import images, manifest, shards

HERE = devices.use("cpu", "jax")
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from xraylib.training import networks  # noqa: E402
from xraylib.training.recipes import get_recipe  # noqa: E402

FILMS, EPOCHS, SHARD = 224_000, 10, 4096
# docs.cloud.google.com/tpu/docs/v5e: FLOP/s in bfloat16; slices of up to 8 chips are one host; larger: 4 a host.
PEAK, BANDWIDTH = 197e12, 819e9
SLICES = {"v5e-1": (1, 1), "v5e-8": (8, 1), "v5e-64": (64, 16)}
SHARE = 0.30  # of the peak at best: small and depthwise convolutions fill a matrix unit badly
PRICE = 1.20  # US dollars a chip and hour: assumed; look up today's
RECIPES = {"kerasio-tpu": 128, "flagship": 64}  # films a chip in each batch


def measure(name: str) -> dict[str, float]:
    """FLOPs and bytes of one film in training, three times the forward pass, and megabytes of the gradients."""
    recipe = get_recipe(name)
    model = networks.build(recipe.network, recipe.size, recipe.head)
    film = jnp.zeros((1, recipe.size, recipe.size, 1), "uint8")
    forward = jax.jit(lambda films: model(films)).lower(film).cost_analysis()
    gradients = sum(np.prod(each.shape) for each in model.trainable_variables) * 4
    # Half of the bytes: bfloat16.
    traffic = 3 * forward["bytes accessed"] / 2
    return {
        "gflop": 3 * forward["flops"] / 1e9,
        "traffic_mb": traffic / 1e6,
        "gradients_mb": gradients / 1e6,
    }


def films_a_second(size: int) -> float:
    """How fast one process reads batches of 64 from shards, in random order."""
    phantom = manifest.load("phantom")
    with tempfile.TemporaryDirectory() as folder:
        shards.write(phantom, size, Path(folder), images.decoded, 256)
        found, rows = (
            shards.Shards(Path(folder), size),
            np.random.default_rng(0).permutation(len(phantom)),
        )
        batches = [rows[start : start + 64] for start in range(0, len(rows) // 64 * 64, 64)]
        started = time.perf_counter()
        for batch in batches:
            found[batch]
        return 64 * len(batches) / (time.perf_counter() - started)


def main() -> None:
    """Measure, work out and write the page."""
    lines, measured = [], {}
    for name, batch in RECIPES.items():
        size = get_recipe(name).size
        measured[name] = found = measure(name) | {"films_read_a_second": films_a_second(size)}
        for chips, (count, hosts) in SLICES.items():
            bounds = BANDWIDTH / found["traffic_mb"] / 1e6, SHARE * PEAK / found["gflop"] / 1e9
            low, high = (count * speed for speed in sorted(bounds))
            read = found["films_read_a_second"]
            hours = [FILMS * EPOCHS / speed / 3600 for speed in (high, low)]
            lines.append(
                f"| `{name}` | {chips} | {hosts} | {batch * count:,} | {FILMS // (batch * count):,} "
                f"| {low:,.0f} to {high:,.0f} | {low / hosts / read:.1f} to {high / hosts / read:.1f} "
                f"| {hours[0] * 60:.1f} to {hours[1] * 60:.1f} | {hours[0] * count * PRICE:.2f} to "
                f"{hours[1] * count * PRICE:.2f} |"
            )
    facts = [
        f"| `{name}` | {get_recipe(name).size} px | {each['gflop']:.2f} | {each['traffic_mb']:.0f} "
        f"| {each['gradients_mb']:.1f} | {each['films_read_a_second']:,.0f} "
        f"| {FILMS * get_recipe(name).size ** 2 / 1e9:.1f} |"
        for name, each in measured.items()
    ]
    page = TEXT.format(
        films=FILMS, epochs=EPOCHS, shard=SHARD, count=-(-FILMS // SHARD), hardware=HERE,
        share=SHARE, price=PRICE, facts="\n".join(facts), rows="\n".join(lines),
    )  # fmt: skip
    with storage.atomic_write(paths.ROOT / "benchmarks" / "pod.md") as file:
        file.write_text(page, encoding="utf-8")
    print(json.dumps(measured, indent=1))


TEXT = """# A large collection on a TPU, on paper

Written by `python benchmarks/pod.py`. **No TPU was at hand: nothing here was run on one.** CheXpert has some
{films:,} films; this page says what {epochs} epochs of them would ask for.

## Measured

On {hardware}.
FLOPs and memory traffic are XLA's count of the forward pass before it fuses operations, times three, in bfloat16.
Reading is one process, batches of 64 in random order, from shards of simulated films in the page cache.

| recipe | input | GFLOP a film | MB of traffic a film | MB of gradients a step | films/s read | GB uncompressed |
|---|---|---|---|---|---|---|
{facts}

## Worked out

The lower speed is what 819 GB/s of memory allows for that traffic; fusing lowers the traffic. The upper is {share:.0%}
of the 197 TFLOP/s in bfloat16, an assumption: notebook 05 measures the share where there is a chip. Price: {price:.2f}
dollars a chip and hour, an assumption too. `readers`: how many processes that read as this one each host needs at
that speed. Compiling and validation come on top: minutes. Of the
largest slice 4 chips a host are assumed.

| recipe | slice | hosts | batch | steps an epoch | films/s | readers | minutes | dollars |
|---|---|---|---|---|---|---|---|---|
{rows}

## What follows

- **Data.** {count} shards of {shard:,} films (`python -m xraylib data shard NAME FOLDER`). ArrayRecord opens files, not
  `gs://` addresses: a bucket is mounted (`gcsfuse`). Each host reads only its part of each batch.
- **Hosts.** One process a host, the same command on each, with `KERAS_DISTRIBUTION_JOB_ADDRESSES` empty: a TPU slice
  knows its hosts. `XRAYLIB_RUNS` and `XRAYLIB_REPORTS` lie on one shared file system (NFS, Filestore), not on a mounted
  bucket: they need locks and renames. The first process writes.
- **Batch.** The batches above are not those of the recipes (200 and 32), which do not divide among 64 chips and are
  refused there. A new `batch_size` in `recipes.py` comes first, and a learning rate that suits it: an experiment of its
  own. No recipe here was trained at such a batch.
- **Where it waits.** These networks are small: one chip keeps one to several such readers busy, eight chips on
  one host eight times as many. One process reads with four threads. Beyond that reading is the limit, and a smaller
  slice is as fast and cheaper.
- **Exchange.** All chips exchange the gradients once a step: a few MB at 400 GB/s, microseconds.
- **Preemption.** A checkpoint is written after each epoch and every 2,000 batches. When a host dies, the job stops
  within half a minute; the same commands go on after the checkpoint.
"""

if __name__ == "__main__":
    main()
