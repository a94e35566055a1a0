"""The oracles under data/oracles, whose README says what they hold and how.

`load("mnist_LeNet")` gives the arrays of the original file, by their keys.
"""

import functools
import math
import pathlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent / "data" / "oracles"
NETWORKS = (
    "mnist_LeNet",
    "fmnist_LeNet",
    "cifar10_LeNet",
    "arrhythmia_mlp",
    "cardio_mlp",
    "satellite_mlp",
    "satimage-2_mlp",
    "shuttle_mlp",
    "thyroid_mlp",
)
GENERATIVE = ("cardio_DGM_M2", "thyroid_DGM_M2", "mnist_DGM_M2", "mnist_DGM_M1M2")
_SEED = 7
_SAME = {"satimage-2_mlp": "satellite_mlp"}


@functools.lru_cache(maxsize=2)
def load(name):
    """All arrays of an oracle, by the keys of the README; do not write into them."""
    with np.load(FOLDER / f"{_SAME.get(name, name)}.npz") as content:
        stored = {key: content[key] for key in content.files}
    shape = stored.pop("shape:x")
    x = np.random.RandomState(_SEED).random_sample(math.prod(shape))
    arrays = {"x": x.astype(np.float32).reshape(shape)}
    if name in NETWORKS:
        arrays |= _initial_state(stored, glorot_decoder=name == "cifar10_LeNet")
    for entry, value in stored.items():
        kind, key = entry.split(":", 1)
        base = arrays.get(_base(key), np.float32(0.0))
        if kind == "exact":
            arrays[key] = value
        elif kind == "bits":
            bits = base.view(np.int32) + _integers(value).astype(np.int32)
            arrays[key] = bits.view(np.float32)
        elif kind == "steps":
            step = stored[f"step:{key}"]
            arrays[key] = (base + step * _integers(value)).astype(np.float32)
        elif kind == "left":
            arrays[key] = value @ stored[f"right:{key}"]
    if name.endswith("M1M2"):
        for key in [key for key in arrays if key.startswith("vae_init/")]:
            arrays[f"init/features.{key.removeprefix('vae_init/')}"] = arrays[key]
    if name in NETWORKS:
        for prefix, steps in {"ae_init": 0, "ae_after": 3, "sad_eta": 6}.items():
            for key in [k for k in arrays if k.startswith(prefix) and "_var" in k]:
                counter = key.replace("running_var", "num_batches_tracked")
                arrays[counter] = np.array(steps)
    return arrays


def _base(key):
    """The array from which a state is stored as a difference."""
    state, _, name = key.partition("/")
    if state == "ae_after":
        return f"ae_init/{name}"
    return f"ae_after/encoder.{name}" if state.endswith("_after") else None


def _integers(planes):
    """Signed integers from the bytes, lowest first, of 0, -1, 1, -2, 2, ..."""
    folded = sum(plane.astype(np.int64) << (8 * i) for i, plane in enumerate(planes))
    return np.where(folded & 1, -(folded + 1) // 2, folded // 2)


def _initial_state(stored, glorot_decoder):
    """`ae_init/*`: PyTorch's initial values after `torch.manual_seed`.

    PyTorch takes the low 24 bits of what NumPy's generator of the same seed gives, one
    for each value. Decoders with Glorot's rule were first drawn by the default one.
    """
    generator = np.random.RandomState(_SEED)

    def uniform(shape, bound):
        draws = generator.randint(0, 2**32, math.prod(shape), np.uint32) & 0xFFFFFF
        bound = np.float64(np.float32(bound))
        return (2 * bound * (draws * 2.0**-24) - bound).astype(np.float32)

    arrays = {}
    for entry, planes in stored.items():
        if not entry.startswith("bits:ae_after/"):
            continue
        key, shape = _base(entry.removeprefix("bits:")), planes.shape[1:]
        if not key.endswith("weight"):
            fill = np.zeros if key.endswith("running_mean") else np.ones
            arrays[key] = fill(shape, np.float32)
            continue
        draws = uniform(shape, 1 / math.sqrt(math.prod(shape[1:])))
        if glorot_decoder and key.startswith("ae_init/decoder"):
            fans = (shape[0] + shape[1]) * math.prod(shape[2:])
            draws = uniform(shape, math.sqrt(2 / (1 + 0.01**2)) * math.sqrt(6 / fans))
        arrays[key] = draws.reshape(shape)
    return arrays
