//! `--schedule` of the example programs.

use mbconv::Schedule;

pub(crate) fn parse(name: &str) -> Result<Schedule, String> {
    match name {
        "auto" => Ok(Schedule::Auto),
        "fused" => Ok(Schedule::Fused),
        "unfused" => Ok(Schedule::Unfused),
        _ => Err(format!("no schedule is named {name:?}; there are auto, fused and unfused")),
    }
}
