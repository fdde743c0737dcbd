//! /proc/PID/status (of a process or a thread): identities, capabilities, signal dispositions.

use images::manifest::Credentials;

/// The fields of the file, by name.
#[derive(Clone, Debug)]
pub struct Status<'t> {
    text: &'t str,
}

impl<'t> Status<'t> {
    /// Look into `text`.
    #[must_use]
    pub fn new(text: &'t str) -> Self {
        Self { text }
    }

    /// The value behind `name:`.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&'t str> {
        self.text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    }

    /// A decimal value.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        self.field(name)?.split_whitespace().next()?.parse().ok()
    }

    /// A hexadecimal mask.
    #[must_use]
    pub fn mask(&self, name: &str) -> Option<u64> {
        u64::from_str_radix(self.field(name)?, 16).ok()
    }

    /// Octal: the umask.
    #[must_use]
    pub fn umask(&self) -> Option<u32> {
        u32::from_str_radix(self.field("Umask")?, 8).ok()
    }

    fn ids(&self, name: &str) -> Option<[u32; 4]> {
        let mut ids = self.field(name)?.split_whitespace().map(str::parse::<u32>);
        let mut next = || ids.next()?.ok();
        Some([next()?, next()?, next()?, next()?])
    }

    /// Users, groups and capabilities; securebits are not in the file.
    #[must_use]
    pub fn credentials(&self, securebits: u32) -> Option<Credentials> {
        let ([ruid, euid, suid, fsuid], [rgid, egid, sgid, fsgid]) = (self.ids("Uid")?, self.ids("Gid")?);
        Some(Credentials {
            ruid,
            euid,
            suid,
            fsuid,
            rgid,
            egid,
            sgid,
            fsgid,
            groups: self.field("Groups")?.split_whitespace().map_while(|g| g.parse().ok()).collect(),
            cap_inheritable: self.mask("CapInh")?,
            cap_permitted: self.mask("CapPrm")?,
            cap_effective: self.mask("CapEff")?,
            cap_bounding: self.mask("CapBnd")?,
            cap_ambient: self.mask("CapAmb")?,
            securebits,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_fields_by_whole_name() {
        let status = Status::new("Name:\tx\nUmask:\t0022\nPid:\t7\nNSpid:\t7 1\nUid:\t1\t2\t3\t4\nSigCgt:\t0000000000000201\n");
        assert_eq!((status.number("Pid"), status.umask(), status.mask("SigCgt")), (Some(7), Some(0o22), Some(0x201)));
        assert_eq!(status.ids("Uid"), Some([1, 2, 3, 4]));
        assert_eq!(status.field("Gid"), None);
    }
}
