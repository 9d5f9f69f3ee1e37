"""Prune a small MobileNet in three ways, train what is left, and let it use its zeros.

    python docs/examples/sparse_mobilenet.py [--epochs 8] [--compile] [--out PLOT.png]

A half-width MobileNet learns scikit-learn's digits at 64 x 64. Its 1 x 1 convolutions then lose
80 and 90 % of their weights: the smallest ones little by little in training; those below a
threshold that is soft at first (PDP); or those that Optimal Brain Surgeon finds cheapest, in
stages with training in between. ``sparsify`` makes sparse layers of the result; the dense
network runs beside it in torch, with torch.compile on request (which takes a while), and in
onnxruntime where that and onnxscript are installed.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import matplotlib
import torch
from shared.pruning import Task, by_magnitude, by_obs, by_soft_masks

from curvkern import sparse

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SIZE = 64
METHODS = {"magnitude": by_magnitude, "soft masks": by_soft_masks, "OBS": by_obs}


def exported(model, x: torch.Tensor) -> Callable[[torch.Tensor], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(model, (x,), path, dynamo=True, external_data=False, verbose=False)
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x.numpy()})


@contextmanager
def one_thread() -> Iterator[None]:
    """As onnxruntime's session has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@torch.inference_mode()
def milliseconds(call, x: torch.Tensor) -> float:
    call(x)
    times = []
    for _ in range(50):
        began = time.perf_counter()
        call(x)
        times.append(time.perf_counter() - began)
    return 1e3 * min(times)


def kilobytes(model) -> float:
    """Of the saved state, indices included."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return len(file.getvalue()) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--batch", type=int, default=16, help="images of a timed call")
    parser.add_argument("--compile", action="store_true", help="time torch.compile, too")
    parser.add_argument("--out", default="sparse_mobilenet.png")
    args = parser.parse_args()
    torch.manual_seed(0)
    task = Task(SIZE)
    x = task.test[0][: args.batch].contiguous()
    dense = sparse.models.mobilenet_v1(0.5, 10)
    task.train(dense, args.epochs, 6e-3)
    accuracy, size = task.accuracy(dense), kilobytes(dense)
    with one_thread():
        rows = [("dense, torch", accuracy, size, milliseconds(dense, x))]
        if args.compile:
            ready = torch.compile(dense, options={"freezing": True})
            rows.append(("dense, torch.compile", accuracy, size, milliseconds(ready, x)))
        if find_spec("onnxruntime") and find_spec("onnxscript"):
            ready = exported(dense, x)
            rows.append(("dense, onnxruntime", accuracy, size, milliseconds(ready, x)))
        else:
            print("left out: onnxruntime: needs onnxruntime and onnxscript")
    for method, pruned in METHODS.items():
        for sparsity, model in pruned(task, dense, 0.75 * args.epochs):
            label, accuracy = f"{method}, {sparsity:.0%}", task.accuracy(model)
            with one_thread():
                quick = sparse.sparsify(model, example_input=x)
                rows.append((label, accuracy, kilobytes(quick), milliseconds(quick, x)))
    print(f"{'':22}{'test accuracy':>14}{'kB saved':>10}{f'ms for {args.batch} images':>18}")
    for label, accuracy, size, ms in rows:
        print(f"{label:22}{accuracy:14.3f}{size:10.0f}{ms:18.2f}")
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for label, accuracy, _, ms in rows:
        marker = "s" if label.startswith("dense") else "o"
        axis.plot(ms, accuracy, marker, linestyle="none", label=label)
    axis.set(xlabel=f"milliseconds for {args.batch} images, one thread", ylabel="test accuracy")
    axis.legend()
    figure.savefig(args.out, dpi=80)
    print(f"\nsaved {args.out}")


if __name__ == "__main__":
    main()
