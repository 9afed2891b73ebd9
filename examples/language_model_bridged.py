"""Run `language_model.py` in PyTorch, and again with one import changed, and compare losses, time and memory.

    python examples/language_model_bridged.py

The import of `torch.nn.functional` becomes one of `plugrad.bridges.torch`. Each run has a process of its own.
"""

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("language_model.py")
BEFORE, AFTER = "from torch.nn import functional as F", "from plugrad.bridges import torch as F"
WAYS = {"PyTorch": (BEFORE, BEFORE), "plugrad": (BEFORE, AFTER)}

# Linux gives the peak in kB.
MEASURED = """
import resource, runpy, sys
sys.argv = [{script!r}, *{arguments!r}]
sys.path.insert(0, {folder!r})
exec(compile({source!r}, {script!r}, "exec"), {{"__name__": "__main__"}})
print(f"peak {{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f}} MB")
"""


def run(way, arguments):
    """Run the script one way, and return its losses, the time of a step in ms and the peak of memory in MB."""
    source = SCRIPT.read_text()
    before, after = WAYS[way]
    if source.count(before) != 1:
        raise ValueError(f"{SCRIPT}: expected one line with {before!r}")
    code = MEASURED.format(
        script=str(SCRIPT), arguments=arguments, folder=str(SCRIPT.parent), source=source.replace(before, after)
    )
    print(f"{way}: {after}", flush=True)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        sys.exit(done.stderr)
    print(done.stdout, flush=True)
    if "ms per step" not in done.stdout:  # --help
        sys.exit()
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", done.stdout)]
    return losses, float(re.search(r"(\d+) ms", done.stdout)[1]), float(re.search(r"peak (\d+)", done.stdout)[1])


if __name__ == "__main__":
    (losses, time, memory), (our_losses, our_time, our_memory) = (run(way, sys.argv[1:]) for way in WAYS)
    apart = max(abs(a - b) for a, b in zip(losses, our_losses, strict=True))
    print(f"the losses differ by {apart:.4f} at most")
    print(f"saved: {1 - our_time / time:.0%} of the time, {memory - our_memory:.0f} MB of {memory:.0f} MB")
