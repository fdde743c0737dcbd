//! A restore by root hands nothing out: what an image names is opened with the rights that the process had, an image that says
//! what no checkpoint writes is refused, and nothing on the host is changed by a restore that fails.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::command::{defrost_marked, new_mark, succeeds};
use defrost_tests::{Victim, binary, checkpoint, defrost, defrost_fails, defrost_ok, eventually, need_root, restore_with};
use images::Image;
use images::manifest::description::Kind;
use images::manifest::{
    CharacterDevice, Description, Directory, FileIdentity, KernelFile, Manifest, NamedPipe, Object, ObjectKind, PathOnly, RegularFile,
    Socket, SocketFile,
};
use nix::libc;
use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;
use store::Access;
use tempfile::TempDir;

/// A user without rights.
const NOBODY: u32 = 65_534;

/// A program that gives up root, then opens a file of its own, maps another, works in a directory of its own and waits.
const VICTIM: &str = r#"
import mmap, os, socket, time
top = os.getcwd()
os.chown(top, 65534, 65534)
log = os.open('roots.log', os.O_WRONLY | os.O_CREAT, 0o600) if os.path.exists('keep-log') else None
null = os.open('/dev/null', os.O_RDWR)
for n in range(3): os.dup2(null, n)
os.close(null)
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
os.mkdir('work')
def make(name):
    fd = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, b'mine' * 1024)
    return fd
held, read = make('held'), os.open('held', os.O_RDONLY)
mapped = make('mapped')
seen = mmap.mmap(mapped, 4096)
os.close(mapped)
place = os.open('work', os.O_RDONLY | os.O_DIRECTORY)
server = socket.socket(socket.AF_UNIX)
server.bind(top + '/socket')
server.listen(1)
os.chdir('work')
open(top + '/ready', 'w').close()
while not os.path.exists(top + '/go'): time.sleep(0.01)
if log is not None: os.write(log, b'goes on')
with open(top + '/said', 'wb') as said: said.write(os.pread(read, 4, 0) + seen[0:4] + str(os.fstat(place).st_ino == os.stat('.').st_ino).encode())
os.rename(top + '/said', top + '/verdict')
while True: time.sleep(1)
"#;

/// The program, frozen as `it:v` in a store of its own, and a file that is root's alone.
struct Frozen {
    victim: Victim,
    store: TempDir,
    roots: TempDir,
}

impl Frozen {
    fn new(prepare: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        need_root()?;
        let folder = tempfile::tempdir()?;
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
        prepare(folder.path())?;
        let script = folder.path().join("victim.py");
        fs::write(&script, VICTIM)?;
        let mut victim = Victim::in_folder(folder, "/usr/bin/python3", &[&script.to_string_lossy()])?;
        let ready = victim.folder().join("ready");
        eventually("the victim is ready", || ready.exists()).with_context(|| victim.output())?;
        let (store, roots) = (tempfile::tempdir()?, tempfile::tempdir()?);
        checkpoint(&mut victim, "it:v", &store.path().to_string_lossy())?;
        fs::set_permissions(roots.path(), Permissions::from_mode(0o755))?;
        let frozen = Self { victim, store, roots };
        let secret = frozen.secret();
        fs::write(&secret, "root".repeat(1024))?;
        fs::set_permissions(secret, Permissions::from_mode(0o600))?;
        Ok(frozen)
    }

    fn store(&self) -> String {
        self.store.path().to_string_lossy().into_owned()
    }

    fn secret(&self) -> PathBuf {
        self.roots.path().join("secret")
    }

    fn own(&self, name: &str) -> PathBuf {
        self.victim.folder().join(name)
    }

    /// The restore of `name` fails with these words, and leaves nothing.
    fn is_refused(&self, name: &str, words: &[&str]) -> Result<()> {
        let said = defrost_fails(&["restore", name, "--store", &self.store(), "--detach"])?;
        for word in words {
            ensure!(said.contains(word), "{name}: {word:?} is not in: {said}");
        }
        ensure!(fs::read_to_string(self.secret())? == "root".repeat(1024), "{name}: the secret was changed");
        self.victim.left_nothing()
    }

    /// The image with some change, as `name`.
    fn forge(&self, name: &str, change: impl FnOnce(&mut Manifest)) -> Result<()> {
        let store = store::open(&self.store(), Access::Write)?;
        let bytes = store.image(&store.resolve(&"it:v".parse()?)?)?;
        let image = Image::parse(&bytes)?;
        let mut manifest = image.manifest.clone();
        change(&mut manifest);
        store.commit(Image::encode(&manifest, &table(&bytes)?), &name.parse()?)?;
        Ok(())
    }

    fn comes_back(&mut self, name: &str, how: &[&str]) -> Result<()> {
        restore_with(&self.victim, name, &self.store(), how)?;
        fs::write(self.own("go"), "")?;
        let verdict = self.own("verdict");
        eventually("it says what it sees", || verdict.exists())?;
        let said = fs::read_to_string(verdict)?;
        ensure!(said == "mineTrue" || said == "minemineTrue", "it sees {said:?}");
        self.victim.end()?;
        fs::set_permissions(self.victim.folder(), Permissions::from_mode(0o755))?;
        Ok(())
    }
}

fn table(bytes: &[u8]) -> Result<Vec<pages::ChunkId>> {
    Ok(images::parse_table(bytes)?.1)
}

/// One more object; yields its number.
fn add(manifest: &mut Manifest, object: Object) -> u32 {
    let start = manifest.objects.last().map_or(1 << 56, |last| last.start + (1 << 30));
    manifest.objects.push(Object { start, ..object });
    manifest.objects.len() as u32 - 1
}

/// Put a link to `target` in the place of `path`, as the owner of the directory may.
fn replace(path: &Path, target: &Path) -> Result<()> {
    fs::rename(path, path.with_extension("aside"))?;
    Ok(symlink(target, path)?)
}

fn put_back(path: &Path) -> Result<()> {
    fs::remove_file(path)?;
    Ok(fs::rename(path.with_extension("aside"), path)?)
}

/// The identity that a checkpoint would have written of a file: all of it is for anyone to see.
fn identity(path: &Path) -> Result<FileIdentity> {
    let meta = fs::metadata(path)?;
    let birth = meta.created()?.duration_since(UNIX_EPOCH)?;
    Ok(FileIdentity {
        path: path.to_string_lossy().into_owned(),
        size_bytes: meta.size(),
        mtime_s: meta.mtime(),
        mtime_ns: meta.mtime_nsec() as u32,
        device: meta.dev(),
        inode: meta.ino(),
        birth_s: birth.as_secs() as i64,
        birth_ns: birth.subsec_nanos(),
        ..FileIdentity::default()
    })
}

fn same_time(of: &Path, as_of: &Path) -> Result<()> {
    let file = fs::File::options().write(true).open(of)?;
    Ok(file.set_modified(fs::metadata(as_of)?.modified()?)?)
}

#[test]
fn links_that_a_user_made_lead_nowhere() -> Result<()> {
    let mut frozen = Frozen::new(|_| Ok(()))?;
    for name in ["held", "mapped"] {
        let own = frozen.own(name);
        same_time(&frozen.secret(), &own)?;
        replace(&own, &frozen.secret())?;
        frozen.is_refused("it:v", &[name, "symbolic link"])?;
        // Through a directory of the way as well.
        put_back(&own)?;
    }
    replace(&frozen.own("work"), frozen.roots.path())?;
    frozen.is_refused("it:v", &["work", "symbolic link"])?;
    put_back(&frozen.own("work"))?;
    let top = frozen.victim.folder().to_owned();
    let copy = frozen.roots.path().join("copy");
    fs::create_dir(&copy)?;
    fs::write(copy.join("held"), "root".repeat(1024))?;
    replace(&top, &copy)?;
    let refused = frozen.is_refused("it:v", &["symbolic link"]);
    put_back(&top)?;
    refused?;
    frozen.comes_back("it:v", &[])
}

#[test]
fn an_image_that_names_what_is_roots_gets_none_of_it() -> Result<()> {
    let mut frozen = Frozen::new(|_| Ok(()))?;
    let secret = frozen.secret();
    let known = identity(&secret)?;
    let regular = |identity: FileIdentity| Some(Kind::Regular(RegularFile { identity: Some(identity) }));
    let held = |manifest: &Manifest| {
        let at = manifest.files.iter().position(
            |file| matches!(&file.kind, Some(Kind::Regular(r)) if r.identity.as_ref().is_some_and(|i| i.path.ends_with("/held"))),
        );
        at.unwrap_or_else(|| panic!("no held file in {:?}", manifest.files))
    };
    let set = |name: &str, flags: i32, kind: Option<Kind>| {
        frozen.forge(name, |manifest| {
            let at = held(manifest);
            manifest.files[at] = Description { flags: flags as u32, kind, ..Description::default() };
        })
    };
    let user = &format!("user {NOBODY}")[..];
    for (name, flags) in [("read:v", libc::O_RDONLY), ("write:v", libc::O_WRONLY), ("append:v", libc::O_RDWR | libc::O_APPEND)] {
        set(name, flags, regular(known.clone()))?;
        frozen.is_refused(name, &[&*secret.to_string_lossy(), user])?;
    }
    frozen.forge("map:v", |manifest| {
        let region = manifest.regions.iter_mut().find(|region| region.file.as_ref().is_some_and(|file| file.path.ends_with("/mapped")));
        region.unwrap_or_else(|| panic!("no mapped file")).file = Some(known.clone());
    })?;
    frozen.is_refused("map:v", &[&*secret.to_string_lossy(), user])?;
    // Directories, fifos, files of the kernel's.
    let closed = frozen.roots.path().join("closed");
    fs::create_dir(&closed)?;
    fs::set_permissions(&closed, Permissions::from_mode(0o700))?;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    set("list:v", libc::O_RDONLY | libc::O_DIRECTORY, Some(Kind::Directory(Directory { path: text(&closed), inode: None })))?;
    frozen.is_refused("list:v", &[&text(&closed), user])?;
    let inside = closed.join("inside");
    fs::create_dir(&inside)?;
    let only = PathOnly { path: text(&inside), mode: libc::S_IFDIR, inode: None };
    set("only:v", libc::O_PATH, Some(Kind::PathOnly(only)))?;
    frozen.is_refused("only:v", &[&text(&inside), user])?;
    frozen.forge("cwd:v", |manifest| {
        let process = manifest.process.as_mut().unwrap_or_else(|| panic!("no process"));
        (process.cwd, process.cwd_inode) = (text(&inside), None);
    })?;
    frozen.is_refused("cwd:v", &[&text(&inside), user])?;
    let fifo = frozen.roots.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR)?;
    let pipe = |path: &Path| Some(Kind::NamedPipe(NamedPipe { path: text(path), capacity_bytes: 4096, ..NamedPipe::default() }));
    set("fifo:v", libc::O_RDONLY, pipe(&fifo))?;
    frozen.is_refused("fifo:v", &[&text(&fifo), user])?;
    let made = frozen.roots.path().join("made");
    set("made:v", libc::O_RDONLY, pipe(&made))?;
    frozen.is_refused("made:v", &[&text(&made), user])?;
    let kernel = "/proc/sys/kernel/core_pattern";
    set("kernel:v", libc::O_WRONLY, Some(Kind::KernelFile(KernelFile { path: kernel.to_owned() })))?;
    frozen.is_refused("kernel:v", &[kernel, user])?;
    set("no-kernel:v", libc::O_RDONLY, Some(Kind::KernelFile(KernelFile { path: "/etc/passwd".to_owned() })))?;
    frozen.is_refused("no-kernel:v", &["/etc/passwd"])?;
    // A file, a socket where others keep theirs; a program of root's in a file that was deleted.
    let object = |kind: ObjectKind, path: &Path| Object { kind: kind as i32, path: text(path), ..Object::default() };
    let kept = |name: &str, object: Object| {
        frozen.forge(name, |manifest| {
            let at = held(manifest);
            let number = add(manifest, object);
            manifest.files[at].kind = Some(Kind::Kept(images::manifest::KeptFile { object: number }));
        })
    };
    kept("file:v", object(ObjectKind::NamedFile, &made))?;
    let mut identified = identity(&secret)?;
    (identified.path, identified.inode) = (text(&made), 0);
    frozen.forge("file:v2", |manifest| {
        identified.kept = 1 + add(manifest, Object { mode: 0o644, ..object(ObjectKind::NamedFile, &made) });
        let at = held(manifest);
        manifest.files[at].kind = regular(identified);
    })?;
    frozen.is_refused("file:v2", &[user])?;
    kept("suid:v", Object { mode: 0o4755, ..object(ObjectKind::DeletedFile, &frozen.own("program")) })?;
    frozen.is_refused("suid:v", &["mode 4755"])?;
    let socket = Socket {
        family: libc::AF_UNIX as u32,
        r#type: libc::SOCK_STREAM as u32,
        address: text(&made).into_bytes(),
        file: Some(SocketFile { path: text(&made).into_bytes(), ..SocketFile::default() }),
        ..Socket::default()
    };
    set("socket:v", libc::O_RDWR, Some(Kind::Socket(Box::new(socket))))?;
    frozen.is_refused("socket:v", &[user])?;
    let raw = Socket { family: libc::AF_PACKET as u32, r#type: libc::SOCK_RAW as u32, protocol: 3, ..Socket::default() };
    set("raw:v", libc::O_RDWR, Some(Kind::Socket(Box::new(raw))))?;
    frozen.is_refused("raw:v", &["raw socket", user])?;
    ensure!(!made.exists(), "{} was made", made.display());
    // What the user could do by itself it still may.
    frozen.comes_back("it:v", &[])
}

#[test]
fn an_image_says_only_what_a_checkpoint_writes() -> Result<()> {
    let frozen = Frozen::new(|_| Ok(()))?;
    let secret = frozen.secret();
    let text = secret.to_string_lossy().into_owned();
    let refused = |name: &str, flags: i32, kind: Kind| {
        let bytes = frozen.forge(name, |manifest| {
            // As root, who may do everything.
            manifest.threads.iter_mut().for_each(|thread| thread.credentials = None);
            manifest.files.push(Description { flags: flags as u32, kind: Some(kind), ..Description::default() });
            let (fd, file) = (manifest.descriptors.last().map_or(0, |last| last.fd + 1), manifest.files.len() as u32 - 1);
            manifest.descriptors.push(images::manifest::Descriptor { fd, file, close_on_exec: false });
        });
        match bytes {
            // The store may refuse it as well.
            Err(error) => ensure!(format!("{error:#}").contains("file "), "{error:#}"),
            Ok(()) => frozen.is_refused(name, &[])?,
        }
        Ok(())
    };
    let new = frozen.roots.path().join("new").to_string_lossy().into_owned();
    for (number, flag) in [libc::O_TRUNC, libc::O_CREAT, libc::O_CREAT | libc::O_EXCL, libc::O_TMPFILE].into_iter().enumerate() {
        for (sort, path) in [("old", &text), ("new", &new)] {
            let flags = libc::O_RDWR | flag;
            refused(&format!("dir-{number}:{sort}"), flags, Kind::Directory(Directory { path: path.clone(), inode: None }))?;
            let device = CharacterDevice { path: path.clone(), major: 1, minor: 3 };
            refused(&format!("dev-{number}:{sort}"), flags, Kind::Device(device))?;
            refused(
                &format!("only-{number}:{sort}"),
                flags,
                Kind::PathOnly(PathOnly { path: path.clone(), mode: libc::S_IFSOCK, inode: None }),
            )?;
            refused(&format!("kernel-{number}:{sort}"), flags, Kind::KernelFile(KernelFile { path: path.clone() }))?;
            refused(
                &format!("fifo-{number}:{sort}"),
                flags,
                Kind::NamedPipe(NamedPipe { path: format!("{text}/x"), capacity_bytes: 4096, ..NamedPipe::default() }),
            )?;
            let identity = FileIdentity { path: path.clone(), ..FileIdentity::default() };
            refused(&format!("file-{number}:{sort}"), flags, Kind::Regular(RegularFile { identity: Some(identity) }))?;
        }
    }
    for (major, minor, path) in [(1, 11, "/dev/kmsg"), (1, 1, "/dev/mem"), (5, 1, "/dev/console"), (10, 229, "/dev/fuse")] {
        refused(&format!("device-{major}:{minor}"), libc::O_RDWR, Kind::Device(CharacterDevice { path: path.to_owned(), major, minor }))?;
    }
    ensure!(!Path::new(&new).exists(), "{new} was made");
    Ok(())
}

#[test]
fn a_program_that_gave_up_root_comes_back_where_its_checkpoint_was_taken() -> Result<()> {
    let mut frozen = Frozen::new(|folder| Ok(fs::write(folder.join("keep-log"), "")?))?;
    let log = frozen.own("roots.log");
    ensure!(fs::metadata(&log)?.uid() == 0, "the log is root's");
    frozen.comes_back("it:v", &[])?;
    ensure!(fs::read_to_string(&log)? == "goes on", "it goes on with its log");
    // Of another image nothing is known, unless the user vouches for it.
    frozen.forge("foreign:v", |manifest| manifest.created_unix_s += 1)?;
    frozen.is_refused("foreign:v", &["roots.log", "--grant"])?;
    let log = log.to_string_lossy().into_owned();
    frozen.comes_back("foreign:v", &["--grant", &log])?;
    // Not even its own defrost opens another file for it.
    fs::rename(&log, format!("{log}.old"))?;
    fs::write(&log, "goes on")?;
    fs::set_permissions(&log, Permissions::from_mode(0o600))?;
    same_time(Path::new(&log), Path::new(&format!("{log}.old")))?;
    frozen.is_refused("foreign:v", &["roots.log"])
}

#[test]
fn what_lies_at_the_path_of_a_socket_stays() -> Result<()> {
    let mut frozen = Frozen::new(|_| Ok(()))?;
    let socket = frozen.own("socket");
    fs::remove_file(&socket)?;
    fs::write(&socket, "a letter")?;
    frozen.is_refused("it:v", &["socket", "move it away"])?;
    ensure!(fs::read_to_string(&socket)? == "a letter", "the file was replaced");
    fs::remove_file(&socket)?;
    symlink(frozen.secret(), &socket)?;
    frozen.is_refused("it:v", &["socket", "move it away"])?;
    fs::remove_file(&socket)?;
    // Another's, dead or alive.
    for alive in [true, false] {
        let other = std::os::unix::net::UnixListener::bind(&socket)?;
        let other = alive.then_some(other);
        frozen.is_refused("it:v", &["socket", "move it away"])?;
        ensure!(fs::symlink_metadata(&socket)?.file_type().is_socket(), "another's socket is gone");
        drop(other);
        fs::remove_file(&socket)?;
    }
    frozen.comes_back("it:v", &[])
}

#[test]
fn capabilities_are_not_lent_to_other_users_processes() -> Result<()> {
    let frozen = Frozen::new(|_| Ok(()))?;
    frozen.forge("root:v", |manifest| {
        let ids = manifest.threads[0].credentials.as_mut().unwrap_or_else(|| panic!("no credentials"));
        (ids.ruid, ids.euid, ids.suid, ids.fsuid) = (0, 0, 0, 0);
    })?;
    // Capabilities of the file, as an administrator may have set them.
    let program = frozen.roots.path().join("defrost");
    fs::copy(binary("defrost")?, &program)?;
    let set = "import os, re, struct, sys\n\
               bounds = int(re.search('CapBnd:\\s*(\\w+)', open('/proc/self/status').read())[1], 16)\n\
               value = struct.pack('<5I', 0x02000001, bounds & 2**32 - 1, 0, bounds >> 32, 0)\n\
               os.setxattr(sys.argv[1], 'security.capability', value)";
    let mut command = std::process::Command::new("/usr/bin/python3");
    command.args(["-c", set]).arg(&program);
    succeeds(command)?;
    let through = ["setpriv", "--reuid", "1234", "--regid", "1234", "--clear-groups"];
    for name in ["root:v", "it:v"] {
        let output = defrost_marked(&new_mark(), &through, &program, &["restore", name, "--store", &frozen.store(), "--detach"])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && said.contains("user 1234 is not"), "{said}");
    }
    // To root, whose image it is does not matter.
    defrost_ok(&["restore", "it:v", "--store", &frozen.store(), "--dry-run"])?;
    frozen.victim.left_nothing()
}

#[test]
fn names_are_shown_and_not_obeyed() -> Result<()> {
    let frozen = Frozen::new(|_| Ok(()))?;
    let hostile = "a\u{1b}[2J\nprocess 1 (init)\r\u{9b}1m\u{202e}\u{7}";
    frozen.forge("hostile:v", |manifest| {
        let process = manifest.process.as_mut().unwrap_or_else(|| panic!("no process"));
        (process.comm, process.exe) = (hostile.to_owned(), format!("/{hostile}"));
        for file in &mut manifest.files {
            if let Some(Kind::Directory(directory)) = &mut file.kind {
                directory.path = format!("/{hostile}");
            }
        }
        manifest.threads[0].comm = hostile.to_owned();
    })?;
    for how in [&[][..], &["--json"]] {
        let said = defrost_ok(&[&["inspect", "hostile:v", "--store", &frozen.store()], how].concat())?;
        let obeyed = said.chars().find(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}');
        ensure!(obeyed.is_none(), "{how:?}: {obeyed:?} in {said:?}");
        ensure!(!said.lines().any(|line| line.starts_with("process 1 ")), "{said}");
    }
    let output = defrost(&["restore", "hostile:v", "--store", &frozen.store(), "--dry-run"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(said.lines().all(|line| line.starts_with("defrost: ")) && !said.contains('\u{1b}'), "{said:?}");
    frozen.victim.left_nothing()
}

#[test]
fn what_defrost_writes_is_its_users_and_behind_no_link() -> Result<()> {
    let frozen = Frozen::new(|_| Ok(()))?;
    let link = frozen.roots.path().join("link");
    symlink(frozen.secret(), &link)?;
    let file = link.to_string_lossy().into_owned();
    for option in ["--pid-file", "--report"] {
        let said = defrost_fails(&["restore", "it:v", "--store", &frozen.store(), "--detach", option, &file])?;
        ensure!(said.contains("symbolic link") && said.contains(&file), "{option}: {said}");
        frozen.victim.left_nothing()?;
    }
    ensure!(fs::read_to_string(frozen.secret())? == "root".repeat(1024), "the secret was changed");
    let mut frozen = frozen;
    restore_with(&frozen.victim, "it:v", &frozen.store(), &["--no-background"])?;
    let runtime = Path::new("/run/defrost");
    ensure!(fs::metadata(runtime)?.mode() & 0o7777 == 0o700, "others may enter {}", runtime.display());
    let own = format!("{}.", frozen.victim.pid());
    for entry in fs::read_dir(runtime)?.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(&own)) {
        let meta = entry.metadata()?;
        ensure!(meta.file_type().is_socket() || meta.mode() & 0o077 == 0, "{:?} is open to others: {:o}", entry.path(), meta.mode());
    }
    frozen.victim.end()
}
