"""The torch twin of model_spec: modules, and weights in and out of them."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from torch import nn

from pool.learning.model_spec import ModelSpec, Weights

__all__ = ["Model", "build", "export_weights", "import_weights"]

Model: TypeAlias = nn.Sequential

_ACTIVATIONS: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU, "identity": nn.Identity}


def build(spec: ModelSpec) -> Model:
    """Dense layers with the activation between them; softmax is part of the loss."""
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(spec.shapes):
        if index:
            layers.append(_ACTIVATIONS[spec.activation]())
        layers.append(nn.Linear(inputs, outputs))
    return nn.Sequential(*layers)


def import_weights(model: Model, weights: Weights) -> None:
    """Copy ``weights`` into the model's float32 parameters (torch keeps W transposed)."""
    with torch.no_grad():
        for layer, (W, b) in zip(_dense(model), weights, strict=True):
            layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(W.T, dtype=np.float32)))
            layer.bias.copy_(torch.from_numpy(np.ascontiguousarray(b, dtype=np.float32)))


def export_weights(model: Model) -> Weights:
    """The model's parameters as float64 pairs (W of shape (inputs, outputs), b)."""
    return tuple(
        (layer.weight.detach().numpy().T.astype(np.float64), layer.bias.detach().numpy().astype(np.float64))
        for layer in _dense(model)
    )


def _dense(model: Model) -> list[nn.Linear]:
    return [layer for layer in model if isinstance(layer, nn.Linear)]
