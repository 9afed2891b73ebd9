"""The cupy backend without a GPU: its sources compile for GPUs, and run on the CPU (see cuda_on_cpu/README.md)."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugrad.tests.records import RECORDS

HERE = Path(__file__).parent
RIG = HERE / "cuda_on_cpu"
SOURCES = HERE.parent / "backends" / "cupy" / "cuda"
SANITIZERS = "-g1 -fsanitize=address,undefined -fno-sanitize-recover=undefined"

pytestmark = [pytest.mark.slow, pytest.mark.needs("g++")]

# The launches that planted bugs are looked for in: rows of every length, both ways of losses, columns, sums.
CALLS = """
import numpy as np
from plugrad import backends, kernels as K
rng = np.random.default_rng(0)
d = backends.asarray
for shape in ((40, 10), (70, 100), (3, 4000), (2, 40_000), (300, 20_500)):
    x, t = d(rng.normal(size=shape).astype("f4")), d(rng.integers(0, shape[1], shape[0]))
    K.softmax(x)
    K.softmax_cross_entropy_value_and_grad(x, t)
    K.relu(x)
K.softmax(d(rng.normal(size=(3, 50, 7)).astype("f4")), axis=1)
y = d(rng.normal(size=(2100, 1028)).astype("f4"))  # more rows than blocks
K.softmax_backward(y, y)
K.affine_backward(d(np.ones((3000, 5), "f4")), d(np.ones((3000, 4), "f4")), d(np.ones((4, 5), "f4")))
print("done")
"""


def environment(cache: Path, order: str = "every", flags: str = "") -> dict[str, str]:
    """The environment of a process that has the device on the CPU in place of CuPy."""
    variables = {
        **os.environ,
        "PYTHONPATH": str(RIG / "stand_in"),
        "CUPY_CACHE_DIR": str(cache),
        "CUDA_ON_CPU_ORDER": order,
        "CUDA_ON_CPU_FLAGS": flags,
        "PLUGRAD_BACKEND": "cupy",
    }
    if flags:
        found = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
        variables |= {"LD_PRELOAD": found.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
    return variables


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where compiled code is kept, for the tests of all workers."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "cuda"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def run(*arguments: str, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A Python process."""
    return subprocess.run([sys.executable, *arguments], env=variables, capture_output=True, text=True, check=False)


# ---------------------------------------------------------------------------------------------------------------------
# On the CPU
# ---------------------------------------------------------------------------------------------------------------------


TIERS = """
import ml_dtypes, numpy as np
from plugrad.backends.cupy import rows
from plugrad.tests.records import RECORDS
from plugrad.tests.conformance import cases
from plugrad.tests.conformance.subject import Subject
subject = Subject("cupy")
used = set()
launch_plan = rows.launch_plan
def watched(operation, dtype, how, is_aligned):
    found = launch_plan(operation, dtype, how, is_aligned)
    macros = dict(found.instance.macros)
    used.add((operation.name, dtype.name, macros["TIER"], macros["ITEMS"], macros["WIDTH"]))
    return found
rows.launch_plan = watched
dtypes = [np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]
for places in (256, 1):  # 1: as if there were so many rows that none is shared by blocks
    launch_plan.cache_clear()
    rows.PLACES = places
    for kernel in filter(cases.has_axis, RECORDS.values()):
        for dtype in dtypes:
            for classes in (100, 101, 104, 301, 304, 1000, 3000, 3001, 9000, 17_000, 45_000, 45_001):
                for case in cases.samples(kernel, 2, classes, dtype):
                    exact = zip(kernel.results, case.expected())
                    exact = tuple(cases.overflowed(x, cases.result_dtype(name, dtype)) for name, x in exact)
                    subject.compare(case, subject.call(case), exact)
from plugrad.backends.cupy.kernels import OPERATIONS
for operation in {each for some in OPERATIONS.values() for each in some}:
    for dtype in dtypes:
        for instance, _ in rows.instances(operation, dtype):
            macros = dict(instance.macros)
            key = (operation.name, dtype.name, macros["TIER"], macros["ITEMS"], macros["WIDTH"])
            if macros["TIER"] != "COLUMNS" and key not in used:
                print("not used:", key)
print("done")
"""


# Parts of about the same length, which workers share: kernels, and dtypes of the checks that are made in several. Each
# part has one dtype of 16 bits and a wider one. The CUDA code is a template, and kernels with the same code are in
# parts with different dtypes. The test of rows of every length, below, runs the code in every dtype.
PARTS: tuple[tuple[list[str], tuple[str, str]], ...] = (
    (["softmax_cross_entropy", "affine"], ("float16", "float64")),
    (["softmax_cross_entropy_value_and_grad", "affine_backward"], ("bfloat16", "float32")),
    (["cross_entropy", "cross_entropy_backward", "relu", "sigmoid_backward", "tanh"], ("float16", "float32")),
    (["softmax", "log_softmax_backward", "relu_backward", "sigmoid"], ("bfloat16", "float32")),
    (["log_softmax", "softmax_backward", "softmax_cross_entropy_backward", "tanh_backward"], ("float16", "float64")),
    (["leaky_relu", "silu_backward", "gelu", "dropout"], ("float16", "float32")),
    (["leaky_relu_backward", "silu", "gelu_backward", "dropout_backward"], ("bfloat16", "float64")),
    (["sigmoid_cross_entropy", "sigmoid_cross_entropy_backward"], ("bfloat16", "float64")),
    (["sigmoid_cross_entropy_value_and_grad", "top_k_accuracy", "linear_top_k"], ("float16", "float32")),
)


IN_PROCESSES = "the_same_bits_for_any_number_of_threads or the_same_bits_in_another_process"


def test_every_kernel_is_in_one_part() -> None:
    parts = [name for kernels, _ in PARTS for name in kernels]
    assert sorted(parts) == sorted(name for name in RECORDS if not name.startswith("linear_cross"))


@pytest.mark.long
@pytest.mark.parametrize(
    ("kernels", "dtypes", "order", "least"),
    [
        # It launches kernels of others, and copies, whose threads do not depend on each other: their orders are not
        # compared. All that the loss alone needs is in it.
        (["linear_cross_entropy_value_and_grad"], ("bfloat16", "float32"), "alternating", 75),
        *((kernels, dtypes, "pairs", 35) for kernels, dtypes in PARTS),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_the_conformance_suite_passes_with_sanitizers(
    cache: Path, kernels: list[str], dtypes: tuple[str, str], order: str, least: int
) -> None:
    options = [f"-k 'not ({IN_PROCESSES})'", *(f"--dtype={dtype}" for dtype in dtypes)]
    passed = suite(environment(cache, order, SANITIZERS), kernels, *options)
    assert passed > least * len(kernels), "most of the suite did not run"


def test_processes_compute_the_same_bits(cache: Path) -> None:
    """The checks that start processes, without sanitizers: each of the processes launches what other checks launch."""
    passed = suite(environment(cache, "alternating"), list(RECORDS), f"-k '{IN_PROCESSES}'")
    assert passed > 5 * len(RECORDS)


def suite(variables: dict[str, str], kernels: list[str], *options: str) -> int:
    """Run the conformance suite on the emulated device, with options of pytest; the number of tests that passed."""
    # Without pytest's capture, in which the report of a sanitizer, which ends the process, would be lost.
    variables = {**variables, "PYTEST_ADDOPTS": " ".join(["--capture=no", *options])}
    chosen = [f"--kernel={name}" for name in kernels]
    done = run("-m", "plugrad.tests", "--backend=cupy", *chosen, variables=variables)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    passed = re.search(r"^(\d+) passed", done.stdout, re.M)
    assert passed is not None, done.stdout[-4000:]
    return int(passed[1])


RANDOM_CALLS = """
from plugrad.kernels import KERNELS
from plugrad.tests.conformance import fuzz
from plugrad.tests.conformance.other_calls import OTHER_CALLS
from plugrad.tests.conformance.subject import Subject
subjects = [Subject("cupy")]
for number in range(150):
    finding = fuzz.attempt(subjects, [*KERNELS, *OTHER_CALLS], 1, number)
    assert finding is None, finding
print("done")
"""


def test_random_calls_with_sanitizers(cache: Path) -> None:
    done = run("-c", RANDOM_CALLS, variables=environment(cache, "alternating", SANITIZERS))
    assert done.stdout == "done\n", done.stdout + done.stderr


@pytest.mark.long
def test_rows_of_every_length_with_sanitizers(cache: Path) -> None:
    """Every instance for rows along the last axis is run, but those for odd addresses, and none leaves its arrays."""
    done = run("-c", TIERS, variables=environment(cache, "alternating", SANITIZERS))
    assert done.stdout == "done\n", done.stdout + done.stderr


def test_the_digits_example_runs_unchanged(cache: Path) -> None:
    done = run(str(HERE.parent / "examples" / "digits.py"), "--epochs", "2", variables=environment(cache, "ascending"))
    assert done.returncode == 0, done.stderr
    assert "backend: cupy" in done.stdout
    accuracies = re.findall(r"test accuracy (\d+)", done.stdout)
    assert int(accuracies[-1]) >= 90


LAYERS = """
import contextlib, cupyx
import numpy as np
from plugrad import backends, kernels as K
from plugrad.kernels import gradcheck, jacobians, layers, optim

def train(kind, dtype, **options):
    rng = np.random.default_rng(0)
    x, t = (backends.asarray(a) for a in (rng.normal(size=(40, 6)).astype(dtype), rng.integers(0, 3, 40)))
    net = layers.Sequential(
        layers.Affine.init(6, 9, rng=rng, dtype=dtype), layers.Relu(), layers.Affine.init(9, 5, rng=rng, dtype=dtype),
        layers.Sigmoid(), layers.MatMul.init(5, 3, rng=rng, dtype=dtype),
    )
    loss, optimizer = layers.SoftmaxWithLoss(reduction="sum"), kind(net.params, **options)
    found = []
    for step in range(4):
        found.append(loss.forward(net.forward(x), t))
        dx = net.backward(loss.backward(0.25))
        explicit = net.backward(loss.backward(0.25), use_jacobian=True)
        optim.l2_penalty(net.params, 0.01, grads=net.grads)
        with cupyx.allow_synchronize(False) if backends.current() == "cupy" else contextlib.nullcontext():
            found.append(optim.clip_by_global_norm(net.grads, 0.5))
        optimizer.step(net.grads)
    net.load_state_dict(net.state_dict())
    assert dtype != np.float64 or gradcheck.check(net, x, t, loss=loss)
    y = K.softmax(net.forward(x))
    arrays = *found, dx, explicit, jacobians.softmax_jacobian(y), jacobians.relu_jacobian(y), *net.params
    return [np.asarray(backends.to_numpy(a), np.float64) for a in (*arrays, *jacobians.affine_jacobian(x, net[0].w))]

for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-5), (np.float16, 3e-2)):
    for kind, options in (
        (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        (optim.SGD, {"lr": 0.1}),
        (optim.Adam, {"lr": 0.01}),
        (optim.AdamW, {"lr": 0.01}),
        (optim.RMSprop, {"lr": 0.01, "momentum": 0.5, "centered": True, "eps": 0.1}),
    ):
        with backends.use("cupy"):
            found = train(kind, dtype, **options)
        with backends.use("numpy"):
            expected = train(kind, dtype, **options)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())
with backends.use("cupy"):
    relu = layers.Relu()
    y = relu.forward(backends.asarray(np.ones(3)))
    y *= 0  # a copy: there are no read-only arrays on a device
    assert backends.to_numpy(relu.backward(backends.asarray(np.ones(3)))).tolist() == [1, 1, 1]
print("done")
"""


def test_layers_and_optimizers_give_the_numbers_of_the_host(cache: Path) -> None:
    done = run("-c", LAYERS, variables=environment(cache))
    assert done.stdout == "done\n", done.stderr


def calls(cache: Path, sources: Path, flags: str = "") -> subprocess.CompletedProcess[str]:
    """The calls above, with the CUDA sources of a folder."""
    code = (
        f"import pathlib\nfrom plugrad.backends.cupy import compiling as c\nc.SOURCES = pathlib.Path({str(sources)!r})"
    )
    return run("-c", f"{code}\n{CALLS}", variables=environment(cache, "every", flags))


def test_nothing_is_wrong_with_the_calls_that_bugs_are_looked_for_in(cache: Path) -> None:
    done = calls(cache, SOURCES)
    assert done.stdout == "done\n", done.stderr


@pytest.mark.parametrize(
    ("file", "right", "wrong", "flags", "message"),
    [
        pytest.param(
            "rows.cuh",
            "        __syncthreads();\n        for (int i = 0; i < size / WARP; i++) x = larger",
            "        for (int i = 0; i < size / WARP; i++) x = larger",
            "",
            "depend on the order",
            id="a missing barrier",
        ),
        pytest.param(
            "rows.cuh",
            "        __syncthreads();\n    }\n};\n\n// The threads of one column",
            "    }\n};\n\n// The threads of one column",
            "",
            "depend on the order",
            id="a missing barrier before shared memory is written again",
        ),
        pytest.param(
            "rows.cuh",
            "x = larger(x, __shfl_xor_sync(ALL_LANES, x, step));",
            "if (rank != 1) x = larger(x, __shfl_xor_sync(ALL_LANES, x, step));",
            "",
            "not all lanes of a warp take part in a shuffle",
            id="a divergent shuffle",
        ),
        pytest.param(
            "rows.cuh",
            "        if (rank % WARP == 0) part[rank / WARP] = x;\n        __syncthreads();",
            "        if (rank % WARP == 0) {\n  part[rank / WARP] = x;\n  __syncthreads();\n}",
            "",
            "not all threads of a block come to a barrier",
            id="a barrier for some threads only",
        ),
        pytest.param(
            "softmax.cuh",
            "auto values = read<W>(x + at);",
            "auto values = read<W>(x + at + 1);",
            "-g -fsanitize=address",
            "heap-buffer-overflow",
            id="a read out of bounds",
        ),
        pytest.param(
            "softmax.cuh",
            "auto values = read<W>(x + at);",
            "auto values = read<W>(x + at - (at > 0));",
            "-fsanitize=undefined -fno-sanitize-recover=undefined",
            "misaligned address",
            id="a vector that is not aligned",
        ),
        pytest.param(
            "rows.cuh",
            "NAME##_lanes(int64 rows, int64 classes, int64 size, __VA_ARGS__)",
            "NAME##_lanes(int64 rows, int64 classes, int size, __VA_ARGS__)",
            "",
            "argument 2: expected 4 bytes, got 8",
            id="an argument of another width",
        ),
        pytest.param(
            "logit_loss.cuh",
            "const REAL *x, REAL *out, int64 is_gradient,",
            "const REAL *x, REAL *out, int64 more, int64 is_gradient,",
            "",
            "arguments, got",
            id="an argument that is missing",
        ),
    ],
)
def test_planted_bugs_are_found(
    cache: Path, tmp_path: Path, file: str, right: str, wrong: str, flags: str, message: str
) -> None:
    shutil.copytree(SOURCES, tmp_path / "cuda")
    text = (tmp_path / "cuda" / file).read_text()
    assert right in text, "the source has changed; plant the bug anew"
    (tmp_path / "cuda" / file).write_text(text.replace(right, wrong, 1))
    done = calls(cache, tmp_path / "cuda", flags)
    assert done.returncode != 0, "the bug was not found"
    assert message in done.stderr, done.stderr[-3000:]


WAITS = """
import cupy
from plugrad import backends, kernels as K
from plugrad.tests.conformance.cases import sample
from plugrad.tests.conformance.subject import Subject
from plugrad.tests.records import RECORDS
subject = Subject("cupy")
inside = subject.backend.functions["relu"]
subject.backend.functions["relu"] = lambda x, out: (inside(x, out), out.get())
subject.call(sample(RECORDS["relu"], 3, 4, cupy.np.dtype("f4")))
"""


def test_the_suite_notices_a_kernel_that_waits(cache: Path) -> None:
    done = run("-c", WAITS, variables=environment(cache, "ascending"))
    assert "the device was waited for" in done.stderr


@pytest.mark.long
def test_replays_launch_cuda_graphs(cache: Path) -> None:
    variables = environment(cache, "alternating")
    del variables["PLUGRAD_BACKEND"]  # the tests choose it
    options = ("-q", "--override-ini=addopts=", "-p", "no:cacheprovider", "--no-header")
    done = run("-m", "pytest", *options, str(RIG / "graph_checks.py"), variables=variables)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"^(\d+) passed", done.stdout, re.M)
    assert passed is not None, done.stdout[-2000:]
    assert int(passed[1]) > 130


# ---------------------------------------------------------------------------------------------------------------------
# CuPy's manners
# ---------------------------------------------------------------------------------------------------------------------

MANNERS = """
import cupy, numpy as np
from plugrad import backends, kernels as K

def refused(error, call):
    try:
        call()
    except error as output:
        return str(output)
    raise AssertionError(f"not refused: {call}")

x = backends.asarray(np.ones((3, 4), "f4"))
with cupy.cuda.Device(1):
    other = backends.asarray(np.ones((3, 4), "f4"))
output = refused(TypeError, lambda: K.softmax_backward(x, other))
assert "y: expected an array on the current device, 0, got one on device 1" in output, output
assert "cupy.cuda.Device(1)" in output, output
assert "x: expected an array on the current device" in refused(TypeError, lambda: K.relu(other))
assert "out: expected an array on the current device" in refused(TypeError, lambda: K.relu(x, out=other))
with cupy.cuda.Device(1):
    assert K.relu(other).device.id == 1
output = refused(TypeError, lambda: K.relu(np.ones(3)))
assert "relu: x: expected a cupy.ndarray, got a numpy.ndarray; call plugrad.backends.asarray" in output, output
assert "weight" in refused(TypeError, lambda: K.cross_entropy(x, backends.asarray([0, 0, 0]), weight=[1.0] * 4))

# auto goes by the arrays
with backends.use("auto"):
    assert type(K.relu(x)) is cupy.ndarray
    assert backends.explain(K.relu, x).backend == "cupy"
    assert backends.explain(K.cross_entropy_backward, 1.0, x, x).backend == "cupy"
    assert type(K.relu(np.ones(3))) is np.ndarray

# a label that names no class: NaN for its row, or an error in the checking mode
t = backends.asarray(np.array([0, 9, 3]))
loss, dx = K.softmax_cross_entropy_value_and_grad(x, t, reduction="none")
assert np.isnan(loss.get()).tolist() == [False, True, False]
assert np.isnan(dx.get()).all(axis=1).tolist() == [False, True, False]
assert np.isnan(dx.get()).any(axis=1).tolist() == [False, True, False]
assert np.isnan(float(K.softmax_cross_entropy(x, t)[0]))
assert np.isnan(float(K.cross_entropy(x, t)))
for smoothing in (0.0, 0.1):
    for backward in (K.softmax_cross_entropy_backward, K.cross_entropy_backward):
        d = backward(1.0, x, t, label_smoothing=smoothing).get()
        assert np.isnan(d).all(axis=1).tolist() == [False, True, False], (backward, d)
with backends.use("cupy", check=True):
    assert "expected labels in [0, 4), got 9 at row 1" in refused(ValueError, lambda: K.cross_entropy(x, t))

# the labels seen as numbers are no place for results
whole = backends.asarray(np.zeros(3, np.int32))
error = refused(ValueError, lambda: K.softmax_cross_entropy(x, whole, reduction="none", out=(whole.view("f4"), None)))
assert "shares part of its memory" in error, error

# products of more rows than cuBLAS takes at once
from plugrad.backends.cupy import products
products.MOST_ROWS = 4
a, w = np.arange(30.0).reshape(10, 3), np.arange(6.0).reshape(3, 2)
for given in (backends.asarray(a), backends.asarray(a.T.copy()).T):
    assert (K.affine(given, backends.asarray(w)).get() == a @ w).all()

# another library's array on the device is seen as CuPy's
class Tensor:
    __cuda_array_interface__ = {}
    def __init__(self, array):
        self.array = array
seen = cupy.asarray
cupy.asarray = lambda x: x.array if isinstance(x, Tensor) else seen(x)
assert type(K.relu(Tensor(x))) is cupy.ndarray
cupy.asarray = seen

# compiled ahead, nothing is compiled in the call
from plugrad.backends.cupy import compiling
backends.warmup([K.relu], dtypes=["float32"])
compiling.compile = None
assert compiling._module.cache_info().currsize
K.relu(x)
print("done")
"""


def test_the_manners_of_cupy(cache: Path) -> None:
    done = run("-c", MANNERS, variables=environment(cache, "ascending"))
    assert done.stdout == "done\n", done.stderr


LIBRARIES = """
import sys
from types import SimpleNamespace
import cupy, ml_dtypes, numpy as np
from plugrad import backends, kernels as K
from plugrad.kernels import layers, optim
backends.set_default("auto")

# Stand-ins for PyTorch and JAX, whose arrays have the memory of an array of the device.
class Tensor:
    requires_grad = False
    layout = "strided"
    is_quantized = False
    def __init__(self, on_device, kind="cuda"):
        self.on_device, self.device = on_device, SimpleNamespace(type=kind, index=on_device.device.id)
    is_cuda = property(lambda self: self.device.type == "cuda")
    dtype = property(lambda self: self.on_device.dtype)
    shape = property(lambda self: self.on_device.shape)
    def is_complex(self): return False
    def is_neg(self): return False
    def data_ptr(self): return self.on_device.data.ptr
    def view(self, dtype): return Tensor(self.on_device.view(dtype), self.device.type)

class Array:
    def __init__(self, on_device): self.on_device = on_device
    def devices(self): return [SimpleNamespace(platform="gpu")]
    def is_deleted(self): return False
    dtype = property(lambda self: self.on_device.dtype)
    shape = property(lambda self: self.on_device.shape)

sys.modules["torch"] = torch = SimpleNamespace(
    Tensor=Tensor, nn=SimpleNamespace(Parameter=Tensor), strided="strided", from_dlpack=Tensor,
    bfloat16=np.dtype(ml_dtypes.bfloat16), int16=np.dtype(np.int16),
    cuda=SimpleNamespace(current_stream=lambda device: SimpleNamespace(cuda_stream=77 + device.index)),
)
sys.modules["jax"] = SimpleNamespace(
    Array=Array, core=SimpleNamespace(Tracer=()), dlpack=SimpleNamespace(from_dlpack=Array)
)
d = lambda x: backends.get("cupy").asarray(x)
streams = []
functions = backends.get("cupy").functions
for name in ("relu", "softmax_cross_entropy_value_and_grad", "affine"):
    def watched(*given, function=functions[name]):
        streams.append(cupy.cuda.get_current_stream().ptr)
        function(*given)
    functions[name] = watched

x, w, t = np.linspace(-2, 2, 12, dtype="f4").reshape(3, 4), np.eye(4, dtype="f4"), np.array([0, 3, 1])
for kind, stream in ((Tensor, 77), (Array, 0)):
    streams.clear()
    a = kind(d(x))
    y = K.relu(a)
    assert type(y) is kind and (y.on_device.get() == np.maximum(x, 0)).all()
    loss, dx = K.softmax_cross_entropy_value_and_grad(a, kind(d(t)), weight=kind(d(np.ones(4, "f4"))))
    expected = K.softmax_cross_entropy_value_and_grad(d(x), d(t))
    assert type(loss) is type(dx) is kind and loss.on_device.get() == expected[0].get()
    assert (dx.on_device.get() == expected[1].get()).all()
    assert (K.affine(a, d(w)).on_device.get() == x).all()
    assert K.relu(kind(d(x.astype(ml_dtypes.bfloat16)))).dtype == ml_dtypes.bfloat16
    assert streams == [stream, stream, 0, stream, stream], streams
    assert backends.explain(K.relu, a).backend == "cupy"
    assert cupy.cuda.get_current_stream().ptr == 0
    layer = layers.Relu()
    assert type(layer(a)) is type(layer.backward(a)) is kind

out = Tensor(d(np.zeros_like(x)))
assert K.relu(Tensor(d(x)), out=out) is out and (out.on_device.get() == np.maximum(x, 0)).all()
assert K.relu(out, out=out) is out
p = Tensor(d(np.ones(3, "f4")))
optim.SGD([p], lr=0.5).step([Tensor(d(np.ones(3, "f4")))])
assert (p.on_device.get() == 0.5).all()

def refused(call):
    try:
        call()
    except TypeError as error:
        return str(error)

host = Tensor(d(x), "cpu")
assert "affine: w: expected a plain tensor on a GPU, got one on the device" in refused(lambda: K.affine(a, host))
assert "relu: out: expected a plain tensor on a GPU" in refused(lambda: K.relu(Tensor(d(x)), out=host))
assert "immutable" in refused(lambda: K.relu(Tensor(d(x)), out=Array(d(x))))
with backends.use("numpy"):
    assert "in host memory, got one on the device" in refused(lambda: K.relu(Tensor(d(x))))
with cupy.cuda.Device(1):
    other = Tensor(cupy.asarray(np.ones(3, "f4")))
assert "relu: x: expected an array on the current device, 0, got one on device 1" in refused(lambda: K.relu(other))
print("done")
"""


def test_arrays_of_other_libraries_on_the_device(cache: Path) -> None:
    done = run("-c", LIBRARIES, variables=environment(cache, "ascending"))
    assert done.stdout == "done\n", done.stderr


def test_benchmarks_tell_of_the_device(cache: Path) -> None:
    arguments = ("-m", "plugrad.bench", "softmax", "step", "--backend", "cupy", "--rounds", "1", "--seconds", "0.01")
    done = run(*arguments[:3], *arguments[4:], "--sizes", "64x24", variables=environment(cache, "ascending"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("a device on the CPU"), done.stdout
    heads, row = (line.split() for line in done.stdout.splitlines()[-2:])
    assert " ".join(heads).endswith(" cupy us host us +- % GB/s Mrows/s of bound CPUs")
    assert row[0] == "softmax"
    assert all(float(number.rstrip("%")) >= 0 for number in row[3:])
    done = run(*arguments[:2], *arguments[3:], "--sizes", "8-5-4-3", variables=environment(cache, "ascending"))
    assert done.returncode == 0, done.stderr
    bytes_moved, rows, bound, _ = done.stdout.splitlines()[-1].split()[-4:]
    assert bytes_moved == "-"
    assert float(bound.rstrip("%")) >= 0  # of its matrix products
    assert float(rows) >= 0
    done = run(*arguments[:3], *arguments[4:], "--peers", "textbook", variables=environment(cache, "ascending"))
    assert "--peers: expected torch beside cupy, since textbook is measured on the CPU" in done.stderr


CACHE = """
import os, sys
from pathlib import Path
import numpy as np
from plugrad import backends, kernels as K
from plugrad.backends.cupy import compiling
folder, calls = Path(os.environ["CUPY_CACHE_DIR"]), []
compile = compiling.compile
compiling.compile = lambda *given: calls.append(given) or compile(*given)
assert K.relu(backends.asarray(np.array([-1.0, 2.0], "f4"))).get().tolist() == [0, 2]
print(len(calls), len(list(folder.glob("plugrad_*.bin"))))
"""


def test_compiled_code_is_kept_and_trusted_only_where_it_is_whole_and_ours(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    variables = environment(folder, "ascending")

    def output() -> str:
        done = run("-c", CACHE, variables=variables)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert output() == "1 1"
    assert output() == "0 1"
    (kept,) = folder.glob("plugrad_*.bin")
    kept.write_bytes(kept.read_bytes()[:1000])  # damaged
    assert output().startswith("1 ")
    assert output().startswith("0 ")
    folder.chmod(0o777)  # others can write there
    assert output().startswith("1 ")
    folder.chmod(0o700)
    variables["CUPY_CACHE_DIR"] = str(tmp_path / "file" / "cache")
    (tmp_path / "file").touch()  # where there can be no folder
    assert output() == "1 0"


# ---------------------------------------------------------------------------------------------------------------------
# For GPUs
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_every_instance_compiles_for_gpus_and_spills_no_register() -> None:
    """By NVRTC, for the oldest and the newest GPUs that are aimed at."""
    done = run(str(RIG / "registers.py"), variables={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    reports = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert len(reports) > 1000
    spilling = {kernel: report for kernel, report in reports.items() if "spills 0 bytes" not in report}
    assert not spilling, f"registers are spilled: {spilling}"


def test_subnormal_numbers_are_not_flushed_on_gpus() -> None:
    from plugrad.backends.cupy import compiling, elementwise

    assembly, _ = compiling.compile(elementwise.instance(np.dtype(np.float32), True), "compute_90")
    assert re.search(rb"\bmul\.f32", assembly)
    assert not re.search(rb"\b(add|mul|fma\.r[nz])\.ftz\.f32", assembly)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "softmax_backward", "log_softmax_backward"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_rows_are_read_and_written_16_bytes_at_a_time_on_gpus(name: str, dtype: Any) -> None:
    from plugrad.backends.cupy import compiling, kernels, rows

    (operation,) = kernels.OPERATIONS[name]
    for instance, _ in rows.instances(operation, np.dtype(dtype)):
        macros = dict(instance.macros)
        if macros["WIDTH"] == 1 or not macros["ALIGNED"] or macros["TIER"] == "PARTS":
            continue
        assembly, _ = compiling.compile(instance, "compute_90")
        for access in re.findall(rb"(?:ld|st)\.global\.(\w+)", assembly):
            assert access == b"v4", f"{macros}: an access of {access.decode()}"
