"""The workers from outside: started on their cores, loaded, run in turn."""

import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from threading import Timer

import models
import workloads
from libraries import LOG, MBCONV, WORK, say

SLICE_MS = 100
# Pools spin on for some milliseconds after a run: no worker starts before the last one's sleeps.
PAUSE_S = 0.02
# A worker that takes longer to answer hangs.
PATIENCE_S = 120
# Relative to the largest value expected.
TOLERANCE = 1e-4
# What others have set for themselves, part of which narrows the instruction set.
CLEARED = ("OPENBLAS_", "ONEDNN_", "DNNL_", "OMP_", "GOMP_", "KMP_", "MKL_", "RAYON_", "RTEN_",
           "MBCONV_")


class Failed(Exception):
    """A worker answers with an error, or not at all."""


class Unsupported(Exception):
    """The library has no such layer."""


def cores():
    """Allowed CPUs, one for each core and those before their hyper-threads."""
    def siblings(cpu):
        file = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        return file.read_text() if file.exists() else str(cpu)

    allowed = sorted(os.sched_getaffinity(0))
    first = {siblings(cpu): cpu for cpu in reversed(allowed)}.values()
    return sorted(allowed, key=lambda cpu: (cpu not in first, cpu))


def environment(threads, isa):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(CLEARED)}
    clean |= {"OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}
    # Engines that allocate in each run keep their pages. Otherwise it hangs on where the heap
    # happens to end whether every run faults them in again, which can take three times as long.
    # 32 MiB is the most that glibc takes for the second.
    clean |= {"MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}
    if isa:
        clean |= {"MBCONV_ISA": isa,
                  "ONEDNN_MAX_CPU_ISA": {"avx512": "AVX512_CORE"}.get(isa, isa.upper())}
    return clean


@dataclass
class Result:
    """Of a workload on a library with some threads."""
    isa: str = ""
    times: list = field(default_factory=list)
    deviation: float = 0.0
    # Why there are no times: "unsupported", "error" or "mismatch", and in words.
    verdict: str = ""
    reason: str = ""

    @property
    def median(self):
        return median(self.times)


class Worker:
    def __init__(self, library, threads, isa):
        self.library, self.threads = library, threads
        self.name = f"{library.name}, {threads} thread{'s'[:threads > 1]}"
        self.log = LOG / f"{library.name}-{threads}.txt"
        cpus = cores()[:threads]
        self.process = subprocess.Popen(
            list(map(str, library.command(threads))), text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self.log.open("w"), env=environment(threads, isa),
            preexec_fn=lambda: os.sched_setaffinity(0, cpus))

    def ask(self, *words):
        """The answer to a command; lines that a library prints of its own accord are skipped."""
        watch = Timer(PATIENCE_S, self.process.kill)
        watch.start()
        try:
            print(*words, file=self.process.stdin, flush=True)
            for line in self.process.stdout:
                verdict, _, rest = line.strip().partition(" ")
                if verdict == "ok":
                    return rest
                if verdict in ("error", "unsupported"):
                    raise (Failed if verdict == "error" else Unsupported)(rest)
        except BrokenPipeError:
            pass
        finally:
            watch.cancel()
        raise Failed(f"ended with code {self.process.wait()} ({self.log})")

    def close(self):
        self.process.kill()
        self.process.wait()


def prepare(workload, with_tflite):
    """Writes the workload's tensors and models; gives their folder and the expected output."""
    folder = WORK / "cases" / workload.name
    folder.mkdir(parents=True, exist_ok=True)
    if workload.kind == "net":
        return folder, workload.prepare(folder)
    x, weights = workloads.tensors(workload)
    workloads.save(folder, x, weights)
    (folder / "model.onnx").write_bytes(models.onnx_model(workload, weights))
    if with_tflite and (model := models.tflite_model(workload, weights)):
        (folder / "model.tflite").write_bytes(model)
    return folder, workloads.reference(workload, x, weights)


def load_and_check(worker, workload, folder, expected):
    result, file = Result(), folder / "output.f32"
    try:
        layout, result.isa = worker.ask("load", workload.line(folder)).split()
        worker.ask("output", file)
        result.deviation = workloads.deviation(workload, expected, file, layout)
        if not result.deviation <= TOLERANCE:
            raise Failed(f"the output is off by {result.deviation:.1e} of its largest value")
    except Unsupported as reason:
        result.verdict, result.reason = "unsupported", str(reason)
    except Failed as reason:
        result.verdict = "mismatch" if result.deviation else "error"
        result.reason = str(reason)
    if result.verdict in ("error", "mismatch"):
        say(f"  {worker.name}: {result.verdict}: {result.reason}")
    return result


def run(worker, result):
    time.sleep(PAUSE_S)
    try:
        result.times += map(float, worker.ask("run", SLICE_MS).split())
    except Failed as reason:
        result.verdict, result.reason, result.times = "error", str(reason), []
        say(f"  {worker.name}: error: {reason}")


@dataclass
class Machine:
    """One core at best, as mbconv's worker measures it again and again; zeros without it."""
    peak: float = 0.0  # GFLOP/s
    near: float = 0.0  # GB/s from the second-level cache
    far: float = 0.0  # GB/s from memory

    def measure_bandwidth(self, worker):
        near, far = map(float, worker.ask("bandwidth").split())
        self.near, self.far = max(self.near, near), max(self.far, far)

    def measure_peak(self, worker):
        self.peak = max(self.peak, float(worker.ask("peak")))


def measure(chosen, libraries, thread_counts, rounds, isa):
    """{(workload, library, threads): Result}, by names, and the machine's limits."""
    results, machine = {}, Machine()
    workers = [Worker(library, threads, isa) for threads in thread_counts
               for library in libraries if threads <= library.max_threads]
    with_tflite = any(library.name == "xnnpack" for library in libraries)
    gauge = Worker(MBCONV, 1, isa) if MBCONV in libraries else None
    try:
        for n, workload in enumerate(chosen):
            say(f"{n + 1}/{len(chosen)} {workload.name}")
            folder, expected = prepare(workload, with_tflite)
            found = [(w, load_and_check(w, workload, folder, expected)) for w in workers]
            if gauge:
                machine.measure_bandwidth(gauge)
            for turn in range(rounds):
                if gauge:
                    machine.measure_peak(gauge)
                # Each begins once, so that none is always behind the same one.
                for worker, result in found[turn % len(found):] + found[:turn % len(found)]:
                    if not result.verdict:
                        run(worker, result)
            for worker, result in found:
                results[workload.name, worker.library.name, worker.threads] = result
    finally:
        for worker in filter(None, [*workers, gauge]):
            worker.close()
    return results, machine
