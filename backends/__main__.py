"""What can compute here: ``python -m plugrad.backends [NAME ...]``."""

import argparse
import platform
from collections.abc import Mapping
from importlib.metadata import version

from plugrad.backends import available, current, get
from plugrad.backends.registry import BackendUnavailableError, ignored_plug_ins, is_known, is_plug_in, unknown
from plugrad.backends.selection import chosen

COLUMNS = ("backend", "here", "version", "threads", "devices")


def table(names: tuple[str, ...]) -> str:
    """One row per backend, or for each of `names`, which are loaded for it."""
    told: Mapping[str, str]
    rows: list[tuple[str, ...]] = [COLUMNS]
    reasons: list[str] = []
    for name, usable in available(*names).items():
        if names and name not in names:
            continue
        if usable:
            try:
                told = get(name).describe()
            except Exception as error:  # whatever a plug-in does wrong here, the others are still to be shown
                told = {}
                reasons.append(f"backend {name!r} failed to describe itself: {type(error).__name__}: {error}")
            rows.append((name, "yes", *(told.get(column, "-") for column in COLUMNS[2:])))
        else:
            rows.append((name, "?" if is_plug_in(name) and not names else "no", "-", "-", "-"))
            reasons.append(str(usable))
    for name, owner in ignored_plug_ins().items():
        if names and name not in names:
            continue
        reasons.append(f"plug-in {name!r} of {owner} is ignored: a backend of plugrad has this name")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, *([""] if reasons else []), *reasons])


def main() -> None:
    """Print the table, and which backend NumPy arrays go to."""
    parser = argparse.ArgumentParser(
        prog="python -m plugrad.backends", description="Which backends can run here, and why each other one cannot."
    )
    parser.add_argument(
        "name", nargs="*", help="tell of this backend only, and fail if it cannot run; loads it if it is a plug-in"
    )
    names = tuple(dict.fromkeys(parser.parse_args().name))
    try:
        for name in names:
            if not is_known(name):
                unknown(name, "argument name")
        print(f"plugrad {version('plugrad')}, Python {platform.python_version()}, {platform.platform()}\n")
        print(table(names))
        if names:
            raise SystemExit(0 if all(available(*names)[name] for name in names) else 1)
        print(f"\nNumPy arrays are computed by {current()} ({chosen().description})")
    except (BackendUnavailableError, ValueError) as error:
        raise SystemExit(f"python -m plugrad.backends: {error}") from error


if __name__ == "__main__":
    main()
