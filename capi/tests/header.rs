//! The header in the repository is the one that the sources give.

use std::path::Path;
use std::{env, fs};

#[test]
fn the_header_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let mut header = Vec::new();
    cbindgen::generate_with_config(root, config).unwrap().write(&mut header);
    let header = String::from_utf8(header).unwrap();
    let file = root.join("include/mbconv.h");
    if env::var_os("MBCONV_HEADER").is_some_and(|value| value == "write") {
        fs::write(&file, &header).unwrap();
    }
    assert!(
        fs::read_to_string(&file).unwrap_or_default() == header,
        "include/mbconv.h is not what the sources give: run `MBCONV_HEADER=write cargo test --test header`"
    );
}
