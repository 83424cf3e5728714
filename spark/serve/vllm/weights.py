"""New weights as the file that vLLM reloads from."""

from __future__ import annotations

from pathlib import Path

from fastapi import Request
from safetensors import SafetensorError, safe_open

from spark.serve.protocol import RequestError, parsed
from spark.serve.weights import FromFile, Version


async def receive_file(http: Request, target: Path) -> int:
    """Make `target` the weights that the request names or carries; return their version.

    Raises RequestError where they are no safetensors.
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
        with safe_open(target, framework="pt"):
            return version
    except (OSError, SafetensorError) as error:
        raise RequestError(f"{where} cannot be loaded: {error}", param=param) from None
