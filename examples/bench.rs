//! Times blocks and layers: the built-in lists, a file of workloads, or one
//! given on the command line. `--help` says how.
//!
//! `cargo run --release --example bench -- [LIST|FILE|BLOCK]... [--isa ISA|all]...
//! [--schedule SCHEDULE]... [--layout LAYOUT]... [--tiles] [--cold] [--rounds N]
//! [--threads N,N] [--csv]`.
//! Exits with 2 when the command line or a file is wrong, with 1 when a run fails.

#[path = "support/layout.rs"]
mod layout;
#[path = "support/measure.rs"]
mod measure;
#[path = "support/options.rs"]
mod options;
#[path = "support/pool.rs"]
mod pool;
#[path = "support/timing.rs"]
mod timing;
#[path = "support/workloads.rs"]
mod workloads;

use core::error::Error;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use layout::Layouts;
use mbconv::{Isa, Schedule};
use measure::{Method, Row, measure};
use pool::Pool;
use timing::Flush;
use workloads::{Workload, lists};

const USAGE: &str = "\
usage: bench [LIST|FILE|BLOCK]... [OPTION]...

  LIST   mobilenet_v2 (the default), another of --list
  FILE   a line per workload: name kind H C_in C_exp C_out stride kernel
         kind  ir  1x1, depthwise, 1x1: relu6 inside, linear projection, residual
                   where input and output have one shape
               ds  the same without the first 1x1; C_exp = C_in
               st  the same with a 3x3 of stride 2 in its place; C_in = 3
               dw  depthwise alone, no activation
               pw  1x1 alone, no activation
               cnx ConvNeXt's block; C_in = C_exp = C_out, stride 1
         kernel 1 of ir, ds and st is 3x3, of cnx 7x7; a ninth word is a block's inner
         activation where it is not relu6, or gelu in cnx: identity, relu, relu6,
         hardswish, silu, gelu; other kinds are skipped; # begins a comment
  BLOCK  a name out of --list, or such a line in quotes

  --isa ISA|all         avx512, avx2, neon or portable; may be repeated
  --schedule SCHEDULE   auto, fused, unfused or ROWSxCHANNELS of a tile; may be
                        repeated (default: fused, unfused and auto)
  --layout LAYOUT       nhwc (the default), nchw, nhwc-nchw or nchw-nhwc: of input and
                        output; may be repeated, and is then compared with the first
  --tiles               also times tiles of 1..56 rows and 1/1..1/6 of the expanded
                        channels, and holds the best against auto; in CSV all of them
  --cold                walks over more memory than the caches hold before each call,
                        then lets the core settle with multiply-adds
  --rounds N            turns that each variant has (default: 21)
  --threads N,N         numbers of threads, each a variant (default: 1); with 1 and
                        others, holds their gain against that of multiply-adds alone
  --csv                 CSV on stdout, everything else on stderr
  --list                prints the lists
  --help                prints this

The variants of a workload take turns with each other and with the FMA peak, and
each round has input and output start elsewhere in a page. Times are of one call,
medians over the rounds; the spread is from the 10th to the 90th percentile. GB/s
counts input, output and weights once each, and for an unfused block what the
stages leave to each other written and read.";

const ROUNDS: usize = 21;

struct Options {
    workloads: Vec<Workload>,
    isas: Vec<Isa>,
    method: Method,
    csv: bool,
}

enum Request {
    Run(Options),
    List,
    Help,
}

impl Request {
    fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Self, Box<dyn Error>> {
        let (mut workloads, mut isas, mut schedules) = (Vec::new(), Vec::new(), Vec::new());
        let mut layouts = Vec::new();
        let (mut csv, mut tiles, mut cold, mut rounds) = (false, false, false, ROUNDS);
        let mut threads = vec![1];
        let mut chosen = false;
        while let Some(argument) = arguments.next() {
            let name = argument.to_string_lossy();
            let mut value = || {
                let value = arguments.next().and_then(|value| value.into_string().ok());
                value.ok_or_else(|| format!("{name} takes a value"))
            };
            match &*name {
                "--help" | "-h" => return Ok(Self::Help),
                "--list" => return Ok(Self::List),
                "--isa" => match value()?.as_str() {
                    "all" => isas.extend(Isa::available()),
                    name => isas.push(Isa::from_name(name)?),
                },
                "--layout" => layouts.push(Layouts::parse(&value()?)?),
                "--schedule" => schedules.push(options::schedule(&value()?)?),
                "--rounds" => rounds = options::count("--rounds", &value()?)?,
                "--threads" => {
                    let counts = value()?;
                    let counts = counts.split(',').map(|n| options::count("--threads", n));
                    threads = counts.collect::<Result<_, _>>()?;
                }
                "--tiles" => tiles = true,
                "--cold" => cold = true,
                "--csv" => csv = true,
                option if option.starts_with("--") => Err(format!("no option {option}"))?,
                name => {
                    chosen = true;
                    workloads.extend(select(name, Path::new(&argument))?);
                }
            }
        }
        if !chosen {
            workloads = lists::list("mobilenet_v2").unwrap_or_default();
        }
        if isas.is_empty() {
            isas.push(Isa::detect()?);
        }
        if layouts.is_empty() {
            layouts.push(Layouts::NHWC);
        }
        if schedules.is_empty() {
            schedules = vec![Schedule::Fused, Schedule::Unfused, Schedule::Auto];
        } else if tiles && !schedules.contains(&Schedule::Auto) {
            schedules.push(Schedule::Auto);
        }
        threads.sort_unstable();
        threads.dedup();
        let pools = threads.into_iter().map(Pool::new).collect();
        let method =
            Method { rounds, schedules, layouts, pools, tiles, flush: cold.then(Flush::new) };
        Ok(Self::Run(Options { workloads, isas, method, csv }))
    }
}

/// The workloads of an argument. Kinds that are not supported are left out.
fn select(name: &str, path: &Path) -> Result<Vec<Workload>, String> {
    let mut lists = lists::all();
    if let Some(i) = lists.iter().position(|(list, _)| *list == name) {
        return Ok(lists.swap_remove(i).1);
    }
    let mut known = lists.into_iter().flat_map(|(_, list)| list);
    if let Some(workload) = known.find(|workload| workload.name == name) {
        return Ok(vec![workload]);
    }
    let (text, file) = match std::fs::read_to_string(path) {
        Ok(text) => (text, true),
        Err(_) if name.contains(char::is_whitespace) => (name.to_owned(), false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(format!("no list, block or file is named {name:?}; --list prints them"));
        }
        Err(error) => return Err(format!("{name}: {error}")),
    };
    let mut workloads = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default();
        if line.trim().is_empty() {
            continue;
        }
        match Workload::parse(line) {
            Ok(workload) => workloads.push(workload),
            Err(error @ workloads::Error::Unsupported { .. }) => {
                eprintln!("bench: {error}, skipped");
            }
            Err(error) if file => return Err(format!("{name}:{}: {error}", n + 1)),
            Err(error) => return Err(format!("{name:?}: {error}")),
        }
    }
    Ok(workloads)
}

/// Where rows go: the table for people, on stderr when stdout has the CSV.
struct Report {
    csv: bool,
    progress: ProgressBar,
}

impl Report {
    fn new(csv: bool, steps: usize) -> Result<Self, Box<dyn Error>> {
        let progress = if io::stderr().is_terminal() {
            ProgressBar::new(steps as u64)
        } else {
            ProgressBar::hidden()
        };
        progress.set_style(ProgressStyle::with_template("{bar:32} {pos}/{len} {msg}")?);
        Ok(Self { csv, progress })
    }

    fn csv(&self, line: &str) -> io::Result<()> {
        if !self.csv {
            return Ok(());
        }
        self.progress.suspend(|| writeln!(io::stdout(), "{line}"))
    }

    fn say(&self, line: &str) -> io::Result<()> {
        self.progress.suspend(|| {
            if self.csv {
                writeln!(io::stderr(), "{line}")
            } else {
                writeln!(io::stdout(), "{line}")
            }
        })
    }

    fn head(&self) -> io::Result<()> {
        self.csv("workload,variant,isa,threads,median_us,min_us,gflops,percent_of_peak,gbps")?;
        self.say(&format!(
            "{:<16} {:<28} {:<8} {:>7} {:>10} {:>10} {:>7} {:>8} {:>7} {:>7}",
            "workload",
            "variant",
            "isa",
            "threads",
            "median us",
            "min us",
            "spread",
            "GFLOP/s",
            "peak",
            "GB/s"
        ))
    }

    fn row(&self, workload: &str, isa: Isa, row: &Row, shown: bool) -> io::Result<()> {
        let Row { variant, threads, chosen, ratio, time, gflops, percent, gbps, .. } = row;
        let ratio = ratio.map_or(String::new(), |ratio| format!("  {ratio:.3}"));
        self.csv(&format!(
            "{},{variant},{isa},{threads},{:.3},{:.3},{gflops:.2},{percent:.2},{gbps:.2}",
            quoted(workload),
            time.median,
            time.min
        ))?;
        if !shown {
            return Ok(());
        }
        let variant = match chosen {
            Some(chosen) => format!("{variant} ({chosen})"),
            None => variant.clone(),
        };
        self.say(&format!(
            "{workload:<16} {variant:<28} {:<8} {:>7} {:>10.1} {:>10.1} {:>6.1}% {gflops:>8.1} \
             {percent:>6.1}% {gbps:>7.1}{ratio}",
            isa.name(),
            threads,
            time.median,
            time.min,
            100.0 * time.spread
        ))
    }
}

/// A field of a CSV file.
fn quoted(text: &str) -> String {
    if text.contains([',', '"']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.into()
    }
}

/// What the best tile saves on `auto`, and auto's time relative to it.
fn verdict(best: &Row, rows: &[Row]) -> Option<(String, f64)> {
    let auto = rows.iter().find(|row| row.chosen.is_some() && row.threads == best.threads)?;
    let ratio = auto.time.median / best.time.median;
    let why = auto.explained.as_deref().unwrap_or_default();
    let [a, b] = [auto, best].map(|row| row.time.median);
    let best = &best.variant;
    Some((
        format!("  best tile {best}: {b:.1} us; auto {a:.1} us, {ratio:.3} times that, {why}"),
        ratio,
    ))
}

/// How much faster some threads are than one, where both were timed: the best
/// variant's gain, the multiply-adds', and the one relative to the other.
fn gain(rows: &[Row], threads: usize) -> Option<[f64; 3]> {
    let best = |threads| {
        let rows = rows.iter().filter(|row| row.threads == threads && !row.candidate);
        rows.min_by(|a, b| a.time.median.total_cmp(&b.time.median))
    };
    let (one, many) = (best(1)?, best(threads)?);
    let [gain, limit] = [one.time.median / many.time.median, many.peak / one.peak];
    Some([gain, limit, gain / limit])
}

fn bench(mut options: Options) -> Result<(), Box<dyn Error>> {
    let Options { workloads, isas, method, csv } = &mut options;
    let report = Report::new(*csv, workloads.len() * isas.len())?;
    if let Some(flush) = &method.flush {
        eprintln!("bench: cold: {} MiB walked over before each call", flush.bytes() >> 20);
    }
    report.head()?;
    let (mut ratios, mut layouts): (Vec<f64>, Vec<f64>) = (Vec::new(), Vec::new());
    let mut gains: Vec<f64> = Vec::new();
    for workload in &*workloads {
        report.progress.set_message(workload.name.clone());
        for &isa in &*isas {
            let rows = measure(workload, isa, method)
                .map_err(|error| format!("{}: {error}", workload.name))?;
            let candidates = rows.iter().filter(|row| row.candidate);
            let best = candidates.min_by(|a, b| a.time.median.total_cmp(&b.time.median));
            for row in &rows {
                let shown = !row.candidate || best.is_some_and(|best| core::ptr::eq(best, row));
                report.row(&workload.name, isa, row, shown)?;
            }
            layouts.extend(rows.iter().filter_map(|row| row.ratio));
            if let Some((text, ratio)) = best.and_then(|best| verdict(best, &rows)) {
                report.say(&text)?;
                ratios.push(ratio);
            }
            for threads in method.pools.iter().map(Pool::threads).filter(|&n| n > 1) {
                if let Some([gain, limit, ratio]) = gain(&rows, threads) {
                    report.say(&format!(
                        "  {threads} threads: {gain:.2} times as fast as one, multiply-adds \
                         alone {limit:.2}: {:.1}% of that",
                        100.0 * ratio
                    ))?;
                    gains.push(ratio);
                }
            }
            report.progress.inc(1);
        }
    }
    let mean = |v: &[f64]| (v.iter().map(|r| r.ln()).sum::<f64>() / v.len() as f64).exp();
    for (what, ratios) in
        [("auto against the best tile", &ratios), ("layouts against the first", &layouts)]
    {
        if let Some(worst) = ratios.iter().copied().reduce(f64::max) {
            let mean = mean(ratios);
            report.say(&format!("{what}: {mean:.3} in the geometric mean, {worst:.3} at worst"))?;
        }
    }
    if let Some(worst) = gains.iter().copied().reduce(f64::min) {
        let mean = mean(&gains);
        report.say(&format!(
            "threads' gain against multiply-adds': {mean:.3} in the geometric mean, {worst:.3} at \
             worst"
        ))?;
    }
    report.progress.finish_and_clear();
    Ok(())
}

/// As lines, with what a line does not say behind them.
fn print_lists() -> io::Result<()> {
    let mut out = io::stdout().lock();
    for (name, list) in lists::all() {
        writeln!(out, "# {name}")?;
        for Workload { name, kind, side, c, stride, kernel, activations, .. } in list {
            let (kind, [c_in, c_mid, c_out], [inner, outer]) = (kind.name(), c, activations);
            writeln!(
                out,
                "{name} {kind} {side} {c_in} {c_mid} {c_out} {stride} {kernel} # {inner:?} {outer:?}"
            )?;
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    let done = match Request::parse(std::env::args_os().skip(1)) {
        Ok(Request::Run(options)) => bench(options),
        Ok(Request::List) => print_lists().map_err(Into::into),
        Ok(Request::Help) => writeln!(io::stdout(), "{USAGE}").map_err(Into::into),
        Err(error) => {
            eprintln!("bench: {error}\nbench --help says what can be asked");
            return ExitCode::from(2);
        }
    };
    if let Err(error) = done {
        eprintln!("bench: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
