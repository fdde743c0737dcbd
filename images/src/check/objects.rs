//! Objects: apart from one another, and of the kind that those who name them take them for.

use super::{NAME_MAX_BYTES, NS_PER_S, PATH_MAX_BYTES, ensure, text};
use crate::error::ImageError;
use crate::manifest::description::Kind;
use crate::manifest::{FileIdentity, Manifest, Object, ObjectKind};
use crate::{OBJECT_ALIGNMENT, OBJECTS_END, OBJECTS_START};
use pages::PageRange;

/// All F_SEAL_* bits of Linux 6.18.
const SEAL_BITS: u32 = 0x3f;
/// A memfd's name and a zero byte fill NAME_MAX with "memfd:" before it.
const MEMFD_NAME_MAX_BYTES: usize = 249;
/// XATTR_SIZE_MAX.
const XATTR_MAX_BYTES: usize = 65_536;
/// XATTR_LIST_MAX holds no more names.
const XATTRS_MAX: usize = 32_768;

pub(super) fn check(manifest: &Manifest) -> Result<(), ImageError> {
    let mut end = OBJECTS_START;
    for (index, object) in manifest.objects.iter().enumerate() {
        let next = object.start.checked_add(crate::object_span(object.size_bytes)).filter(|next| *next <= OBJECTS_END);
        let kept = object.start >= end && object.start.is_multiple_of(OBJECT_ALIGNMENT) && next.is_some() && is_whole(object);
        ensure(kept, || format!("object {index}"))?;
        end = next.unwrap_or(OBJECTS_END);
    }
    let kind = |index: u64| Some(manifest.objects.get(usize::try_from(index).ok()?)?.kind);
    let contents = |index: u64| kind(index).is_some_and(|kind| kind != ObjectKind::DeletedDirectory as i32);
    let of = |number: u32| u64::from(number).checked_sub(1);
    for region in &manifest.regions {
        ensure(of(region.kept).is_none_or(contents), || format!("object of region {:x}", region.start))?;
        ensure(region.file.as_ref().is_none_or(|file| named(manifest, file)), || format!("file of region {:x}", region.start))?;
    }
    for (index, file) in manifest.files.iter().enumerate() {
        let kept = match &file.kind {
            Some(Kind::Kept(kept)) => kind(u64::from(kept.object)).is_some(),
            Some(Kind::Regular(regular)) => regular.identity.as_ref().is_none_or(|file| named(manifest, file)),
            _ => true,
        };
        ensure(kept, || format!("object of file {index}"))?;
    }
    let Some(process) = &manifest.process else { return Ok(()) };
    let cwd = of(process.cwd_object).is_none_or(|index| kind(index) == Some(ObjectKind::DeletedDirectory as i32));
    ensure(cwd, || "object of cwd".to_owned())?;
    ensure(of(process.exe_object).is_none_or(contents), || "object of exe".to_owned())
}

/// What is kept for a file that is missing has its name.
fn named(manifest: &Manifest, file: &FileIdentity) -> bool {
    let Some(index) = file.kept.checked_sub(1) else { return true };
    let object = manifest.objects.get(index as usize);
    object.is_some_and(|object| object.kind == ObjectKind::NamedFile as i32 && object.path == file.path)
}

fn is_whole(object: &Object) -> bool {
    let name = match ObjectKind::try_from(object.kind) {
        Ok(ObjectKind::DeletedFile | ObjectKind::DeletedDirectory | ObjectKind::NamedFile) => {
            object.path.starts_with('/') && text(&object.path, PATH_MAX_BYTES)
        }
        Ok(ObjectKind::Memfd) => text(&object.path, MEMFD_NAME_MAX_BYTES),
        Ok(ObjectKind::Unknown) | Err(_) => false,
    };
    let xattrs = object.xattrs.len() <= XATTRS_MAX
        && object
            .xattrs
            .iter()
            .all(|xattr| !xattr.name.is_empty() && text(&xattr.name, NAME_MAX_BYTES) && xattr.value.len() <= XATTR_MAX_BYTES);
    name && xattrs
        && object.mode <= 0o7777
        && [object.mtime_ns, object.atime_ns].iter().all(|ns| *ns < NS_PER_S)
        && object.seals & !SEAL_BITS == 0
        && (object.seals == 0 || object.kind == ObjectKind::Memfd as i32)
        && (object.size_bytes == 0 || object.kind != ObjectKind::DeletedDirectory as i32)
}

/// Whether the pages lie in one object, the last of them perhaps in part.
pub(super) fn holds(objects: &[Object], range: PageRange) -> bool {
    let at = objects.partition_point(|object| object.start <= range.start().addr()).checked_sub(1);
    at.is_some_and(|at| {
        let object = &objects[at];
        let end = object.start + object.size_bytes.next_multiple_of(pages::PAGE_SIZE_BYTES);
        range.start().addr() >= object.start && range.end().addr() <= end
    })
}
