"""The opponent of the benchmarks: Deep SAD as a plain PyTorch loop, data in memory.

Written from the paper: no data loader, no logging, batches are one index operation on a
tensor in memory. It is what a careful user of PyTorch would write first.
"""

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from deepsad_jax import networks, training


class _MLP(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        pairs = list(itertools.pairwise(sizes))
        self.linear = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairs)
        self.norm = nn.ModuleList(_norm(nn.BatchNorm1d, b) for _, b in pairs[:-1])

    def forward(self, x):
        for linear, norm in zip(self.linear[:-1], self.norm, strict=True):
            x = F.leaky_relu(norm(linear(x)))
        return self.linear[-1](x)


class _ConvolutionalEncoder(nn.Module):
    def __init__(self, spec):
        super().__init__()
        height, width, channels = spec.input_shape
        sizes = (channels, *spec.features)
        self.conv = nn.ModuleList(
            nn.Conv2d(a, b, 5, padding=2, bias=False)
            for a, b in itertools.pairwise(sizes)
        )
        self.norm = nn.ModuleList(_norm(nn.BatchNorm2d, b) for b in spec.features)
        shrink = 2 ** len(spec.features)
        flat = spec.features[-1] * (height // shrink) * (width // shrink)
        hidden = (spec.hidden,) if spec.hidden else ()
        self.head = _MLP((flat, *hidden, spec.rep_dim))

    def forward(self, x):
        for conv, norm in zip(self.conv, self.norm, strict=True):
            x = F.max_pool2d(F.leaky_relu(norm(conv(x))), 2)
        return self.head(x.flatten(1))


class _ConvolutionalDecoder(nn.Module):
    def __init__(self, spec, width):
        super().__init__()
        self.spec = spec
        self.head = None
        if spec.hidden:
            self.head = nn.Linear(width, spec.hidden, bias=False)
            self.head_norm = _norm(nn.BatchNorm1d, spec.hidden)
            width = spec.hidden
        sizes = (width // spec.size**2, *(s.features for s in spec.convolutions))
        self.conv = nn.ModuleList(
            # Our padding of a convolution is 4 minus that of a transposed one.
            nn.ConvTranspose2d(a, b, 5, padding=4 - layer.padding, bias=False)
            for (a, b), layer in zip(
                itertools.pairwise(sizes), spec.convolutions, strict=True
            )
        )
        self.norm = nn.ModuleList(_norm(nn.BatchNorm2d, b) for b in sizes[1:-1])

    def forward(self, x):
        if self.head is not None:
            x = self.head_norm(self.head(x))
        x = x.view(len(x), -1, self.spec.size, self.spec.size)
        for i, (conv, layer) in enumerate(
            zip(self.conv, self.spec.convolutions, strict=True)
        ):
            x = F.leaky_relu(self.norm[i - 1](x) if i else x)
            x = conv(F.interpolate(x, scale_factor=2) if layer.upsample else x)
        return torch.sigmoid(x)


def _norm(kind, features):
    return kind(features, eps=1e-4, affine=False)


class TorchRun:
    """One Deep SAD experiment; `epoch` and `fit` are what is timed.

    Args:
        network: a name in `networks.PAPER`.
        x: training inputs, channels last, uint8 or floating, `[n, ...]`.
        semi_targets: +1, 0 or -1, `[n]`.
    """

    def __init__(self, network, x: np.ndarray, semi_targets: np.ndarray):
        encoder, decoder, shape = networks.pair(network)
        torch.manual_seed(0)
        if isinstance(encoder, networks.MLPEncoder):
            sizes = (*shape, *encoder.hidden, encoder.rep_dim)
            self.encoder, mirrored = _MLP(sizes), _MLP(sizes[::-1])
            self.decoder = nn.Sequential(mirrored, nn.Sigmoid())
        else:
            self.encoder = _ConvolutionalEncoder(encoder)
            self.decoder = _ConvolutionalDecoder(decoder, encoder.rep_dim)
        self.x = _to_tensor(x)
        self.semi_targets = torch.tensor(semi_targets, dtype=torch.float32)
        self.center = torch.full((encoder.rep_dim,), 0.1)

    def autoencoder_loss(self, rows):
        x = self.x[rows]
        return torch.mean((self.decoder(self.encoder(x)) - x) ** 2)

    def deep_sad_loss(self, rows):
        distance = torch.sum((self.encoder(self.x[rows]) - self.center) ** 2, dim=1)
        target = self.semi_targets[rows]
        labeled = (distance + 1e-6) ** target
        return torch.mean(torch.where(target == 0, distance, labeled))

    def optimizer(self, stage: str, optimization: training.Stage):
        modules = [self.encoder] + ([self.decoder] if stage == "pretrain" else [])
        parameters = [p for module in modules for p in module.parameters()]
        return torch.optim.Adam(
            parameters,
            lr=optimization.optimizer.learning_rate,
            weight_decay=optimization.optimizer.weight_decay,
        )

    def epoch(self, stage: str, optimizer, batch_size: int) -> None:
        """One pass over the training set."""
        loss = self.autoencoder_loss if stage == "pretrain" else self.deep_sad_loss
        order = torch.randperm(len(self.x))
        for start in range(0, len(self.x) - batch_size + 1, batch_size):
            optimizer.zero_grad()
            loss(order[start : start + batch_size]).backward()
            optimizer.step()

    def fit(self, pretrain, train) -> None:
        """The whole experiment: both stages, and the center between them."""
        for stage, optimization in (("pretrain", pretrain), ("train", train)):
            self.encoder.train()
            if stage == "train":
                self.encoder.eval()
                with torch.no_grad():
                    self.center = self.encoder(self.x).mean(0)
                small = self.center.abs() < 0.1
                sign = torch.where(self.center < 0, -1.0, 1.0)
                self.center = torch.where(small, 0.1 * sign, self.center)
                self.encoder.train()
            optimizer = self.optimizer(stage, optimization)
            schedule = torch.optim.lr_scheduler.MultiStepLR(
                optimizer, list(optimization.optimizer.milestones)
            )
            for _ in range(optimization.epochs):
                self.epoch(stage, optimizer, optimization.batch_size)
                schedule.step()

    def score(self, x: np.ndarray) -> np.ndarray:
        """Squared distances to the center, in evaluation mode."""
        self.encoder.eval()
        with torch.no_grad():
            embeddings = self.encoder(_to_tensor(x))
            return torch.sum((embeddings - self.center) ** 2, dim=1).numpy()


def _to_tensor(x: np.ndarray) -> torch.Tensor:
    if x.dtype == np.uint8:
        x = x / np.float32(255.0)
    x = np.moveaxis(x, -1, 1) if x.ndim == 4 else x
    return torch.tensor(np.ascontiguousarray(x), dtype=torch.float32)
