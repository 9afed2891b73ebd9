"""Backends of other distributions: loaded only when selected, and named in every error that they cause."""

import json
import textwrap
from pathlib import Path

import pytest

from plugrad.tests.processes import SHOW, python


@pytest.fixture
def plug_ins(tmp_path: Path) -> Path:
    """A folder with installed distributions that offer backends."""

    def install(distribution: str, name: str, module: str, source: str) -> None:
        information = tmp_path / f"{distribution}-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(f"[plugrad.backends]\n{name} = {module}\n")
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))

    install("good", "good", "good_module", "print('good is imported')\ndef relu(x, out): out[...] = 42\n")
    install("bad", "bad", "bad_module", "print('bad is imported')\nimport no_such_module\n")
    install("exits", "exits", "exits_module", "raise SystemExit(3)\n")
    install("raises", "raises", "raises_module", "def relu(x, out): raise ZeroDivisionError('in the kernel')\n")
    hangs = """
        import builtins
        builtins.importing.set()
        builtins.go_on.wait()
        def relu(x, out): out[...] = 1
    """
    install("hangs", "hangs", "hangs_module", hangs)
    shapes = "import numpy as np\ndef empty(shape, dtype): return np.empty((2, 9))\ndef relu(x, out): out[...] = 0\n"
    install("shapes", "shapes", "shapes_module", shapes)
    returns = "import numpy as np\ndef relu(x, out): return np.maximum(x, 0)\n"
    install("returns", "returns", "returns_module", returns)
    install("resizes", "resizes", "resizes_module", "def relu(x, out): out.resize((7,), refcheck=False)\n")
    install("quits", "quits", "quits_module", "def relu(x, out): raise SystemExit(3)\n")
    install("takes", "takes", "takes_module", "def take(what, x): return [1]\ndef relu(x, out): out[...] = 1\n")
    install(
        "warms",
        "warms",
        "warms_module",
        "def warmup(*given): raise ZeroDivisionError\ndef relu(x, out): out[...] = 1\n",
    )
    install("lazy", "lazy", "lazy_module", "def __getattr__(name): raise ImportError('lazily')\n")
    install("probes", "probes", "probes_module", "def probe(): raise SystemExit(3)\n")
    dtypes = (
        "import numpy as np\ndef empty(shape, dtype): return np.empty(shape, 'f2')\ndef relu(x, out): out[...] = 0\n"
    )
    install("dtypes", "dtypes", "dtypes_module", dtypes)
    install("stands", "stands", "stands_module", "STAND_INS = ['relu']\n")
    unsaid = """
        class Unsaid(Exception):
            def __str__(self): raise ValueError
        def probe(): raise Unsaid
    """
    install("unsaid", "unsaid", "unsaid_module", unsaid)
    install("first", "twice", "first_module", "")
    install("second", "twice", "second_module", "")
    install("thief", "numpy", "thief_module", "print('thief is imported')\n")
    return tmp_path


def test_plug_ins_are_listed_but_not_imported(plug_ins: Path) -> None:
    done = python(
        """
        import json
        from plugrad import backends, kernels as K
        K.relu([1.0])
        backends.explain("relu")
        output = backends.available()
        print(json.dumps({name: output[name] for name in output}))
        """,
        plug_ins,
    )
    output = json.loads(done.stdout)  # nothing else was printed: no plug-in was imported
    assert set(output) > {"numpy", "numba", "cupy", "good", "bad", "exits", "twice", "hangs"}
    assert output["good"] == "backend 'good' is an installed plug-in, loaded only when it is selected"
    assert output["numpy"] is True


def test_a_plug_in_is_selected_by_the_environment(plug_ins: Path) -> None:
    show = "from plugrad import kernels as K; print(K.relu([1.0])[0])"
    assert python(show, plug_ins, PLUGRAD_BACKEND="good").stdout.split("\n")[:2] == ["good is imported", "42.0"]
    assert python(show, plug_ins, PLUGRAD_BACKEND="bad,good").stdout.split("\n")[:3] == [
        "bad is imported",
        "good is imported",
        "42.0",
    ]


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("bad", "backend 'bad' (plug-in bad_module of bad) failed to import: ModuleNotFoundError: No module named"),
        ("exits", "backend 'exits' (plug-in exits_module of exits) failed to import: SystemExit: 3"),
        ("twice", "backend 'twice' is claimed by several distributions: first, second; uninstall all but one"),
    ],
)
def test_a_broken_plug_in_is_named_and_breaks_nobody_else(plug_ins: Path, name: str, output: str) -> None:
    done = python("from plugrad import kernels as K; K.relu([1.0])", plug_ins, PLUGRAD_BACKEND=name)
    assert output in done.stderr
    done = python(
        f"""
        from plugrad import backends, kernels as K
        assert {output!r} in backends.available({name!r})[{name!r}]
        assert not backends.available()[{name!r}]
        with backends.use("numpy"):
            print(K.relu([2.0]))
        """,
        plug_ins,
    )
    assert done.stdout.splitlines()[-1] == "[2.]", done.stderr


@pytest.mark.parametrize(
    ("name", "kernel", "output"),
    [
        ("raises", "relu", "raised by backend 'raises' (plug-in raises_module of raises)"),
        (
            "shapes",
            "relu",
            "backend 'shapes' (plug-in shapes_module of shapes): its empty: expected shape (1,) and dtype",
        ),
        ("good", "softmax", "backend 'good' has no kernel 'softmax'"),
        (
            "returns",
            "relu",
            "of returns): its relu: expected the results in the arrays given for them, got a new array",
        ),
        ("resizes", "relu", "of resizes): its relu: expected the arrays that were given to keep their shapes"),
        ("probes", "relu", "(plug-in probes_module of probes) failed in its probe: SystemExit: 3"),
        ("dtypes", "relu", "of dtypes): its empty: expected shape (1,) and dtype float64, got (1,) and float16"),
        ("takes", "relu", "of takes): its take: expected an array, got list"),
        ("lazy", "relu", "(plug-in lazy_module of lazy) failed in its probe: ImportError: lazily"),
        (
            "stands",
            "relu",
            "of stands) declares OPTIONS or another attribute wrongly: TypeError: STAND_INS: expected a",
        ),
        ("unsaid", "relu", "of unsaid) failed in its probe: Unsaid"),
    ],
)
def test_what_a_plug_in_does_wrong_is_told_with_its_name(plug_ins: Path, name: str, kernel: str, output: str) -> None:
    done = python(f"from plugrad import kernels as K; K.{kernel}([1.0])", plug_ins, PLUGRAD_BACKEND=name)
    assert output in done.stderr
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
    output = f"raised by backend '{name}' (plug-in {name}_module of {name})"
    assert python(code, plug_ins, PLUGRAD_BACKEND=name).stdout.strip() == output


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
        import builtins, threading
        from plugrad import backends, kernels as K
        builtins.importing, builtins.go_on = threading.Event(), threading.Event()
        K.relu([1.0]), backends.available()
        def slow():
            with backends.use("hangs"):
                print("late", K.relu([5.0])[0])
        thread = threading.Thread(target=slow)
        thread.start()
        builtins.importing.wait()
        with backends.use("numpy"):
            print("early", K.relu([2.0])[0])
        backends.available(), backends.explain("relu")
        builtins.go_on.set()
        thread.join()
        """
    output = python(code, plug_ins, PLUGRAD_BACKEND="numpy").stdout.splitlines()
    assert output == ["early 2.0", "late 1.0"]


def test_a_plug_in_cannot_take_the_name_of_a_built_in_backend(plug_ins: Path) -> None:
    done = python(SHOW, plug_ins, PLUGRAD_BACKEND="numpy")
    assert done.stdout.strip() == "numpy"
    listed = python("import runpy; runpy.run_module('plugrad.backends', run_name='__main__')", plug_ins).stdout
    assert "plug-in 'numpy' of thief is ignored: a backend of plugrad has this name" in listed
    assert [line.split()[1] for line in listed.splitlines() if line.startswith("good")] == ["?"]
