//! Runs block cases and says how far each output is from the expected one.
//!
//! `cargo run --release --example check_case -- FILE... [--isa ISA]... [--schedule
//! auto|fused|unfused|ROWSxCHANNELS] [--layout nhwc|nchw|nhwc-nchw|nchw-nhwc]
//! [--threads N] [--json]`; `--isa all` is every instruction set of this CPU. Exits
//! with 1 when a case fails, with 2 when a file is not a case or the command line is wrong.

#[path = "support/case.rs"]
mod case;
#[path = "support/deviation.rs"]
mod deviation;
#[path = "support/options.rs"]
mod options;
#[path = "support/pool.rs"]
mod pool;

use core::error::Error;
use std::ffi::OsString;
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use case::Case;
use case::layout::Layouts;
use deviation::Deviation;
use mbconv::{Isa, PlanOptions};
use pool::Pool;
use serde_json::json;

const USAGE: &str = "\
usage: check_case FILE... [--isa ISA|all]... [--schedule auto|fused|unfused|ROWSxCHANNELS]
                  [--layout nhwc|nchw|nhwc-nchw|nchw-nhwc] [--threads N] [--json]";
/// Relative to the largest expected output.
const TOLERANCE: f64 = 2e-5;

struct Options {
    files: Vec<PathBuf>,
    isas: Vec<Isa>,
    schedule_name: String,
    plan: PlanOptions,
    layouts: Layouts,
    pool: Pool,
    json: bool,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Self, Box<dyn Error>> {
        let (mut files, mut isas, mut json) = (Vec::new(), Vec::new(), false);
        let (mut schedule_name, mut threads) = (String::from("auto"), 1);
        let mut layouts = Layouts::NHWC;
        while let Some(argument) = arguments.next() {
            let mut value = || {
                let value = arguments.next().and_then(|value| value.into_string().ok());
                value.ok_or_else(|| format!("{} takes a value", argument.display()))
            };
            match argument.to_str() {
                Some("--isa") => match value()?.as_str() {
                    "all" => isas.extend(Isa::available()),
                    name => isas.push(Isa::from_name(name)?),
                },
                Some("--schedule") => schedule_name = value()?,
                Some("--layout") => layouts = Layouts::parse(&value()?)?,
                Some("--threads") => threads = options::count("--threads", &value()?)?,
                Some("--json") => json = true,
                Some(option) if option.starts_with('-') => Err(format!("no option {option}"))?,
                _ => files.push(PathBuf::from(argument)),
            }
        }
        if files.is_empty() {
            Err("no file")?;
        }
        if isas.is_empty() {
            isas.push(Isa::detect()?);
        }
        let plan = PlanOptions::new().schedule(options::schedule(&schedule_name)?).threads(threads);
        Ok(Self { files, isas, schedule_name, plan, layouts, pool: Pool::new(threads), json })
    }
}

/// What is said of a case on one instruction set.
struct Report<'a> {
    file: &'a Path,
    kind: &'a str,
    schedule: &'a str,
    layout: &'a str,
    threads: usize,
    isa: Isa,
    kernel: String,
    deviation: Deviation,
}

impl Report<'_> {
    fn passes(&self) -> bool {
        self.deviation.relative <= TOLERANCE
    }

    fn name(&self) -> String {
        self.file.file_stem().unwrap_or_default().display().to_string()
    }

    fn line(&self) -> String {
        let verdict = if self.passes() { "PASS" } else { "FAIL" };
        let Deviation { absolute, relative } = self.deviation;
        format!(
            "{verdict}  {:<33} {:<19} {:<8} {:<8} {absolute:>9.2e} {relative:>9.2e}  {}",
            self.name(),
            self.kind,
            self.isa.name(),
            self.schedule,
            self.kernel
        )
    }

    fn json(&self) -> String {
        json!({
            "file": self.file.display().to_string(),
            "name": self.name(),
            "kind": self.kind,
            "schedule": self.schedule,
            "layout": self.layout,
            "threads": self.threads,
            "pass": self.passes(),
            "isa": self.isa.name(),
            "kernel": self.kernel,
            "max_error": self.deviation.absolute,
            "relative_error": self.deviation.relative,
        })
        .to_string()
    }
}

/// Reports a file on every instruction set; whether it passes on all.
fn check(file: &Path, options: &Options) -> Result<bool, Box<dyn Error>> {
    let case = Case::parse(&std::fs::read(file)?)?;
    let mut good = true;
    for &isa in &options.isas {
        let run = case.run(&options.pool, isa, &options.plan, options.layouts)?;
        let deviation = Deviation::between(case.expected(), &run.output);
        let report = Report {
            file,
            kind: &case.kind,
            schedule: &options.schedule_name,
            layout: options.layouts.name,
            threads: options.pool.threads(),
            isa,
            kernel: run.kernel,
            deviation,
        };
        writeln!(stdout(), "{}", if options.json { report.json() } else { report.line() })?;
        good &= report.passes();
    }
    Ok(good)
}

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args_os().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("check_case: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if !options.json {
        let header = format!(
            "{:<5} {:<33} {:<19} {:<8} {:<8} {:>9} {:>9}  kernel",
            "", "case", "kind", "isa", "schedule", "max error", "relative"
        );
        // A closed pipe ends it at the first line, too.
        if writeln!(stdout(), "{header}").is_err() {
            return ExitCode::from(2);
        }
    }
    let mut worst = 0;
    for file in &options.files {
        worst = worst.max(match check(file, &options) {
            Ok(good) => u8::from(!good),
            Err(error) => {
                eprintln!("check_case: {}: {error}", file.display());
                2
            }
        });
    }
    ExitCode::from(worst)
}
