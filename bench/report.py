"""What was measured: the rows of the table, the file that keeps them, and how they compare with an earlier one."""

import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from plugrad.backends import get, threads
from plugrad.bench.cases import Case

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
    host : float or None
        Until a call returns that leaves the work to a GPU, in seconds.
    """

    medians: list[float] = field(default_factory=list)
    quantiles: list[float] = field(default_factory=list)
    first: float = float("inf")
    memory: float = 0.0
    host: float | None = None

    def add(self, told: dict[str, Any]) -> None:
        """Add what `plugrad.bench.measure` told of a process."""
        self.medians.append(told["quantiles"][1])
        if min(self.medians) == told["quantiles"][1]:
            self.quantiles = told["quantiles"]
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
        return (self.quantiles[2] - self.quantiles[0]) / 2 / self.quantiles[1]


@dataclass
class Row:
    """A case, and what each side took: by name, backends, peers and what bounds it."""

    case: Case
    sides: dict[str, Side]

    def as_json(self) -> dict[str, Any]:
        """What is kept of it."""
        case = self.case
        key = {"kernel": case.name, "size": case.size, "dtype": case.dtype, "new": case.new}
        return {
            **key,
            "bytes": case.bytes,
            "products": case.products,
            "sides": {k: asdict(v) for k, v in self.sides.items()},
        }


def about_this_machine(backends: Iterable[str], peers: Iterable[str]) -> dict[str, Any]:
    """Processor, threads, GPUs and versions."""
    try:
        with open("/proc/cpuinfo") as told:
            processor = next(line.partition(":")[2].strip() for line in told if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    versions = {}
    for name in backends:
        if devices := get(name).describe().get("devices", "CPU").removeprefix("CPU"):
            processor = f"{devices}, {processor}"
            versions[name] = get(name).describe()["version"]
    for package in ("plugrad", "numpy", "numba", *(peer for peer in peers if peer != "textbook")):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "processor": processor,
        "threads": threads.count(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": versions,
    }


def told(machine: dict[str, Any]) -> str:
    """The same in a line."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return f"{machine['processor']}, {machine['threads']} threads, Python {machine['python']}, {versions}"


def write(path: Path, machine: dict[str, Any], command: list[str], rows: list[Row], is_whole: bool) -> None:
    """Keep what was measured in a file."""
    content = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "machine": machine,
        "complete": is_whole,
        "units": {"time": "s", "memory": "B"},
        "rows": [row.as_json() for row in rows],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


class Earlier:
    """What an earlier run has measured."""

    def __init__(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text())
            self._rows = {self._key(row): row["sides"] for row in content["rows"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"--compare: {path} is no file that --json has written: {error!r}") from error

    @staticmethod
    def _key(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["kernel"], row["size"], row["dtype"], row["new"]

    def change(self, row: Row, name: str) -> tuple[float, bool] | None:
        """How many times as long a side takes now, and whether that is beyond the noise of both; None if it is new."""
        before = self._rows.get(self._key(row.as_json()), {}).get(name)
        if before is None:
            return None
        then, now = Side(**before), row.sides[name]
        ratio, noise = now.best / then.best, max(LEAST_NOISE, then.noise, now.noise)
        return ratio, not 1 / (1 + noise) <= ratio <= 1 + noise
