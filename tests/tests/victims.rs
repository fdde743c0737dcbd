//! Small programs, one per feature, which are frozen, brought back lazily over gRPC, and check themselves.

use anyhow::Result;
use defrost_tests::{Victim, frozen_and_back, need_root, proves, victims};

victims! {
    memory_of_every_sort_comes_back: "memory", "64";
    hundreds_of_megabytes_come_back: "memory", "400";
    shared_memory_stays_shared: "shared";

    threads_in_futex_go_on: "threads", "futex";
    threads_in_nanosleep_go_on: "threads", "nanosleep";
    threads_in_epoll_wait_go_on: "threads", "epoll";
    threads_in_pipe_read_go_on: "threads", "pipe";
    threads_in_tight_loops_lose_no_step: "threads", "spin";
    fifteen_threads_of_all_kinds_go_on: "threads", "all";
    threads_in_epoll_wait_with_a_timeout_go_on: "waits", "epoll";
    threads_in_poll_with_a_timeout_go_on: "waits", "poll";
    threads_in_select_with_a_timeout_go_on: "waits", "select";
    threads_in_futex_with_a_timeout_go_on: "waits", "futex";
    threads_in_a_timed_condition_go_on: "waits", "condition";
    threads_in_sigtimedwait_go_on: "waits", "sigtimedwait";
    threads_in_sigsuspend_go_on: "waits", "sigsuspend";
    threads_in_relative_sleeps_are_not_over_early: "waits", "nanosleep";
    threads_in_absolute_sleeps_are_not_over_early: "waits", "absolute";
    threads_in_a_read_go_on: "waits", "read";
    a_thread_that_waits_for_a_file_lock_goes_on: "waits", "flock";
    sixty_four_threads_keep_their_settings: "crowd";
    advice_locks_and_names_of_memory_stay: "advice";
    robust_mutexes_tell_of_a_dead_owner: "robust_mutex";
    vector_registers_keep_their_values: "vectors";
    restartable_sequences_stay_registered: "rseq";
    a_first_thread_that_has_ended_stays_so: "leaderless", "early";
    a_first_thread_ends_while_pages_are_missing: "leaderless", "late";

    blocked_and_pending_signals_stay: "signals";
    a_pending_trap_stays: "signals", "trap";
    alternate_signal_stacks_stay: "sigaltstack", "idle";
    a_missing_alternate_stack_stays_missing: "sigaltstack", "none";
    a_handler_on_an_alternate_stack_goes_on: "sigaltstack", "inside";
    interval_timers_go_on: "itimers";
    a_far_interval_timer_keeps_what_is_left: "itimers", "far";
    posix_timers_go_on: "posix_timers";
    vdso_clocks_answer: "clocks";

    the_stack_grows_while_pages_are_missing: "stack";
    the_heap_grows_and_shrinks_while_pages_are_missing: "brk";
    mappings_move_while_pages_are_missing: "mremap";
    mappings_go_while_pages_are_missing: "munmap";
    pages_are_dropped_while_pages_are_missing: "dontneed";
    protections_change_while_pages_are_missing: "mprotect";
    forks_share_missing_pages: "fork";
    a_child_outlives_its_parent_while_pages_are_missing: "fork", "orphan";
    new_programs_start_while_pages_are_missing: "exec";

    the_process_finds_itself_the_same: "identity";

    regular_files_keep_position_and_flags: "descriptors", "regular";
    appending_files_append: "descriptors", "append";
    shared_descriptions_stay_shared: "descriptors", "shared";
    directories_stay_open: "descriptors", "directory";
    devices_stay_open: "descriptors", "devices";
    pipes_keep_their_contents: "descriptors", "pipe";
    event_counters_keep_their_count: "descriptors", "eventfd";
    epoll_keeps_its_interests: "descriptors", "epoll";
    timer_descriptors_go_on: "descriptors", "timerfd";
    signal_descriptors_go_on: "descriptors", "signalfd";
    tcp_listens_on_v4: "descriptors", "tcp4";
    tcp_listens_on_v6: "descriptors", "tcp6";
    unix_sockets_listen: "descriptors", "unix";
    unix_datagram_sockets_stay_bound: "descriptors", "unixdgram";
    udp_stays_bound: "descriptors", "udp";
    socket_pairs_keep_their_contents: "descriptors", "socketpair";
}

#[test]
fn another_users_process_comes_back() -> Result<()> {
    need_root()?;
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"];
    frozen_and_back(Victim::c_as(&nobody, "identity", &[])?)?;
    frozen_and_back(Victim::c_as(&nobody, "memory", &["16"])?)
}
