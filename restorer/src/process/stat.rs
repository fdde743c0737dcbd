//! /proc/PID/stat: where the kernel thinks code, data, heap, stack and arguments lie; groups and scheduling.

/// Among a task's flags (proc(5), field 9): it is exiting, or has. PF_EXITING of include/linux/sched.h.
const EXITING: i64 = 4;

/// The command name, which may itself hold spaces and brackets, and the numbers behind it.
#[derive(Clone, Debug)]
pub struct Stat {
    pid: u32,
    comm: String,
    state: char,
    fields: Vec<i64>,
}

impl Stat {
    /// Parse the file; `None` where it has not the kernel's form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (named, rest) = text.rsplit_once(") ")?;
        let (pid, comm) = named.split_once('(')?;
        let (state, numbers) = rest.split_once(' ')?;
        // Addresses above i64 do not occur in user space; rlimit's u64::MAX does, and is nobody's concern here.
        let fields = numbers.split_whitespace().map(|n| n.parse().unwrap_or(-1)).collect::<Vec<_>>();
        (fields.len() >= 49).then_some(Self { pid: pid.trim().parse().ok()?, comm: comm.to_owned(), state: state.chars().next()?, fields })
    }

    /// That of process `pid`, by a thread that has not ended if there is one; `None` where it is gone.
    #[must_use]
    pub fn of_process(pid: u32) -> Option<Self> {
        let tid = kernel::task::living(pid);
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).ok()?)
    }

    /// Whose it is.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The command name.
    #[must_use]
    pub fn comm(&self) -> &str {
        &self.comm
    }

    /// R, S, D, T, Z, …
    #[must_use]
    pub fn state(&self) -> char {
        self.state
    }

    /// It has ended, and is not reaped yet.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }

    /// It ends at this moment, or has ended: nobody can make it go on.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.is_dead() || self.field(9) & EXITING != 0
    }

    /// Field `number` as proc(5) counts them (the parent's pid is 4).
    #[must_use]
    pub fn field(&self, number: usize) -> i64 {
        number.checked_sub(4).and_then(|index| self.fields.get(index)).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_fields_as_proc_5_does() {
        let numbers = (4..=52).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        let stat = Stat::parse(&format!("1 (a) b (c) S {numbers}\n")).expect("is stat");
        assert_eq!(stat.comm(), "a) b (c");
        assert_eq!((stat.state(), stat.field(4), stat.field(28), stat.field(52)), ('S', 4, 28, 52));
        assert!(Stat::parse("1 (a) S 1 2").is_none());
    }

    #[test]
    fn an_ending_task_is_told_from_one_that_lives() {
        let stat = |state: char, flags: i64| Stat::parse(&format!("1 (a) {state} 1 1 1 0 -1 {flags}{}\n", " 0".repeat(43)));
        let ending = |state, flags| stat(state, flags).expect("is stat").is_ending();
        assert!(ending('Z', 0) && ending('R', 0x40_0004) && !ending('R', 0x40_0000) && !ending('S', 0));
    }
}
