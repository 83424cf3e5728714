"""New weights from a file on the server's disk or in the request itself, and which fit."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from fastapi import Request
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from transformers import AutoModelForCausalLM

from spark.serve.protocol import RequestError, Strict, parsed

State = dict[str, Any]


class FromFile(Strict):
    """The JSON body of POST /v1/weights."""

    path: str
    """A safetensors file that the server can read."""
    version: int = Field(ge=0)


class Version(Strict):
    """The query of POST /v1/weights with the tensors in its body."""

    version: int = Field(ge=0, strict=False)


async def receive_state(http: Request) -> tuple[State, int]:
    """Return name -> tensor and the version. Raises RequestError where it is no safetensors."""
    if http.headers.get("content-type", "").startswith("application/json"):
        asked = parsed(FromFile, await http.json())
        try:
            return load_file(asked.path), asked.version
        except (OSError, SafetensorError) as error:
            raise RequestError(
                f"path={asked.path!r} cannot be loaded: {error}", param="path"
            ) from None
    version = parsed(Version, dict(http.query_params)).version
    try:
        return load(await http.body()), version
    except SafetensorError as error:
        raise RequestError(f"the body is not safetensors: {error}") from None


class Shapes:
    """What a model's weights are called and how large they are, by transformers.

    An engine that meets a tensor which does not fit in the middle of an update ends by it, or is
    left with a part of the new weights.
    """

    def __init__(self, config: Any) -> None:
        """`config`: the model's, of transformers."""
        self._config = config

    def check(self, found: Mapping[str, torch.Size], *, foreign: bool = False) -> None:
        """Raise ValueError for a tensor that the model does not have, by its name or its shape.

        `foreign`: names that transformers does not know pass, for checkpoints have some of their
        own.
        """
        for name, shape in found.items():
            if name not in self._known:
                if foreign:
                    continue
                raise ValueError(f"{name} is not a weight of {self._config.name_or_path}")
            if shape != self._known[name]:
                raise ValueError(
                    f"{name} has the shape {list(shape)}, not {list(self._known[name])}"
                )

    @cached_property
    def _known(self) -> dict[str, torch.Size]:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(self._config)
        return {name: tensor.shape for name, tensor in model.state_dict().items()}
