"""Times mbconv and other libraries in turn on the same layers and blocks; README.md says how.

    python3 benches/peers/run.py [--only SUBSTRING...] [--libraries NAME,NAME] [--threads 1,2]
                                 [--rounds N] [--isa avx2|avx512] [--network DIR] [--out DIR]

Exits with 1 when a library's output is wrong or its worker fails; a library that cannot be
installed is named and left out.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from libraries import LOG, MBCONV, PEERS, VENV, WORK, Missing, install, pip_install, say


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--only", nargs="+", default=[], metavar="SUBSTRING", help="workloads by name")
    add("--libraries", default="", metavar="NAME,NAME",
        help="peers of mbconv: " + ", ".join(p.name for p in PEERS))
    add("--threads", default="1,2", help="default: 1,2")
    add("--rounds", type=int, default=5, help="default: 5")
    add("--isa", choices=["avx2", "avx512"], help="narrows mbconv and oneDNN; no other peer can be")
    add("--network", type=Path, metavar="DIR", help="EfficientNet-Lite0's files: times it, too")
    add("--out", type=Path, default=WORK, metavar="DIR", help="default: target/peers")
    options = parser.parse_args()
    names = [p.name for p in PEERS]
    wanted = [name for name in options.libraries.split(",") if name] or names
    if unknown := set(wanted) - {*names, MBCONV.name}:
        parser.error(f"no library {', '.join(sorted(unknown))}")
    options.libraries = [MBCONV] + [p for p in PEERS if p.name in wanted]
    try:
        options.threads = sorted({int(n) for n in options.threads.split(",")})
    except ValueError:
        parser.error("--threads takes numbers")
    if not 1 <= options.threads[0] <= options.threads[-1] <= len(os.sched_getaffinity(0)):
        parser.error(f"--threads: this machine gives 1 to {len(os.sched_getaffinity(0))}")
    return options


def enter_venv():
    """Starts this program again on the venv's Python, which has numpy."""
    python = VENV / "bin" / "python"
    if not python.exists():
        say(f"making {VENV}")
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    try:
        pip_install("base", "numpy", "onnx")
    except Missing as reason:
        sys.exit(f"error: numpy and onnx are needed: {reason}")
    os.execv(python, [python, *sys.argv])


def main():
    options = arguments()
    if Path(sys.prefix).resolve() != VENV.resolve():
        enter_venv()

    import report
    import workloads
    from driver import measure
    from network import Network
    chosen = workloads.read(options.only)
    if options.network:
        chosen.append(Network(options.network.resolve()))
    if not chosen:
        sys.exit("error: no workload has that in its name")
    LOG.mkdir(parents=True, exist_ok=True)
    versions, missing = install(options.libraries)
    present = [library for library in options.libraries if library.name in versions]
    results, machine = measure(chosen, present, options.threads, options.rounds, options.isa)
    about = report.About(options.libraries, versions, missing, options.threads, options.isa,
                         machine)
    options.out.mkdir(parents=True, exist_ok=True)
    print(report.write(options.out, chosen, results, about))
    return any(r.verdict in ("error", "mismatch") for r in results.values())


if __name__ == "__main__":
    sys.exit(main())
