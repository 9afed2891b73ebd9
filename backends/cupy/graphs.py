"""Neighbouring calls of a capture as one CUDA graph.

The block has made the calls once, and the first replay makes them again, so that all code is compiled and loaded. The
second replay captures them in a graph on a stream of their own, and launches it, as do all later ones, on the current
stream. A capture computes nothing, so that each replay computes its calls exactly once.

- *Memory.* What the calls of a graph allocate is the graph's as long as it exists: see `Memory`.
- *Products* need a handle of cuBLAS with a workspace of the graph's own: see `blas`.
- *Numbers that change*, of an optimizer's step, are arguments of a small kernel before the launch, which writes them
  where the kernels of the graph read them. A step begins a graph of its own, so that the rate is asked for when the
  calls before it have been launched, as in a loop without a capture.
- *Other calls*, such as `clip_by_global_norm`, are made as they are, between graphs.

If no graph can be made, each replay makes the calls, and the logger ``plugrad`` says why at INFO.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import cupy

from plugrad.backends import log
from plugrad.backends.contract import PreparedCall, Update
from plugrad.backends.cupy import blas, updates

UNIT = 512  # bytes; blocks are as large as a multiple of it, which is their alignment

# Captures come one at a time: they share a handle of cuBLAS for each device. A signal handler may take it again.
_capturing = threading.RLock()
_handles: dict[int, blas.Handle] = {}


def fuse(calls: Sequence[PreparedCall]) -> Sequence[PreparedCall]:
    """Calls that launch a graph in place of neighbours which only compute on the device."""
    groups: list[list[PreparedCall]] = []
    for call in calls:
        last = groups[-1][-1] if groups else None
        both_can = last is not None and _can_be_in_graph(last) and call.is_fixed and _can_be_in_graph(call)
        if last is not None and both_can and _device(last) == _device(call):
            groups[-1].append(call)
        else:
            groups.append([call])
    fused, memories = [], dict[int, Memory]()
    for group in groups:
        first, device = group[0], _device(group[0])
        memory = memories.setdefault(device, Memory())
        run = Launches(group, device, memory) if _can_be_in_graph(first) else first.run
        arrays = tuple([array for call in group for array in call.arrays])
        place = first.place if len(group) == 1 else ""
        fused.append(PreparedCall(functools.partial(_on_device, device, run), arrays, place, False, None))
    return fused


def _can_be_in_graph(call: PreparedCall) -> bool:
    return (call.is_fixed or call.update is not None) and len({array.device.id for array in call.arrays}) == 1


def _device(call: PreparedCall) -> int:
    """The device of the arrays of a call."""
    device: int = call.arrays[0].device.id
    return device


def _on_device(device: int, run: Callable[[], object]) -> None:
    """Make a call on the device of its arrays, and the current stream there, whichever device is current."""
    if cupy.cuda.runtime.getDevice() == device:
        run()
        return
    with cupy.cuda.Device(device):
        run()


class Launches:
    """Calls that are captured in a CUDA graph at the second time that they are made, and launched from then on.

    They are made on `device`, which is current. The first of them may be the step of an optimizer.
    """

    def __init__(self, calls: Sequence[PreparedCall], device: int, memory: "Memory") -> None:
        self._next_update = calls[0].update
        self._calls = tuple(calls[1:] if self._next_update is not None else calls)
        self._memory, self._device = memory, device
        self._is_warm, self._can_be_captured = False, True
        self._graph: Any = None
        self._stream: Any = None
        self._place: Any = None  # of the numbers of the update
        self._arrays: list[int] = []  # the addresses of those that the update of the graph reads and writes

    def __call__(self) -> None:
        """Compute the calls, on the current stream."""
        if blas.is_captured():  # in the handler of a signal, whose work would become a part of that graph
            raise RuntimeError(
                "graph.replay: this thread is making a CUDA graph, and cannot replay another one meanwhile"
            )
        update = None if self._next_update is None else self._next_update()
        has_graph = self._graph is not None and (update is None or _addresses(update) == self._arrays)
        if not has_graph and not (self._is_warm and self._capture(update)):
            self._make_calls(update, None)
            self._is_warm = True
            return
        if update is not None:
            updates.put_numbers(update.numbers, self._place)
        self._graph.launch()

    def _make_calls(self, update: Update | None, place: Any) -> None:
        if update is not None:
            updates.update(*update, place)
        for call in self._calls:
            call.run()

    def _capture(self, update: Update | None) -> bool:
        """Capture the calls in a graph; return whether that was possible."""
        if not self._can_be_captured:
            return False
        self._graph = None
        if update is not None and self._place is None:
            self._place = updates.new_place()
        try:
            with _capturing:
                graph = self._captured(update)
        except Exception as error:  # a graph is not needed to compute the calls
            self._can_be_captured, self._stream = False, None
            log.info(
                "graph.replay: no CUDA graph of %d calls can be made, so that each replay makes the calls: %s",
                len(self._calls) + (update is not None),
                f"{type(error).__name__}: {error}",
            )
            return False
        self._arrays = [] if update is None else _addresses(update)
        self._graph = graph
        return True

    def _captured(self, update: Update | None) -> Any:
        """The graph of the calls. Nothing is computed."""
        handle = _handles.get(self._device)
        if handle is None:
            handle = _handles[self._device] = blas.Handle()
        # The stream is held: the calls may remember its address, which another one could have later.
        stream = self._stream = cupy.cuda.Stream(non_blocking=True)
        before = cupy.cuda.get_current_stream()
        with handle.capturing(stream, self._memory.workspace), cupy.cuda.using_allocator(self._memory.allocate):
            try:
                stream.use()  # not `with stream`, which would end a `use` of the caller's
                stream.begin_capture()
                self._make_calls(update, self._place)
                return stream.end_capture()
            except BaseException:
                with contextlib.suppress(RuntimeError):  # that the capture has ended, or failed
                    stream.end_capture()
                raise
            finally:
                before.use()


def _addresses(update: Update) -> list[int]:
    """The addresses of the arrays of an update, which the caller may have replaced; 0 for None."""
    return [0 if array is None else array.data.ptr for arrays in update.arrays for array in arrays]


class Memory:
    """The memory of the graphs of one capture on a device, which nobody else is given as long as they exist.

    CuPy's pools give the memory of a temporary array to the next caller, but a graph goes on writing there. A block is
    used again only within the graphs, by calls that come later.
    """

    def __init__(self) -> None:
        self._free: list[Any] = []
        self._workspace: Any = None

    def allocate(self, size: int) -> Any:
        """An allocator of CuPy, which is in force while a graph is captured."""
        size = max(1, -(-size // UNIT)) * UNIT
        fitting = [block for block in self._free if size <= block.size <= 2 * size]
        block = min(fitting, key=lambda each: each.size, default=None)
        if block is None:
            block = _new_block(size)
        else:
            self._free.remove(block)
        memory = cupy.cuda.UnownedMemory(block.ptr, size, _Loan(block, self._free), block.device_id)
        return cupy.cuda.MemoryPointer(memory, 0)

    def workspace(self, size: int) -> Any:
        """Memory for cuBLAS, one for all graphs: they run one after another."""
        if self._workspace is None:
            self._workspace = _new_block(size)
        return self._workspace


def _new_block(size: int) -> Any:
    """Memory of CUDA's own allocator, which CuPy's pools do not know."""
    try:
        return cupy.cuda.Memory(size)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        # CuPy would answer the error of CUDA by freeing memory, which a graph may be using.
        raise MemoryError(f"no {size:,} bytes of memory for a CUDA graph: {error}") from error


class _Loan:
    """A block that an array holds. When the array is deleted, the block is free for the next."""

    def __init__(self, block: Any, free: list[Any]) -> None:
        self._block, self._free = block, free

    def __del__(self) -> None:
        self._free.append(self._block)
