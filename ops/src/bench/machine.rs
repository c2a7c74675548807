//! The machine that a report was measured on.

use std::{fmt, fs};

use serde::Serialize;

#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    pub cores: usize,
    pub processor: String,
    pub memory_gib: f64,
    pub kernel: String,
}

impl Machine {
    pub fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let memory_kib = field(&read("/proc/meminfo"), "MemTotal")
            .and_then(|text| text.strip_suffix(" kB")?.trim().parse::<f64>().ok());
        Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            processor: field(&read("/proc/cpuinfo"), "model name").unwrap_or_default(),
            memory_gib: (memory_kib.unwrap_or_default() / 1024.0 / 1024.0 * 10.0).round() / 10.0,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cores, processor, memory_gib, kernel } = self;
        write!(f, "{cores} cores of {processor}, {memory_gib} GiB of memory, Linux {kernel}")
    }
}

/// The value of a field of the form `name : value`.
fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_name() {
        let text = "model\t\t: 1\nmodel name\t: A B\nMemTotal:   12 kB\n";
        assert_eq!(
            [field(text, "model name"), field(text, "MemTotal")],
            [Some("A B".to_owned()), Some("12 kB".to_owned())]
        );
        assert_eq!(field(text, "x"), None);
        assert!(Machine::this().cores > 0);
    }
}
