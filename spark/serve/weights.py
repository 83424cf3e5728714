"""New weights for the embedded engine, from a file on its disk or in the request itself."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load, load_file

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
