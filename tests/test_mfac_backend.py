"""The reference backend: Fisher objects without compiled code give the same answers."""

from __future__ import annotations

from typing import Any


def test_fisher_objects_without_compiled_code(run_python: Any) -> None:
    """Windows that fill, slide, lose rows and change their damping; a given set; blocks."""
    run_python(
        """
        import torch
        from torch.testing import assert_close
        from curvkern import _runtime
        from curvkern.fisher import SlidingWindowFisher, StaticFisher
        from curvkern.reference import mfac

        for name in dir(_runtime.cpu_module()):
            if name.startswith("mfac"):
                setattr(_runtime.cpu_module(), name, None)
        torch.manual_seed(0)
        G, V = torch.randn(9, 30), torch.randn(3, 30, dtype=torch.float64)

        def compare(native, twin):
            for one, other in (
                (native.ihvp(V), twin.ihvp(V)),
                (native.quad_form(V), twin.quad_form(V)),
                (native.diag_inverse(), twin.diag_inverse()),
                (native.elements(torch.arange(4), torch.arange(4)), twin.diag_inverse()[:4]),
                (native.gram(), twin.gram()),
                (native.logdet(), twin.logdet()),
            ):
                assert_close(one, other, rtol=1e-9, atol=1e-9)

        for options in ({}, {"block_size": 7}):
            native = SlidingWindowFisher(30, 5, 1e-3, dtype=torch.float64, **options)
            twin = mfac.SlidingWindowFisher(30, 5, 1e-3, dtype=torch.float64, **options)
            for g in G.double():
                assert_close(native.push_ihvp(g), twin.push_ihvp(g), rtol=1e-9, atol=1e-9)
            for one in (native, twin):
                one.remove(1)
                one.push(G[0].double())
                one.set_damping(0.1)
            compare(native, twin)
            compare(
                StaticFisher.from_gradients(G, 1e-3, **options),
                mfac.StaticFisher.from_gradients(G, 1e-3, **options),
            )
        same = torch.ones(4, 3, dtype=torch.float64)  # rounding leaves no pivot
        x = StaticFisher.from_gradients(same, 1e-20).ihvp(torch.ones(3))
        assert torch.isfinite(x).all()
        try:
            native.push(torch.full((30,), torch.nan))
        except ValueError as error:
            assert "finite" in str(error)
        else:
            raise AssertionError
        """,
        environment={"CURVKERN_BACKEND": "reference"},
    )
