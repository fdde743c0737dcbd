//! The pager over real memory: a userfaultfd, threads that touch, drop, move, unmap and fork, and a store that misbehaves.

mod stage;

use defrost_pager::State;
use images::manifest::RegionFlag;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use stage::{PAGE, Stage, bytes_of, until};
use std::time::{Duration, Instant};

/// How a child ended, which it does soon.
fn ended(child: Pid) -> WaitStatus {
    let begun = Instant::now();
    loop {
        match waitpid(child, Some(WaitPidFlag::WNOHANG)).expect("waitpid") {
            WaitStatus::StillAlive if begun.elapsed() < Duration::from_secs(10) => std::thread::sleep(Duration::from_millis(1)),
            WaitStatus::StillAlive => {
                let _ = nix::sys::signal::kill(child, Signal::SIGKILL);
                panic!("the child still waits for a page");
            }
            status => return status,
        }
    }
}

#[test]
fn pages_come_when_touched_and_no_others() {
    let mut stage = Stage::new(64, &[2..7, 20..60], 0);
    let pager = stage.serve(false);
    assert_eq!(stage.memory.read(3), stage.contents[3]);
    assert_eq!(stage.memory.read(0), [0; PAGE], "a page without contents");
    let status = pager.status();
    assert_eq!((status.state, status.demand_faults, status.zero_faults), (State::Lazy, 1, 1));
    assert_eq!(status.total_bytes, 45 * PAGE as u64);
    assert!(status.missing_bytes >= 41 * PAGE as u64, "one chunk came at most: {}", status.missing_bytes);
    std::thread::scope(|scope| {
        for first in 0..4 {
            let stage = &stage;
            scope.spawn(move || (first..64).step_by(2).for_each(|page| assert_eq!(stage.memory.read(page), stage.contents[page as usize])));
        }
    });
    assert_eq!(pager.wait_resident().state, State::Resident);
    assert!(stage.is_released());
    assert!(stage.store.asked.lock().expect("asked").values().all(|times| *times == 1), "a chunk was asked for twice");
    assert_eq!(stage.end(pager).state, State::Gone);
}

#[test]
fn the_rest_comes_by_itself_and_memory_is_released() {
    let mut stage = Stage::new(2000, &[0..700, 800..2000], 0);
    let pager = stage.serve(true);
    let status = pager.wait_resident();
    assert_eq!((status.state, status.missing_bytes), (State::Resident, 0));
    assert!(stage.is_released());
    assert_eq!(bytes_of(&stage.memory, stage.memory.range()), stage.all());
    assert_eq!(stage.end(pager).demand_faults, 0);
}

#[test]
fn what_was_dropped_reads_as_zeros_even_while_its_bytes_are_under_way() {
    let mut stage = Stage::new(400, &[0..400], 0);
    stage.store.set(|mood| mood.slow = Duration::from_micros(300));
    let pager = stage.serve(true);
    for page in (0..400).rev().step_by(3) {
        stage.memory.drop_contents(page, 1).expect("drop");
        stage.contents[page as usize] = vec![0; PAGE];
        assert_eq!(stage.memory.read(page), [0; PAGE], "page {page}");
    }
    assert_eq!(pager.wait_resident().state, State::Resident);
    assert_eq!(bytes_of(&stage.memory, stage.memory.range()), stage.all());
    stage.end(pager);
}

#[test]
fn what_was_written_stays() {
    let mut stage = Stage::new(256, &[0..256], 0);
    stage.store.set(|mood| mood.slow = Duration::from_micros(200));
    let pager = stage.serve(true);
    for page in (0..256).step_by(5) {
        stage.memory.write(page, 77);
        stage.contents[page as usize][0] = 77;
    }
    assert_eq!(pager.wait_resident().state, State::Resident);
    assert_eq!(bytes_of(&stage.memory, stage.memory.range()), stage.all());
    stage.end(pager);
}

#[test]
fn moved_memory_brings_its_missing_pages_along() {
    for background in [false, true] {
        let mut stage = Stage::new(128, &[0..128], 0);
        stage.store.set(|mood| mood.slow = Duration::from_micros(200));
        let pager = stage.serve(background);
        let moved = stage.memory.move_away(32, 64).expect("move");
        let again = moved.move_away(10, 20).expect("move again");
        stage.memory.unmap(100, 28).expect("unmap");
        assert_eq!(bytes_of(&again, again.range()), stage.contents[42..62].concat());
        assert_eq!(bytes_of(&moved, moved.part(30, 34)), stage.contents[62..96].concat());
        assert_eq!(bytes_of(&moved, moved.part(0, 10)), stage.contents[32..42].concat());
        assert_eq!(bytes_of(&stage.memory, stage.memory.part(0, 32)), stage.contents[..32].concat());
        assert_eq!(bytes_of(&stage.memory, stage.memory.part(96, 4)), stage.contents[96..100].concat());
        assert_eq!(pager.wait_resident().state, State::Resident);
        assert!(stage.is_released());
        stage.end(pager);
    }
}

#[test]
fn a_mapping_split_by_mprotect_is_filled() {
    let mut stage = Stage::new(64, &[0..64], 0);
    for page in (1..64).step_by(6) {
        stage.memory.read_only(page, 1).expect("mprotect");
    }
    let pager = stage.serve(true);
    assert_eq!(pager.wait_resident().state, State::Resident);
    assert_eq!(bytes_of(&stage.memory, stage.memory.range()), stage.all());
    stage.end(pager);
}

#[test]
fn a_child_has_what_was_missing_at_the_fork() {
    for background in [false, true] {
        let mut stage = Stage::new(200, &[0..90, 100..200], 0);
        stage.store.set(|mood| mood.slow = Duration::from_micros(200));
        let pager = stage.serve(background);
        let child = stage.memory.fork_comparing(&stage.all()).expect("fork");
        // What the parent does from now on is not the child's.
        stage.memory.drop_contents(50, 100).expect("drop");
        stage.memory.unmap(150, 50).expect("unmap");
        assert_eq!(ended(child), WaitStatus::Exited(child, 0));
        stage.end(pager);
    }
}

#[test]
fn a_child_outlives_its_parent_and_still_gets_its_pages() {
    let mut stage = Stage::new(400, &[0..400], 0);
    stage.store.set(|mood| mood.slow = Duration::from_millis(1));
    let pager = stage.serve(false);
    let child = stage.memory.fork_comparing(&stage.all()).expect("fork");
    let end = stage.end(pager);
    assert_eq!(ended(child), WaitStatus::Exited(child, 0));
    assert_eq!(end.state, State::Gone);
}

#[test]
fn the_pager_ends_after_a_child_that_never_touched_its_pages() {
    let mut stage = Stage::new(100, &[0..100], 0);
    let pager = stage.serve(false);
    // It compares no page at all and exits; the pager is told nothing.
    let child = stage.memory.fork_comparing(&[]).expect("fork");
    assert_eq!(ended(child), WaitStatus::Exited(child, 0));
    assert_eq!(stage.end(pager).state, State::Gone);
}

#[test]
fn memory_wiped_on_fork_is_wiped_in_the_child_although_it_was_missing() {
    let mut stage = Stage::new(16, &[0..16], RegionFlag::WipeOnFork as u32);
    stage.memory.wipe_on_fork(0, 16).expect("wipe on fork");
    let pager = stage.serve(false);
    let child = stage.memory.fork_comparing(&[0; 16 * PAGE]).expect("fork");
    assert_eq!(ended(child), WaitStatus::Exited(child, 0), "the child sees its parent's bytes");
    assert_eq!(stage.memory.read(5), stage.contents[5]);
    stage.end(pager);
}

#[test]
fn wrong_bytes_are_fetched_once_more() {
    let mut stage = Stage::new(16, &[0..16], 0);
    let pager = stage.serve(false);
    stage.store.set(|mood| mood.wrong = 1);
    assert_eq!(stage.memory.read(5), stage.contents[5]);
    assert_eq!(pager.status().state, State::Lazy);
    stage.end(pager);
}

#[test]
fn wrong_bytes_are_never_seen_by_anybody() {
    for background in [false, true] {
        let mut stage = Stage::new(64, &[0..64], 0);
        stage.store.set(|mood| (mood.wrong, mood.slow) = (u32::MAX, Duration::from_millis(20)));
        let pager = stage.serve(background);
        let child = stage.memory.fork_comparing(&stage.all()).expect("fork");
        let status = pager.wait_resident();
        assert!(matches!(&status.state, State::Failed(why) if why.contains("digest")), "{status:?}");
        assert!(stage.process.wait().is_ok_and(|status| !status.success()), "the process was not ended");
        // Zeros would make it exit with 1, the right bytes with 0.
        assert!(matches!(ended(child), WaitStatus::Signaled(_, Signal::SIGBUS | Signal::SIGKILL, _)), "the child read on");
        drop(pager.join());
    }
}

#[test]
fn a_store_that_goes_and_comes_back_costs_only_time() {
    let mut stage = Stage::new(64, &[0..64], 0);
    let pager = stage.serve(false);
    stage.store.set(|mood| mood.lost = true);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| stage.memory.read(9));
        let status = until(&pager, |state| *state == State::Waiting);
        assert!(status.last_error.is_some_and(|why| why.contains("moody")));
        assert!(!reader.is_finished());
        stage.store.set(|mood| mood.lost = false);
        assert_eq!(reader.join().expect("reader"), stage.contents[9]);
    });
    until(&pager, |state| *state == State::Lazy);
    stage.end(pager);
}

#[test]
fn a_process_that_ends_while_the_store_is_lost_is_not_waited_for() {
    for background in [false, true] {
        let mut stage = Stage::new(64, &[0..64], 0);
        stage.store.set(|mood| mood.lost = true);
        let pager = stage.serve(background);
        let child = stage.memory.fork_comparing(&stage.all()).expect("fork");
        until(&pager, |state| *state == State::Waiting);
        nix::sys::signal::kill(child, Signal::SIGKILL).expect("kill");
        ended(child);
        assert_eq!(stage.end(pager).state, State::Gone);
    }
}

/// The same random life, on real memory and on a plain list of pages.
#[test]
fn a_random_life_leaves_every_byte_right() {
    for seed in 1..=12_u64 {
        let mut stage = Stage::new(300, &[0..120, 130..300], 0);
        stage.store.set(|mood| mood.slow = Duration::from_micros(20 * (seed % 4)));
        let pager = stage.serve(seed % 3 != 0);
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut dice = |sides: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % sides
        };
        let mut children = Vec::new();
        let mut elsewhere = Vec::new();
        let mut end = 300; // pages behind it were moved away
        for _ in 0..200 {
            let page = dice(end - 8);
            let at = page as usize;
            match dice(20) {
                0..8 => assert_eq!(stage.memory.read(page), stage.contents[at], "seed {seed}, page {page}"),
                8..13 => {
                    stage.memory.write(page, 99);
                    stage.contents[at][0] = 99;
                }
                13..17 => {
                    let pages = 1 + dice(7);
                    stage.memory.drop_contents(page, pages).expect("drop");
                    stage.contents[at..at + pages as usize].fill(vec![0; PAGE]);
                }
                17 if end > 100 => {
                    let pages = 1 + dice(20);
                    end -= pages;
                    elsewhere.push((stage.memory.move_away(end, pages).expect("move"), stage.contents.split_off(end as usize).concat()));
                }
                18 if children.len() < 4 => children.push(stage.memory.fork_comparing(&stage.all()).expect("fork")),
                _ => stage.memory.read_only(page, 0).expect("nothing"),
            }
        }
        assert_eq!(bytes_of(&stage.memory, stage.memory.part(0, end)), stage.all(), "seed {seed}");
        for (memory, contents) in &elsewhere {
            assert_eq!(bytes_of(memory, memory.range()), *contents, "seed {seed}, moved");
        }
        for child in children {
            assert_eq!(ended(child), WaitStatus::Exited(child, 0), "seed {seed}, child");
        }
        assert_eq!(pager.wait_resident().state, State::Resident, "seed {seed}");
        stage.end(pager);
    }
}
