"""Prune a small MobileNet in two ways, train what is left, and let it use its zeros.

    python docs/examples/sparse_mobilenet.py [--epochs 4] [--compile] [--out PLOT.png]

A quarter-width MobileNet learns scikit-learn's digits at 32 x 32. Its 1 x 1 convolutions then
lose 80 and 90 % of their weights: the smallest ones little by little in training, or those that
Optimal Brain Surgeon finds cheapest, in stages with training in between. ``sparsify`` makes
sparse layers of the result; the dense network runs beside it in torch, with torch.compile on
request (which takes a while), and in onnxruntime where that and onnxscript are installed.
"""

from __future__ import annotations

import argparse
import copy
import io
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import matplotlib
import torch
from shared.digits import Data
from torch.nn import functional as F
from torch.nn.utils import prune

from curvkern import sparse
from curvkern.fisher import StaticFisher, obs_prune

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BATCH = 64
EXAMPLES = 64  # gradients that the Fisher matrix is made of
SETTLING = 40  # batches after which 1.5 % of an old average is left
STAGES = (0.5, 0.7, 0.8, 0.85, 0.9)
SHOWN = (0.8, 0.9)


def enlarged(x: torch.Tensor) -> torch.Tensor:
    """Images of 32 x 32 in three equal channels."""
    x = F.interpolate(x[:, None], size=(32, 32), mode="bilinear")
    return x.expand(-1, 3, -1, -1).contiguous()


class Task:
    def __init__(self) -> None:
        data = Data()
        self.x, self.y = enlarged(data.x), data.y
        self.test = enlarged(data.test[0]), data.test[1]

    def train(self, model, epochs: float, lr: float, after=lambda: None) -> None:
        model.train()
        optimizer = torch.optim.Adam(model.parameters(), lr)
        steps = round(epochs * len(self.x) / BATCH)
        rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
        for _ in range(steps):
            batch = torch.randint(len(self.x), (BATCH,))
            optimizer.zero_grad()
            F.cross_entropy(model(self.x[batch]), self.y[batch]).backward()
            optimizer.step()
            rates.step()
            after()
        with torch.no_grad():  # the averages of BatchNorm lag behind weights that moved fast
            for _ in range(SETTLING):
                model(self.x[torch.randint(len(self.x), (BATCH,))])
        model.eval()

    @torch.no_grad()
    def accuracy(self, model) -> float:
        return float((model(self.test[0]).argmax(1) == self.test[1]).double().mean())


def pointwise(model) -> list[torch.nn.Conv2d]:
    return [
        m for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (1, 1)
    ]


def by_magnitude(task: Task, dense, epochs: float):
    """Gradually, in the first two thirds of the training."""
    model, before = copy.deepcopy(dense), 0.0
    for sparsity in SHOWN:
        share = sum(before < stage <= sparsity for stage in STAGES) / 3
        end = round(share * epochs * len(task.x) / BATCH * 2 / 3)
        schedule = sparse.CubicSchedule(0, end, every=5, initial=before)
        pruning = sparse.magnitude_prune_(model, sparsity, schedule=schedule)
        task.train(model, share * epochs, 4e-3, pruning.step)
        before = sparsity
        yield sparsity, copy.deepcopy(without_hooks(model))


def by_obs(task: Task, dense, epochs: float):
    """Stage by stage, with as much training in all."""
    model = copy.deepcopy(dense)
    layers = pointwise(model)
    for layer in layers:
        prune.identity(layer, "weight")
    weights = [layer.weight_orig for layer in layers]
    sizes = [w.numel() for w in weights]
    for sparsity in STAGES:
        rows = []
        for i in torch.randperm(len(task.x))[:EXAMPLES].tolist():
            loss = F.cross_entropy(model(task.x[i : i + 1]), task.y[i : i + 1])
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]))
        flat = torch.cat([layer.weight.detach().flatten() for layer in layers])
        mask = torch.cat([layer.weight_mask.flatten() for layer in layers]) != 0
        fisher = StaticFisher.from_gradients(torch.stack(rows), 1e-4)
        flat, mask, _ = obs_prune(
            flat, fisher, sparsity=sparsity, mode="simultaneous", mask=mask
        )
        with torch.no_grad():
            parts = zip(layers, flat.split(sizes), mask.split(sizes), strict=True)
            for layer, values, kept in parts:
                layer.weight_orig.copy_(values.view_as(layer.weight_orig))
                layer.weight_mask.copy_(kept.view_as(layer.weight_mask))
        task.train(model, epochs / 3, 4e-3)
        if sparsity in SHOWN:
            yield sparsity, copy.deepcopy(without_hooks(model))


def without_hooks(model):
    """A weight that a hook has computed cannot be copied."""
    for layer in pointwise(model):
        layer.weight = layer.weight.detach()
    return model


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
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--batch", type=int, default=16, help="images of a timed call")
    parser.add_argument("--compile", action="store_true", help="time torch.compile, too")
    parser.add_argument("--out", default="sparse_mobilenet.png")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    task = Task()
    x = task.test[0][: args.batch].contiguous()
    dense = sparse.models.mobilenet_v1(0.25, 10)
    dense.features[0].stride = (1, 1)  # as usual for images this small
    task.train(dense, args.epochs, 6e-3)
    accuracy, size = task.accuracy(dense), kilobytes(dense)
    rows = [("dense, torch", accuracy, size, milliseconds(dense, x))]
    if args.compile:
        ready = torch.compile(dense, options={"freezing": True})
        rows.append(("dense, torch.compile", accuracy, size, milliseconds(ready, x)))
    if find_spec("onnxruntime") and find_spec("onnxscript"):
        rows.append(("dense, onnxruntime", accuracy, size, milliseconds(exported(dense, x), x)))
    else:
        print("left out: onnxruntime: needs onnxruntime and onnxscript")
    for method, pruned in (("magnitude", by_magnitude), ("OBS", by_obs)):
        for sparsity, model in pruned(task, dense, args.epochs):
            quick = sparse.sparsify(model, example_input=x)
            label = f"{method}, {sparsity:.0%}"
            rows.append((label, task.accuracy(quick), kilobytes(quick), milliseconds(quick, x)))
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
