//! The rules of the house, read off the sources: which way imports point, who
//! may be unsafe, who names the vector instructions.

use std::fs;
use std::path::{Path, PathBuf};

/// Layers from the top down, as in docs/architecture.md: a module imports only
/// from layers below its own, or from the same one.
const LAYERS: [&[&str]; 7] = [
    &["lib"],
    &["op", "peak"],
    &["split"],
    &["executor", "schedule"],
    &["kernel"],
    &["pack", "reference", "testing"],
    &["activation", "buffer", "error", "fold", "isa", "layout", "params", "shape", "simd"],
];

/// The files whose `unsafe` is expected.
const UNSAFE: [&str; 6] =
    ["simd", "kernel", "buffer", "op/pointwise.rs", "op/depthwise.rs", "op/block.rs"];

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, files);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    walk(&root, &mut files);
    files.sort();
    assert!(files.len() > 15, "the sources are where this test looks");
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        (path.strip_prefix(&root).unwrap().to_path_buf(), text)
    };
    files.into_iter().map(read).collect()
}

/// The lines of code, without comments.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(|line| line.split("//").next().unwrap_or(line))
}

fn layer(module: &str) -> usize {
    LAYERS
        .iter()
        .position(|modules| modules.contains(&module))
        .unwrap_or_else(|| panic!("{module} has no layer: add it to LAYERS and the docs"))
}

#[test]
fn imports_point_down() {
    for (path, text) in sources() {
        let first = path.components().next().unwrap().as_os_str().to_string_lossy();
        let module = first.trim_end_matches(".rs");
        for line in code(&text) {
            for import in line.split("crate::").skip(1) {
                let imported = import.split(|c: char| !c.is_alphanumeric() && c != '_').next();
                let imported = imported.unwrap_or_default();
                if imported.is_empty() || imported.starts_with(char::is_uppercase) {
                    continue;
                }
                assert!(
                    layer(imported) >= layer(module),
                    "{}: {module} may not import {imported}",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn reference_stands_alone() {
    let (_, text) = sources().into_iter().find(|(path, _)| path.ends_with("reference.rs")).unwrap();
    for line in code(&text).filter(|line| line.contains("crate::")) {
        let allowed = ["activation", "error", "params", "shape"];
        assert!(allowed.iter().any(|m| line.contains(&format!("crate::{m}"))), "{line}");
    }
}

#[test]
fn unsafe_has_an_owner() {
    for (path, text) in sources() {
        let owned = UNSAFE.iter().any(|owner| path.to_string_lossy().starts_with(owner));
        let blocks = code(&text).filter(|line| line.contains("unsafe ")).count();
        assert!(owned || blocks == 0, "{} has unsafe code", path.display());
        if path.starts_with("op") {
            let runs = text.matches("fn run_all").count();
            assert_eq!(blocks, runs, "{}: one unsafe block, in run", path.display());
        }
    }
}

/// Or debug builds could not check the address (`simd/checked.rs`).
#[test]
fn kernels_touch_memory_through_lanes() {
    let moves = ["ptr::read", "ptr::write", "ptr::copy", "from_raw_parts", "_unaligned("];
    // A pointer that is moved on is dereferenced: `*p.add(1)`, but not `a * b.add(1)`.
    let dereferenced = |line: &str, step: &str| {
        line.match_indices(step).any(|(at, _)| {
            let owner =
                line[..at].trim_end_matches(|c: char| c.is_alphanumeric() || "._".contains(c));
            owner.ends_with('*')
        })
    };
    for (path, text) in sources().into_iter().filter(|(path, _)| path.starts_with("kernel")) {
        for line in code(&text) {
            let steps = [".add(", ".sub(", ".offset(", ".wrapping_add(", ".wrapping_sub("];
            let by_hand = moves.iter().any(|name| line.contains(name))
                || steps.iter().any(|step| dereferenced(line, step));
            assert!(!by_hand, "{}: {line}", path.display());
        }
    }
}

#[test]
fn only_simd_names_instructions() {
    for (path, text) in sources() {
        let named =
            code(&text).any(|line| line.contains("core::arch") || line.contains("std::arch"));
        assert!(!named || path.starts_with("simd"), "{} names instructions", path.display());
    }
}
