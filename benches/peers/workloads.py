"""The workloads: their sizes, their tensors, and what they should give.

A workload is a chain of layers. A new kind needs its layers here and in the workers, and, when it
holds more than 1x1 and depthwise convolutions, an operation in `reference` and in models.py.
"""

import zlib
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LIST = Path(__file__).with_name("workloads.txt")

# One convolution. The names are those of its tensors' files.
Layer = namedtuple("Layer", "name depthwise c_in c_out kernel stride relu6")


@dataclass(frozen=True)
class Workload:
    name: str
    kind: str
    side: int
    c_in: int
    c_exp: int
    c_out: int
    stride: int
    kernel: int
    group: str

    @property
    def layers(self):
        depthwise = ("depthwise", True, self.c_exp, self.c_exp, self.kernel, self.stride)
        if self.kind == "pw":
            return [Layer("pointwise", False, self.c_in, self.c_out, 1, 1, False)]
        if self.kind == "dw":
            return [Layer(*depthwise, False)]
        return [
            Layer("expand", False, self.c_in, self.c_exp, 1, 1, True),
            Layer(*depthwise, True),
            Layer("project", False, self.c_exp, self.c_out, 1, 1, False),
        ]

    @property
    def residual(self):
        return self.kind == "ir" and self.stride == 1 and self.c_in == self.c_out

    @property
    def output_side(self):
        return -(-self.side // self.stride)

    @property
    def flops(self):
        """Two for each multiply-add; borders counted as if they were inside, as all do."""
        side, total = self.side, 0
        for layer in self.layers:
            side = -(-side // layer.stride)
            depth = layer.kernel**2 if layer.depthwise else layer.c_in
            total += 2 * side**2 * layer.c_out * depth
        return total

    @property
    def bytes(self):
        """What has to move at least: input, weights and output, once each."""
        weights = sum(
            layer.c_out * (1 + (layer.kernel**2 if layer.depthwise else layer.c_in))
            for layer in self.layers)
        return 4 * (self.side**2 * self.c_in + weights + self.output_side**2 * self.c_out)

    @property
    def label(self):
        """Side, channels, kernel where it varies, stride."""
        channels = {"dw": f"{self.c_in}", "pw": f"{self.c_in}-{self.c_out}"}.get(
            self.kind, f"{self.c_in}-{self.c_exp}-{self.c_out}")
        return f"{self.side}² {channels}" + (f" s{self.stride}" if self.kind != "pw" else "")

    def line(self, folder):
        """What a worker is told."""
        sizes = self.side, self.c_in, self.c_exp, self.c_out, self.stride, self.kernel
        return " ".join(map(str, (self.name, self.kind, *sizes, folder)))


KINDS = ("ir", "dw", "pw")


def read(only=()):
    """The workloads whose names have one of `only` in them, or all; a comment begins a group."""
    found, group = [], ""
    for line in LIST.read_text().splitlines():
        if line.startswith("#"):
            group = line[1:].strip()
        elif line:
            name, kind, *sizes = line.split()
            if kind not in KINDS:
                raise SystemExit(f"error: {LIST.name}: no kind {kind}")
            *sizes, kernel = map(int, sizes)
            kernel = 3 if kind == "ir" and kernel == 1 else kernel
            if not only or any(part in name for part in only):
                found.append(Workload(name, kind, *sizes, kernel, group))
    return found


def tensors(workload):
    """The input, NHWC, and each layer's weight and bias: the same in every run.

    Weights are [c_out, c_in] or [kernel, kernel, c], and scaled so that activations keep their
    size. Twice the size in, and relu6 cuts off at both ends.
    """
    random = np.random.default_rng(zlib.crc32(workload.name.encode()))
    draw = lambda *shape: random.standard_normal(shape, np.float32)
    x = 2 * draw(workload.side, workload.side, workload.c_in)
    weights = {}
    for layer in workload.layers:
        shape = ((layer.kernel, layer.kernel, layer.c_out) if layer.depthwise
                 else (layer.c_out, layer.c_in))
        fan_in = layer.kernel**2 if layer.depthwise else layer.c_in
        gain = np.float32((2 / fan_in)**0.5)
        weights[layer.name] = gain * draw(*shape), np.float32(0.1) * draw(layer.c_out)
    return x, weights


def reference(workload, x, weights):
    """The output in f64, NHWC."""
    y = x.astype(np.float64)
    for layer in workload.layers:
        weight, bias = (t.astype(np.float64) for t in weights[layer.name])
        y = depthwise(layer, y, weight) if layer.depthwise else y @ weight.T
        y += bias
        if layer.relu6:
            y = y.clip(0, 6)
    return y + x if workload.residual else y


def depthwise(layer, x, weight):
    """Tap by tap over shifted images, padded by half the kernel on all sides."""
    pad, stride = layer.kernel // 2, layer.stride
    side = -(-x.shape[0] // stride)
    padded = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    end = (side - 1) * stride + 1
    return sum(
        weight[i, j] * padded[i:i + end:stride, j:j + end:stride]
        for i in range(layer.kernel) for j in range(layer.kernel))


def save(folder, x, weights):
    """Raw f32, one file a tensor, in both layouts, so that no worker need transpose."""
    write = lambda name, t: np.ascontiguousarray(t, "<f4").tofile(folder / f"{name}.f32")
    write("x.nhwc", x)
    write("x.nchw", x.transpose(2, 0, 1))
    for name, (weight, bias) in weights.items():
        write(f"{name}.b", bias)
        if weight.ndim == 3:
            write(f"{name}.w.hwc", weight)
            write(f"{name}.w.chw", weight.transpose(2, 0, 1))
        else:
            write(f"{name}.w", weight)


def deviation(workload, expected, file, layout):
    """The largest difference of a worker's output, relative to the largest value expected."""
    side, c = workload.output_side, workload.c_out
    y = np.fromfile(file, "<f4")
    if y.size != expected.size:
        return np.inf
    y = (y.reshape(side, side, c) if layout == "nhwc"
         else y.reshape(c, side, side).transpose(1, 2, 0))
    error = np.abs(y - expected).max() / np.abs(expected).max()
    return np.inf if np.isnan(error) else error
