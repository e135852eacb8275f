//! Finds the eBPF programs that the agent embeds.

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    // A position-independent program tells the loader where its pointers are: three quarters of a megabyte that stay in
    // memory, or a few kilobytes when packed (glibc from 2.36 on, Debian 12's, unpacks them).
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    println!("cargo::rerun-if-env-changed=CULVERT_EBPF_OBJECT");
    let object = env::var_os("CULVERT_EBPF_OBJECT").map_or_else(default_object, PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    if !object.is_file() {
        println!("cargo::error=no eBPF programs at {}: run `cargo xtask ebpf` first", object.display());
        return;
    }
    // Absolute, so that `include_bytes!` finds it from any source file.
    let object = object.canonicalize().unwrap_or(object);
    println!("cargo::rustc-env=CULVERT_EBPF_OBJECT={}", object.display());
}

/// `target/ebpf/culvert-ebpf`, wherever the target directory is: it holds OUT_DIR.
fn default_object() -> PathBuf {
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let found = out.ancestors().map(|dir| dir.join("ebpf/culvert-ebpf")).find(|path| path.is_file());
    found.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/ebpf/culvert-ebpf"))
}
