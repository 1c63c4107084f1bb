"""Measures a function beside a reference, and prints the ratios of the whole run as tables."""

import ctypes
import statistics
import sys
import tracemalloc
from collections import defaultdict
from time import perf_counter

import pytest
import torch
from torch.profiler import ProfilerActivity, profile


ROUNDS, MIN_ROUNDS, SECONDS = 21, 5, 30.0  # what takes longer than the seconds gets fewer rounds
_tables = defaultdict(lambda: defaultdict(dict))


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def heap_of_a_long_run():
    """glibc moves its thresholds up to here as a process runs; what a tensor costs would depend on the tests before."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: larger tensors are always fresh pages
        libc.mallopt(-1, 2**26)  # M_TRIM_THRESHOLD


@pytest.fixture
def compare(benchmark):
    """Runs `reference` before each round of `function`, so that both meet the machine in the same state.

    The cell of the table gets the median of the ratios of the rounds, and the ratio of the peaks of memory: of tensors,
    or, with `data_bytes`, of arrays to those bytes.
    """

    def run(function, reference, repeats, table, row, column, data_bytes=None):
        reference_times = []

        def timed(function):
            start = perf_counter()
            for _ in range(repeats):
                function()
            return perf_counter() - start

        def run_reference():
            reference_times.append(timed(reference))

        warm_up = timed(reference) + timed(function)
        rounds = max(MIN_ROUNDS, min(ROUNDS, int(SECONDS / warm_up)))
        benchmark.group = f"{table} {column}"
        benchmark.pedantic(timed, (function,), setup=run_reference, rounds=rounds)
        pairs = zip(benchmark.stats.stats.data, reference_times, strict=True)
        ratio = statistics.median(ours / theirs for ours, theirs in pairs)
        peak_bytes = peak_bytes_of_tensors if data_bytes is None else peak_bytes_of_arrays
        reference_bytes = data_bytes or peak_bytes(reference)
        memory_ratio = peak_bytes(function) / reference_bytes
        benchmark.extra_info.update(time_ratio=ratio, memory_ratio=memory_ratio)
        milliseconds = 1000 * statistics.median(reference_times) / repeats
        rows = _tables[table]
        rows[f"{table}, in ms / MB"].setdefault(column, f"{milliseconds:.3g} / {reference_bytes / 1e6:.3g}")
        rows[row][column] = f"{ratio:.2f} / {memory_ratio:.2f}"

    return run


def peak_bytes_of_tensors(function) -> int:
    """The most bytes alive at once during a call, not counting those alive before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def peak_bytes_of_arrays(function) -> int:
    """The same for numpy and Python."""
    tracemalloc.start()
    function()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def pytest_terminal_summary(terminalreporter):
    for table, rows in _tables.items():
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        terminalreporter.write_line(f"\nTime / peak memory as multiples of {table}\n")
        terminalreporter.write_line("| | " + " | ".join(columns) + " |")
        terminalreporter.write_line("|---" * (len(columns) + 1) + "|")
        for row, cells in rows.items():
            terminalreporter.write_line(f"| {row} | " + " | ".join(cells.get(c, "") for c in columns) + " |")
