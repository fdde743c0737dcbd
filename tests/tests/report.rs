//! A restore as a picture: what the page shows in a browser is what the pager did, whatever names and ends a restore has.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::browser::{Page, colours};
use defrost_tests::live_pager::pager_of;
use defrost_tests::redis::Redis;
use defrost_tests::small_disk::SmallDisk;
use defrost_tests::{Server, Victim, checkpoint, defrost, defrost_fails, defrost_ok, eventually, need_root, restore_with};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

const VALUES: usize = 60_000;
/// Shares of the memory; together its total.
const WAYS: [&str; 9] = ["eager", "demand", "neighbour", "replay", "bulk", "removed", "lost", "earlier", "missing"];

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn number(value: &Value, field: &str) -> Result<u64> {
    value[field].as_u64().with_context(|| format!("no {field} in {value}"))
}

fn status(pid: u32) -> Result<Value> {
    Ok(serde_json::from_str(&defrost_ok(&["status", &pid.to_string(), "--json"])?)?)
}

/// The page of a live restore, and where it stood at that moment.
fn report(pid: u32, file: &Path) -> Result<(Page, Value)> {
    let told = defrost_ok(&["status", &pid.to_string(), "--json", "--report", &text(file)])?;
    Ok((Page::open(file)?, serde_json::from_str(&told)?))
}

fn share(page: &Page, how: &str) -> Result<u64> {
    page.number("share", how)
}

/// The page says what the status says, and each byte of the memory is in one share and drawn once.
fn agrees(page: &Page, status: &Value) -> Result<()> {
    for field in ["pid", "total_bytes", "missing_bytes", "demand_faults", "zero_faults", "stall_p50_us", "stall_p99_us", "replayed_bytes"] {
        ensure!(page.number("field", field)? == number(status, field)?, "{field} is {} in {status}", page.value("field", field)?);
    }
    for field in ["state", "snapshot", "store"] {
        ensure!(Some(page.value("field", field)?) == status[field].as_str(), "{field} is {} in {status}", page.value("field", field)?);
    }
    let total = number(status, "total_bytes")?;
    let sum: u64 = WAYS.iter().map(|how| share(page, how)).sum::<Result<u64>>()?;
    ensure!((sum, page.number("field", "sum_bytes")?) == (total, total), "shares are {sum} bytes of {total}");
    ensure!(page.number("field", "drawn_bytes")? == total, "{} bytes of {total} are drawn", page.value("field", "drawn_bytes")?);
    ensure!(share(page, "missing")? == number(status, "missing_bytes")?);
    Ok(())
}

/// A colour as in page.css.
fn hex(colour: &str) -> Result<[u8; 3]> {
    let byte = |at| u8::from_str_radix(&colour[at..at + 2], 16);
    Ok([byte(0)?, byte(2)?, byte(4)?])
}

/// How much of a screen the page fills with the colours of these ways; how many colours there are at all.
fn painted(file: &Path, ways: &[(&str, &str)]) -> Result<usize> {
    let found = colours(file)?;
    for (how, colour) in ways {
        let pixels = found.get(&hex(colour)?).copied().unwrap_or(0);
        ensure!(pixels > 1000, "{pixels} pixels are of the colour of {how}");
    }
    Ok(found.len())
}

/// Whoever points at a strip is told what it is. What does that here knows the page's nonce; a script that does not, never runs.
fn pointed_at(file: &Path) -> Result<()> {
    const POINTS: &str = "const told = [];
    for (const { canvas } of rows) {
        const { left, top, width, height } = canvas.getBoundingClientRect();
        for (let x = 1; x < width; x += 20) {
            for (let y = 3; y < height; y += 13) {
                canvas.dispatchEvent(new MouseEvent('mousemove', { clientX: left + x, clientY: top + y }));
                told.push(tip.textContent);
            }
        }
    }
    document.body.dataset.told = told.join('; ');";
    let text = std::fs::read_to_string(file)?;
    let nonce = text.split_once("<script nonce=\"").and_then(|(_, rest)| rest.split_once('"')).context("a nonce")?.0;
    let scripts = format!("<script nonce=\"{nonce}\">{POINTS}</script><script>document.title = 'owned'</script></body>");
    let pointed = file.with_extension("pointed.html");
    std::fs::write(&pointed, text.replace("</body>", &scripts))?;
    let page = Page::open(&pointed)?;
    let told = page.markup().split_once("data-told=\"").context("the tips")?.1.split_once('"').context("their end")?.0;
    for words in ["0x", "anonymous memory rw-p", "on demand, at ", " ms: ", "missing: ", " KiB", "written by the restore itself"] {
        ensure!(told.contains(words), "{words} is not in {}…", told.chars().take(2000).collect::<String>());
    }
    ensure!(page.markup().contains("<title>defrost: "), "a script without the nonce ran");
    Ok(())
}

/// A frozen redis behind a page server.
struct Frozen {
    redis: Redis,
    folder: TempDir,
    server: Server,
}

impl Frozen {
    fn new() -> Result<Self> {
        need_root()?;
        let folder = tempfile::tempdir()?;
        let (mut redis, server) = (Redis::start(VALUES)?, Server::start(&folder.path().join("store"))?);
        checkpoint(&mut redis.victim, "redis", &server.store())?;
        Ok(Self { redis, folder, server })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn restore(&self, how: &[&str]) -> Result<()> {
        restore_with(&self.redis.victim, "redis", &self.server.store(), how)
    }

    /// Several clients at once read values, different ones each time.
    fn touch(&self, seed: u64, count: usize) -> Result<()> {
        std::thread::scope(|scope| {
            let client = |number: u64| {
                let mut random = fastrand::Rng::with_seed(seed * 100 + number);
                let asked: Vec<usize> = (0..count).map(|_| random.usize(..VALUES)).collect();
                scope.spawn(move || self.redis.compare_these(&asked))
            };
            let clients: Vec<_> = (0..3).map(client).collect();
            clients.into_iter().try_for_each(|client| client.join().unwrap_or_else(|_| anyhow::bail!("a client panicked")))
        })
    }

    /// End it, and wait until its pager has ended too.
    fn end(&mut self) -> Result<()> {
        self.redis.victim.end()?;
        eventually("its pager has ended", || self.redis.victim.no_socket().is_ok())
    }
}

#[test]
fn a_page_shows_what_the_status_says() -> Result<()> {
    let mut frozen = Frozen::new()?;
    let pid = frozen.redis.victim.pid();
    frozen.restore(&["--no-background"])?;
    frozen.touch(1, 300)?;
    let before = status(pid)?;
    let (page, at_that_moment) = report(pid, &frozen.file("lazy.html"))?;
    let after = status(pid)?;
    agrees(&page, &at_that_moment)?;
    for field in ["demand_faults", "zero_faults"] {
        let told = page.number("field", field)?;
        ensure!(number(&before, field)? <= told && told <= number(&after, field)?, "{field}: {told} between {before} and {after}");
    }
    ensure!(share(&page, "demand")? > 1 << 20 && share(&page, "missing")? > 1 << 20, "{before}");
    ensure!(share(&page, "bulk")? == 0 && share(&page, "replay")? == 0 && share(&page, "earlier")? == 0);
    ensure!(page.value("field", "resident_us").is_err() && page.number("field", "ran_us")? > 0);
    let colours = painted(&frozen.file("lazy.html"), &[("demand", "d9432f"), ("missing", "f2cf3d")])?;
    ensure!(colours > 20, "{colours} colours");
    pointed_at(&frozen.file("lazy.html"))?;

    // The data alone, for scripts.
    defrost_ok(&["status", &pid.to_string(), "--report", &text(&frozen.file("lazy.json"))])?;
    let data: Value = serde_json::from_slice(&std::fs::read(frozen.file("lazy.json"))?)?;
    let stalls = data["stalls"].as_array().context("a list")?;
    ensure!(stalls.len() as u64 == number(&data, "stalls_seen")? && stalls.len() as u64 >= number(&before, "demand_faults")?);
    ensure!(stalls.iter().all(|stall| stall[0].as_u64() <= data["taken_us"].as_u64() && stall[1].as_u64() > Some(0)), "{stalls:?}");
    frozen.end()
}

#[test]
fn a_restore_leaves_a_page_once_everything_is_there() -> Result<()> {
    let mut frozen = Frozen::new()?;
    let pid = frozen.redis.victim.pid();
    // What is touched here is replayed later. With a pid namespace or without, the file is where it was asked for.
    frozen.restore(&["--no-background"])?;
    frozen.touch(1, 200)?;
    frozen.end()?;
    let file = frozen.file("resident.html");
    std::fs::write(&file, "something older")?;
    frozen.restore(&["--report", &text(&file)])?;
    frozen.touch(2, 200)?;
    defrost_ok(&["wait", &pid.to_string()])?;
    let page = Page::open(&file)?; // whoever waited finds it
    let after = status(pid)?;
    agrees(&page, &after)?;
    ensure!((page.value("field", "state")?, share(&page, "missing")?) == ("resident", 0), "{after}");
    ensure!(share(&page, "replay")? > 0 && share(&page, "bulk")? > 0, "{after}");
    ensure!(page.number("field", "resident_us")? >= page.number("field", "ran_us")?);
    painted(&file, &[("replay", "7d5bb5"), ("bulk", "2f7fd0")])?;
    // What is left beside it would have another name.
    let names: Vec<_> = std::fs::read_dir(frozen.folder.path())?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(names.len() == 2, "{names:?}");

    // The same of a pager that took over later: it knows less, and leaves what is there.
    let written = std::fs::read(&file)?;
    kill(Pid::from_raw(pager_of(pid)? as i32), Signal::SIGKILL)?;
    eventually("another pager serves it", || status(pid).is_ok_and(|status| status["adopted"] == 1))?;
    let (page, at_that_moment) = report(pid, &frozen.file("later.html"))?;
    agrees(&page, &at_that_moment)?;
    ensure!(share(&page, "earlier")? == number(&at_that_moment, "total_bytes")?, "{at_that_moment}");
    frozen.end()?;
    ensure!(std::fs::read(&file)? == written, "the report was written anew by who knows less");

    // All before it runs.
    frozen.restore(&["--eager", "--report", &text(&frozen.file("eager.html"))])?;
    defrost_ok(&["wait", &pid.to_string()])?;
    let page = Page::open(&frozen.file("eager.html"))?;
    ensure!(share(&page, "eager")? == page.number("field", "total_bytes")?);
    frozen.end()
}

#[test]
fn in_the_foreground_a_page_is_left_when_the_process_ends() -> Result<()> {
    let mut frozen = Frozen::new()?;
    let (pid, file) = (frozen.redis.victim.pid(), frozen.file("ended.html"));
    let mut command = Command::new(defrost_tests::binary("defrost")?);
    command.args(["restore", "redis", "--no-background", "--store", &frozen.server.store(), "--report", &text(&file)]);
    let mut following = command.spawn()?;
    let came = eventually("it is served", || status(pid).is_ok()).and_then(|()| frozen.touch(1, 100));
    let ended = frozen.end();
    let code = following.wait()?.code();
    came.and(ended)?;
    ensure!(code == Some(137), "{code:?}");
    let page = Page::open(&file)?;
    ensure!(page.value("field", "state")? == "gone" && share(&page, "lost")? > 0 && share(&page, "demand")? > 0);
    let sum: u64 = WAYS.iter().map(|how| share(&page, how)).sum::<Result<u64>>()?;
    ensure!(sum == page.number("field", "total_bytes")? && share(&page, "missing")? == 0, "shares are {sum} bytes");
    Ok(())
}

#[test]
fn a_pager_that_took_over_says_that_it_knows_less() -> Result<()> {
    let mut frozen = Frozen::new()?;
    let (pid, file) = (frozen.redis.victim.pid(), frozen.file("ended.html"));
    frozen.restore(&["--no-background", "--report", &text(&file)])?;
    frozen.touch(1, 200)?;
    let before = status(pid)?;
    kill(Pid::from_raw(pager_of(pid)? as i32), Signal::SIGKILL)?;
    eventually("another pager serves it", || status(pid).is_ok_and(|status| status["adopted"] == 1))?;
    frozen.touch(2, 200)?;
    let (page, at_that_moment) = report(pid, &frozen.file("midway.html"))?;
    agrees(&page, &at_that_moment)?;
    let came = number(&before, "total_bytes")? - number(&before, "missing_bytes")?;
    ensure!(share(&page, "earlier")? >= came && share(&page, "demand")? > 0 && share(&page, "missing")? > 0, "{before}, {at_that_moment}");
    let (_, notice) = page.markup().split_once("id=\"notice\">").context("the notice shows")?;
    ensure!(notice.split_once('<').is_some_and(|(words, _)| words.contains("before this pager")), "{notice}");
    painted(&frozen.file("midway.html"), &[("earlier", "4fa09a"), ("demand", "d9432f"), ("missing", "f2cf3d")])?;
    frozen.end()?;
    // What the first one was asked for, the second one does.
    let page = Page::open(&file)?;
    ensure!(page.value("field", "state")? == "gone" && share(&page, "earlier")? >= came && share(&page, "lost")? > 0);
    Ok(())
}

/// Maps a file whose path could be markup, has thousands of regions, and drops memory that has not come yet.
const ODD: &str = r#"
import ctypes, mmap, os, time
folder = "</script><script>document.title='owned'</script><img src=x onerror=document.title='owned'>"
os.makedirs(folder)
path = os.path.join(folder, "\"&lt;\u2028.bin")
with open(path, "wb") as file:
    file.write(b"f" * (8 << 20))
file = open(path, "r+b")
odd = mmap.mmap(file.fileno(), 8 << 20, access=mmap.ACCESS_COPY)
for at in range(0, 8 << 20, 4096):
    odd[at:at + 4] = b"mine"
large = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
large[:] = b"l" * (8 << 20)
split = mmap.mmap(-1, 4000 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
split[:] = b"s" * (4000 * 4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(split))
libc = ctypes.CDLL(None, use_errno=True)
for page in range(0, 4000, 2):
    assert libc.mprotect(ctypes.c_void_p(address + page * 4096), 4096, mmap.PROT_READ) == 0
open("ready", "w").close()
while not os.path.exists("go"):
    time.sleep(0.01)
large.madvise(mmap.MADV_DONTNEED, 0, 4 << 20)
right = large[0] == 0 and large[(4 << 20) - 1] == 0 and large[4 << 20:5 << 20] == b"l" * (1 << 20)
right = right and odd[:8] == b"mineffff" and split[4096:8192] == b"s" * 4096
with open("verdict.partial", "w") as verdict:
    verdict.write("OK\n" if right else "WRONG\n")
os.rename("verdict.partial", "verdict")
time.sleep(1000)
"#;

#[test]
fn hostile_names_thousands_of_regions_and_dropped_memory_are_drawn() -> Result<()> {
    need_root()?;
    let mut odd = Victim::python(ODD)?;
    odd_is_drawn(&mut odd).with_context(|| odd.output())
}

fn odd_is_drawn(odd: &mut Victim) -> Result<()> {
    eventually("it is ready", || odd.folder().join("ready").exists())?;
    let folder = tempfile::tempdir()?;
    let server = Server::start(&folder.path().join("store"))?;
    checkpoint(odd, "odd", &server.store())?;
    restore_with(odd, "odd", &server.store(), &["--no-background"])?;
    odd.check("")?;
    let file = folder.path().join("odd.html");
    let (page, at_that_moment) = report(odd.pid(), &file)?;
    agrees(&page, &at_that_moment)?;
    ensure!(share(&page, "removed")? >= 3 << 20 && share(&page, "demand")? > 1 << 20, "{at_that_moment}");
    painted(&file, &[("removed", "b5a58c"), ("demand", "d9432f"), ("missing", "f2cf3d")])?;

    let text = std::fs::read_to_string(&file)?;
    ensure!((text.matches("<script").count(), text.matches("</script").count()) == (2, 2), "the name broke out");
    ensure!(!text.contains("<img"), "the name broke out");
    let markup = page.markup();
    ensure!(markup.contains("</script&gt;") || markup.contains("&lt;/script&gt;"), "the name is not shown");
    ensure!(markup.contains(&format!("<title>defrost: odd:latest, process {}</title>", odd.pid())), "somebody else has the title");
    ensure!(!markup.contains("<img") && markup.matches("<script").count() == 2, "the name became markup");
    let drawn: usize = markup.split("data-regions=\"").skip(1).filter_map(|rest| rest.split('"').next()?.parse::<usize>().ok()).sum();
    ensure!(drawn > 4000 && markup.matches("<canvas").count() < 200, "{drawn} regions are drawn");
    Ok(())
}

#[test]
fn a_page_that_cannot_be_written_is_refused_first() -> Result<()> {
    let mut frozen = Frozen::new()?;
    let (pid, folder) = (frozen.redis.victim.pid().to_string(), text(frozen.folder.path()));
    let bad =
        [(format!("{folder}/no/where.html"), "No such file"), (folder.clone(), "it is no file"), ("/dev/full".to_owned(), "it is no file")];
    for (file, why) in &bad {
        // Before anything else: the store is not even looked for.
        let told = defrost_fails(&["restore", "redis", "--detach", "--store", "/no/store", "--report", file])?;
        ensure!(told.contains(file) && told.contains(why) && told.contains("name a file in a folder"), "{told}");
        frozen.redis.victim.left_nothing()?;
    }
    let usage = defrost(&["status", "--report", &format!("{folder}/x.html")])?;
    ensure!(usage.status.code() == Some(2), "of all restores at once: {usage:?}");
    // Nor is there one of a restore that fails, at whatever moment.
    for how in [&[][..], &["--eager"], &["--no-background"]] {
        let (store, never, pid_file) = (frozen.server.store(), format!("{folder}/never.html"), format!("{folder}/no/pid"));
        let all = [&["restore", "redis", "--detach", "--store", &store, "--report", &never, "--pid-file", &pid_file], how].concat();
        ensure!(defrost_fails(&all)?.contains(&pid_file));
        eventually("nothing is left", || frozen.redis.victim.left_nothing().is_ok())?;
        ensure!(!Path::new(&never).exists(), "{how:?}: a restore that failed left a report");
    }
    let told = defrost_fails(&["status", &pid, "--report", &format!("{folder}/x.html")])?;
    ensure!(told.contains(&format!("process {pid} is not a live restore")) && told.contains("front ends"), "{told}");
    frozen.restore(&["--no-background"])?;
    for (file, why) in &bad {
        let told = defrost_fails(&["status", &pid, "--report", file])?;
        ensure!(told.contains(file) && told.contains(why), "{told}");
    }
    frozen.touch(1, 50)?;
    ensure!(std::fs::read_dir(&folder)?.count() == 1, "something was left in {folder}");
    frozen.end()
}

#[test]
fn a_full_disk_at_the_end_is_one_line_in_the_log() -> Result<()> {
    let mut frozen = Frozen::new()?;
    let (pid, folder) = (frozen.redis.victim.pid(), tempfile::tempdir()?);
    let tiny = SmallDisk::mount(folder.path(), "8k")?;
    let file = tiny.path().join("report.html");
    std::fs::write(&file, "what was there")?;
    frozen.restore(&["--report", &text(&file)])?;
    defrost_ok(&["wait", &pid.to_string()])?;
    let log = String::from_utf8_lossy(&std::fs::read("/run/defrost/pager.log")?).into_owned();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(&text(&file))).collect();
    ensure!(lines.len() == 1 && lines[0].contains("ERROR") && lines[0].contains("No space left"), "{lines:?}");
    ensure!(std::fs::read_to_string(&file)? == "what was there" && std::fs::read_dir(tiny.path())?.count() == 1, "half of it was written");
    ensure!(status(pid)?["state"] == "resident");
    frozen.touch(1, 500)?;
    frozen.redis.compare(VALUES)?;
    // Asked again where there is room, it is still known.
    let (page, at_that_moment) = report(pid, &frozen.file("again.html"))?;
    agrees(&page, &at_that_moment)?;
    ensure!(share(&page, "bulk")? > 0);
    frozen.end()
}
