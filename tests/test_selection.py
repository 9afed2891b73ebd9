"""The backend in force: by the environment, by scopes in threads and tasks, and by the default of the process."""

import asyncio
import contextlib
import contextvars
import functools
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from plugrad import backends, kernels as K
from plugrad.backends import BackendUnavailableError, registry, selection
from plugrad.tests.fakes import counting_module
from plugrad.tests.processes import PATIENCE, SHOW, python

# The environment


@pytest.mark.parametrize("text", ["numpy", " numpy ", "auto", "", "cupy,numpy", "cupy, numba ,numpy"])
def test_the_environment_selects(text: str) -> None:
    done = python(SHOW, PLUGRAD_BACKEND=text)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("numpy", "numba")


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("nubma", "ValueError: PLUGRAD_BACKEND=nubma: unknown backend 'nubma'; did you mean 'numba'? Known backends: "),
        ("NumPy", "did you mean 'numpy'?"),
        ("numpy,torch", "PLUGRAD_BACKEND=numpy,torch: unknown backend 'torch'. Known backends: numpy, numba, cupy"),
        ("numpy,", "unknown backend ''"),
        ("cupy", "PLUGRAD_BACKEND=cupy: backend 'cupy' cannot run here: cupy "),
    ],
)
def test_what_the_environment_cannot_select_is_told_at_the_first_call(text: str, output: str) -> None:
    done = python(SHOW, PLUGRAD_BACKEND=text)
    assert done.returncode == 1
    assert output in done.stderr.splitlines()[-1]


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
    one, two = counting_module(), counting_module()
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


def test_kernels_run_without_their_docstrings() -> None:
    done = subprocess.run([sys.executable, "-OO", "-c", SHOW], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_scope_ends_with_an_error_in_it() -> None:
    backends.register("one", counting_module())
    before = backends.current()
    with pytest.raises(KeyError), backends.use("one"):
        raise KeyError
    assert backends.current() == before


def entered(name: str) -> Iterator[None]:
    with backends.use(name):
        yield


def test_a_generator_that_is_closed_within_another_scope_ends_its_own() -> None:
    backends.register("one", counting_module())
    backends.register("two", counting_module())
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
    backends.register("one", counting_module())
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
    backends.register("one", counting_module())

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
    backends.register("one", counting_module())
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
        monkeypatch.setattr(selection, "scope", selection._ScopeOfThread())
    one, two = counting_module(), counting_module()
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
    backends.register("one", counting_module())
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
    known = registry.is_known

    def slowly(name: str) -> bool:
        if threading.current_thread() is reader:
            reading.set()
            go_on.wait(PATIENCE)
        return known(name)

    monkeypatch.setattr(registry, "is_known", slowly)
    monkeypatch.setenv("PLUGRAD_BACKEND", "cupy")
    reader = threading.Thread(target=selection.chosen)
    reader.start()
    assert reading.wait(PATIENCE)
    setter = threading.Thread(target=backends.set_default, args=("numpy",))
    setter.start()
    setter.join(0.5)  # it has to wait for the reader; if it does not, what it sets is overwritten
    go_on.set()
    setter.join()
    reader.join()
    assert selection.chosen().origin == "set_default('numpy')"
