//! The planner's choice against recorded times: nothing is timed here.
//!
//! tests/data/tiles_*.csv hold every tile that `bench --tiles` tries, each file
//! from one machine, whose caches its first line names. To record anew, on a core
//! that is left alone:
//!
//! ```text
//! { echo '# CORE, l1 BYTES, l2 BYTES, l3 BYTES of one core'
//!   cargo run --release --example bench -- mobilenet_v2 efficientnet_lite0 \
//!     mobilenet_v3_large mnasnet_a1 pp_lcnet --isa avx512 --isa avx2 --tiles \
//!     --schedule unfused --rounds 41 --csv |
//!     grep -v ,auto, | cut -d, -f1-3,6
//! } > tests/data/tiles_CORE.csv
//! ```
//!
//! In what is recorded, the depthwise convolution of a fused tile followed each expanded
//! panel rather than the slab: up to 1 % slower (on another core, Zen 4).

mod common;
#[path = "../examples/support/workloads.rs"]
mod workloads;

use std::collections::BTreeMap;

use common::isas;
use mbconv::{
    BottleneckParams, BottleneckPlan, Caches, DepthwiseParams, InvertedBottleneck, PlanOptions,
    PointwiseParams, Schedule, Shape,
};
use workloads::layers::{Loaded, Operation};
use workloads::random::Random;
use workloads::{Workload, lists};

/// The least times of a block on an instruction set, in microseconds: what else
/// the machine does changes them least.
#[derive(Default)]
struct Times {
    unfused: f64,
    tiles: BTreeMap<[usize; 2], f64>,
}

impl Times {
    /// Of a tile that lies between recorded ones: the slowest of its neighbours.
    fn of(&self, schedule: Schedule) -> f64 {
        let Schedule::Tiled { rows, channels } = schedule else { return self.unfused };
        let around = |axis: usize, value: usize| {
            let sizes = || self.tiles.keys().map(move |tile| tile[axis]);
            [sizes().filter(|&n| n <= value).max(), sizes().filter(|&n| n >= value).min()]
        };
        let rows = around(0, rows).into_iter().flatten();
        let tiles =
            rows.flat_map(|r| around(1, channels).into_iter().flatten().map(move |c| [r, c]));
        tiles.filter_map(|tile| self.tiles.get(&tile)).copied().fold(0.0, f64::max)
    }

    fn best(&self) -> f64 {
        self.tiles.values().copied().fold(self.unfused, f64::min)
    }
}

/// By workload and instruction set.
type Record = BTreeMap<(String, String), Times>;

fn read(text: &str) -> (Caches, Record) {
    let mut lines = text.lines();
    let head = lines.next().expect("a line that names the caches");
    let size = |level: &str| -> usize {
        let size = head.split(", ").find_map(|field| field.strip_prefix(level));
        size.and_then(|size| size.trim().parse().ok()).expect("the size of each level")
    };
    let caches = Caches { l1: size("l1"), l2: size("l2"), l3: size("l3") };
    let mut record = Record::new();
    for line in lines.filter(|line| !line.starts_with("workload")) {
        let fields: Vec<&str> = line.split(',').collect();
        let &[workload, variant, isa, us] = &fields[..] else { panic!("{line:?}") };
        let times = record.entry((workload.into(), isa.into())).or_default();
        let us = us.parse().expect("microseconds");
        match variant.split_once('x') {
            Some((rows, channels)) => {
                let tile = [rows, channels].map(|n| n.parse().expect("a tile"));
                times.tiles.insert(tile, us);
            }
            None => times.unfused = us,
        }
    }
    (caches, record)
}

/// Without a gate, which leaves no choice: blocks were recorded without.
fn plan(workload: &Workload, isa: mbconv::Isa, options: PlanOptions) -> BottleneckPlan {
    let workload = Workload { excite: None, ..workload.clone() };
    let loaded = Loaded::new(workload.clone(), &mut Random::new(1));
    let Ok(Operation::Block(op)) = loaded.operation(isa) else { panic!("{workload:?}") };
    op.plan_with(workload.shape(), &options).expect("a plan")
}

#[test]
fn choices_are_near_the_best_recorded() {
    for (name, text) in [("zen5", include_str!("data/tiles_zen5.csv"))] {
        let (caches, record) = read(text);
        let workloads: Vec<_> = lists::all().into_iter().flat_map(|(_, list)| list).collect();
        for isa in isas() {
            let mut ratios = Vec::new();
            for ((block, _), times) in record.iter().filter(|((_, on), _)| on == isa.name()) {
                let workload = workloads.iter().find(|w| w.name == *block).expect("a listed block");
                let options = PlanOptions::new().caches(caches);
                let auto = plan(workload, isa, options);
                let fused = plan(workload, isa, options.schedule(Schedule::Fused));
                let [us, fused] =
                    [auto, fused].map(|plan| (times.of(plan.schedule()), plan.explain()));
                let (us, words) = us;
                let ratio = us / times.best();
                assert!(us > 0.0 && ratio <= 1.05, "{name} {isa} {block}: {ratio:.3}, {words}");
                let ratio = us / times.unfused.min(fused.0);
                assert!(ratio <= 1.0 / 0.97, "{name} {isa} {block}: {ratio:.3}, {words}");
                ratios.push(us / times.best());
            }
            let n = ratios.len() as f64;
            if ratios.is_empty() {
                continue;
            }
            let mean = (ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / n).exp();
            let worst = ratios.iter().copied().fold(0.0, f64::max);
            println!(
                "{name} {isa}: {n} blocks, {mean:.3} of the best in the mean, {worst:.3} at worst"
            );
        }
    }
}

/// What unfused took over fused on a core with 2 MiB of L2 and 29 GB/s beyond it,
/// AVX-512 and AVX2, with kernels that came before these.
#[test]
fn choices_are_right_beyond_a_slow_l2() {
    let caches = Caches { l1: 48 << 10, l2: 2 << 20, l3: 1920 << 10 };
    let ratios = [
        ("mbv2_b1", [1.7, 1.3]),
        ("mbv2_b2", [1.5, 1.05]),
        ("mbv2_b3", [1.3, 1.05]),
        ("mbv2_b4", [0.97, 0.93]),
        ("mbv2_b8", [0.97, 0.93]),
        ("mbv2_b11", [0.97, 0.93]),
    ];
    let workloads = lists::list("mobilenet_v2").expect("a list");
    for isa in isas() {
        let Some(column) = ["avx512", "avx2"].iter().position(|name| *name == isa.name()) else {
            continue;
        };
        for (name, ratio) in ratios {
            let workload = workloads.iter().find(|w| w.name == name).expect("a block");
            let auto = plan(workload, isa, PlanOptions::new().caches(caches));
            assert_eq!(auto.is_fused(), ratio[column] > 1.0, "{name} {isa}: {}", auto.explain());
        }
    }
}

/// Asking for what was chosen gives it again.
#[test]
fn a_choice_can_be_asked_for() {
    for isa in isas() {
        for workload in lists::list("mobilenet_v3_large").expect("a list") {
            for l2 in [0, 100_000, 1 << 20, 1 << 28] {
                let options = PlanOptions::new().caches(Caches { l2, ..Caches::default() });
                let auto = plan(&workload, isa, options);
                let again = plan(&workload, isa, options.schedule(auto.schedule()));
                assert_eq!(auto.schedule(), again.schedule());
                assert_eq!(auto.tile_bytes(), again.tile_bytes());
                assert_eq!(auto.is_fused(), again.is_fused());
                if let Schedule::Tiled { rows, .. } = auto.schedule() {
                    assert!(auto.tile_bytes() <= l2 / 4 * 3 || rows == 1, "{}", auto.explain());
                }
            }
        }
    }
}

/// The largest images that the address space allows, and any caches.
#[test]
fn extremes_are_planned() {
    let (expand, depthwise, project) = ([1.0; 2], [1.0; 18], [1.0; 2]);
    let params = BottleneckParams::new(
        DepthwiseParams::new(2, [3, 3], &depthwise).padding(mbconv::Padding::uniform(1)),
        PointwiseParams::new(2, 1, &project),
    )
    .expand(PointwiseParams::new(1, 2, &expand));
    let mut planned = 0;
    for isa in isas() {
        let op = InvertedBottleneck::with_isa(&params, isa).expect("a block");
        for bits in 1..usize::BITS {
            let n = 1 << bits;
            for shape in [Shape::new(1, n, 1), Shape::new(1, 1, n), Shape::new(n, 3, 3)] {
                for size in [0, 1, 1 << 20, usize::MAX] {
                    let caches = Caches { l1: size, l2: size, l3: size };
                    let options = PlanOptions::new().caches(caches);
                    if let Ok(plan) = op.plan_with(shape, &options) {
                        assert!(!plan.explain().contains("NaN"), "{}", plan.explain());
                        planned += 1;
                    }
                }
            }
        }
    }
    assert!(planned > 300, "{planned}");
}
