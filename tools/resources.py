"""What every GPU kernel takes of the hardware, as built here, against the committed table.

    python -m tools.resources [--write]

Needs a default build with nvcc for the CUDA kernels, Triton for the Triton kernels and for
cuobjdump; no GPU. What is missing on this machine is left out, and said.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

TABLE = Path(__file__).with_suffix(".json")
ARCHITECTURES = ("80", "90a", "100")
# each has `missing() -> str`, `compiler() -> str` and `cubins(folder) -> Iterator[Cubin]`
COLLECTORS = ("tools.cuda_cubins", "tools.triton_cubins")

USAGE = re.compile(r"Function (.+?): +REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
ACCESS = re.compile(r"\b(LDGSTS|LDG|STG|LDL|STL)\b((?:\.\w+)*)")


@dataclass(frozen=True)
class Cubin:
    """One compiled file: `name` stands for it in the table, `arch` is like "sm_90a"."""

    name: str
    arch: str
    path: Path


@dataclass(frozen=True)
class Row:
    """One kernel on one architecture. shared, stack: bytes; loads, stores: bits -> instructions.

    local counts the instructions that touch local memory: spills and arrays without registers.
    """

    kernel: str
    arch: str
    registers: int
    shared: int
    stack: int
    local: int
    loads: dict[str, int]
    stores: dict[str, int]

    @property
    def fits(self) -> bool:
        """Whether everything the kernel holds is in registers."""
        return self.stack == 0 and self.local == 0


def cuobjdump() -> str:
    """Return the path of cuobjdump, of the toolkit or of Triton's wheel; "" where there is none."""
    found = shutil.which("cuobjdump")
    triton = find_spec("triton")
    if found is None and triton is not None and triton.origin is not None:
        inside = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump"
        return str(inside) if inside.exists() else ""
    return found or ""


def dump(cubin: Cubin, option: str) -> str:
    """Return what cuobjdump says of a cubin, names of kernels unmangled."""
    found = subprocess.run([cuobjdump(), option, cubin.path], capture_output=True, check=True)
    plain = subprocess.run(["c++filt"], input=found.stdout, capture_output=True, check=True)
    return plain.stdout.decode()


def label(cubin: Cubin, symbol: str) -> str:
    """Return a short name: without namespaces and arguments."""
    name = symbol.replace("(anonymous namespace)::", "").removeprefix("void ")
    name = re.sub(r"\((?!\w+\)).*", "", name).replace("__nv_bfloat16", "bf16")
    return name if name == cubin.name else f"{cubin.name}: {name}"


def width(modifiers: str) -> str:
    """Return the bits that one thread moves: .128, .64 and so on; 32 when nothing is said."""
    sizes = {"128": "128", "64": "64", "U8": "8", "S8": "8", "U16": "16", "S16": "16"}
    found = [sizes[part] for part in modifiers.split(".") if part in sizes]
    return found[-1] if found else "32"


def rows_of(cubin: Cubin) -> Iterator[Row]:
    """Yield a row for each kernel of a cubin."""
    usage = dump(cubin, "--dump-resource-usage").replace(":\n", ": ")
    bodies = re.split(r"\n\s*Function : ", dump(cubin, "-sass"))[1:]
    code = dict(body.split("\n", 1) for body in bodies)
    for symbol, registers, stack, shared, local in USAGE.findall(usage):
        seen: dict[str, Counter[str]] = {"LDG": Counter(), "STG": Counter(), "local": Counter()}
        for name, modifiers in ACCESS.findall(code[symbol]):
            kind = "local" if name in ("LDL", "STL") else name.removesuffix("STS")
            seen[kind][width(modifiers)] += 1
        yield Row(
            label(cubin, symbol),
            cubin.arch,
            int(registers),
            int(shared),
            int(stack),
            int(local) + seen["local"].total(),
            dict(sorted(seen["LDG"].items())),
            dict(sorted(seen["STG"].items())),
        )


def collect(folder: Path) -> tuple[dict[str, list[Row]], dict[str, str], list[str]]:
    """Gather everything: (collector -> rows, collector -> compiler, what is missing and why)."""
    rows: dict[str, list[Row]] = {}
    compilers: dict[str, str] = {}
    missing = [] if cuobjdump() else ["cuobjdump: neither the CUDA toolkit nor Triton brings it"]
    for name in COLLECTORS if not missing else ():
        if find_spec(name) is None:
            continue
        collector = import_module(name)
        if why := collector.missing():
            missing.append(why)
            continue
        key = name.rpartition(".")[2]
        found = [row for cubin in collector.cubins(folder) for row in rows_of(cubin)]
        rows[key] = sorted(found, key=lambda row: (row.kernel, row.arch))
        compilers[key] = collector.compiler()
    return rows, compilers, missing


def as_text(rows: dict[str, list[Row]], compilers: dict[str, str]) -> str:
    """Return the table as JSON with a kernel a line, so that a change is a short diff."""
    parts = []
    for key in sorted(rows):
        lines = ",\n".join(f"    {json.dumps(asdict(row))}" for row in rows[key])
        parts.append(f'  "{key}": {{"compiler": "{compilers[key]}", "kernels": [\n{lines}\n  ]}}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def stored() -> dict[str, dict]:
    """Return the committed table: collector -> {"compiler", "kernels"}."""
    return json.loads(TABLE.read_text()) if TABLE.exists() else {}


def differences(rows: dict[str, list[Row]], compilers: dict[str, str]) -> list[str]:
    """Return what speaks against these rows: spills, and changes against the table.

    Another compiler version allocates registers differently: then only the limits are judged.
    """
    wrong = [f"{r.kernel} {r.arch}: spills or stack" for k in rows for r in rows[k] if not r.fits]
    table = stored()
    for key, found in rows.items():
        old = table.get(key, {"compiler": None, "kernels": []})
        if old["compiler"] not in (None, compilers[key]):
            continue
        now = {(row.kernel, row.arch): asdict(row) for row in found}
        then = {(row["kernel"], row["arch"]): row for row in old["kernels"]}
        for name in sorted(now.keys() | then.keys()):
            if now.get(name) != then.get(name):
                wrong.append(f"{' '.join(name)}: was {then.get(name)}, is {now.get(name)}")
    return wrong


def main() -> int:
    """Compare or rewrite the table; the exit code says whether anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tools.resources", description=__doc__)
    parser.add_argument("--write", action="store_true", help="rewrite the table")
    parser.add_argument("--folder", type=Path, default=Path("build/cubins"), help="for the cubins")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    rows, compilers, missing = collect(args.folder)
    for why in missing:
        print(f"left out: {why}")
    if args.write:
        table = stored()
        old = {key: [Row(**row) for row in entry["kernels"]] for key, entry in table.items()}
        names = {key: entry["compiler"] for key, entry in table.items()}
        TABLE.write_text(as_text({**old, **rows}, {**names, **compilers}))
    wrong = differences(rows, compilers)
    for line in wrong:
        print(line)
    print(f"{sum(map(len, rows.values()))} kernels, {len(wrong)} differences")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
