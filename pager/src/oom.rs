//! Whom the kernel ends when the host's memory is used up: us last, where we may ask for that.
//!
//! Whoever we start is ourselves anew, so that nobody else inherits it; the restored process is not our child. Lowering the score needs
//! CAP_SYS_RESOURCE, which we do without where it is not given.

/// Never (OOM_SCORE_ADJ_MIN, include/uapi/linux/oom.h).
const NEVER: &str = "-1000";

/// Ask to be spared.
pub fn spare_us() {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", NEVER) {
        tracing::debug!(%error, "when memory runs out this pager is as likely to be ended as others are");
    }
}
