//! Just enough of redis's protocol to load values that can be computed again, and to compare all of them.

use anyhow::{Result, ensure};
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::ops::Range;
use std::time::Duration;

/// Values sent before their answers are read.
const PIPELINE: usize = 1000;
/// A server that says nothing for so long will say nothing more.
const SILENCE: Duration = Duration::from_secs(60);

/// Value `n`: JSON-like, about 1 KB, half of it hardly compressible; the same in every run.
#[must_use]
pub fn value(n: usize) -> String {
    let mut seed = n as u64 ^ 0x9e37_79b9_7f4a_7c15;
    let mut noise = String::new();
    while noise.len() < 512 {
        // splitmix64, public domain
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        noise.push_str(&format!("{:016x}", z ^ (z >> 31)));
    }
    let tags = "\"frozen\",\"lazy\",\"resident\",".repeat(14);
    format!("{{\"id\":{n},\"name\":\"item-{n:08}\",\"noise\":\"{noise}\",\"tags\":[{tags}\"end\"]}}")
}

/// Talks to a redis-server on loopback; each call is a connection of its own, closed by both sides when it returns.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    port: u16,
}

impl Client {
    /// For the server on this port.
    #[must_use]
    pub fn new(port: u16) -> Self {
        Self { port }
    }

    fn connect(self) -> Result<(TcpStream, BufReader<TcpStream>)> {
        let stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_nodelay(true)?;
        Ok((stream.try_clone()?, BufReader::new(stream)))
    }

    /// Whether it answers.
    pub fn ping(self) -> Result<()> {
        let (stream, answers) = self.connect()?;
        quit(stream, answers)
    }

    /// Set the values of these numbers; `progress` is told how many are there.
    pub fn load(self, numbers: Range<usize>, progress: &dyn Fn(usize)) -> Result<()> {
        let (mut stream, mut answers) = self.connect()?;
        for first in numbers.clone().step_by(PIPELINE) {
            let mut batch = String::new();
            let last = (first + PIPELINE).min(numbers.end);
            for n in first..last {
                let (key, value) = (format!("key:{n}"), value(n));
                batch.push_str(&format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n{value}\r\n", key.len(), value.len()));
            }
            stream.write_all(batch.as_bytes())?;
            for _ in first..last {
                let mut line = String::new();
                answers.read_line(&mut line)?;
                ensure!(line == "+OK\r\n", "redis answered {line:?}");
            }
            progress(last);
        }
        quit(stream, answers)
    }

    /// Read all `count` values and compare each with what was loaded; `progress` is told how many were right.
    pub fn compare(self, count: usize, progress: &dyn Fn(usize)) -> Result<()> {
        // A stride that is prime to the count: not the order in which memory arrives.
        self.compare_these(&(0..count).map(|n| n * 7919 % count).collect::<Vec<_>>(), progress)
    }

    /// Read the values of these numbers, in this order, and compare each with what was loaded.
    pub fn compare_these(self, numbers: &[usize], progress: &dyn Fn(usize)) -> Result<()> {
        let (mut stream, mut answers) = self.connect()?;
        for (done, batch) in numbers.chunks(PIPELINE).enumerate() {
            let request: String =
                batch.iter().map(|n| format!("*2\r\n$3\r\nGET\r\n${}\r\nkey:{n}\r\n", format!("key:{n}").len())).collect();
            stream.write_all(request.as_bytes())?;
            for n in batch {
                expect_value(&mut answers, *n)?;
            }
            progress(done * PIPELINE + batch.len());
        }
        quit(stream, answers)
    }

    /// Ask for one value, compare it, and hang up; an `io::Error` of kind `ConnectionRefused` where nobody listens yet.
    pub fn get(self, n: usize) -> Result<()> {
        let (mut stream, mut answers) = self.connect()?;
        stream.set_read_timeout(Some(SILENCE))?;
        let key = format!("key:{n}");
        stream.write_all(format!("*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len()).as_bytes())?;
        expect_value(&mut answers, n)
    }
}

/// Read one answer to a GET: it must be value `n`.
fn expect_value(answers: &mut impl BufRead, n: usize) -> Result<()> {
    let mut head = String::new();
    answers.read_line(&mut head)?;
    let expected = value(n);
    ensure!(head == format!("${}\r\n", expected.len()), "value {n} has head {head:?}");
    let mut found = vec![0; expected.len() + 2];
    answers.read_exact(&mut found)?;
    ensure!(found.strip_suffix(b"\r\n") == Some(expected.as_bytes()), "value {n} is wrong");
    Ok(())
}

/// End a connection and wait until redis has closed it too: a checkpoint refuses one that is open.
fn quit(mut stream: TcpStream, mut answers: BufReader<TcpStream>) -> Result<()> {
    stream.write_all(b"QUIT\r\n")?;
    let mut last = Vec::new();
    answers.read_to_end(&mut last)?;
    ensure!(last == b"+OK\r\n", "redis took leave with {last:?}");
    Ok(())
}
