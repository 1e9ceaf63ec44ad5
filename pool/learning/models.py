"""The torch twin of model_spec: modules of every kind, and weights in and out of them."""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pool.learning.model_spec import ModelSpec, Weights

__all__ = ["Model", "build", "export_weights", "import_weights", "outputs", "rows_at_once"]

Model: TypeAlias = nn.Sequential

_ACTIVATIONS: Final[dict[str, type[nn.Module]]] = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU, "identity": nn.Identity}
MAX_ACTIVATIONS: Final = 16_000_000
"""Numbers that a forward pass may keep at a time (64 MB of float32): longer batches are computed in parts."""


def build(spec: ModelSpec) -> Model:
    """Rows of shape (n, features) to logits of shape (n, classes); softmax is part of the loss. Parameters are not set."""
    # Without storage at first: torch would draw first weights, which takes longer than a round for large layers, only for them
    # to be replaced.
    with torch.device("meta"):
        layers: list[nn.Module] = []
        if spec.is_convolutional:
            channels, side = spec.image
            layers.append(nn.Unflatten(1, (channels, side, side)))
            for shape, c in zip(spec.shapes, spec.convolutions, strict=False):
                layers.append(nn.Conv2d(shape[1], c.outputs, c.kernel, stride=c.stride, padding=c.padding))
                layers.append(_ACTIVATIONS[spec.activation]())
                if c.pool:
                    layers.append(nn.MaxPool2d(2))
            layers.append(nn.Flatten())
        for index, (inputs, width) in enumerate(spec.shapes[len(spec.convolutions) :]):
            if index:
                layers.append(_ACTIVATIONS[spec.activation]())
            layers.append(nn.Linear(inputs, width))
        model = nn.Sequential(*layers)
    return model.to_empty(device="cpu")


def import_weights(model: Model, weights: Weights) -> None:
    """Copy ``weights`` into the model's float32 parameters (torch keeps W of a dense layer transposed)."""
    with torch.no_grad():
        for (weight, bias), (W, b) in zip(_pairs(model), weights, strict=True):
            turned = W.T if W.ndim == 2 else W
            weight.copy_(torch.from_numpy(np.ascontiguousarray(turned, dtype=np.float32)))
            bias.copy_(torch.from_numpy(np.array(b, dtype=np.float32)))


def export_weights(model: Model) -> Weights:
    """The model's parameters as float64 pairs in the shapes of model_spec."""
    found = []
    for weight, bias in _pairs(model):
        W = weight.detach().numpy()
        turned = W.T if W.ndim == 2 else W
        found.append((turned.astype(np.float64), bias.detach().numpy().astype(np.float64)))
    return tuple(found)


def outputs(spec: ModelSpec, weights: Weights, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logits of rows ``x``, shape (n, classes), computed in float32."""
    model = build(spec)
    import_weights(model, weights)
    step = rows_at_once(spec)
    with torch.no_grad():
        parts = [model(torch.from_numpy(x[start : start + step])).numpy() for start in range(0, len(x), step)]
    return np.concatenate(parts).astype(np.float64)


def rows_at_once(spec: ModelSpec) -> int:
    """Rows of one forward pass that keep within MAX_ACTIVATIONS."""
    return max(1, MAX_ACTIVATIONS // spec.activations)


def _pairs(model: Model) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weight and bias of each layer that has them, in order."""
    parameters = list(model.parameters())
    return list(zip(parameters[::2], parameters[1::2], strict=True))
