"""Experiments on files that are larger than the memory, see `data.stream`."""

from typing import Any

import ml_collections
import numpy as np

from deepsad_jax import preprocessing, stored, streams, training
from deepsad_jax.data import protocol, sources


def check(config: ml_collections.ConfigDict, is_shallow: bool) -> None:
    """Raises ValueError for what cannot be streamed.

    Args:
        config: of an experiment.
        is_shallow: whether its method looks at all rows at once.
    """
    if not config.data.stream:
        return
    name = next(iter(config.companions), "")
    if is_shallow or config.hybrid:
        name = config.method
    if name:
        raise ValueError(
            f"config.data.stream is True, but {name} looks at all rows at once; it "
            "must be False, or the method one of networks alone"
        )
    if config.data.protocol != "paper":
        raise ValueError(
            "config.data.stream is True; it is for semi_targets of your own, not for "
            f"the protocol {config.data.protocol}"
        )


def problem(
    source: sources.Source, scaling: str, evaluates: bool = False
) -> protocol.Problem:
    """As `protocol.make`, and `protocol.whole`, of what stays on disk.

    Args:
        source: of `sources.on_disk`.
        scaling: min_max or standard.
        evaluates: whether nothing is trained on.

    Raises:
        ValueError: if values are not finite or too far apart.
    """
    x, x_test = source.x, source.x_test
    rows = np.arange(len(x_test), dtype=np.int32)
    if evaluates:
        nothing = np.zeros(0, np.int64)
        found, made = (nothing, nothing), preprocessing.Unchanged()
        return protocol.Problem(
            x_test[:1], *found, x_test, source.labels_test, rows, made
        )
    made = streams.scaling_of(x, standard=scaling == "standard")
    for part in stored.blocks(x_test):
        made.check(x_test[part], f"the test part from row {part.start} on")
    indices = np.arange(len(x), dtype=np.int32)
    targets = source.semi_targets
    return protocol.Problem(x, indices, targets, x_test, source.labels_test, rows, made)


def training_data(found: protocol.Problem) -> Any:
    """What a method is fitted to: examples on disk, or a training set."""
    if isinstance(found.x_train, stored.Array):
        return streams.OnDisk(found.x_train, found.semi_targets)
    return training.TrainingSet(
        found.x_train,
        found.indices.astype(np.int32),
        found.semi_targets.astype(np.float32),
        np.int32(len(found.indices)),
    )


def rows_of(x: Any) -> Any:
    """Test examples as `model.score` takes them: blocks of what is on disk."""
    return streams.OnDisk(x) if isinstance(x, stored.Array) else x


def update(digest: Any, part: Any) -> None:
    """Has a digest of `hashlib` depend on an array or anything else of a source."""
    if isinstance(part, np.ndarray):
        digest.update(f"{part.dtype}{part.shape}".encode())
        digest.update(np.ascontiguousarray(part).view(np.uint8).data)
    elif isinstance(part, stored.Array):
        digest.update(f"{part.dtype}{part.shape}".encode())
        for rows in stored.blocks(part):
            digest.update(part[rows].view(np.uint8).data)
    else:
        digest.update(repr(part).encode())
