//! Looking into a process, and descriptors changing hands, tried on ourselves and a child.

use defrost_kernel::mapped_file::MappedFile;
use defrost_kernel::memory::ProcessMemory;
use defrost_kernel::pagemap::{Category, scan};
use defrost_kernel::scratch::Scratch;
use defrost_kernel::{handoff, mapped_file};
use nix::errno::Errno;
use nix::unistd::Pid;
use pages::{PAGE_SIZE_BYTES, VirtAddr};
use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;

const PAGE: usize = PAGE_SIZE_BYTES as usize;

#[test]
fn a_scan_lists_what_was_written_and_nothing_else() {
    let memory = Scratch::map(4096).expect("map");
    for page in [0, 1, 2, 7, 4095] {
        memory.write(page, 1);
    }
    let _zero_page = memory.read(100);
    let expected = vec![memory.part(0, 3), memory.part(7, 1), memory.part(4095, 1)];
    for category in [Category::Populated, Category::NotFile] {
        assert_eq!(scan(Pid::this(), memory.range(), category).expect("scan"), expected, "{category:?}");
    }
    memory.drop_contents(0, 2).expect("drop contents");
    assert_eq!(scan(Pid::this(), memory.part(0, 7), Category::Populated).expect("scan"), [memory.part(2, 1)]);
}

/// 512, 1024: where the kernel's inner buffer and ours are full.
#[test]
fn a_scan_goes_on_where_one_answer_is_full() {
    for runs in [1, 511, 512, 513, 600, 1023, 1024, 1025, 1537, 2048, 3000] {
        let memory = Scratch::map(2 * runs).expect("map");
        (0..runs).for_each(|run| memory.write(2 * run, 1));
        let found = scan(Pid::this(), memory.range(), Category::Populated).expect("scan");
        let expected: Vec<_> = (0..runs).map(|run| memory.part(2 * run, 1)).collect();
        let differs = found.iter().zip(&expected).position(|(found, expected)| found != expected);
        assert_eq!((found.len(), differs), (expected.len(), None), "of {runs} runs");
    }
}

#[test]
fn clean_file_pages_are_told_from_anonymous_ones() {
    let text = std::fs::read_to_string("/proc/self/maps").expect("maps");
    let exe = std::env::current_exe().expect("our path");
    let line = text.lines().find(|line| line.contains("r-xp") && line.ends_with(&*exe.to_string_lossy())).expect("our text");
    let (start, end) = line.split_once(' ').and_then(|(range, _)| range.split_once('-')).expect("a range");
    let hex = |digits| u64::from_str_radix(digits, 16).expect("hexadecimal");
    let range = pages::PageRange::from_addrs(hex(start), hex(end)).expect("whole pages");
    assert!(!scan(Pid::this(), range, Category::Populated).expect("scan").is_empty(), "the code that runs is there");
    assert!(scan(Pid::this(), range, Category::NotFile).expect("scan").is_empty(), "and nobody changed it");
}

#[test]
fn memory_is_read_and_also_written_where_its_owner_may_not() {
    let memory = Scratch::map(2).expect("map");
    memory.write(0, 1);
    memory.read_only(0, 2).expect("mprotect");
    let outside = ProcessMemory::open(Pid::this()).expect("open");
    let at = VirtAddr(memory.range().start().addr());
    outside.write(at, &[7; 2 * PAGE]).expect("write");
    let mut bytes = vec![0; 2 * PAGE];
    outside.read(at, &mut bytes).expect("read");
    assert_eq!(bytes, [7; 2 * PAGE]);
    assert_eq!(memory.read(1), [7; PAGE]);
    memory.unmap(1, 1).expect("unmap");
    assert!(outside.read(at, &mut bytes).is_err(), "half of it is gone");
    assert!(outside.write(at, &bytes).is_err(), "half of it is gone");
}

#[test]
fn descriptors_travel_over_a_socket() {
    let (a, b) = UnixStream::pair().expect("pair");
    let (mut first, second) = (tempfile::tempfile().expect("file"), tempfile::tempfile().expect("file"));
    first.write_all(b"hello").expect("write");
    handoff::send_fds(&a, &[first.as_raw_fd(), second.as_raw_fd()]).expect("send");
    let received = handoff::recv_fds(&b, 2).expect("receive");
    let mut first = File::from(received.into_iter().next().expect("two came"));
    let mut text = String::new();
    first.rewind().expect("rewind");
    first.read_to_string(&mut text).expect("read");
    assert_eq!(text, "hello");
    handoff::send_fds(&a, &[first.as_raw_fd()]).expect("send");
    assert_eq!(handoff::recv_fds(&b, 2).err(), Some(Errno::EBADMSG), "one is not two");
    drop(a);
    assert_eq!(handoff::recv_fds(&b, 2).err(), Some(Errno::EBADMSG), "nobody is there to send any");
}

#[test]
fn a_process_is_reached_by_pidfd_and_no_longer_once_it_is_gone() {
    let mut child = std::process::Command::new("sleep").arg("100").spawn().expect("spawn");
    let pidfd = handoff::pidfd_open(Pid::from_raw(child.id() as i32)).expect("pidfd");
    handoff::pidfd_getfd(&pidfd, 0).expect("its standard input");
    assert_eq!(handoff::pidfd_getfd(&pidfd, 999).err(), Some(Errno::EBADF));
    handoff::pidfd_kill(&pidfd, libc::SIGKILL).expect("kill");
    child.wait().expect("wait");
    assert_eq!(handoff::pidfd_kill(&pidfd, libc::SIGKILL), Err(Errno::ESRCH));
    assert_eq!(handoff::pidfd_getfd(&pidfd, 0).err(), Some(Errno::ESRCH));
}

#[test]
fn a_mapped_file_is_its_bytes_and_outlives_its_name() {
    let mut file = tempfile::NamedTempFile::new().expect("file");
    file.write_all(&[3; 10_000]).expect("write");
    let mapped = MappedFile::open(file.as_file()).expect("map");
    file.close().expect("remove");
    assert_eq!(mapped.as_ref(), [3; 10_000]);
    assert_eq!(std::mem::size_of_val(mapped.as_ref()), 10_000);
    let directory = File::open("/").expect("open");
    assert!(matches!(mapped_file::MappedFile::open(&directory), Err(error) if error.kind() != ErrorKind::NotFound));
}
