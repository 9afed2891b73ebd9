"""Which backend runs: names, the environment, scopes, threads, plug-ins, and what is said when something is wrong."""

import asyncio
import contextlib
import contextvars
import copy
import functools
import json
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import types
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugrad import backends
from plugrad import kernels as K
from plugrad.backends import BackendUnavailableError, selection


def python(code: str, *path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new process with these environment variables."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PLUGRAD_")}
    clean.update(environment)
    if path:
        clean["PYTHONPATH"] = os.pathsep.join(map(str, path))
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=clean, capture_output=True, text=True, check=False
    )


def room(**functions: Any) -> types.SimpleNamespace:
    """A backend whose relu counts its calls."""

    def relu(x: Any, out: Any) -> None:
        calls.append(threading.get_ident())
        np.maximum(x, 0, out=out)

    calls: list[int] = []
    return types.SimpleNamespace(relu=relu, calls=calls, **functions)


SHOW = "from plugrad import backends, kernels as K; K.relu([1.0]); print(backends.current())"


# The environment


@pytest.mark.parametrize("text", ["numpy", " numpy ", "auto", "", "cupy,numpy", "cupy, numba ,numpy"])
def test_the_environment_selects(text: str) -> None:
    done = python(SHOW, PLUGRAD_BACKEND=text)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("numpy", "numba")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nubma", "ValueError: PLUGRAD_BACKEND=nubma: unknown backend 'nubma'; did you mean 'numba'? Known backends: "),
        ("NumPy", "did you mean 'numpy'?"),
        ("numpy,torch", "PLUGRAD_BACKEND=numpy,torch: unknown backend 'torch'. Known backends: numpy, numba, cupy"),
        ("numpy,", "unknown backend ''"),
        ("cupy", "PLUGRAD_BACKEND=cupy: backend 'cupy' cannot run here: cupy "),
    ],
)
def test_what_the_environment_cannot_select_is_told_at_the_first_call(text: str, told: str) -> None:
    done = python(SHOW, PLUGRAD_BACKEND=text)
    assert done.returncode == 1
    assert told in done.stderr.splitlines()[-1]


def test_importing_needs_no_valid_environment() -> None:
    assert python("import plugrad.kernels", PLUGRAD_BACKEND="nubma").returncode == 0


@pytest.mark.parametrize("text", ["0", "two", "-1", "1.5", "1000000000"])
def test_a_bad_number_of_threads_is_told(text: str) -> None:
    done = python(SHOW, PLUGRAD_NUM_THREADS=text, PLUGRAD_BACKEND="numpy")
    assert done.stderr.splitlines()[-1] == f"ValueError: PLUGRAD_NUM_THREADS={text}: expected a positive integer"


def test_the_number_of_threads_bounds_blas_too() -> None:
    done = python(
        """
        from plugrad import backends
        from plugrad.backends import threads
        backends.get("numpy")
        print(threads.count(), threads.blas_threads())
        """,
        PLUGRAD_NUM_THREADS="1",
    )
    assert done.stdout.split() == ["1", "1"], done.stderr


def test_the_checking_mode_is_switched_by_the_environment() -> None:
    show = "from plugrad.backends import selection; print(selection.options())"
    assert python(show, PLUGRAD_CHECK="1").stdout.strip() == "{'check': True}"
    assert python(show, PLUGRAD_CHECK="off").stdout.strip() == "{'check': False}"
    assert "PLUGRAD_CHECK=maybe: expected one of 1, true" in python(show, PLUGRAD_CHECK="maybe").stderr


def test_importing_the_kernels_imports_nothing_heavy() -> None:
    done = python("import sys, plugrad.kernels; print(*sys.modules)")
    loaded = set(done.stdout.split())
    heavy = {"numba", "cupy", "numpy.ma", "numpy.random", "importlib.metadata", "concurrent.futures", "ml_dtypes"}
    assert not heavy & loaded
    assert "plugrad.backends.numpy" not in loaded


# Scopes and defaults


def test_use_is_a_context_manager_and_nests() -> None:
    one, two = room(), room()
    backends.register("one", one)
    backends.register("two", two)
    with backends.use("one") as backend:
        assert backend == "one"
        assert str(backends.current()) == "one"
        with backends.use("two"):
            K.relu([1.0])
        with backends.use("auto"):
            assert backends.current() in ("numpy", "numba")
        K.relu([1.0])
    assert backends.current() != "one"
    assert (len(one.calls), len(two.calls)) == (1, 1)


def test_a_backend_can_be_sent_to_another_process() -> None:
    backend = backends.get("numpy")
    assert pickle.loads(pickle.dumps(backend)) is backend
    assert copy.deepcopy({"backend": backend})["backend"] is backend


def test_kernels_run_without_their_docstrings() -> None:
    done = subprocess.run([sys.executable, "-OO", "-c", SHOW], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_scope_ends_with_an_error_in_it() -> None:
    backends.register("one", room())
    before = backends.current()
    with pytest.raises(KeyError), backends.use("one"):
        raise KeyError
    assert backends.current() == before


def entered(name: str) -> Iterator[None]:
    with backends.use(name):
        yield


def test_a_generator_that_is_closed_within_another_scope_ends_its_own() -> None:
    backends.register("one", room())
    backends.register("two", room())
    backends.set_default("numpy")
    scope = entered("one")
    next(scope)
    with backends.use("two"):
        scope.close()  # type: ignore[attr-defined]
        assert backends.current() == "two"
        with backends.use("two"):
            assert backends.current() == "two"
    assert backends.current() == "numpy"


@pytest.mark.parametrize("outside", [contextlib.nullcontext(), backends.use("numpy")])
def test_a_generator_that_another_thread_closes_changes_nothing_there(outside: Any) -> None:
    backends.register("one", room())
    backends.set_default("numpy")
    scope = entered("one")
    thread = threading.Thread(target=next, args=(scope,))
    thread.start()
    thread.join()
    with outside:
        scope.close()  # type: ignore[attr-defined]
        assert backends.current() == "numpy"
    assert backends.current() == "numpy"


def test_nor_does_one_that_another_task_closes() -> None:
    backends.register("one", room())

    async def entered_later() -> AsyncIterator[None]:
        with backends.use("one"):
            yield

    async def enter(scope: Any) -> None:
        await anext(scope)

    async def close(scope: Any) -> str:
        with backends.use("numpy"):
            await scope.aclose()
            return str(backends.current())

    async def main() -> str:
        scope = entered_later()
        await asyncio.create_task(enter(scope))
        return await asyncio.create_task(close(scope))

    assert asyncio.run(main()) == "numpy"


def test_use_decorates_functions_coroutines_and_methods() -> None:
    backends.register("one", room())
    scope = backends.use("one")

    @scope
    def name(depth: int = 0) -> str:
        """Doc."""
        return name(depth - 1) if depth else str(backends.current())

    @scope
    async def later() -> str:
        await asyncio.sleep(0)
        return str(backends.current())

    async def together() -> tuple[str, str]:
        async def outside() -> str:
            await asyncio.sleep(0)
            return str(backends.current())

        return tuple(await asyncio.gather(later(), outside()))  # type: ignore[return-value]

    assert (name(), name(3), name.__doc__) == ("one", "one", "Doc.")
    assert asyncio.run(together()) == ("one", str(backends.current()))
    assert backends.current() != "one"
    with pytest.raises(TypeError, match="a class cannot be decorated; decorate its methods"):
        scope(int)
    with pytest.raises(TypeError, match="a generator cannot be decorated"):
        scope(lambda: (yield))


@pytest.mark.parametrize("inherits", [False, True])
def test_a_new_thread_sees_the_default_and_never_the_scope_of_another(
    inherits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if inherits:  # as where Python has no lock
        monkeypatch.setattr(selection, "_scope", selection._ThreadsOwn())
    one, two = room(), room()
    backends.register("one", one)
    backends.register("two", two)
    backends.set_default("two")
    seen: list[str] = []

    def look() -> None:
        seen.append(str(backends.current()))
        with backends.use("one"):
            barrier.wait()
            K.relu([1.0])
            seen.append(str(backends.current()))

    barrier = threading.Barrier(3)
    with backends.use("one"):
        targets = [functools.partial(contextvars.copy_context().run, look) if inherits else look for _ in range(3)]
        threads = [threading.Thread(target=target) for target in targets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert str(backends.current()) == "one"
    assert sorted(seen) == ["one"] * 3 + ["two"] * 3
    assert len(set(one.calls)) == 3
    assert not two.calls


def test_set_default_counts_everywhere_and_fails_without_effect() -> None:
    backends.register("one", room())
    backends.set_default("one")
    assert backends.current() == "one"
    for wrong, error in (("nubma", ValueError), (None, TypeError), ("cupy", BackendUnavailableError)):
        with pytest.raises(error):
            backends.set_default(wrong)  # type: ignore[arg-type]
        assert backends.current() == "one"
    backends.set_default("auto")
    assert backends.current() != "one"


def test_a_wrong_name_is_told_where_it_stands() -> None:
    with pytest.raises(ValueError, match=r"use\('numpi'\): unknown backend 'numpi'; did you mean 'numpy'\?"):
        backends.use("numpi")
    with pytest.raises(TypeError, match="expected the name of a backend as a string, got NoneType"):
        backends.use(None)  # type: ignore[arg-type]
    for several in ("auto", "numpy,numba"):
        with pytest.raises(ValueError, match="get: name: expected the name of one backend"):
            backends.get(several)
    with pytest.raises(ValueError, match="get: unknown backend 'jax'"):
        backends.get("jax")
    with pytest.raises(TypeError, match="get: expected the name of a backend as a string, got list"):
        backends.get([])  # type: ignore[arg-type]


def test_options() -> None:
    with backends.use("numpy", check=True):
        K.relu([1.0])
    with (
        pytest.raises(TypeError, match="backend 'numpy' has no option 'chek'; it has check"),
        backends.use("numpy", chek=1),
    ):
        pass
    with pytest.raises(TypeError, match="check: expected bool, got str"), backends.use("numpy", check="yes"):
        pass


# What there is


def test_available_tells_true_or_why_not() -> None:
    told = backends.available()
    assert list(told)[:3] == ["numpy", "numba", "cupy"]
    assert told["numpy"] is True
    for reason in (reason for reason in told.values() if reason is not True):
        assert isinstance(reason, str)
        assert len(reason) > 20
        assert not reason  # so that `if available()[name]` means what it says
    with pytest.raises(ValueError, match="available: unknown backend 'nubma'"):
        backends.available("nubma")


def test_a_backend_is_its_name() -> None:
    numpy = backends.get("numpy")
    assert numpy == "numpy"
    assert numpy != "numba"
    assert {numpy: 1}["numpy"] == 1
    with backends.use(numpy) as selected:
        assert selected is numpy
    assert (str(numpy), repr(numpy), numpy.name) == ("numpy", "<plugrad backend 'numpy'>", "numpy")


def test_register() -> None:
    mine = room()
    backends.register("mine", mine)
    assert backends.available()["mine"] is True
    with pytest.raises(ValueError, match="register: name: 'mine' is taken; choose another, or pass replace=True"):
        backends.register("mine", room())
    with pytest.raises(ValueError, match="'numpy' is taken"):
        backends.register("numpy", room())
    other = room()
    backends.register("mine", other, replace=True)
    with backends.use("mine"):
        K.relu([1.0])
    assert (len(mine.calls), len(other.calls)) == (0, 1)
    for wrong in ("", "auto", "a,b", "a b"):
        with pytest.raises(ValueError, match="register: name: expected letters, digits"):
            backends.register(wrong, mine)
    with pytest.raises(TypeError, match="register: name: expected a string, got int"):
        backends.register(1, mine)  # type: ignore[arg-type]


def test_a_kernel_that_a_backend_lacks_is_an_error_unless_another_stands_in() -> None:
    backends.register("mine", room())
    with backends.use("mine"), pytest.raises(NotImplementedError, match="backend 'mine' has no kernel 'softmax'"):
        K.softmax([1.0])
    backends.register("helped", room(STAND_INS={"softmax": "numpy"}))
    with backends.use("helped"):
        np.testing.assert_array_equal(K.softmax([1.0]), [1.0])
        told = backends.explain("softmax")
        assert told.backend == "numpy"
        assert told.reasons["numpy"] == "stands in for helped, which has no kernel 'softmax'"
        with pytest.raises(NotImplementedError, match="backend 'helped' has no kernel 'sigmoid'"):
            K.sigmoid([1.0])


def test_a_stand_in_that_cannot_help_is_named() -> None:
    backends.register("off", room(probe=lambda: "it is off"))
    backends.register("empty", types.SimpleNamespace())
    backends.register("circle", types.SimpleNamespace(STAND_INS={"relu": "circle"}))
    for name, why in (("off", "cannot: backend 'off' cannot run here: it is off"), ("empty", "has none either")):
        backends.register(f"by-{name}", types.SimpleNamespace(STAND_INS={"relu": name}))
        told = f"backend 'by-{name}' has no kernel 'relu', and '{name}', which stands in for it, {why}"
        with backends.use(f"by-{name}"):
            with pytest.raises(NotImplementedError, match=told):
                K.relu([1.0])
            assert backends.explain("relu").reasons[f"by-{name}"].startswith(told)
    with backends.use("circle"), pytest.raises(NotImplementedError, match="has none either"):
        K.relu([1.0])


def test_a_room_with_malformed_attributes_is_named_and_breaks_nobody_else() -> None:
    backends.register("malformed", room(OPTIONS=3))
    assert "backend 'malformed' declares OPTIONS or another attribute wrongly" in backends.available()["malformed"]
    assert backends.available()["numpy"] is True


def test_auto_stands_alone() -> None:
    with pytest.raises(ValueError, match=r"use\('numpy,auto'\): 'auto' stands alone"):
        backends.use("numpy,auto")


def test_the_checking_mode_is_inherited_by_scopes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUGRAD_CHECK", "1")
    with backends.use("numpy"):
        assert selection.options() == {"check": True}
        with backends.use("numpy", check=False), backends.use("auto"):
            assert selection.options() == {"check": False}
    backends.set_default("numpy")
    assert selection.options() == {"check": True}


def test_set_default_is_not_undone_by_a_thread_that_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, go_on = threading.Event(), threading.Event()
    known = selection.registry.is_known

    def slowly(name: str) -> bool:
        if threading.current_thread() is reader:
            reading.set()
            go_on.wait(5)
        return known(name)

    monkeypatch.setattr(selection.registry, "is_known", slowly)
    monkeypatch.setenv("PLUGRAD_BACKEND", "cupy")
    reader = threading.Thread(target=selection.chosen)
    reader.start()
    assert reading.wait(5)
    setter = threading.Thread(target=backends.set_default, args=("numpy",))
    setter.start()
    setter.join(0.5)  # it has to wait for the reader; if it does not, what it sets is overwritten
    go_on.set()
    setter.join()
    reader.join()
    assert selection.chosen().origin == "set_default('numpy')"


def test_a_failing_probe_names_the_backend() -> None:
    backends.register("broken", room(probe=lambda: 1 / 0))
    backends.register("absent", room(probe=lambda: "no licence was found"))
    backends.register("true", room(probe=lambda: True))
    assert backends.available()["true"] == "backend 'true' is malformed: its probe returned True, not a reason or None"
    told = backends.available()
    assert told["broken"] == "backend 'broken' failed in its probe: ZeroDivisionError: division by zero"
    assert told["absent"] == "backend 'absent' cannot run here: no licence was found"
    with pytest.raises(BackendUnavailableError, match="no licence was found"), backends.use("absent"):
        pass
    told = "none of these backends can run here: backend 'absent' cannot .* was found; backend 'broken' failed"
    with pytest.raises(BackendUnavailableError, match=told), backends.use("absent,broken"):
        pass
    with backends.use("absent,numpy") as backend:
        assert backend == "numpy"
    assert K.relu([1.0])[0] == 1


# Arrays


class DeviceArray:
    """What an array on a GPU shows of itself."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("moved to the host")


def test_kernels_never_move_data_between_devices() -> None:
    with backends.use("numpy"):
        with pytest.raises(
            TypeError, match=r"relu: x: expected an array in host memory, got a .*DeviceArray on a device; call"
        ):
            K.relu(DeviceArray())
        with pytest.raises(TypeError, match=r"affine: w: expected an array in host memory.* plugrad.backends.to_numpy"):
            K.affine(np.ones((1, 1)), DeviceArray())
    with pytest.raises(TypeError, match="to_numpy: x: expected an array of a known backend or in host memory"):
        backends.to_numpy(DeviceArray())


def test_asarray_and_to_numpy() -> None:
    x = np.ones(3)
    assert backends.asarray(x) is x
    assert backends.to_numpy(x) is x
    assert backends.asarray([1, 2]).tolist() == [1, 2]
    assert backends.to_numpy(3.5) == 3.5
    assert type(backends.asarray(np.float32(1))) is np.ndarray
    with pytest.raises(TypeError, match="to_numpy: x: expected an array without a mask"):
        backends.asarray(np.ma.masked_less([1.0, 2.0], 1.5))


class Boxed:
    """An array of a device backend, for want of a device."""

    __module__ = "boxes"

    def __init__(self, inside: Any) -> None:
        self.inside = inside

    shape = property(lambda self: self.inside.shape)
    dtype = property(lambda self: self.inside.dtype)
    ndim = property(lambda self: self.inside.ndim)
    size = property(lambda self: self.inside.size)
    flags = property(lambda self: self.inside.flags)
    strides = property(lambda self: self.inside.strides)

    def __getitem__(self, key: Any) -> "Boxed":
        return Boxed(np.asarray(self.inside[key]))


def take_boxed(what: str, x: Any) -> Any:
    if not isinstance(x, Boxed):
        raise TypeError(f"{what}: expected a boxed array, got {type(x).__name__}; call plugrad.backends.asarray(x)")
    return x


def test_a_backend_with_arrays_of_its_own() -> None:
    boxes = types.SimpleNamespace(
        ARRAYS="boxes",
        NATIVE=Boxed,
        take=take_boxed,
        asarray=lambda x: Boxed(np.array(x)),
        to_numpy=lambda x: x.inside,
        empty=lambda shape, dtype: Boxed(np.empty(shape, dtype)),
        overlap=lambda a, b: backends.get("numpy").overlap(a.inside, b.inside),
        relu=lambda x, out: np.maximum(x.inside, 0, out=out.inside),
    )
    backends.register("boxes", boxes)
    with backends.use("boxes"):
        y = K.relu(backends.asarray([-1.0, 2.0]))
        assert type(y) is Boxed
        assert backends.to_numpy(y).tolist() == [0, 2]
        assert backends.asarray(y) is y
        with pytest.raises(
            TypeError, match="relu: x: expected a boxed array, got ndarray; call plugrad.backends.asarray"
        ):
            K.relu(np.ones(2))
        with pytest.raises(TypeError, match="relu: out: expected a plain array of backend 'boxes', got ndarray"):
            K.relu(y, out=np.ones(2))


def test_an_out_that_lies_where_an_argument_does_reaches_the_backend_as_that_argument() -> None:
    seen: dict[str, list[Any]] = {}

    def recorder(name: str) -> Any:
        return lambda *given: seen.__setitem__(name, list(given))

    recording = types.SimpleNamespace(**{name: recorder(name) for name in K.KERNELS})
    backends.register("recording", recording)
    x, t = np.ones((2, 2)), np.eye(2)
    with backends.use("recording"):
        K.softmax(x, out=x[...])
        assert seen["softmax"][0] is seen["softmax"][-1]
        K.relu_backward(t, x, out=x[...])
        assert seen["relu_backward"][1] is seen["relu_backward"][-1]
        K.affine(x, t, out=t[...])
        assert seen["affine"][1] is seen["affine"][-1]
        K.softmax_cross_entropy_value_and_grad(x, t, out=t[...])
        assert seen["softmax_cross_entropy_value_and_grad"][1] is seen["softmax_cross_entropy_value_and_grad"][-1]
        K.softmax_cross_entropy_backward(1.0, x, t, out=x[...])
        assert seen["softmax_cross_entropy_backward"][1] is seen["softmax_cross_entropy_backward"][-1]
        row, weight = np.ones(2), np.ones(2)
        K.cross_entropy_backward(1.0, row, 0, weight=weight, out=weight[...])
        assert seen["cross_entropy_backward"][3].weight is seen["cross_entropy_backward"][-1]


# explain


def test_explain() -> None:
    backends.register("mine", room())
    with backends.use("mine"):
        told = backends.explain(K.relu, np.ones(2))
        assert told.backend == "mine"
        assert told.reasons["mine"] == "selected by use('mine')"
        assert told.reasons["numpy"] == "not among the backends of use('mine')"
        assert str(told).startswith("relu runs on mine (use('mine'))\n")
        told = backends.explain("softmax")
        assert told.backend is None
        assert "has no kernel 'softmax'" in told.reasons["mine"]
        assert "no backend: the call would fail" in str(told)
    told = backends.explain("softmax", [1.0])
    assert told.backend in ("numpy", "numba")
    assert told.reasons["cupy"] == "auto does not give it arrays of type builtins.list"
    assert told.reasons["mine"] == "auto does not consider it; select it by its name"
    with backends.use("mine,numpy"):
        assert backends.explain("relu").reasons["numpy"] == "mine comes first"
    with backends.use("cupy,numpy"):
        told = backends.explain("relu", DeviceArray())
        assert told.backend is None
        assert "expected an array in host memory" in told.reasons["numpy"]
    with pytest.raises(ValueError, match="explain: kernel: expected one of affine, .*; got 'sofmax'"):
        backends.explain("sofmax")


# Plug-ins


@pytest.fixture
def plug_ins(tmp_path: Path) -> Path:
    """A folder with installed distributions that offer backends."""

    def install(distribution: str, name: str, module: str, source: str) -> None:
        information = tmp_path / f"{distribution}-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(f"[plugrad.backends]\n{name} = {module}\n")
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))

    install("good", "good", "good_room", "print('good is imported')\ndef relu(x, out): out[...] = 42\n")
    install("bad", "bad", "bad_room", "print('bad is imported')\nimport no_such_module\n")
    install("exits", "exits", "exits_room", "raise SystemExit(3)\n")
    install("raises", "raises", "raises_room", "def relu(x, out): raise ZeroDivisionError('in the kernel')\n")
    install(
        "hangs",
        "hangs",
        "hangs_room",
        "import sys\nsys.entered.set()\nsys.released.wait()\ndef relu(x, out): out[...] = 1\n",
    )
    shapes = "import numpy as np\ndef empty(shape, dtype): return np.empty((2, 9))\ndef relu(x, out): out[...] = 0\n"
    install("shapes", "shapes", "shapes_room", shapes)
    returns = "import numpy as np\ndef relu(x, out): return np.maximum(x, 0)\n"
    install("returns", "returns", "returns_room", returns)
    install("resizes", "resizes", "resizes_room", "def relu(x, out): out.resize((7,), refcheck=False)\n")
    install("quits", "quits", "quits_room", "def relu(x, out): raise SystemExit(3)\n")
    install("takes", "takes", "takes_room", "def take(what, x): return [1]\ndef relu(x, out): out[...] = 1\n")
    install(
        "warms", "warms", "warms_room", "def warmup(*given): raise ZeroDivisionError\ndef relu(x, out): out[...] = 1\n"
    )
    install("lazy", "lazy", "lazy_room", "def __getattr__(name): raise ImportError('lazily')\n")
    install("probes", "probes", "probes_room", "def probe(): raise SystemExit(3)\n")
    dtypes = (
        "import numpy as np\ndef empty(shape, dtype): return np.empty(shape, 'f2')\ndef relu(x, out): out[...] = 0\n"
    )
    install("dtypes", "dtypes", "dtypes_room", dtypes)
    install("stands", "stands", "stands_room", "STAND_INS = ['relu']\n")
    unsaid = """
        class Unsaid(Exception):
            def __str__(self): raise ValueError
        def probe(): raise Unsaid
    """
    install("unsaid", "unsaid", "unsaid_room", unsaid)
    install("first", "twice", "first_room", "")
    install("second", "twice", "second_room", "")
    install("thief", "numpy", "thief_room", "print('thief is imported')\n")
    return tmp_path


def test_plug_ins_are_listed_but_not_imported(plug_ins: Path) -> None:
    done = python(
        """
        import json
        from plugrad import backends, kernels as K
        K.relu([1.0])
        backends.explain("relu")
        told = backends.available()
        print(json.dumps({name: told[name] for name in told}))
        """,
        plug_ins,
    )
    told = json.loads(done.stdout)  # nothing else was printed: no plug-in was imported
    assert set(told) > {"numpy", "numba", "cupy", "good", "bad", "exits", "twice", "hangs"}
    assert told["good"] == "backend 'good' is an installed plug-in, loaded only when it is selected"
    assert told["numpy"] is True


def test_a_plug_in_is_selected_by_the_environment(plug_ins: Path) -> None:
    show = "from plugrad import kernels as K; print(K.relu([1.0])[0])"
    assert python(show, plug_ins, PLUGRAD_BACKEND="good").stdout.split("\n")[:2] == ["good is imported", "42.0"]
    assert python(show, plug_ins, PLUGRAD_BACKEND="bad,good").stdout.split("\n")[:3] == [
        "bad is imported",
        "good is imported",
        "42.0",
    ]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("bad", "backend 'bad' (plug-in bad_room of bad) failed to import: ModuleNotFoundError: No module named"),
        ("exits", "backend 'exits' (plug-in exits_room of exits) failed to import: SystemExit: 3"),
        ("twice", "backend 'twice' is claimed by several distributions: first, second; uninstall all but one"),
    ],
)
def test_a_broken_plug_in_is_named_and_breaks_nobody_else(plug_ins: Path, name: str, told: str) -> None:
    done = python("from plugrad import kernels as K; K.relu([1.0])", plug_ins, PLUGRAD_BACKEND=name)
    assert told in done.stderr
    done = python(
        f"""
        from plugrad import backends, kernels as K
        assert {told!r} in backends.available({name!r})[{name!r}]
        assert not backends.available()[{name!r}]
        with backends.use("numpy"):
            print(K.relu([2.0]))
        """,
        plug_ins,
    )
    assert done.stdout.splitlines()[-1] == "[2.]", done.stderr


@pytest.mark.parametrize(
    ("name", "kernel", "told"),
    [
        ("raises", "relu", "raised by backend 'raises' (plug-in raises_room of raises)"),
        (
            "shapes",
            "relu",
            "backend 'shapes' (plug-in shapes_room of shapes): its empty: expected shape (1,) and dtype",
        ),
        ("good", "softmax", "backend 'good' has no kernel 'softmax'"),
        (
            "returns",
            "relu",
            "of returns): its relu: expected the results in the arrays given for them, got a new array",
        ),
        ("resizes", "relu", "of resizes): its relu: expected the arrays that were given to keep their shapes"),
        ("probes", "relu", "(plug-in probes_room of probes) failed in its probe: SystemExit: 3"),
        ("dtypes", "relu", "of dtypes): its empty: expected shape (1,) and dtype float64, got (1,) and float16"),
        ("takes", "relu", "of takes): its take: expected an array, got list"),
        ("lazy", "relu", "(plug-in lazy_room of lazy) failed in its probe: ImportError: lazily"),
        (
            "stands",
            "relu",
            "of stands) declares OPTIONS or another attribute wrongly: TypeError: STAND_INS: expected a",
        ),
        ("unsaid", "relu", "of unsaid) failed in its probe: Unsaid"),
    ],
)
def test_what_a_plug_in_does_wrong_is_told_with_its_name(plug_ins: Path, name: str, kernel: str, told: str) -> None:
    done = python(f"from plugrad import kernels as K; K.{kernel}([1.0])", plug_ins, PLUGRAD_BACKEND=name)
    assert told in done.stderr
    works_on = f"""
        from plugrad import backends, kernels as K
        try:
            with backends.use({name!r}):
                K.{kernel}([1.0])
        except Exception:
            print(K.{kernel}([2.0, 1.0]).sum() > 0, backends.current())
        """
    assert python(works_on, plug_ins, PLUGRAD_BACKEND="numpy").stdout.split()[-2:] == ["True", "numpy"]


@pytest.mark.parametrize(
    ("name", "call"), [("quits", "K.relu([1.0])"), ("warms", "backends.warmup(['relu']); K.relu([1.0])")]
)
def test_whatever_a_plug_in_raises_is_told_as_its_own(plug_ins: Path, name: str, call: str) -> None:
    code = f"""
        from plugrad import backends, kernels as K
        try:
            {call}
        except BaseException as error:
            print(*error.__notes__)
        """
    told = f"raised by backend '{name}' (plug-in {name}_room of {name})"
    assert python(code, plug_ins, PLUGRAD_BACKEND=name).stdout.strip() == told


def test_a_damaged_distribution_hides_no_others(plug_ins: Path) -> None:
    damaged = plug_ins / "damaged-1.0.dist-info"
    damaged.mkdir()
    (damaged / "METADATA").write_text("Metadata-Version: 2.1\nName: damaged\nVersion: 1.0\n")
    for content in (b"[plugrad.backends]\na line of no kind\n", b"\xff\xfe\x00"):
        (damaged / "entry_points.txt").write_bytes(content)
        done = python(SHOW + "; print('good' in backends.available())", plug_ins, PLUGRAD_BACKEND="good")
        assert done.stdout.split()[-2:] == ["good", "True"], done.stderr


def test_a_plug_in_that_hangs_holds_nobody_up(plug_ins: Path) -> None:
    code = """
        import sys, threading
        from plugrad import backends, kernels as K
        K.relu([1.0]), backends.available()
        sys.entered, sys.released = threading.Event(), threading.Event()  # the plug-in waits while it is imported
        def slow():
            with backends.use("hangs"):
                print("late", K.relu([5.0])[0])
        thread = threading.Thread(target=slow)
        thread.start()
        sys.entered.wait()
        with backends.use("numpy"):
            print("early", K.relu([2.0])[0])
        backends.available(), backends.explain("relu")
        print(thread.is_alive())
        sys.released.set()
        thread.join()
        """
    told = python(code, plug_ins, PLUGRAD_BACKEND="numpy").stdout.splitlines()
    assert told == ["early 2.0", "True", "late 1.0"]


def test_a_plug_in_cannot_take_the_name_of_a_built_in_backend(plug_ins: Path) -> None:
    done = python(SHOW, plug_ins, PLUGRAD_BACKEND="numpy")
    assert done.stdout.strip() == "numpy"
    listed = command(PYTHONPATH=str(plug_ins)).stdout
    assert "plug-in 'numpy' of thief is ignored: a backend of plugrad has this name" in listed
    assert [line.split()[1] for line in listed.splitlines() if line.startswith("good")] == ["?"]


# The command


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "plugrad.backends", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_tells_what_runs_here_and_why_not() -> None:
    done = command(PLUGRAD_BACKEND="numpy", PLUGRAD_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.strip()}
    assert rows["numpy"][:4] == ["numpy", "yes", np.__version__, "1,"]
    assert rows["cupy"][1] in ("yes", "no")
    if rows["cupy"][1] == "no":
        assert "backend 'cupy' cannot run here: cupy " in done.stdout
    assert done.stdout.splitlines()[-1] == "NumPy arrays are computed by numpy (PLUGRAD_BACKEND=numpy)"
    assert "unknown backend 'nubma'; did you mean 'numba'?" in command("nubma").stderr
    done = command(PLUGRAD_BACKEND="nubma")
    assert done.returncode == 1
    assert "python -m plugrad.backends: PLUGRAD_BACKEND=nubma: unknown backend" in done.stderr
    assert "numpy" in done.stdout
