//! The sizes of the caches that a plan counts on.

use core::sync::atomic::{AtomicUsize, Ordering};

#[cfg(target_arch = "x86_64")]
use raw_cpuid::{CacheType, CpuId, CpuIdReader};

/// The data caches that one core can count on, in bytes.
///
/// ```
/// use mbconv::{Caches, PlanOptions};
///
/// // To leave half of the second level to others:
/// let detected = Caches::detect();
/// let options = PlanOptions::new().caches(Caches { l2: detected.l2 / 2, ..detected });
/// # let _ = options;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Caches {
    /// First level.
    pub l1: usize,
    /// Second level: the fused schedule keeps its tile here.
    pub l2: usize,
    /// Third level, one core's share of it; 0 where there is none.
    pub l3: usize,
}

impl Default for Caches {
    /// What most cores of the last ten years have at least: 32 KiB, 256 KiB and
    /// a share of 1 MiB.
    fn default() -> Self {
        Self { l1: 32 << 10, l2: 256 << 10, l3: 1 << 20 }
    }
}

impl Caches {
    /// The sizes that the CPU tells (x86-64), else those that the operating
    /// system tells (Linux sysfs, with the `std` feature), else the default.
    /// Asked once per process.
    pub fn detect() -> Self {
        // Threads that come first together store the same. The first level is
        // stored last: once it is there, so are the others.
        static CACHES: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];
        let [l1, l2, l3] = &CACHES;
        if l1.load(Ordering::Acquire) == 0 {
            let caches = Self::ask();
            l3.store(caches.l3, Ordering::Relaxed);
            l2.store(caches.l2, Ordering::Relaxed);
            l1.store(caches.l1, Ordering::Release);
        }
        let [l1, l2, l3] = [l1, l2, l3].map(|size| size.load(Ordering::Relaxed));
        Self { l1, l2, l3 }
    }

    fn ask() -> Self {
        #[cfg(target_arch = "x86_64")]
        let cpu = cpuid(CpuId::new());
        #[cfg(not(target_arch = "x86_64"))]
        let cpu = core::iter::empty();
        #[cfg(all(feature = "std", target_os = "linux"))]
        let system = || sysfs("/sys/devices/system/cpu/cpu0/cache".as_ref()).into_iter().flatten();
        #[cfg(not(all(feature = "std", target_os = "linux")))]
        let system = core::iter::empty;
        Self::of(cpu).or_else(|| Self::of(system())).unwrap_or_default()
    }

    /// The sizes by level, if the first two are among them.
    fn of(caches: impl Iterator<Item = Cache>) -> Option<Self> {
        let mut levels = [Cache::default(); 3];
        for cache in caches {
            if let Some(known) = cache.level.checked_sub(1).and_then(|i| levels.get_mut(i)) {
                *known = cache;
            }
        }
        let [l1, l2, l3] = levels;
        // Threads of one core run one after the other, so those that share its
        // second level do not halve the third.
        let cores = (l3.shared / l2.shared.max(1)).max(1);
        (l1.bytes > 0 && l2.bytes > 0).then_some(Self {
            l1: l1.bytes,
            l2: l2.bytes,
            l3: l3.bytes / cores,
        })
    }
}

/// A cache that holds data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Cache {
    level: usize,
    bytes: usize,
    /// Hardware threads that have it together.
    shared: usize,
}

/// What an x86 CPU tells.
#[cfg(target_arch = "x86_64")]
fn cpuid<R: CpuIdReader>(cpu: CpuId<R>) -> impl Iterator<Item = Cache> {
    let caches = cpu.get_cache_parameters().into_iter().flatten();
    caches.filter(|c| matches!(c.cache_type(), CacheType::Data | CacheType::Unified)).map(|c| {
        let way = c.coherency_line_size() * c.physical_line_partitions() * c.sets();
        Cache {
            level: c.level().into(),
            bytes: way * c.associativity(),
            shared: c.max_cores_for_cache(),
        }
    })
}

/// What Linux tells in a CPU's folder of caches.
#[cfg(all(feature = "std", target_os = "linux"))]
fn sysfs(folder: &std::path::Path) -> Option<impl Iterator<Item = Cache>> {
    let cache = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.ok()?.path();
        let read = |name: &str| std::fs::read_to_string(path.join(name)).ok();
        let data = matches!(read("type")?.trim(), "Data" | "Unified");
        data.then_some(Cache {
            level: read("level")?.trim().parse().ok()?,
            bytes: bytes(read("size")?.trim())?,
            shared: read("shared_cpu_list").map_or(1, |list| cpus(list.trim())),
        })
    };
    Some(std::fs::read_dir(folder).ok()?.filter_map(cache))
}

/// Of a size like `48K`.
#[cfg(all(feature = "std", target_os = "linux"))]
fn bytes(size: &str) -> Option<usize> {
    let digits = size.trim_end_matches(['K', 'M']);
    let unit = match &size[digits.len()..] {
        "" => 0,
        "K" => 10,
        "M" => 20,
        _ => return None,
    };
    digits.parse::<usize>().ok()?.checked_mul(1 << unit)
}

/// How many CPUs are in a list like `0-3,8`.
#[cfg(all(feature = "std", target_os = "linux"))]
fn cpus(list: &str) -> usize {
    let count = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let [first, last] = [first, last].map(|n| n.parse::<usize>().ok());
        Some(last?.checked_sub(first?)?.saturating_add(1))
    };
    list.split(',').filter_map(count).sum::<usize>().max(1)
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "x86_64")]
    use raw_cpuid::CpuIdResult;

    use super::*;

    /// What a Zen 5 core answers of which two share the third level, and a
    /// Skylake client core, whose two threads share the second.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn cpuid_is_decoded() {
        let zen = [
            [0x121, 0x02c0_003f, 0x3f, 0],
            [0x122, 0x01c0_003f, 0x3f, 0],
            [0x143, 0x03c0_003f, 0x3ff, 2],
            [0x4163, 0x03c0_003f, 0x7fff, 1],
        ];
        let skylake = [
            [0x1c00_4121, 0x01c0_003f, 0x3f, 0],
            [0x1c00_4122, 0x01c0_003f, 0x3f, 0],
            [0x1c00_4143, 0x00c0_003f, 0x3ff, 0],
            [0x1c03_c163, 0x03c0_003f, 0x1fff, 6],
        ];
        let caches = |vendor: [&[u8; 4]; 3], leaf: u32, told: [[u32; 4]; 4]| {
            let [b, d, c] = vendor.map(|part| u32::from_le_bytes(*part));
            let cpu = CpuId::with_cpuid_reader(move |asked, sub| {
                let [eax, ebx, ecx, edx] = match asked {
                    0 | 0x8000_0000 => [leaf.max(asked), b, c, d],
                    _ if asked == leaf => told.get(sub as usize).copied().unwrap_or_default(),
                    _ => [0; 4],
                };
                CpuIdResult { eax, ebx, ecx, edx }
            });
            Caches::of(cpuid(cpu)).map(|Caches { l1, l2, l3 }| [l1, l2, l3].map(|n| n >> 10))
        };
        let (amd, intel) = ([b"Auth", b"enti", b"cAMD"], [b"Genu", b"ineI", b"ntel"]);
        assert_eq!(caches(amd, 0x8000_001d, zen), Some([48, 1024, 16384]));
        assert_eq!(caches(intel, 4, skylake), Some([32, 256, 1024]));
        assert_eq!(caches(intel, 4, [[0; 4]; 4]), None);
        assert_eq!(caches(intel, 1, skylake), None);
    }

    #[test]
    #[cfg(all(feature = "std", target_os = "linux"))]
    fn sysfs_is_decoded() {
        assert_eq!(
            ["48K", "1M", "512", "x"].map(bytes),
            [Some(48 << 10), Some(1 << 20), Some(512), None]
        );
        assert_eq!(["0", "0-3", "0-1,8-9,12", "", "3-"].map(cpus), [1, 4, 5, 1, 1]);
    }

    /// Whatever told it.
    #[test]
    fn sizes_are_sane() {
        let Caches { l1, l2, l3 } = Caches::detect();
        assert!((8 << 10..=1 << 20).contains(&l1), "{l1}");
        assert!((64 << 10..=256 << 20).contains(&l2) && l2 >= l1, "{l2}");
        assert!(l3 == 0 || (64 << 10..=4 << 30).contains(&l3), "{l3}");
        assert_eq!(Caches::detect(), Caches::detect());
    }
}
