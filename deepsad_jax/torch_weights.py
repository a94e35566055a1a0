"""Weights of the original PyTorch implementation, as variables of our networks.

    variables = from_state_dict("mnist_LeNet", state_dict)      # NumPy arrays, no torch
    checkpoint = load_checkpoint("model.tar")                   # extra `torch`

PyTorch keeps dense kernels as `[out, in]`, convolutions as `[out, in, k, k]` and
transposed convolutions as `[in, out, k, k]`, applied mirrored; it flattens feature maps
channel by channel. Ours are `[in, out]`, `[k, k, in, out]`, never mirrored, and
flattened with the channels last. `from_state_dict` is linear: gradients convert as
weights do.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from deepsad_jax import networks


class TorchCheckpoint(NamedTuple):
    """What a `model.tar` of the original implementation holds.

    Attributes:
        network: name of the network.
        center: hypersphere center, `[rep_dim]` float32, or None if not yet trained.
        encoder: variables of the trained encoder.
        autoencoder: variables of the pretrained autoencoder, or None without one.
    """

    network: str
    center: np.ndarray | None
    encoder: dict[str, Any]
    autoencoder: dict[str, Any] | None


class _Entry(NamedTuple):
    """One array of a state dict and where it goes."""

    key: str  # in the state dict, without prefix
    collection: str  # "params" or "batch_stats"
    path: tuple[str, str]  # layer and leaf in the collection
    shape: tuple[int, ...]  # in PyTorch's layout
    convert: Callable[[np.ndarray], np.ndarray]


def from_state_dict(name: str, mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Converts the state dict of an autoencoder or of an encoder.

    Args:
        name: network, a key of `networks.PAPER`.
        mapping: PyTorch names to arrays. With keys under `decoder.` it is an
            autoencoder's; otherwise an encoder's, its keys with the prefix `encoder.`
            or without one. Counters `num_batches_tracked` are ignored.

    Returns:
        `{"params", "batch_stats"}` for `build_autoencoder(name)` or
        `build_encoder(name)`, float32 NumPy arrays.

    Raises:
        ValueError: if the network is unknown, a key is missing or left over, or an
            array has the wrong shape or values that are not finite.
    """
    pair = networks.pair(name)
    arrays = {
        key: np.asarray(value)
        for key, value in mapping.items()
        if not key.endswith("num_batches_tracked")
    }
    if any(key.startswith("decoder.") for key in arrays):
        expected = {
            f"{part}.{entry.key}": (part, entry)
            for part, entries in (
                ("encoder", _encoder_entries(pair)),
                ("decoder", _decoder_entries(pair)),
            )
            for entry in entries
        }
    else:
        arrays = {key.removeprefix("encoder."): a for key, a in arrays.items()}
        expected = {e.key: (None, e) for e in _encoder_entries(pair)}
    _check_keys(name, expected.keys(), arrays.keys())

    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for key, (part, entry) in expected.items():
        array = arrays[key]
        if array.shape != entry.shape:
            raise ValueError(
                f"{key} has shape {array.shape}; {name} needs {entry.shape}"
            )
        if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
            raise ValueError(f"{key} has dtype {array.dtype}, or is not finite")
        tree = variables[entry.collection]
        tree = tree if part is None else tree.setdefault(part, {})
        layer, leaf = entry.path
        converted = entry.convert(array.astype(np.float32))
        tree.setdefault(layer, {})[leaf] = np.ascontiguousarray(converted)
    return variables


def load_checkpoint(
    path: str | os.PathLike, network: str | None = None
) -> TorchCheckpoint:
    """Reads a `model.tar` that the original implementation saved, weights only.

    Args:
        path: the file.
        network: its network; by default the registered one whose shapes fit. (The two
            satellite tables share theirs.)

    Returns:
        Center, encoder and autoencoder.

    Raises:
        ImportError: if PyTorch is not installed.
        ValueError: if the file is not such a checkpoint, or fits no network.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "reading a PyTorch checkpoint needs PyTorch; install it with "
            "pip install 'deepsad_jax[torch]'"
        ) from error
    where = os.fspath(path)
    if not os.path.isfile(path):
        raise ValueError(f"there is no file {where}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state, center = content["net_dict"], content["c"]
        autoencoder_state = content.get("ae_net_dict")
        state = {str(key): value.numpy() for key, value in state.items()}
        if autoencoder_state is not None:
            autoencoder_state = {
                str(key): value.numpy() for key, value in autoencoder_state.items()
            }
        if center is not None:
            center = np.asarray(center, np.float32).reshape(-1)
    except Exception as error:  # torch raises many kinds for what is not its own
        # Their texts are long, and may recommend to load it with what it could run.
        raise ValueError(
            f"{where} is not a model.tar of the original implementation, a dictionary "
            "with c, net_dict and ae_net_dict and nothing but weights in it "
            f"({type(error).__name__}); if it should be, get it again"
        ) from error
    try:
        network = network or _infer_network(state)
        return _checkpoint(network, center, state, autoencoder_state)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def load_model(path: str | os.PathLike, preprocessing: Any) -> Any:
    """The model of a `model.tar`, with what is applied to raw rows.

    Raises:
        ImportError, ValueError: as `load_checkpoint`; also if it has no center.
    """
    from deepsad_jax import model, objectives

    found = load_checkpoint(path)
    if found.center is None:
        raise ValueError(f"{os.fspath(path)} has no center: it was not trained")
    pair, base = networks.pair(found.network), None
    common = (preprocessing, pair.input_shape)
    if found.autoencoder is not None:
        reconstruction = objectives.Autoencoder(pair.encoder, pair.decoder)
        base = model.make("autoencoder", reconstruction, found.autoencoder, *common)
    variables = {**found.encoder, "center": found.center}
    objective = objectives.DeepSAD(pair.encoder)
    return model.make("deep_sad", objective, variables, *common, base)


def _checkpoint(network, center, state, autoencoder_state) -> TorchCheckpoint:
    encoder = from_state_dict(network, state)
    width = networks.pair(network).encoder.rep_dim
    if center is not None and not (len(center) == width and np.isfinite(center).all()):
        raise ValueError(f"c has {len(center)} values; {network} needs {width}, finite")
    autoencoder = None
    if autoencoder_state is not None:
        autoencoder = from_state_dict(network, autoencoder_state)
    has_decoder = [
        "decoder" in part["params"] for part in (encoder, autoencoder) if part
    ]
    if has_decoder != [False, True][: len(has_decoder)]:
        raise ValueError(
            "net_dict must be of an encoder alone, and ae_net_dict of an autoencoder"
        )
    return TorchCheckpoint(network, center, encoder, autoencoder)


def _infer_network(state: Mapping[str, np.ndarray]) -> str:
    for name in networks.PAPER:
        try:
            from_state_dict(name, state)
        except ValueError:
            continue
        return name
    raise ValueError("the shapes in the checkpoint fit none of the registered networks")


def _check_keys(name: str, expected, found) -> None:
    missing = sorted(set(expected) - set(found))
    surplus = sorted(set(found) - set(expected))
    problems = [
        f"{what} {', '.join(keys)}"
        for what, keys in (("lacks", missing), ("has the surplus", surplus))
        if keys
    ]
    if problems:
        raise ValueError(f"the state dict for {name} {' and '.join(problems)}")


def _encoder_entries(pair: networks.Pair) -> Iterator[_Entry]:
    encoder = pair.encoder
    if isinstance(encoder, networks.MLPEncoder):
        columns = pair.input_shape[0]
        yield from _mlp_entries(columns, encoder.hidden, "code", encoder.rep_dim)
        return
    height, width, channels = pair.input_shape
    for i, features in enumerate(encoder.features, 1):
        yield _convolution(f"conv{i}", f"conv{i}", channels, features)
        yield from _norm(_norm_name(encoder, i), f"conv_bn{i}", features)
        height, width, channels = height // 2, width // 2, features
    flat = _Flattened(channels, height, width)
    if encoder.hidden:
        yield _dense("fc1", "hidden1", flat, encoder.hidden)
        yield from _norm("bn1d1", "hidden_bn1", encoder.hidden)
        yield _dense("fc2", "code", encoder.hidden, encoder.rep_dim)
    else:
        yield _dense("fc1", "code", flat, encoder.rep_dim)


def _decoder_entries(pair: networks.Pair) -> Iterator[_Entry]:
    encoder, decoder, _ = pair
    width = encoder.rep_dim
    if isinstance(decoder, networks.MLPDecoder):
        last = ("reconstruction", decoder.features)
        yield from _mlp_entries(width, decoder.hidden, *last)
        return
    if decoder.hidden:
        yield _dense("fc3", "hidden1", width, decoder.hidden)
        yield from _norm("bn1d2", "hidden_bn1", decoder.hidden)
        width = decoder.hidden
    channels, last = width // decoder.size**2, len(decoder.convolutions)
    for i, layer in enumerate(decoder.convolutions, 1):
        yield _transposed(f"deconv{i}", f"conv{i}", channels, layer.features)
        if i < last:
            torch_norm = _norm_name(encoder, len(encoder.features) + i)
            yield from _norm(torch_norm, f"conv_bn{i}", layer.features)
        channels = layer.features


def _mlp_entries(
    inputs: int, hidden: tuple[int, ...], last: str, outputs: int
) -> Iterator[_Entry]:
    for i, features in enumerate(hidden):
        yield _dense(f"hidden.{i}.linear", f"hidden{i + 1}", inputs, features)
        yield from _norm(f"hidden.{i}.bn", f"hidden_bn{i + 1}", features)
        inputs = features
    ours = "code" if last == "code" else "output"
    yield _dense(last, ours, inputs, outputs)


def _norm_name(encoder: networks.LeNetEncoder, i: int) -> str:
    # The original numbers them through both halves, and calls them bn in MNIST's alone.
    is_mnist = encoder == networks.PAPER["mnist_LeNet"].encoder
    return f"bn{i}" if is_mnist else f"bn2d{i}"


class _Flattened(NamedTuple):
    """A feature map that a dense layer reads."""

    channels: int
    height: int
    width: int


def _dense(key: str, layer: str, inputs: int | _Flattened, outputs: int) -> _Entry:
    if isinstance(inputs, _Flattened):
        c, h, w = inputs
        return _kernel(
            key,
            layer,
            (outputs, c * h * w),
            lambda a: (
                a.reshape(-1, c, h, w).transpose(2, 3, 1, 0).reshape(h * w * c, -1)
            ),
        )
    return _kernel(key, layer, (outputs, inputs), np.transpose)


def _convolution(key: str, layer: str, inputs: int, outputs: int) -> _Entry:
    shape = (outputs, inputs, 5, 5)
    return _kernel(key, layer, shape, lambda a: a.transpose(2, 3, 1, 0))


def _transposed(key: str, layer: str, inputs: int, outputs: int) -> _Entry:
    shape = (inputs, outputs, 5, 5)
    return _kernel(
        key, layer, shape, lambda a: a[:, :, ::-1, ::-1].transpose(2, 3, 0, 1)
    )


def _kernel(key: str, layer: str, shape: tuple[int, ...], convert) -> _Entry:
    return _Entry(f"{key}.weight", "params", (layer, "kernel"), shape, convert)


def _norm(key: str, layer: str, features: int) -> Iterator[_Entry]:
    for torch_leaf, leaf in (("running_mean", "mean"), ("running_var", "var")):
        yield _Entry(
            f"{key}.{torch_leaf}", "batch_stats", (layer, leaf), (features,), np.asarray
        )
