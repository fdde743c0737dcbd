//! userfaultfd against the kernel we run on: each outcome and each event, on memory of our own.
//!
//! The tests take turns: a fork in one is an event for everything watched in this process.

use defrost_kernel::pagemap::{Category, scan};
use defrost_kernel::scratch::Scratch;
use defrost_kernel::shared_words::SharedWords;
use defrost_kernel::uffd::{Event, Filled, Uffd, decode, fork_descriptor};
use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use pages::PAGE_SIZE_BYTES;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

const PAGE: usize = PAGE_SIZE_BYTES as usize;

/// Wait for the next events.
fn events(uffd: &Uffd) -> Vec<Event> {
    let (begun, mut found) = (Instant::now(), Vec::new());
    while found.is_empty() {
        uffd.read_events(&mut found).expect("read events");
        assert!(begun.elapsed() < Duration::from_secs(10), "no event came");
        std::thread::sleep(Duration::from_micros(50));
    }
    found
}

#[test]
fn nothing_happened_is_no_event() {
    let _turn = turn();
    let memory = Scratch::map(1).expect("map");
    let uffd = memory.watch().expect("watch");
    let mut found = Vec::new();
    assert_eq!(uffd.read_events(&mut found), Ok(false));
    assert!(found.is_empty());
}

#[test]
fn a_touch_waits_for_its_page() {
    let _turn = turn();
    let memory = Scratch::map(2).expect("map");
    let uffd = memory.watch().expect("watch");
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| memory.read(0));
        match events(&uffd).as_slice() {
            [Event::Fault { page, write: false }] => assert_eq!(*page, memory.part(0, 1).start()),
            other => panic!("{other:?}"),
        }
        assert!(!reader.is_finished());
        assert_eq!(uffd.copy(memory.part(0, 1).start(), &[7; PAGE]), Filled::Done);
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!reader.is_finished(), "nobody woke it");
        uffd.wake(memory.part(0, 1)).expect("wake");
        assert_eq!(reader.join().expect("reader"), [7; PAGE]);
        let writer = scope.spawn(|| memory.write(1, 9));
        assert!(matches!(events(&uffd).as_slice(), [Event::Fault { write: true, .. }]));
        assert_eq!(uffd.zero(memory.part(1, 1)), Filled::Done);
        writer.join().expect("writer");
    });
    assert_eq!(memory.read(1)[..2], [9, 0]);
}

#[test]
fn every_outcome_comes_from_the_kernel_as_said() {
    let _turn = turn();
    let memory = Scratch::map(8).expect("map");
    let elsewhere = Scratch::map(1).expect("map");
    let uffd = memory.watch().expect("watch");
    let data = vec![1; 4 * PAGE];
    assert_eq!(uffd.copy(memory.part(2, 1).start(), &data[..PAGE]), Filled::Done);
    assert_eq!(uffd.copy(memory.part(2, 1).start(), &data), Filled::Exists { bytes: 0 });
    // A short count first, the reason when asked again.
    assert_eq!(uffd.copy(memory.part(0, 1).start(), &data), Filled::Changing { bytes: 2 * PAGE_SIZE_BYTES });
    assert_eq!(uffd.zero(memory.part(2, 1)), Filled::Exists { bytes: 0 });
    assert_eq!(uffd.copy(elsewhere.range().start(), &data[..PAGE]), Filled::Unmapped);
    assert_eq!(uffd.copy(memory.part(0, 1).start(), &data[..100]), Filled::Failed(Errno::EINVAL));
    assert!(uffd.is_alive());
    uffd.unregister(memory.range()).expect("unregister");
    assert_eq!(uffd.copy(memory.part(6, 1).start(), &data[..PAGE]), Filled::Unmapped);
}

#[test]
fn dropping_says_so_and_nothing_is_filled_until_that_was_read() {
    let _turn = turn();
    let memory = Scratch::map(4).expect("map");
    let uffd = memory.watch().expect("watch");
    std::thread::scope(|scope| {
        let dropper = scope.spawn(|| memory.drop_contents(1, 2));
        let begun = Instant::now();
        // The event may not be queued yet; the page of the last attempt is one that nobody dropped.
        while uffd.copy(memory.part(3, 1).start(), &[1; PAGE]) != (Filled::Changing { bytes: 0 }) {
            assert!(begun.elapsed() < Duration::from_secs(10), "filled although an event was unread");
        }
        assert!(!dropper.is_finished());
        match events(&uffd).as_slice() {
            [Event::Remove(range)] => assert_eq!(*range, memory.part(1, 2)),
            other => panic!("{other:?}"),
        }
        dropper.join().expect("dropper").expect("drop contents");
    });
}

#[test]
fn moving_and_unmapping_say_so() {
    let _turn = turn();
    let memory = Scratch::map(4).expect("map");
    let uffd = memory.watch().expect("watch");
    std::thread::scope(|scope| {
        let mover = scope.spawn(|| memory.move_away(0, 2).expect("move"));
        let mut found = Vec::new();
        while !mover.is_finished() {
            let _ = uffd.read_events(&mut found).expect("read events");
        }
        let moved = mover.join().expect("mover");
        let remap = found.iter().find_map(|event| match event {
            Event::Remap { from, to, len_bytes } => Some((from.page(), to.page(), *len_bytes)),
            _ => None,
        });
        assert_eq!(remap, Some((memory.range().start(), moved.range().start(), 2 * PAGE_SIZE_BYTES)), "{found:?}");
        assert_eq!(uffd.copy(moved.range().start(), &[5; PAGE]), Filled::Done);
        assert_eq!(moved.read(0), [5; PAGE]);
        let unmapper = scope.spawn(|| memory.unmap(3, 1));
        match events(&uffd).as_slice() {
            [Event::Unmap(range)] => assert_eq!(*range, memory.part(3, 1)),
            other => panic!("{other:?}"),
        }
        unmapper.join().expect("unmapper").expect("unmap");
        let dropper = scope.spawn(move || drop(moved));
        assert!(matches!(events(&uffd).as_slice(), [Event::Unmap(_)]));
        dropper.join().expect("dropper");
    });
}

#[test]
fn a_childs_memory_has_a_userfaultfd_of_its_own_until_it_ends() {
    let _turn = turn();
    let memory = Scratch::map(2).expect("map");
    let uffd = memory.watch().expect("watch");
    let expected = vec![3; 2 * PAGE];
    std::thread::scope(|scope| {
        let forker = scope.spawn(|| memory.fork_comparing(&expected).expect("fork"));
        let found = events(&uffd);
        let Some(Event::Fork(child)) = found.into_iter().next() else { panic!("no fork event") };
        let pid = forker.join().expect("forker");
        assert!(matches!(events(&child).as_slice(), [Event::Fault { .. }]));
        assert!(child.is_alive());
        assert_eq!(child.copy(memory.range().start(), &expected), Filled::Done);
        child.wake(memory.range()).expect("wake");
        assert_eq!(waitpid(pid, None), Ok(WaitStatus::Exited(pid, 0)));
        assert!(!child.is_alive());
        assert_eq!(child.copy(memory.range().start(), &expected), Filled::Gone);
    });
}

#[test]
fn events_land_in_shared_memory_and_an_unanswered_fault_is_told_again() {
    let _turn = turn();
    let file = tempfile::tempfile().expect("file");
    file.set_len(4096).expect("room");
    let words = SharedWords::map(&file, 512).expect("map words");
    let memory = Scratch::map(2).expect("map");
    let uffd = memory.watch().expect("watch");
    assert_eq!(uffd.read_into(&words, 8), Ok(0), "nothing happened");
    assert_eq!(words.get(8), 0);
    let read = || {
        let begun = Instant::now();
        loop {
            match uffd.read_into(&words, 8).expect("read") {
                0 => assert!(begun.elapsed() < Duration::from_secs(10), "no event came"),
                count => return count,
            }
        }
    };
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| memory.read(1));
        assert_eq!(read(), 1);
        let message = std::array::from_fn(|word| words.get(8 + word));
        assert_eq!(fork_descriptor(message), None);
        assert!(matches!(decode(message), Some(Event::Fault { page, write: false }) if page == memory.part(1, 1).start()));
        // Whoever read it died: nobody is told again, until all are woken.
        assert_eq!(uffd.read_into(&words, 8), Ok(0));
        uffd.wake_all().expect("wake all");
        assert_eq!(read(), 1);
        assert_eq!(uffd.zero(memory.part(1, 1)), Filled::Done);
        assert_eq!(reader.join().expect("reader"), [0; PAGE]);
    });
}

#[test]
fn poison_ends_whoever_touches_it() {
    let _turn = turn();
    let memory = Scratch::map(1).expect("map");
    let uffd = memory.watch().expect("watch");
    let expected = vec![0; PAGE];
    std::thread::scope(|scope| {
        let forker = scope.spawn(|| memory.fork_comparing(&expected).expect("fork"));
        let Some(Event::Fork(child)) = events(&uffd).into_iter().next() else { panic!("no fork event") };
        assert_eq!(child.poison(memory.range()), Filled::Done);
        // A child that waits already must look again.
        child.wake(memory.range()).expect("wake");
        let pid = forker.join().expect("forker");
        let ended = waitpid(pid, None);
        assert!(matches!(ended, Ok(WaitStatus::Signaled(_, nix::sys::signal::Signal::SIGBUS, _))), "{ended:?}");
    });
}

#[test]
fn a_marker_goes_with_the_contents_and_with_nothing_else() {
    let _turn = turn();
    let memory = Scratch::map(16).expect("map");
    let uffd = Uffd::open().expect("open");
    uffd.register_marked(memory.range()).expect("register (Linux 6.4)");
    uffd.mark(memory.range()).expect("mark");
    let us = nix::unistd::Pid::this();
    let marked = |range| -> u64 { scan(us, range, Category::Marked).expect("scan").iter().map(pages::PageRange::pages).sum() };
    assert_eq!(marked(memory.range()), 16);
    // A marker is as good as a page for zeros and poison, and gives way to contents.
    let page = |nth: u64| memory.part(nth, 1);
    assert_eq!([uffd.zero(page(0)), uffd.poison(page(0))], [Filled::Exists { bytes: 0 }; 2]);
    assert_eq!(uffd.copy(page(0).start(), &[7; PAGE]), Filled::Done);
    assert_eq!((marked(page(0)), memory.read(0)[0]), (0, 7));
    memory.read_only(1, 1).expect("protect");
    assert_eq!(marked(page(1)), 1);
    let moved = std::thread::scope(|scope| {
        let dropper = scope.spawn(|| memory.drop_contents(2, 1));
        assert!(matches!(events(&uffd).as_slice(), [Event::Remove(_)]));
        dropper.join().expect("dropper").expect("drop");
        let mover = scope.spawn(|| memory.move_away(4, 2));
        let mut told = events(&uffd);
        while !mover.is_finished() {
            let _ = uffd.read_events(&mut told);
        }
        let moved = mover.join().expect("mover").expect("move");
        assert_eq!((marked(page(2)), marked(memory.part(4, 2)), marked(moved.range())), (0, 0, 2));
        moved
    });
    assert_eq!(uffd.zero(page(2)), Filled::Done, "what was dropped is zeros");
    uffd.unmark(page(3)).expect("unmark");
    assert_eq!((marked(page(3)), uffd.poison(page(3))), (0, Filled::Done));
    drop(uffd); // with it open, whoever unmaps what moved waits for its event to be read
    drop(moved);
}
