//! The worker's side of the protocol: one command a line on stdin, one line of
//! answer on stdout. README.md, one folder up, lists the commands.

use std::error::Error;
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fmt, fs};

pub type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// What an engine cannot do: no error of the engine, nor of the benchmark.
#[derive(Debug)]
pub struct Unsupported(pub String);

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Unsupported {}

/// A workload: its sizes, and the folder of its tensors and models.
#[derive(Debug)]
pub struct Case {
    pub kind: String,
    pub side: usize,
    pub c_in: usize,
    pub c_exp: usize,
    pub c_out: usize,
    pub stride: usize,
    pub kernel: usize,
    /// Of the expansion and of the depthwise convolution.
    pub activation: String,
    /// Channels between the layers of squeeze-and-excite; 0: there is none.
    pub squeezed: usize,
    dir: PathBuf,
}

impl Case {
    /// From `NAME KIND H C_IN C_EXP C_OUT STRIDE KERNEL ACTIVATION SQUEEZED DIR`.
    fn parse(line: &str) -> Result<Self> {
        let fields: Vec<&str> = line.splitn(11, ' ').collect();
        let [_, kind, sizes @ .., activation, squeezed, dir] = &fields[..] else {
            Err("too few fields")?
        };
        let sizes = sizes.iter().map(|s| s.parse()).collect::<Result<Vec<usize>, _>>()?;
        let [side, c_in, c_exp, c_out, stride, kernel] = sizes[..] else { Err("too few fields")? };
        let (kind, activation) = (String::from(*kind), String::from(*activation));
        let (squeezed, dir) = (squeezed.parse()?, PathBuf::from(dir));
        Ok(Self { kind, side, c_in, c_exp, c_out, stride, kernel, activation, squeezed, dir })
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    pub fn tensor(&self, name: &str) -> Result<Vec<f32>> {
        let bytes = fs::read(self.path(&format!("{name}.f32")))?;
        let (values, _) = bytes.as_chunks();
        Ok(values.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }

    pub fn residual(&self) -> bool {
        self.stride == 1 && self.c_in == self.c_out
    }

    pub fn unsupported(&self) -> Box<dyn Error> {
        Box::new(Unsupported(format!("no layer of kind {}", self.kind)))
    }
}

/// A library with one workload loaded.
pub trait Engine: Sized {
    /// Of its input and output: `nhwc` or `nchw`.
    const LAYOUT: &str;

    fn load(case: &Case) -> Result<Self>;

    /// One inference; what is timed.
    fn run(&mut self) -> Result<()>;

    /// The output of a run.
    fn output(&mut self) -> Result<Vec<f32>>;

    /// Of the instruction set, where the library tells.
    fn isa() -> String {
        "native".into()
    }

    /// Further commands.
    fn command(name: &str) -> Result<String> {
        Err(format!("no command {name}").into())
    }
}

/// The first argument.
pub fn threads() -> usize {
    env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(1)
}

/// Answers until `quit` or the end of stdin.
pub fn serve<E: Engine>() -> io::Result<()> {
    let mut engine = None;
    for line in io::stdin().lock().lines() {
        let line = line?;
        if line == "quit" {
            break;
        }
        let answer = match answer::<E>(&line, &mut engine) {
            Ok(answer) => format!("ok {answer}"),
            Err(error) => {
                let verdict = if error.is::<Unsupported>() { "unsupported" } else { "error" };
                format!("{verdict} {error}").replace('\n', " ")
            }
        };
        println!("{answer}");
        io::stdout().flush()?;
    }
    Ok(())
}

fn answer<E: Engine>(line: &str, engine: &mut Option<E>) -> Result<String> {
    let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
    let loaded = engine.as_mut().ok_or("nothing is loaded");
    match command {
        "load" => {
            *engine = None; // frees its memory first
            *engine = Some(E::load(&Case::parse(rest)?)?);
            Ok(format!("{} {}", E::LAYOUT, E::isa()))
        }
        "run" => time(loaded?, Duration::from_millis(rest.parse()?)),
        "output" => write(Path::new(rest), &loaded?.output()?),
        _ => E::command(command),
    }
}

/// The microseconds of each call, at least three, after a fifth of the time
/// to warm up.
fn time(engine: &mut impl Engine, budget: Duration) -> Result<String> {
    let start = Instant::now();
    engine.run()?;
    while start.elapsed() < budget / 5 {
        engine.run()?;
    }
    let (start, mut times) = (Instant::now(), String::new());
    let mut calls = 0;
    while calls < 3 || start.elapsed() < budget {
        let call = Instant::now();
        engine.run()?;
        let us = call.elapsed().as_secs_f64() * 1e6;
        times += &format!("{us:.2} ");
        calls += 1;
    }
    Ok(times)
}

fn write(file: &Path, values: &[f32]) -> Result<String> {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    fs::write(file, bytes)?;
    Ok(String::new())
}
