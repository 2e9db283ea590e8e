//! One workload on one instruction set: its variants in turn, beside the peak.

use core::cell::RefCell;

use std::sync::Mutex;

use mbconv::{Executor, Isa, PlanOptions, Schedule, Scratch, measure_peak};

use crate::layout::Layouts;
use crate::pool::Pool;
use crate::timing::{Flush, Summary, median, samples};
use crate::workloads::Workload;
use crate::workloads::layers::{Loaded, Operation, Plan};
use crate::workloads::random::Random;

/// What a variant fills in a round, in microseconds.
const SLICE_US: f64 = 2000.0;
/// Addresses matter modulo the page.
const PAGE: usize = 4096;
/// Bytes between the places where a buffer may start.
const STEP: usize = 16;

/// Output rows of a band, and the parts of the expanded channels in a slab,
/// that `--tiles` combines.
const TILE_ROWS: [usize; 10] = [1, 2, 4, 6, 8, 10, 14, 20, 28, 56];
const TILE_PARTS: [usize; 5] = [1, 2, 3, 4, 6];

/// How to measure.
pub(crate) struct Method {
    pub(crate) rounds: usize,
    /// Of blocks.
    pub(crate) schedules: Vec<Schedule>,
    /// The first is what the others are compared with.
    pub(crate) layouts: Vec<Layouts>,
    /// One for each number of threads.
    pub(crate) pools: Vec<Pool>,
    /// Whether to time the planner's neighbourhood too.
    pub(crate) tiles: bool,
    /// Empties the caches before each call.
    pub(crate) flush: Option<Flush>,
}

/// What was measured of a variant.
pub(crate) struct Row {
    pub(crate) variant: String,
    pub(crate) threads: usize,
    /// What `auto` chose, in a word.
    pub(crate) chosen: Option<&'static str>,
    /// The plan in words, for blocks.
    pub(crate) explained: Option<String>,
    /// One of the candidates of `--tiles`.
    pub(crate) candidate: bool,
    /// For layouts after the first: its median in those of the first.
    pub(crate) ratio: Option<f64>,
    /// In microseconds.
    pub(crate) time: Summary,
    pub(crate) gflops: f64,
    /// The peak of as many threads, measured between the variants, and the part of
    /// it that was reached.
    pub(crate) peak: f64,
    pub(crate) percent: f64,
    pub(crate) gbps: f64,
}

struct Variant {
    name: String,
    candidate: bool,
    /// The variant that differs in the layout only.
    base: Option<usize>,
    auto: bool,
    plan: Plan,
    /// Of the method's pools.
    pool: usize,
}

/// Input, output and scratch that all variants share.
struct Buffers {
    input: Vec<f32>,
    output: Vec<f32>,
    scratch: Scratch,
}

impl Buffers {
    fn new(variants: &[Variant], random: &mut Random) -> Self {
        let longest = |len: fn(&Plan) -> usize| variants.iter().map(|v| len(&v.plan)).max();
        let longest = |len| longest(len).unwrap_or(0);
        let room = 2 * PAGE / size_of::<f32>();
        Self {
            input: random.vec(longest(Plan::input_len) + room, 1.0),
            output: vec![0.0; longest(Plan::output_len) + room],
            scratch: Scratch::new(longest(Plan::scratch_bytes)),
        }
    }

    /// Runs where this round has input and output: odd multiples of the step
    /// visit every place in a page, and two of them every distance.
    fn run(&mut self, plan: &Plan, pool: &Pool, round: usize) -> mbconv::Result<()> {
        let start = |buffer: &[f32], stride: usize| {
            let offset = round * stride % (PAGE / STEP) * STEP / size_of::<f32>();
            buffer.as_ptr().align_offset(PAGE) + offset
        };
        let (x, y) = (start(&self.input, 37), start(&self.output, 101));
        let input = &self.input[x..][..plan.input_len()];
        let output = &mut self.output[y..][..plan.output_len()];
        plan.run_with(pool, input, output, &mut self.scratch)
    }
}

pub(crate) fn measure(
    workload: &Workload,
    isa: Isa,
    method: &mut Method,
) -> mbconv::Result<Vec<Row>> {
    let mut random = Random::new(1);
    let loaded = Loaded::new(workload.clone(), &mut random);
    let operation = loaded.operation(isa)?;
    let variants = variants(&loaded, &operation, isa, method)?;
    let buffers = RefCell::new(Buffers::new(&variants, &mut random));
    let failed = RefCell::new(Ok(()));

    let pools = &method.pools;
    let mut peaks = vec![Vec::new(); pools.len()];
    let mut peak = |_| {
        for (pool, peaks) in pools.iter().zip(&mut peaks) {
            peaks.push(peak(isa, pool));
        }
    };
    let mut runs: Vec<_> = variants
        .iter()
        .map(|variant| {
            |round| {
                if let Err(error) =
                    buffers.borrow_mut().run(&variant.plan, &pools[variant.pool], round)
                {
                    *failed.borrow_mut() = Err(error);
                }
            }
        })
        .collect();
    let mut turns: Vec<&mut dyn FnMut(usize)> = vec![&mut peak];
    turns.extend(runs.iter_mut().map(|run| run as &mut dyn FnMut(usize)));

    // A second call in a row would be warm.
    let slice = if method.flush.is_some() { 0.0 } else { SLICE_US };
    // A call straight after the walk took up to 1.6 times as long as one after
    // multiply-adds, whether the walk wrote or only read: so each has those first.
    let mut before = || {
        if let Some(flush) = &mut method.flush {
            flush.run();
            measure_peak(isa);
        }
        // To wake a thread takes as long as some layers do.
        pools.iter().for_each(|pool| pool.run(pool.threads(), &|_| ()));
    };
    let mut times = samples(method.rounds, slice, &mut before, &mut turns).split_off(1);
    failed.into_inner()?;

    let peaks: Vec<f64> = peaks.iter_mut().map(|peaks| median(peaks)).collect();
    let medians: Vec<f64> = times.iter_mut().map(|times| Summary::of(times).median).collect();
    let row = |(variant, times): (Variant, &mut Vec<f64>)| {
        let peak = peaks[variant.pool];
        let time = Summary::of(times);
        let gflops = variant.plan.flops() as f64 / time.median / 1e3;
        let block = match &variant.plan {
            Plan::Block(plan) => Some(plan),
            _ => None,
        };
        Row {
            chosen: block.filter(|_| variant.auto).map(|plan| schedule(plan.is_fused())),
            explained: block.map(|plan| plan.explain()),
            candidate: variant.candidate,
            ratio: variant.base.map(|base| time.median / medians[base]),
            time,
            gflops,
            peak,
            percent: 100.0 * gflops / peak,
            gbps: loaded.bytes(&operation, &variant.plan) as f64 / time.median / 1e3,
            variant: variant.name,
            threads: pools[variant.pool].threads(),
        }
    };
    Ok(variants.into_iter().zip(&mut times).map(row).collect())
}

/// Of all threads of a pool, as slow as the slowest of them is.
fn peak(isa: Isa, pool: &Pool) -> f64 {
    let slowest = Mutex::new(f64::INFINITY);
    pool.run(pool.threads(), &|_| {
        let peak = measure_peak(isa);
        if let Ok(mut slowest) = slowest.lock() {
            *slowest = slowest.min(peak);
        }
    });
    let slowest = slowest.into_inner().unwrap_or_default();
    slowest * pool.threads() as f64
}

fn schedule(fused: bool) -> &'static str {
    if fused { "fused" } else { "unfused" }
}

fn variants(
    loaded: &Loaded,
    operation: &Operation,
    isa: Isa,
    method: &Method,
) -> mbconv::Result<Vec<Variant>> {
    let mut variants: Vec<Variant> = Vec::new();
    for pool in 0..method.pools.len() {
        let threads = method.pools[pool].threads();
        let mut add = |schedule, candidate| -> mbconv::Result<()> {
            let first = variants.len();
            for (i, layouts) in method.layouts.iter().enumerate() {
                let options = PlanOptions::new().schedule(schedule).threads(threads);
                let plan = loaded.plan_with(operation, &layouts.set(options))?;
                let mut name = match schedule {
                    _ if !loaded.workload.kind.is_block() => plan.kernel_name(),
                    Schedule::Fused => String::from("fused"),
                    Schedule::Unfused => String::from("unfused"),
                    Schedule::Tiled { rows, channels } => format!("{rows}x{channels}"),
                    _ => String::from("auto"),
                };
                if *layouts != Layouts::NHWC {
                    name = format!("{name} {}", layouts.name);
                }
                let (base, auto) = ((i > 0).then_some(first), schedule == Schedule::Auto);
                variants.push(Variant { name, candidate, base, auto, plan, pool });
            }
            Ok(())
        };
        if !loaded.workload.kind.is_block() {
            add(Schedule::Auto, false)?;
            continue;
        }
        for &schedule in &method.schedules {
            add(schedule, false)?;
        }
        if method.tiles {
            let channels = loaded.workload.c[1];
            let (height, panel) = (loaded.workload.output(), loaded.panel(isa)?);
            let rows = TILE_ROWS.into_iter().filter(|&rows| rows < height).chain([height]);
            let mut seen = Vec::new();
            for (rows, part) in rows.flat_map(|rows| TILE_PARTS.map(|part| (rows, part))) {
                let channels = channels.div_ceil(part).next_multiple_of(panel).min(channels);
                if !seen.contains(&(rows, channels)) {
                    seen.push((rows, channels));
                    add(Schedule::Tiled { rows, channels }, true)?;
                }
            }
        }
    }
    Ok(variants)
}
