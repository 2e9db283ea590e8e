"""The results as CSV, as a Markdown table and as charts."""

import csv
import re
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import geometric_mean

import charts
from driver import TOLERANCE, Machine


@dataclass
class About:
    """What was measured with what."""
    libraries: list
    versions: dict
    missing: dict
    threads: list
    isa: str
    machine: Machine

    def limit_us(self, workload, threads):
        peak = self.machine.peak
        return workload.flops / (1e3 * peak * threads) if peak else None


class Row:
    """A workload with some threads: times by library, the best peer, and how it compares."""

    def __init__(self, workload, threads, results, about):
        self.workload, self.threads = workload, threads
        self.results = {library.name: results.get((workload.name, library.name, threads))
                        for library in about.libraries}
        self.times = {name: r.median for name, r in self.results.items() if r and r.times}
        self.limit = about.limit_us(workload, threads)
        peers = {name: us for name, us in self.times.items() if name != "mbconv"}
        self.best = min(peers, key=peers.get, default=None)
        self.own = self.times.get("mbconv")
        self.ratio = peers[self.best] / self.own if self.best and self.own else None


def write(out, chosen, results, about):
    """Writes all files; gives the Markdown."""
    rows = [Row(workload, threads, results, about)
            for threads in about.threads for workload in chosen]
    write_csv(out / "peers.csv", results)
    tables, drawn = [], []
    for (threads, group), part in groupby(rows, lambda r: (r.threads, r.workload.group)):
        part = list(part)
        title = f"{group}, {threads} thread{'s'[:threads > 1]}"
        tables += [f"## {title}", "", *table(part, about)]
        if any(row.times for row in part):
            file = re.sub(r"\W+", "-", group.lower()) + f"-{threads}t.svg"
            (out / file).write_text(charts.bars(title, part, subtitle(about, threads)))
            drawn.append(file)
    single = [row for row in rows if row.threads == 1 and row.times]
    if single and about.machine.peak:
        (out / "roofline.svg").write_text(
            charts.roofline(single, about.machine, subtitle(about, 1)))
        drawn.append("roofline.svg")
    text = "\n".join([*heading(about), *tables, *notes(results),
                      "Charts: " + ", ".join(f"[{f}]({f})" for f in drawn) + "."]) + "\n"
    (out / "peers.md").write_text(text)
    return text


def write_csv(path, results):
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["workload", "library", "isa", "threads", "median_us", "min_us"])
        for (workload, library, threads), r in results.items():
            if r.times:
                writer.writerow([workload, library, r.isa, threads,
                                 f"{r.median:.2f}", f"{min(r.times):.2f}"])


def cpu():
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return found[1] if found else "this machine"


def subtitle(about, threads):
    peak = about.machine.peak * threads
    return f"{cpu()}, f32, batch 1" + (f", measured FMA peak {peak:.0f} GFLOP/s" if peak else "")


def heading(about):
    machine = about.machine
    yield "# mbconv and its peers\n"
    yield f"{cpu()}; f32, batch 1, medians in microseconds."
    if machine.peak:
        yield (f"One core: {machine.peak:.1f} GFLOP/s of FMA, {machine.near:.0f} GB/s read from "
               f"the second-level cache, {machine.far:.1f} GB/s from memory; `limit` is FLOP / FMA "
               "peak.")
    yield "Ratios are best peer / mbconv: above 1 mbconv is faster. The fastest is bold.\n"
    yield "Versions: " + ", ".join(f"{k} {v}" for k, v in about.versions.items()) + ".\n"
    for name, reason in about.missing.items():
        yield f"**{name} is missing**: {reason}\n"
    if about.isa:
        free = [p.name for p in about.libraries if not p.narrows and p.name in about.versions]
        yield (f"mbconv and oneDNN are narrowed to {about.isa}. Not so, since they have no switch "
               f"for it: {', '.join(free) or 'none'}.\n")


def table(rows, about):
    names = [library.name for library in about.libraries
             if any(row.results[library.name] for row in rows) or library.name in about.missing]
    header = ["workload", "size", "MFLOP", "limit", *names, "best peer", "ratio"]
    yield "| " + " | ".join(header) + " |"
    yield "|---|---|" + "---:|" * (2 + len(names)) + "---|---|"
    for row in rows:
        limit = f"{row.limit:.1f}" if row.limit else "-"
        cells = [row.workload.name, row.workload.label, f"{row.workload.flops / 1e6:.1f}", limit]
        cells += [cell(row, name, about) for name in names]
        cells += [row.best or "-", ratio(row)]
        yield "| " + " | ".join(cells) + " |"
    ratios = [row.ratio for row in rows if row.ratio]
    if ratios:
        slower = sum(r < 1 for r in ratios)
        yield (f"\nGeometric mean of the ratios {geometric_mean(ratios):.2f}; "
               f"a peer is faster on {slower} of {len(ratios)}.")
    yield ""


def cell(row, name, about):
    result = row.results[name]
    if name in about.missing:
        return "missing"
    if result is None or not result.times:
        return "-" if result is None or result.verdict == "unsupported" else result.verdict
    us = f"{row.times[name]:.1f}"
    return f"**{us}**" if row.times[name] == min(row.times.values()) else us


def ratio(row):
    if row.ratio is None:
        return "-"
    return f"{row.ratio:.2f}" + (f" **{row.best} is faster**" if row.ratio < 1 else "")


def notes(results):
    """What failed, what was not supported, and how well the outputs agree."""
    for (workload, library, threads), r in results.items():
        if r.verdict in ("error", "mismatch"):
            yield f"**{r.verdict}**: {workload} on {library}, threads {threads}: {r.reason}\n"
    worst = {}
    for (_, library, _), r in results.items():
        if r.times:
            worst[library] = max(worst.get(library, 0), r.deviation)
    yield (f"Outputs agree with the reference in f64, within {TOLERANCE:g} of its largest value; "
           "largest difference: " + ", ".join(f"{k} {v:.1e}" for k, v in worst.items()) + ".\n")
    reasons = {}
    for (_, library, _), r in results.items():
        if r.verdict == "unsupported":
            reasons.setdefault(library, set()).add(r.reason)
    for library, why in reasons.items():
        yield f"Not supported by {library}: {'; '.join(sorted(why))}.\n"
