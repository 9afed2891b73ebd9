"""Print the table of kernels as ``docs/reference/calling-kernels.md`` shows it: ``python -m plugrad.kernels``."""

from plugrad.kernels import KERNELS, Kernel


def row(kernel: Kernel) -> str:
    """One kernel as a row of a Markdown table."""
    options = ", ".join(f"`{name}`" for name in (*kernel.options, "out"))
    call, results = ", ".join(kernel.arguments), ", ".join(kernel.results)
    return f"| `{kernel.name}({call})` → `{results}` | {kernel.formula} | {options} |"


def table() -> str:
    """All kernels as a Markdown table."""
    return "\n".join(["| kernel | computes | options |", "|---|---|---|", *map(row, KERNELS.values())])


if __name__ == "__main__":
    print(table())
