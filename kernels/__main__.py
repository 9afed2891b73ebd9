"""Print the table of kernels as the README shows it: ``python -m plugrad.kernels``."""

import inspect

from plugrad.kernels import KERNELS, Kernel


def row(kernel: Kernel) -> str:
    """One kernel as a row of a Markdown table."""
    parameters = inspect.signature(kernel.function).parameters
    call = ", ".join(name for name in parameters if name in kernel.arguments)
    results = ", ".join(kernel.results)
    options = ", ".join(f"`{name}`" for name in parameters if name not in kernel.arguments)
    return f"| `{kernel.name}({call})` → `{results}` | {kernel.formula} | {options} |"


def table() -> str:
    """All kernels as a Markdown table."""
    return "\n".join(["| kernel | computes | options |", "|---|---|---|", *map(row, KERNELS.values())])


if __name__ == "__main__":
    print(table())
