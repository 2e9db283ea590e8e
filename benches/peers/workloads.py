"""The workloads: their sizes, their tensors, and what they should give.

A workload is a chain of steps. A new kind needs its steps here and in the workers, and a new kind
of step its tensors and its meaning here and its operators in models.py.
"""

import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

LIST = Path(__file__).with_name("workloads.txt")

# As ConvNeXt's authors have it.
EPSILON = 1e-6

ACTIVATIONS = {
    "": lambda x: x,
    "relu": lambda x: x.clip(0),
    "relu6": lambda x: x.clip(0, 6),
    "hardsigmoid": lambda x: (x + 3).clip(0, 6) / 6,
    "hardswish": lambda x: x * (x + 3).clip(0, 6) / 6,
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / 2**0.5)) / 2,
}
# Those that a line of the list may ask for.
HIDDEN = ("relu", "relu6", "hardswish")


class Layer(NamedTuple):
    """One convolution. The names are those of its tensors' files."""
    name: str
    depthwise: bool
    c_in: int
    c_out: int
    kernel: int
    stride: int
    activation: str

    @property
    def fan_in(self):
        """Multiply-adds of an output."""
        return self.kernel**2 if self.depthwise else self.c_in

    @property
    def shapes(self):
        weight = ((self.kernel, self.kernel, self.c_out) if self.depthwise
                  else (self.c_out, self.c_in))
        return weight, (self.c_out,)


class Excite(NamedTuple):
    """The channels' means go through both layers, and what these give scales the channels."""
    reduce: Layer
    expand: Layer


class Norm(NamedTuple):
    """LayerNorm over the channels of each pixel, with EPSILON."""
    name: str
    channels: int

    @property
    def shapes(self):
        return (self.channels,), (self.channels,)


class Scale(NamedTuple):
    """A factor for each channel."""
    name: str
    channels: int

    @property
    def shapes(self):
        return (self.channels,),


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
    # Of the expansion and of the depthwise convolution in `ir` and `sep`.
    activation: str = "relu6"
    # Channels between the two layers of squeeze-and-excite; 0: there is none.
    squeezed: int = 0

    @property
    def steps(self):
        def pointwise(name, c_in, c_out, activation=""):
            return Layer(name, False, c_in, c_out, 1, 1, activation)

        def depthwise(c, activation=""):
            return Layer("depthwise", True, c, c, self.kernel, self.stride, activation)

        c_in, c_exp, c_out = self.c_in, self.c_exp, self.c_out
        if self.kind == "pw":
            return [pointwise("pointwise", c_in, c_out)]
        if self.kind == "dw":
            return [depthwise(c_exp)]
        project = pointwise("project", c_exp, c_out)
        if self.kind == "cnx":
            return [depthwise(c_in), Norm("norm", c_in), pointwise("expand", c_in, c_exp, "gelu"),
                    project, Scale("scale", c_out)]
        steps = [depthwise(c_exp, self.activation), project]
        if self.squeezed:
            steps.insert(1, Excite(pointwise("se.reduce", c_exp, self.squeezed, "relu"),
                                   pointwise("se.expand", self.squeezed, c_exp, "hardsigmoid")))
        if self.kind == "ir":
            steps.insert(0, pointwise("expand", c_in, c_exp, self.activation))
        return steps

    @property
    def parts(self):
        """All that has tensors."""
        return [part for step in self.steps
                for part in (step if isinstance(step, Excite) else [step])]

    @property
    def residual(self):
        return (self.kind in ("ir", "sep", "cnx") and self.stride == 1
                and self.c_in == self.c_out)

    @property
    def output_side(self):
        return -(-self.side // self.stride)

    @property
    def flops(self):
        """Two for each multiply-add; borders counted as if they were inside, as all do."""
        side, total = self.side, 0
        for step in self.steps:
            if isinstance(step, Layer):
                side = -(-side // step.stride)
                total += 2 * side**2 * step.c_out * step.fan_in
            elif isinstance(step, Excite):
                total += 2 * sum(layer.c_out * layer.fan_in for layer in step)
        return total

    @property
    def bytes(self):
        """What has to move at least: input, weights and output, once each."""
        weights = sum(math.prod(shape) for part in self.parts for shape in part.shapes)
        return 4 * (self.side**2 * self.c_in + weights + self.output_side**2 * self.c_out)

    @property
    def label(self):
        """Side, channels, stride, and what else differs between blocks."""
        channels = {"dw": f"{self.c_in}", "pw": f"{self.c_in}-{self.c_out}"}.get(
            self.kind, f"{self.c_in}-{self.c_exp}-{self.c_out}")
        words = [f"{self.side}² {channels}"]
        if self.kind != "pw":
            words.append(f"s{self.stride}")
        if self.kind in ("ir", "sep") and self.kernel != 3:
            words.append(f"{self.kernel}x{self.kernel}")
        if self.squeezed:
            words.append("se")
        return " ".join(words)

    def line(self, folder):
        """What a worker is told."""
        sizes = self.side, self.c_in, self.c_exp, self.c_out, self.stride, self.kernel
        words = self.name, self.kind, *sizes, self.activation, self.squeezed, folder
        return " ".join(map(str, words))


KINDS = ("ir", "sep", "cnx", "dw", "pw")


def read(only=()):
    """The workloads whose names have one of `only` in them, or all; a comment begins a group."""
    found, group = [], ""
    for line in LIST.read_text().splitlines():
        if line.startswith("#"):
            group = line[1:].strip()
        elif line:
            name, kind, *fields = line.split()
            if kind not in KINDS:
                raise SystemExit(f"error: {LIST.name}: no kind {kind}")
            *sizes, kernel = map(int, fields[:6])
            kernel = 3 if kind == "ir" and kernel == 1 else kernel
            if not only or any(part in name for part in only):
                found.append(Workload(name, kind, *sizes, kernel, group, **facts(fields[6:])))
    return found


def facts(words):
    """The activation and `se=CHANNELS`, either of which may be left out."""
    found = {}
    for word in words:
        if word.startswith("se="):
            found["squeezed"] = int(word[3:])
        elif word in HIDDEN:
            found["activation"] = word
        else:
            raise SystemExit(f"error: {LIST.name}: no activation {word}")
    return found


def tensors(workload):
    """The input, NHWC, and the tensors of each part: the same in every run.

    Weights are [c_out, c_in] or [kernel, kernel, c], and scaled so that activations keep their
    size. Twice the size in, and relu6 cuts off at both ends.
    """
    random = np.random.default_rng(zlib.crc32(workload.name.encode()))
    draw = lambda shape: random.standard_normal(shape, np.float32)
    x = 2 * draw((workload.side, workload.side, workload.c_in))
    weights = {}
    for part in workload.parts:
        weight, *bias = map(draw, part.shapes)
        if isinstance(part, Layer):
            weight *= np.float32((2 / part.fan_in)**0.5)
        elif isinstance(part, Norm):
            weight = 1 + np.float32(0.1) * weight
        weights[part.name] = weight, *(np.float32(0.1) * b for b in bias)
    return x, weights


def reference(workload, x, weights):
    """The output in f64, NHWC."""
    y = x = x.astype(np.float64)
    exact = {name: [t.astype(np.float64) for t in part] for name, part in weights.items()}
    for step in workload.steps:
        y = apply(step, y, exact)
    return y + x if workload.residual else y


def apply(step, x, weights):
    if isinstance(step, Excite):
        gate = x.mean((0, 1), keepdims=True)
        for layer in step:
            gate = apply(layer, gate, weights)
        return x * gate
    weight, *bias = weights[step.name]
    if isinstance(step, Scale):
        return x * weight
    if isinstance(step, Norm):
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        return centred / np.sqrt(variance + EPSILON) * weight + bias[0]
    y = depthwise(step, x, weight) if step.depthwise else x @ weight.T
    return ACTIVATIONS[step.activation](y + bias[0])


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
    for name, (weight, *bias) in weights.items():
        if bias:
            write(f"{name}.b", bias[0])
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
