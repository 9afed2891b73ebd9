"""List the backends and whether they can run here: ``python -m plugrad.backends [NAME ...]``."""

import argparse
import platform
from collections.abc import Mapping

import plugrad
from plugrad.backends import BackendUnavailableError, available, current, get
from plugrad.backends.registry import ignored_plug_ins, is_known, is_plug_in, unknown
from plugrad.backends.selection import change_of_environment, chosen

COLUMNS = ("backend", "here", "version", "threads", "devices")


def table(names: tuple[str, ...]) -> str:
    """One row for each backend, or each of `names`, which are loaded for it; then why some of them cannot run."""
    rows: list[tuple[str, ...]] = [COLUMNS]
    remarks: list[str] = []
    for name, usable in available(*names).items():
        if names and name not in names:
            continue
        if usable:
            described, failure = _described(name)
            rows.append((name, "yes", *(described.get(column, "-") for column in COLUMNS[2:])))
            remarks += failure
        else:
            rows.append((name, "?" if is_plug_in(name) and not names else "no", "-", "-", "-"))
            remarks.append(str(usable))
    remarks += [
        f"plug-in {name!r} of {owner} is ignored: a backend of plugrad has this name"
        for name, owner in ignored_plug_ins().items()
        if not names or name in names
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, *([""] if remarks else []), *remarks])


def _described(name: str) -> tuple[Mapping[str, str], list[str]]:
    """The description of a backend, or the error that it raised instead, which must not hide the other backends."""
    try:
        return get(name).describe(), []
    except Exception as error:
        return {}, [f"backend {name!r} failed to describe itself: {type(error).__name__}: {error}"]


def main() -> None:
    """Print the table, and the backend that NumPy arrays go to."""
    parser = argparse.ArgumentParser(
        prog="python -m plugrad.backends",
        description="List which backends can run here, and why each other one cannot.",
    )
    parser.add_argument(
        "name", nargs="*", help="list this backend only, and fail if it cannot run; a plug-in is loaded for it"
    )
    names = tuple(dict.fromkeys(parser.parse_args().name))
    try:
        for name in names:
            if not is_known(name):
                unknown(name, "argument name")
        print(f"plugrad {plugrad.__version__}, Python {platform.python_version()}, {platform.platform()}\n")
        print(table(names))
        if names:
            raise SystemExit(0 if all(available(*names)[name] for name in names) else 1)
        print(f"\nNumPy arrays are computed by {current()} ({chosen().description})")
        if remark := change_of_environment():
            print(remark)
    except (BackendUnavailableError, ValueError) as error:
        raise SystemExit(f"python -m plugrad.backends: {error}") from error


if __name__ == "__main__":
    main()
