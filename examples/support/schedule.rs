//! `--schedule` of the example programs.

use mbconv::Schedule;

pub(crate) fn parse(name: &str) -> Result<Schedule, String> {
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
