//! What becomes of a process whose pages do not come: the operator's choice, made at the restore. Pure.

use serde::{Deserialize, Serialize};
use std::str::FromStr;
use std::time::Duration;

/// How long a page is waited for where nobody said: a server that is restarted, or a host that is, is back within it.
pub const LOST_AFTER_S: u64 = 60;

/// What to do about a page that does not come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnLost {
    /// Wait for ever.
    #[default]
    Wait,
    /// End the process.
    Kill,
    /// Give up all that is missing: a touch of it is a SIGBUS, which a program may survive.
    Poison,
}

impl FromStr for OnLost {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "wait" => Ok(Self::Wait),
            "kill" => Ok(Self::Kill),
            "poison" => Ok(Self::Poison),
            _ => Err("use wait, kill or poison"),
        }
    }
}

/// What to do, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// What.
    pub on_lost: OnLost,
    /// Seconds that somebody waits for one page before that.
    pub lost_after_s: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self { on_lost: OnLost::default(), lost_after_s: LOST_AFTER_S }
    }
}

/// What is due for a page that somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Look again after that, or only when something changes.
    Later(Option<Duration>),
    /// End the process.
    Kill,
    /// Give up what is missing.
    Poison,
}

impl Policy {
    /// What is due once a page was waited for for so long.
    #[must_use]
    pub fn due(&self, waited: Duration) -> Due {
        let left = Duration::from_secs(self.lost_after_s).checked_sub(waited).filter(|left| !left.is_zero());
        match (self.on_lost, left) {
            (OnLost::Wait, _) => Due::Later(None),
            (_, Some(left)) => Due::Later(Some(left)),
            (OnLost::Kill, None) => Due::Kill,
            (OnLost::Poison, None) => Due::Poison,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_due_before_its_time_and_nothing_ever_for_who_waits() {
        let (s, ms) = (Duration::from_secs, Duration::from_millis);
        for (on_lost, waited, due) in [
            (OnLost::Wait, s(0), Due::Later(None)),
            (OnLost::Wait, s(1_000_000), Due::Later(None)),
            (OnLost::Kill, s(0), Due::Later(Some(s(3)))),
            (OnLost::Kill, ms(2999), Due::Later(Some(ms(1)))),
            (OnLost::Kill, s(3), Due::Kill),
            (OnLost::Kill, s(4), Due::Kill),
            (OnLost::Poison, ms(1), Due::Later(Some(ms(2999)))),
            (OnLost::Poison, s(3), Due::Poison),
        ] {
            assert_eq!(Policy { on_lost, lost_after_s: 3 }.due(waited), due, "{on_lost:?} after {waited:?}");
        }
    }

    #[test]
    fn whoever_says_nothing_waits_for_ever() {
        assert_eq!(serde_json::from_str::<Policy>("{}").ok(), Some(Policy::default()));
        assert_eq!(Policy::default().due(Duration::MAX), Due::Later(None));
        for (text, on_lost) in [("wait", OnLost::Wait), ("kill", OnLost::Kill), ("poison", OnLost::Poison)] {
            assert_eq!(text.parse(), Ok(on_lost));
            assert_eq!(serde_json::to_string(&on_lost).ok(), Some(format!("\"{text}\"")));
        }
        assert!("Kill".parse::<OnLost>().is_err() && "".parse::<OnLost>().is_err());
    }
}
