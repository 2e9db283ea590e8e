//! The ways to make and to run a plan, of which none may change a bit.

use mbconv::{Caches, PlanOptions, Schedule, Shape};
use proptest::prelude::*;

use super::placement::Placement;
use super::{Pool, pool};

/// How a plan is made and run, if not plainly.
#[derive(Debug, Clone, Copy)]
pub struct Configuration {
    pub input: Placement,
    pub output: Placement,
    pub schedule: Schedule,
    pub caches: Caches,
    pub threads: usize,
    pub pool: Pool,
}

impl Configuration {
    pub fn any() -> impl Strategy<Value = Self> {
        let schedule = prop_oneof![
            3 => Just(Schedule::Auto),
            1 => Just(Schedule::Fused),
            1 => Just(Schedule::Unfused),
            2 => (1usize..=20, 1usize..=100)
                .prop_map(|(rows, channels)| Schedule::Tiled { rows, channels }),
        ];
        // L2 from where little fits to where everything does.
        let caches =
            (10u32..=22).prop_map(|bits| Caches { l1: 1 << 12, l2: 1 << bits, l3: 1 << 20 });
        let places = (Placement::any(), Placement::any());
        (places, schedule, caches, 1usize..=8, pool()).prop_map(
            |((input, output), schedule, caches, threads, pool)| Self {
                input,
                output,
                schedule,
                caches,
                threads,
                pool,
            },
        )
    }

    /// For these shapes and channels of input and output.
    pub fn options(&self, input: (Shape, usize), output: (Shape, usize)) -> PlanOptions {
        let options =
            PlanOptions::new().schedule(self.schedule).caches(self.caches).threads(self.threads);
        let options = self.input.input(options, input.0, input.1);
        self.output.output(options, output.0, output.1)
    }
}
