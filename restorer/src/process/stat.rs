//! /proc/PID/stat: where the kernel thinks code, data, heap, stack and arguments lie; groups and scheduling.

/// The numbers behind the command name, which may itself hold spaces and brackets.
#[derive(Clone, Debug)]
pub struct Stat {
    state: char,
    fields: Vec<i64>,
}

impl Stat {
    /// Parse the file; `None` where it has not the kernel's form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(") ")?;
        let (state, numbers) = rest.split_once(' ')?;
        // Addresses above i64 do not occur in user space; rlimit's u64::MAX does, and is nobody's concern here.
        let fields = numbers.split_whitespace().map(|n| n.parse().unwrap_or(-1)).collect::<Vec<_>>();
        (fields.len() >= 49).then_some(Self { state: state.chars().next()?, fields })
    }

    /// R, S, D, T, Z, …
    #[must_use]
    pub fn state(&self) -> char {
        self.state
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
        assert_eq!((stat.state(), stat.field(4), stat.field(28), stat.field(52)), ('S', 4, 28, 52));
        assert!(Stat::parse("1 (a) S 1 2").is_none());
    }
}
