//! Options that the example programs share.
#![allow(dead_code, reason = "each program uses its part")]

use mbconv::Schedule;

/// `--schedule`.
pub(crate) fn schedule(name: &str) -> Result<Schedule, String> {
    match name {
        "auto" => Ok(Schedule::Auto),
        "fused" => Ok(Schedule::Fused),
        "unfused" => Ok(Schedule::Unfused),
        _ => tiled(name).ok_or_else(|| {
            format!(
                "no schedule is named {name:?}; there are auto, fused, unfused and ROWSxCHANNELS"
            )
        }),
    }
}

/// Rows of a band by channels of a slab.
fn tiled(name: &str) -> Option<Schedule> {
    let (rows, channels) = name.split_once('x')?;
    Some(Schedule::Tiled { rows: rows.parse().ok()?, channels: channels.parse().ok()? })
}

/// A number that is at least 1.
pub(crate) fn count(option: &str, text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|&number| number > 0);
    number.ok_or_else(|| format!("{option} is {text:?}, not a number from 1 on"))
}
