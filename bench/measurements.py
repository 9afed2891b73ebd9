"""The results of a run: the machine, the rows of the table and the curves, in a JSON file."""

import json
import os
import shlex
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from plugrad.bench import machine
from plugrad.bench.cases import Case
from plugrad.bench.curves import Curve

COPY, PRODUCTS = BOUNDS = "copy", "products"  # the sides that bound a kernel's speed


@dataclass
class Measurement:
    """The times, the memory and the error of one side in one case, over all its processes.

    Attributes
    ----------
    medians : list of float
        The median of each process, in seconds.
    quantiles : list of float
        The 20, 50 and 80 % quantiles of the process with the least median, in seconds.
    first : float
        The least time of a first call, in which code may be compiled, in seconds.
    memory : float
        The largest peak of memory beyond arguments and results, in bytes.
    processors : float
        The average number of busy processors, waiting threads included, in the process with the least median.
    host : float or None
        On a GPU, the time until a call returns, in seconds.
    ulp : float or None
        The largest error, see `plugrad.bench.errors.error`; None if not measured, or without an exact value.
    """

    medians: list[float] = field(default_factory=list)
    quantiles: list[float] = field(default_factory=list)
    first: float = float("inf")
    memory: float = 0.0
    processors: float = 0.0
    host: float | None = None
    ulp: float | None = None

    def add(self, times: dict[str, Any]) -> None:
        """Add the times of a process, as `plugrad.bench.measure` prints them."""
        self.medians.append(times["quantiles"][1])
        if min(self.medians) == times["quantiles"][1]:
            self.quantiles, self.processors = times["quantiles"], times["processors"]
        self.first, self.memory = min(self.first, times["first"]), max(self.memory, times["memory"])
        if "host" in times:
            self.host = min(times["host"], self.host or float("inf"))

    @property
    def best(self) -> float:
        """The least median, in seconds."""
        return min(self.medians)

    @property
    def noise(self) -> float:
        """The relative spread of the medians of several processes, or the spread within a single process."""
        if len(self.medians) > 1:
            return max(self.medians) / min(self.medians) - 1
        return self.spread

    @property
    def spread(self) -> float:
        """Half the distance between the 20 % and 80 % quantiles, as a share of the median."""
        low, middle, high = self.quantiles
        return (high - low) / 2 / middle

    def as_json(self) -> dict[str, Any]:
        """Return the measurement as JSON, which has no infinite number for an error."""
        return {**asdict(self), "ulp": self.ulp if self.ulp is None or self.ulp < float("inf") else "inf"}

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> "Measurement":
        """Return the measurement that `as_json` has turned into JSON."""
        found = cls(**{**kept, "ulp": kept["ulp"] if kept["ulp"] is None else float(kept["ulp"])})
        if not found.medians or len(found.quantiles) != 3:
            raise ValueError("expected the times of a side")
        return found


@dataclass
class Row:
    """A row of the table: a case, and the measurement of each side by name."""

    case: Case
    sides: dict[str, Measurement]

    @property
    def bound(self) -> Measurement | None:
        """The measurement that bounds the kernel's speed, where there is one."""
        return next((self.sides[name] for name in BOUNDS if name in self.sides), None)

    @property
    def key(self) -> tuple[str, str, str, bool, bool]:
        """Kernel, size, dtype, and how it is called: equal for the same case of two runs."""
        return self.case.name, self.case.size, self.case.dtype, self.case.new, self.case.captured

    def as_json(self) -> dict[str, Any]:
        """Return the row as JSON."""
        key = dict(zip(("kernel", "size", "dtype", "new", "captured"), self.key, strict=True))
        counts = {"bytes": self.case.bytes, "products": self.case.products, "operations": self.case.operations}
        return {**key, **counts, "sides": {name: side.as_json() for name, side in self.sides.items()}}

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> "Row":
        """Return the row that `as_json` has turned into JSON."""
        if not kept["sides"]:
            raise ValueError("expected a row with sides")
        case = Case(kept["kernel"], kept["size"], kept["dtype"], kept["new"], kept.get("captured", False))
        return cls(case, {name: Measurement.from_json(side) for name, side in kept["sides"].items()})


@dataclass
class Results:
    """The results of a run.

    Attributes
    ----------
    command : list of str
        The arguments of the command.
    date : str
        The start of the run, by ISO 8601, UTC.
    machine : dict
        Processor, threads, system and versions.
    backends, peers : list of str
        The measured sides.
    rows : list of Row
        The rows of the table.
    curves : list of Curve
        The curves.
    is_whole : bool
        Whether the run came to its end.
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
    def begin(cls, command: list[str], backends: list[str], peers: list[str]) -> "Results":
        """Return the results, still empty, of a run that begins now on this machine."""
        date = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(command, date, machine.describe(backends, peers), backends, peers)

    def write(self, path: Path) -> None:
        """Write the results to a file."""
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
    def read(cls, path: Path) -> "Results":
        """Read the results that `write` has written.

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If `write` has not written it.
        """
        try:
            kept = json.loads(path.read_text())
            return cls(
                **{key: kept[key] for key in ("command", "date", "machine", "backends", "peers")},
                rows=[Row.from_json(row) for row in kept["rows"]],
                curves=[
                    Curve(**{name: value for name, value in curve.items() if name != "exponent"})
                    for curve in kept["curves"]
                ],
                is_whole=kept["complete"],
            )
        except (AttributeError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} was not written by --json: {repr(error)[:100]}") from error

    @property
    def shell_command(self) -> str:
        """The command as typed in a shell."""
        return shlex.join(["python", "-m", "plugrad.bench", *self.command])

    @property
    def about(self) -> str:
        """The machine in a line."""
        return machine.in_a_line(self.machine)


def replace(path: Path, text: str) -> None:
    """Write a file atomically: until the new text is complete, the old file stays."""
    if path.exists() and not path.is_file():  # a device such as /dev/stdout
        path.write_text(text, encoding="utf-8")
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
