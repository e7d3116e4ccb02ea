//! What this process takes, as the kernel counts it.

/// What this process takes; what the kernel does not tell is left out.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Usage {
    pub(crate) resident_bytes: Option<u64>,
    pub(crate) cpu_s: Option<f64>,
    pub(crate) open_files: Option<u64>,
}

/// Clock ticks a second in `/proc`: fixed for programs on every Linux, whatever the kernel's own tick is.
const TICKS_PER_S: f64 = 100.0;

impl Usage {
    /// Asks the kernel.
    pub(crate) fn now() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).ok();
        Self {
            resident_bytes: read("/proc/self/status").and_then(|text| resident_bytes(&text)),
            cpu_s: read("/proc/self/stat").and_then(|text| cpu_s(&text)),
            open_files: std::fs::read_dir("/proc/self/fd").ok().and_then(|files| u64::try_from(files.count()).ok()),
        }
    }
}

fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// User and system time: fields 14 and 15, counted behind the name, which may hold anything.
fn cpu_s(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u32>().ok();
    Some((f64::from(ticks()?) + f64::from(ticks()?)) / TICKS_PER_S)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_words_are_understood() {
        assert_eq!(resident_bytes("VmPeak:\t 9 kB\nVmRSS:\t    2048 kB\nx"), Some(2_097_152));
        assert_eq!(resident_bytes("VmRSS:\t soon"), None);
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 2203 0 0 0 150 50 0 0 20 0 4 0 61 1 2";
        assert_eq!(cpu_s(stat), Some(2.0));
        assert!(Usage::now().resident_bytes.is_some_and(|bytes| bytes > 100_000));
    }
}
