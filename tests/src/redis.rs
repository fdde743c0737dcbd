//! Just enough of redis's protocol to load values and compare all of them.

use crate::{Victim, eventually};
use anyhow::{Result, ensure};
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;

/// Values sent before their answers are read.
const PIPELINE: usize = 1000;

/// A redis-server with values that can be computed again.
#[derive(Debug)]
pub struct Redis {
    /// The process.
    pub victim: Victim,
    port: u16,
}

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

impl Redis {
    /// Start one with `count` values.
    pub fn start(count: usize) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let port_text = port.to_string();
        let args = ["--port", &port_text, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
        let victim = Victim::start("/usr/bin/redis-server", &args)?;
        let redis = Self { victim, port };
        eventually("redis answers", || {
            redis.connect().and_then(|stream| Ok(quit(stream.try_clone()?, BufReader::new(stream)))).is_ok_and(|left| left.is_ok())
        })?;
        redis.load(0..count)?;
        Ok(redis)
    }

    fn connect(&self) -> std::io::Result<TcpStream> {
        TcpStream::connect(("127.0.0.1", self.port))
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Set the values of these numbers.
    pub fn load(&self, numbers: Range<usize>) -> Result<()> {
        let mut stream = self.connect()?;
        let mut answers = BufReader::new(stream.try_clone()?);
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
        }
        quit(stream, answers)
    }

    /// Read all `count` values and compare each with what was loaded.
    pub fn compare(&self, count: usize) -> Result<()> {
        let mut stream = self.connect()?;
        let mut answers = BufReader::new(stream.try_clone()?);
        // A stride that is prime to the count: not the order in which memory arrives.
        let order: Vec<usize> = (0..count).map(|n| n * 7919 % count).collect();
        for batch in order.chunks(PIPELINE) {
            let request: String =
                batch.iter().map(|n| format!("*2\r\n$3\r\nGET\r\n${}\r\nkey:{n}\r\n", format!("key:{n}").len())).collect();
            stream.write_all(request.as_bytes())?;
            for n in batch {
                let mut head = String::new();
                answers.read_line(&mut head)?;
                let expected = value(*n);
                ensure!(head == format!("${}\r\n", expected.len()), "value {n} has head {head:?}");
                let mut found = vec![0; expected.len() + 2];
                answers.read_exact(&mut found)?;
                ensure!(found.strip_suffix(b"\r\n") == Some(expected.as_bytes()), "value {n} is wrong");
            }
        }
        quit(stream, answers)
    }
}

/// End a connection and wait until redis has closed it too: a checkpoint refuses one that is open.
fn quit(mut stream: TcpStream, mut answers: BufReader<TcpStream>) -> Result<()> {
    stream.write_all(b"QUIT\r\n")?;
    let mut last = Vec::new();
    answers.read_to_end(&mut last)?;
    ensure!(last == b"+OK\r\n", "redis took leave with {last:?}");
    Ok(())
}
