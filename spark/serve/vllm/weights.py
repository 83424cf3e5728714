"""New weights as the file that vLLM reloads from."""

from __future__ import annotations

from pathlib import Path

import torch
from fastapi import Request
from safetensors import SafetensorError, safe_open

from spark.serve.protocol import RequestError, parsed
from spark.serve.weights import FromFile, Shapes, Version


async def receive_file(http: Request, target: Path, shapes: Shapes) -> int:
    """Make `target` the weights that the request names or carries; return their version.

    Raises RequestError where they are no safetensors, ValueError where they do not fit.
    """
    if http.headers.get("content-type", "").startswith("application/json"):
        asked = parsed(FromFile, await http.json())
        target.symlink_to(Path(asked.path).resolve())
        where, param, version = f"path={asked.path!r}", "path", asked.version
    else:
        version = parsed(Version, dict(http.query_params)).version
        with target.open("wb") as file:
            async for chunk in http.stream():
                file.write(chunk)
        where, param = "the body", None
    try:
        with safe_open(target, framework="pt") as file:
            names = file.keys()
            found = {name: torch.Size(file.get_slice(name).get_shape()) for name in names}
    except (OSError, SafetensorError) as error:
        raise RequestError(f"{where} cannot be loaded: {error}", param=param) from None
    shapes.check(found, foreign=True)
    return version
