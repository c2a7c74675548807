//! The machine that a service runs on.

use std::fs;

/// Tells processes of several machines apart that listen on the same address.
pub fn name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "an unnamed host".to_owned() } else { name.trim().to_owned() }
}
