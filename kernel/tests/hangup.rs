//! A socket whose other end closes stops a process group, and only if it was told whose.

use defrost_kernel::hangup;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Ended with the test, however that ends.
struct Sleeper(Child);

impl Sleeper {
    fn start() -> Self {
        Self(Command::new("sleep").arg("600").process_group(0).spawn().expect("start sleep"))
    }

    fn state(&self) -> char {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).expect("it lives");
        stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next()).expect("a state")
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended
        let _ = self.0.wait();
    }
}

#[test]
fn a_group_is_stopped_when_the_other_end_closes() {
    let sleeper = Sleeper::start();
    let group = i32::try_from(sleeper.0.id()).expect("a pid");
    let pair = || socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).expect("socketpair");
    // For nobody, or not any more: nothing happens.
    for groups in [&[][..], &[group, 0]] {
        let (ours, theirs) = pair();
        hangup::raise(&theirs, Signal::SIGSTOP).expect("raise");
        groups.iter().for_each(|group| hangup::send_to_group(&theirs, *group).expect("send"));
        drop(ours);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(sleeper.state(), 'S', "{groups:?}");
    }
    let (ours, theirs) = pair();
    hangup::raise(&theirs, Signal::SIGSTOP).expect("raise");
    hangup::send_to_group(&theirs, group).expect("send");
    let second = ours.try_clone().expect("duplicate");
    drop(ours);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(sleeper.state(), 'S', "a duplicate is still open");
    drop(second);
    let begun = Instant::now();
    while sleeper.state() != 'T' {
        assert!(begun.elapsed() < Duration::from_secs(10), "it is not stopped: {}", sleeper.state());
        std::thread::sleep(Duration::from_millis(1));
    }
}
