"""What was measured: on which machine, the rows of the table and the curves, and the file that keeps them."""

import json
import os
import platform
import shlex
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from plugrad.backends import available, get, threads
from plugrad.backends.profile import processor
from plugrad.bench.cases import Case
from plugrad.bench.growth import Curve, curve_of

COPY, PRODUCTS = BOUNDS = "copy", "products"  # the sides that bound a kernel

# Times that differ by less are taken for equal, however little the processes of one run differ from each other: another
# run on the same machine may differ so much.
LEAST_NOISE = 0.03


@dataclass
class Side:
    """What one side took, by all its processes.

    Attributes
    ----------
    medians : list of float
        Of each process, in seconds.
    quantiles : list of float
        Those of 20, 50 and 80 % in the process with the least median, in seconds.
    first : float
        The first call, in which code may be compiled, in seconds: the least.
    memory : float
        The most beside arguments and results, in bytes.
    processors : float
        How many processors were busy on average in the process with the least median, waiting threads included.
    host : float or None
        Until a call returns that leaves the work to a GPU, in seconds.
    ulp : float or None
        The largest error, see `plugrad.bench.measure.error`; None if that was not looked at, or cannot be told.
    """

    medians: list[float] = field(default_factory=list)
    quantiles: list[float] = field(default_factory=list)
    first: float = float("inf")
    memory: float = 0.0
    processors: float = 0.0
    host: float | None = None
    ulp: float | None = None

    def add(self, told: dict[str, Any]) -> None:
        """Add what `plugrad.bench.measure` told of a process."""
        self.medians.append(told["quantiles"][1])
        if min(self.medians) == told["quantiles"][1]:
            self.quantiles, self.processors = told["quantiles"], told["processors"]
        self.first, self.memory = min(self.first, told["first"]), max(self.memory, told["memory"])
        if "host" in told:
            self.host = min(told["host"], self.host or float("inf"))

    @property
    def best(self) -> float:
        """The least median, in seconds."""
        return min(self.medians)

    @property
    def noise(self) -> float:
        """By how much its times differ from each other, as a share: between processes, or within the only one."""
        if len(self.medians) > 1:
            return max(self.medians) / min(self.medians) - 1
        return self.spread

    @property
    def spread(self) -> float:
        """Half of the way from the 20 % to the 80 % quantile, as a share of the median."""
        low, middle, high = self.quantiles
        return (high - low) / 2 / middle

    def as_json(self) -> dict[str, Any]:
        """What is kept of it; JSON has no number for an infinite error."""
        return {**asdict(self), "ulp": self.ulp if self.ulp is None or self.ulp < float("inf") else "inf"}


@dataclass
class Row:
    """A case, and what each side took: by name, backends, peers and what bounds it."""

    case: Case
    sides: dict[str, Side]

    @property
    def bound(self) -> Side | None:
        """What bounds it, where that was measured."""
        return next((self.sides[name] for name in BOUNDS if name in self.sides), None)

    @property
    def key(self) -> tuple[str, str, str, bool]:
        """What makes two rows the same."""
        return self.case.name, self.case.size, self.case.dtype, self.case.new

    def as_json(self) -> dict[str, Any]:
        """What is kept of it."""
        key = dict(zip(("kernel", "size", "dtype", "new"), self.key, strict=True))
        counts = {"bytes": self.case.bytes, "products": self.case.products, "operations": self.case.operations}
        return {**key, **counts, "sides": {name: side.as_json() for name, side in self.sides.items()}}


def _row(told: dict[str, Any]) -> Row:
    """A row from what was kept of it."""
    case = Case(told["kernel"], told["size"], told["dtype"], told["new"])
    if not told["sides"]:
        raise ValueError("a row without sides")
    return Row(case, {name: _side(side) for name, side in told["sides"].items()})


def _side(told: dict[str, Any]) -> Side:
    ulp = told.get("ulp")
    found = Side(**{**told, "ulp": ulp if ulp is None else float(ulp)})
    if not found.medians or len(found.quantiles) != 3:
        raise ValueError("a side without times")
    return found


@dataclass
class Results:
    """A run.

    Attributes
    ----------
    command : list of str
        Its arguments.
    date : str
        When it began, by ISO 8601, UTC.
    machine : dict
        Processor, threads, system and versions.
    backends, peers : list of str
        Who was measured.
    rows : list of Row
    curves : list of Curve
    is_whole : bool
        Whether it was not interrupted.
    """

    command: list[str]
    date: str
    machine: dict[str, Any]
    backends: list[str]
    peers: list[str]
    rows: list[Row] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    is_whole: bool = False

    @classmethod
    def begun(cls, command: list[str], backends: list[str], peers: list[str]) -> "Results":
        """Those of a run that begins now, on this machine."""
        date = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(command, date, about_this_machine(backends, peers), backends, peers)

    def write(self, path: Path) -> None:
        """Keep them in a file."""
        content = {
            "date": self.date,
            "command": self.command,
            "machine": self.machine,
            "complete": self.is_whole,
            "units": {"time": "s", "memory": "B"},
            "backends": self.backends,
            "peers": self.peers,
            "rows": [row.as_json() for row in self.rows],
            "curves": [curve.as_json() for curve in self.curves],
        }
        replace(path, json.dumps(content, indent=1, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path, what: str) -> "Results":
        """Those that are kept in a file, given by the option called `what`."""
        try:
            told = json.loads(path.read_text())
            found = cls(
                **{key: told[key] for key in ("command", "date", "machine")},
                backends=told.get("backends", []),
                peers=told.get("peers", []),
                rows=[_row(row) for row in told["rows"]],
                curves=[curve_of(curve) for curve in told.get("curves", [])],
                is_whole=told["complete"],
            )
            if not found.backends:  # of a version before these were told
                sides = dict.fromkeys(name for row in found.rows for name in row.sides if name not in BOUNDS)
                found.backends = [name for name in sides if name in available()]
                found.peers = [name for name in sides if name not in found.backends]
            return found
        except (AttributeError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{what}: {path} is no file that --json has written: {repr(error)[:100]}") from error

    @property
    def shell_command(self) -> str:
        """The command, as it was typed."""
        return shlex.join(["python", "-m", "plugrad.bench", *self.command])

    @property
    def about(self) -> str:
        """The machine, in a line."""
        versions = ", ".join(f"{name} {number}" for name, number in self.machine["versions"].items())
        threads = f"{self.machine['threads']} threads"
        if load := self.machine.get("load"):
            threads += f" (others took {load:g} of the processors)"
        return f"{self.machine['processor']}, {threads}, Python {self.machine['python']}, {versions}"


def about_this_machine(backends: Iterable[str], peers: Iterable[str]) -> dict[str, Any]:
    """Processor, threads, GPUs and versions."""
    name, versions = processor(), {}
    for backend in backends:
        if devices := get(backend).describe().get("devices", "CPU").removeprefix("CPU"):
            name = f"{devices}, {name}"
            versions[backend] = get(backend).describe()["version"]
    for package in ("plugrad", "numpy", "numba", *(peer for peer in peers if peer != "textbook")):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "processor": name,
        "threads": threads.count(),
        "load": _load(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def _load() -> float:
    """How many processors were busy in the last minute, before this run: what its times may be disturbed by."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else 0.0


def replace(path: Path, text: str) -> None:
    """Write a file anew, whole or not at all; what was there stays until then."""
    if path.exists() and not path.is_file():  # such as /dev/stdout
        path.write_text(text, encoding="utf-8")
        return
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def change(before: Results, row: Row, name: str) -> tuple[float, bool] | None:
    """How many times as long a side takes now, and whether that is beyond the noise of both; None if it is new."""
    then = next((old.sides[name] for old in before.rows if old.key == row.key and name in old.sides), None)
    if then is None:
        return None
    now = row.sides[name]
    ratio, noise = now.best / then.best, max(LEAST_NOISE, then.noise, now.noise)
    return ratio, not 1 / (1 + noise) <= ratio <= 1 + noise
