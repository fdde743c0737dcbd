//! A redis-server under test, with values that can be computed again.

use crate::{Victim, eventually};
use anyhow::{Result, ensure};
use restorer::demo::redis::Client;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::time::{Duration, Instant};

pub use restorer::demo::redis::value;

/// A redis-server.
#[derive(Debug)]
pub struct Redis {
    /// The process.
    pub victim: Victim,
    port: u16,
}

impl Redis {
    /// Start one with `count` values.
    pub fn start(count: usize) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let port_text = port.to_string();
        let args = ["--port", &port_text, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
        let redis = Self { victim: Victim::start("/usr/bin/redis-server", &args)?, port };
        eventually("redis answers", || redis.client().ping().is_ok())?;
        redis.load(0..count)?;
        Ok(redis)
    }

    fn client(&self) -> Client {
        Client::new(self.port)
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Set the values of these numbers.
    pub fn load(&self, numbers: Range<usize>) -> Result<()> {
        self.client().load(numbers, &|_| ())
    }

    /// Read all `count` values and compare each with what was loaded.
    pub fn compare(&self, count: usize) -> Result<()> {
        self.client().compare(count, &|_| ())
    }

    /// Read the values of these numbers, in this order, and compare each with what was loaded.
    pub fn compare_these(&self, numbers: &[usize]) -> Result<()> {
        self.client().compare_these(numbers, &|_| ())
    }

    /// Read the values of these numbers one after the other over one connection, compare each, and yield how long each took to come.
    pub fn one_by_one(&self, numbers: &[usize]) -> Result<Vec<Duration>> {
        let mut stream = self.connect()?;
        numbers.iter().map(|n| get(&mut stream, *n, &value(*n))).collect()
    }

    /// Set the values of these numbers to those of others, `by` further on, each of about the same length.
    pub fn change(&self, numbers: &[usize], by: usize) -> Result<()> {
        let mut stream = self.connect()?;
        let mut expected: Vec<u8> = Vec::new();
        for n in numbers {
            let (key, value) = (format!("key:{n}"), value(n + by));
            let request = format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n{value}\r\n", key.len(), value.len());
            stream.write_all(request.as_bytes())?;
            expected.extend(b"+OK\r\n");
        }
        // A checkpoint refuses a connection that is open: redis has closed it when this ends.
        stream.write_all(b"QUIT\r\n")?;
        expected.extend(b"+OK\r\n");
        let mut answers = Vec::new();
        stream.read_to_end(&mut answers)?;
        ensure!(answers == expected, "redis answered {:?}", String::from_utf8_lossy(&answers));
        Ok(())
    }

    /// Read the values of these numbers and compare each with what [`Redis::change`] made of it.
    pub fn compare_changed(&self, numbers: &[usize], by: usize) -> Result<()> {
        let mut stream = self.connect()?;
        numbers.iter().try_for_each(|n| get(&mut stream, *n, &value(n + by)).map(drop))
    }

    fn connect(&self) -> Result<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Ask for value `n` over a connection of its own until it is answered, and compare it: a redis that is not there yet is asked
    /// again every `pause`, for as long as `hopeful` holds.
    pub fn first_answer(&self, n: usize, pause: Duration, mut hopeful: impl FnMut() -> bool) -> Result<()> {
        loop {
            match self.client().get(n) {
                Err(error) if error.downcast_ref().map(std::io::Error::kind) == Some(ErrorKind::ConnectionRefused) => {
                    ensure!(hopeful(), "redis on port {} does not come back: {error}", self.port);
                }
                answered => return answered,
            }
            std::thread::sleep(pause);
        }
    }
}

/// Ask for the value of a number, which must be `value`; yields how long that took.
fn get(stream: &mut TcpStream, n: usize, value: &str) -> Result<Duration> {
    let key = format!("key:{n}");
    let expected = format!("${}\r\n{value}\r\n", value.len());
    let request = format!("*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len());
    let mut answer = vec![0; expected.len()];
    let asked = Instant::now();
    stream.write_all(request.as_bytes())?;
    stream.read_exact(&mut answer)?;
    let took = asked.elapsed();
    ensure!(answer == expected.as_bytes(), "value {n} is wrong");
    Ok(took)
}
