"""Imports, threads, signals, fork, backends: what curvkern does to the process it lives in.

Cases of the reliability list are named in the docstrings.
"""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import curvkern
from curvkern import _autograd, _runtime, special
from operations import OPERATIONS, Elementwise, every_operation, requiring_grad

# Import -------------------------------------------------------------------------------------


def test_import_leaves_torch_alone(run_python: Any) -> None:
    run_python(
        """
        import sys
        import curvkern
        assert curvkern.__version__
        assert issubclass(curvkern.ConvergenceWarning, RuntimeWarning)
        assert "special" in dir(curvkern)
        from curvkern import _cpu
        assert len(_cpu.build_info()["isas"]) >= 1
        assert _cpu.philox([0] * 4, [0] * 2)
        assert "torch" not in sys.modules
        """
    )


def test_native_module_serves_numpy_without_torch(run_python: Any) -> None:
    """Arrays have no exchange table; they come through __dlpack__."""
    finished = run_python(
        """
        import sys
        import numpy as np
        from curvkern import _cpu
        v, x = np.linspace(0.5, 20, 5000), np.linspace(30, 1, 5000)
        out = np.empty_like(x)
        _cpu.log_iv(v, x, out)
        print(out.tobytes().hex())
        assert _cpu.build_info()["openmp"] == ""
        try:
            _cpu.log_iv(v, x, out[:-1])
        except ValueError as error:
            assert str(error) == "log_iv: out has shape (4999,) but v has shape (5000,)"
        else:
            raise AssertionError
        assert "torch" not in sys.modules
        """
    )
    expected = special.log_iv(np.linspace(0.5, 20, 5000), np.linspace(30, 1, 5000))
    assert finished.stdout.strip() == expected.tobytes().hex()


def test_import_has_no_side_effects(run_python: Any) -> None:
    """R50, R13."""
    run_python(
        """
        import signal, threading, time, warnings
        import numpy as np
        import torch

        def state():
            return (
                torch.get_default_dtype(), torch.initial_seed(), torch.get_rng_state().sum(),
                torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(),
                [signal.getsignal(s) for s in signal.valid_signals()],
                list(warnings.filters), np.geterr(), threading.active_count(),
                torch.cuda.is_initialized(), torch.is_grad_enabled(),
                np.random.get_state()[1].sum(),
            )

        before = state()
        start = time.perf_counter()
        import curvkern, curvkern.special, curvkern.distributions
        assert time.perf_counter() - start < 1, time.perf_counter() - start
        curvkern.special.log_iv(1.0, 2.0)
        assert state() == before

        smallest = np.float64(5e-324)
        def subnormals_survive():
            assert smallest * 1.0 == smallest and np.float64(1e-308) / 16 > 0
            assert torch.tensor(1e-308, dtype=torch.float64).div(16).item() > 0
            alive.append(True)
        alive = []
        subnormals_survive()
        thread = threading.Thread(target=subnormals_survive)
        thread.start(); thread.join()
        assert len(alive) == 2
        """
    )


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'spezial'"):
        curvkern.spezial  # noqa: B018


def test_silent_exit_with_live_objects(run_python: Any) -> None:
    """R52."""
    run_python(
        """
        import torch
        from curvkern import special
        x = torch.rand(100_000, requires_grad=True)
        y = special.log_iv(2.0, x)
        (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        """
    )


# Choices ------------------------------------------------------------------------------------


def test_build_info() -> None:
    info = _runtime.build_info()
    assert set(info) == {"version", "compiler", "isas", "cuda", "threads", "openmp"}
    assert info["version"] == curvkern.__version__
    assert _runtime.isa() in info["isas"]
    assert info["cuda"].startswith(("built with CUDA ", "not built: "))


def test_unsupported_isa(run_python: Any) -> None:
    choices = ", ".join(_runtime.build_info()["isas"])
    for name in ("v9", "v4" if "v4" not in choices else "AVX"):
        script = "from curvkern import special; special.log_iv(1.0, 2.0)"
        failed = run_python(script, environment={"CURVKERN_ISA": name}, check=False)
        assert failed.returncode == 1
        assert failed.stderr.endswith(
            f"ValueError: CURVKERN_ISA: expected one of {choices} (what this processor "
            f"supports), got '{name}'\n"
        )


def test_unknown_backend(run_python: Any) -> None:
    script = "from curvkern import special; special.log_iv(1.0, 2.0)"
    failed = run_python(script, environment={"CURVKERN_BACKEND": "numpy"}, check=False)
    assert failed.stderr.endswith(
        "ValueError: CURVKERN_BACKEND: expected one of native, reference, got 'numpy'\n"
    )


@every_operation
def test_reference_backend(op: Elementwise, monkeypatch: pytest.MonkeyPatch) -> None:
    v, x = op.sample(5)
    v.requires_grad_()
    expected = op(v, x)
    monkeypatch.setattr(_runtime, "_BACKEND", "reference")
    result = op(v, x)
    assert "Elementwise" not in str(result.grad_fn)
    assert_close(result, expected, rtol=1e-10, atol=1e-10)
    assert_close(
        torch.autograd.grad(result.sum(), v), torch.autograd.grad(expected.sum(), v),
        rtol=1e-9, atol=1e-9,
    )  # fmt: skip
    assert type(op(v.detach().numpy(), 2)).__module__ == "numpy"


def test_without_cuda_module(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    _runtime.cpu_module()
    _runtime.cuda_module.cache_clear()
    monkeypatch.setattr(_runtime.importlib, "import_module", missing)
    with pytest.raises(
        NotImplementedError, match=r"no CUDA kernels .*; reinstall with nvcc on"
    ):
        _runtime.cuda_module()


def test_gate_without_the_private_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch has renamed them, the safe path is taken."""
    v, x = OPERATIONS[0].sample(3)
    assert not _autograd.derivative_wanted(v, x)
    monkeypatch.delattr(_autograd.forward_ad, "_current_level")
    assert _autograd.derivative_wanted(v, x)
    monkeypatch.undo()
    monkeypatch.delattr(torch._C._functorch, "peek_interpreter_stack")
    assert _autograd.derivative_wanted(v, x)
    monkeypatch.undo()
    monkeypatch.delattr(_autograd.forward_ad, "_set_fwd_grad_enabled")
    with (
        torch.autograd.forward_ad.dual_level(),
        pytest.raises(
            RuntimeError, match=r"no forward-mode derivatives with torch .*; use reverse mode"
        ),
    ):
        OPERATIONS[0](v, torch.autograd.forward_ad.make_dual(x, v))
    v, x = requiring_grad(v, x)
    gradients = torch.autograd.grad(OPERATIONS[0](v, x).sum(), (v, x))
    assert_close(gradients, OPERATIONS[0].operation(1)(v.detach(), x.detach()), rtol=0, atol=0)


# Threads ------------------------------------------------------------------------------------


def test_torch_threads_are_obeyed(thread_counts: Any) -> None:
    for count in (1, 2, 3, 5):
        thread_counts(count)
        assert _runtime.build_info()["threads"] == count


def test_torch_threads_are_obeyed_in_a_new_thread(thread_counts: Any) -> None:
    seen = []

    def work() -> None:
        special.log_iv(2.0, torch.rand(5000))
        seen.append(_runtime.build_info()["threads"])

    thread_counts(5)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [5]


def test_one_openmp_runtime(run_python: Any) -> None:
    run_python(
        """
        import curvkern._cpu
        import torch
        from curvkern import _runtime, special
        torch.set_num_threads(2)
        special.log_iv(2.0, torch.rand(100_000))
        torch.rand(1_000_000).exp()
        with open("/proc/self/maps") as file:
            paths = {line.split()[-1] for line in file}
        mapped = {path for path in paths if "omp" in path.rpartition("/")[2]}
        assert mapped == {_runtime.build_info()["openmp"]}, mapped
        assert _runtime.build_info()["threads"] == 2
        """
    )


def test_reentrant(thread_counts: Any) -> None:
    """R45: eight threads on separate data give the bits of a serial run."""
    thread_counts(2)
    op = OPERATIONS[0]
    inputs = [op.sample(20_000) for _ in range(8)]
    expected = [op(*pair) for pair in inputs]
    results: list[Any] = [None] * 8

    def work(index: int) -> None:
        for _ in range(3):
            results[index] = op(*inputs[index])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_close(results, expected, rtol=0, atol=0)


def long_call(thread_counts: Any, seconds: float) -> Any:
    """A native call on one thread that takes about this long, and a bound on its size."""
    thread_counts(1)
    kernel = _runtime.cpu_module().log_kv_hess

    def call(size: int) -> float:
        v, x = torch.full((size,), 2.3, dtype=torch.float64), torch.ones(size).double()
        out = torch.empty(size, dtype=torch.float64)
        start = time.perf_counter()
        kernel(v, x, out, out, out)  # only its time matters, so the outputs may share memory
        return time.perf_counter() - start

    size = 200_000
    size = int(size * seconds / call(size))
    assert size < 100_000_000
    return lambda: call(size)


def test_interrupt(thread_counts: Any) -> None:
    """R43: Ctrl-C ends a long call at once, and the next call works."""
    call = long_call(thread_counts, 8.0)
    pressed: list[float] = []
    # a process started in the background inherits an ignored SIGINT
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)

    def press() -> None:
        time.sleep(0.7)
        pressed.append(time.perf_counter())
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            call()
        ended = time.perf_counter()
    finally:
        presser.join()
        signal.signal(signal.SIGINT, previous)
    assert ended - pressed[0] < 2.0
    op = OPERATIONS[0]
    assert op(*op.sample(5000)).isfinite().all()


def test_other_threads_run_during_a_call(thread_counts: Any) -> None:
    """R44: the GIL is released."""
    call = long_call(thread_counts, 0.5)
    ticks: list[float] = []
    done = threading.Event()

    def tick() -> None:
        while not done.wait(0.005):
            ticks.append(time.perf_counter())

    ticker = threading.Thread(target=tick)
    ticker.start()
    start = time.perf_counter()
    call()
    end = time.perf_counter()
    done.set()
    ticker.join()
    middle = [t for t in ticks if start < t < end]
    assert len(middle) > 10, (len(middle), end - start)


def test_fork_after_parallel_use(run_python: Any) -> None:
    """R46: where a parallel region of torch itself would hang, the child runs one thread."""
    run_python(
        """
        import os, warnings
        warnings.simplefilter("ignore")  # Python 3.12 warns of fork beside threads
        import torch
        from curvkern import _runtime, special
        torch.set_num_threads(4)
        x = torch.rand(200_000, dtype=torch.float64) + 0.5
        v = torch.tensor([2.0]).double().expand_as(x)
        functions = [
            special.log_iv, special.kv_ratio, lambda v, x: special.matern(x, v, 0.7)
        ]
        expected = [bytes(function(v, x).numpy()) for function in functions]
        assert _runtime.build_info()["threads"] == 4
        child = os.fork()
        if child == 0:
            results = [bytes(function(v, x).numpy()) for function in functions]
            one = _runtime.build_info()["threads"] == 1
            os._exit(0 if results == expected and one else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert [bytes(function(v, x).numpy()) for function in functions] == expected
        """
    )
