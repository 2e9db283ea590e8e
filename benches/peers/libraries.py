"""What is measured: how each library is installed, built and started."""

import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
WORK = HERE.parents[1] / "target" / "peers"
VENV = WORK / "venv"
LOG = WORK / "log"


class Missing(Exception):
    """A library cannot be installed: the others can."""


@dataclass(frozen=True)
class Library:
    name: str
    # Packages of pip; the first tells the version.
    packages: tuple = ()
    # Of the Rust workspace.
    crate: str = ""
    argument: str = ""
    max_threads: int = 64
    # Whether an environment variable narrows its instruction set.
    narrows: bool = False

    def command(self, threads):
        if self.crate:
            return [WORK / "cargo" / "release" / f"peer_{self.name}", str(threads)]
        if self.argument:
            return [WORK / "onednn", self.argument]
        return [sys.executable, HERE / "worker.py", self.name, str(threads)]

    def install(self):
        """Raises Missing with the last line of what went wrong."""
        if self.packages:
            pip_install(self.name, *self.packages)
        if self.crate:
            step(self.name, "cargo", "build", "--release", "--locked",
                 "--manifest-path", HERE / "rust" / "Cargo.toml", "--target-dir", WORK / "cargo",
                 "--features", self.name, "--bin", f"peer_{self.name}")
        if self.argument:
            step(self.name, "g++", "-O2", "-std=c++17", HERE / "onednn.cpp", f"-I{VENV}/include",
                 f"-L{VENV}/lib", "-ldnnl", f"-Wl,-rpath,{VENV}/lib", "-o", WORK / "onednn")

    def version(self):
        if self.crate:
            lock = (HERE / "rust" / "Cargo.lock").read_text()
            return re.search(rf'name = "{self.crate}"\nversion = "(.*)"', lock)[1]
        if self.argument:
            header = (VENV / "include" / "oneapi" / "dnnl" / "dnnl_version.h").read_text()
            parts = (re.search(rf"VERSION_{part}\s+(\d+)", header)[1]
                     for part in ("MAJOR", "MINOR", "PATCH"))
            return ".".join(parts)
        return version(self.packages[0])


ONEDNN = ("onednn-cpu-gomp", "onednn-devel-cpu-gomp")
MBCONV = Library("mbconv", crate="mbconv", narrows=True)
PEERS = [
    Library("onednn", ONEDNN, argument="chain", narrows=True),
    Library("onednn-dw", ONEDNN, argument="dw", narrows=True),
    Library("xnnpack", ("ai-edge-litert", "flatbuffers")),
    Library("onnxruntime", ("onnxruntime",)),
    Library("openvino", ("openvino",)),
    Library("tract", crate="tract-onnx"),
    Library("rten", crate="rten"),
    Library("candle", crate="candle-core"),
]


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def step(name, *command):
    """Runs a command, its output into a log."""
    LOG.mkdir(parents=True, exist_ok=True)
    log = LOG / f"install-{name}-{Path(command[0]).name}.txt"
    try:
        with log.open("w") as output:
            subprocess.run(command, stdout=output, stderr=output, check=True)
    except FileNotFoundError:
        raise Missing(f"{command[0]} is not there") from None
    except subprocess.CalledProcessError:
        lines = [line.strip() for line in log.read_text().splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()]
        raise Missing(f"{(errors or lines or ['no output'])[-1]} ({log})") from None


def pip_install(name, *packages):
    """Into the venv, wheels only: nothing is built, no setup.py runs."""
    step(name, VENV / "bin" / "python", "-m", "pip", "install", "--disable-pip-version-check",
         "--quiet", "--only-binary=:all:", *packages)


def install(libraries):
    """The versions of those that are there, and why others are not."""
    versions, missing = {}, {}
    for library in libraries:
        say(f"installing {library.name}")
        try:
            library.install()
            versions[library.name] = library.version()
        except Missing as reason:
            missing[library.name] = str(reason)
            say(f"  {library.name} is missing: {reason}")
    return versions, missing
