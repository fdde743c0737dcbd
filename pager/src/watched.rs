//! Which memory of a process a userfaultfd watches, as /proc/PID/smaps shows it (proc(5): flag `um`).

use pages::PageRange;

/// All mappings that are watched; none where the process is gone.
pub(crate) fn ranges(pid: u32) -> Vec<PageRange> {
    let Ok(smaps) = std::fs::read_to_string(format!("/proc/{}/smaps", kernel::task::living(pid))) else { return Vec::new() };
    let (mut found, mut current) = (Vec::new(), None);
    for line in smaps.lines() {
        let first = line.split(' ').next().unwrap_or("");
        if let Some((start, end)) = first.split_once('-') {
            let parse = |hex| u64::from_str_radix(hex, 16).ok();
            current = parse(start).zip(parse(end)).and_then(|(start, end)| PageRange::from_addrs(start, end));
        } else if line.starts_with("VmFlags:") && line.split(' ').any(|flag| flag == "um") {
            found.extend(current);
        }
    }
    found
}
