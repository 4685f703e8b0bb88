//! `wrk` as the load generator, nginx as the peer that answers a constant: both from Debian. And
//! `wasmtime serve`, the peer that does it with a component.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use hop3_tests::{Daemon, within};

use crate::report::say;

/// A component that answers `hello` to every request: `wasi:http/incoming-handler`.
const HELLO: &str = include_str!("hello.wat");

/// What one run saw.
#[derive(Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) per_s: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// Answers other than 2xx and 3xx, and broken connections.
    pub(crate) errors: u64,
}

/// Asks `url` over `connections` kept connections for `window`, on one thread.
pub(crate) fn run(
    url: &str,
    token: Option<&str>,
    connections: u32,
    window: Duration,
) -> Result<Seen> {
    load(Command::new("wrk"), url, token, connections, window)
}

/// The same with `POST`.
pub(crate) fn post(
    url: &str,
    token: Option<&str>,
    connections: u32,
    window: Duration,
) -> Result<Seen> {
    let script = tempfile::Builder::new().suffix(".lua").tempfile()?;
    std::fs::write(script.path(), "wrk.method = \"POST\"\n")?;
    let mut command = Command::new("wrk");
    command.arg("--script").arg(script.path());
    load(command, url, token, connections, window)
}

fn load(
    mut command: Command,
    url: &str,
    token: Option<&str>,
    connections: u32,
    window: Duration,
) -> Result<Seen> {
    command.args(["--threads", "1", "--latency", "--timeout", "10s"]);
    command.arg("--connections").arg(connections.to_string());
    command
        .arg("--duration")
        .arg(format!("{}s", window.as_secs()));
    if let Some(token) = token {
        command
            .arg("--header")
            .arg(format!("Authorization: Bearer {token}"));
    }
    let output = command.arg(url).stdin(Stdio::null()).output();
    let output = output.context("wrk does not run: apt-get install wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("wrk: {text}{}", String::from_utf8_lossy(&output.stderr));
    }
    parse(&text).with_context(|| format!("wrk said: {text}"))
}

fn parse(text: &str) -> Option<Seen> {
    let value = |name: &str| {
        let mut words = text.lines().map(str::split_whitespace);
        words.find_map(|mut words| (words.next() == Some(name)).then(|| words.next())?)
    };
    let bad = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Non-2xx or 3xx responses:"))
        .filter_map(|count| count.trim().parse::<u64>().ok());
    let broken = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Socket errors:"))
        .flat_map(|line| line.split(|c: char| !c.is_ascii_digit()))
        .filter_map(|count| count.parse::<u64>().ok());
    Some(Seen {
        per_s: value("Requests/sec:")?.parse().ok()?,
        p50_ms: time_ms(value("50%")?)?,
        p99_ms: time_ms(value("99%")?)?,
        errors: bad.chain(broken).sum(),
    })
}

/// `1.23ms`, `456.00us`, `1.02s`.
fn time_ms(text: &str) -> Option<f64> {
    let units = [("us", 1e-3), ("ms", 1.0), ("s", 1e3)];
    let (number, scale) = units
        .iter()
        .find_map(|(unit, scale)| Some((text.strip_suffix(unit)?, scale)))?;
    Some(number.parse::<f64>().ok()? * scale)
}

/// Starts nginx with TLS, one worker, kept connections, `hello` for everything. Its certificate
/// and key are those at `cert` and `key`.
pub(crate) fn nginx(dir: &Path, cert: &Path, key: &Path) -> Result<(Daemon, String)> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port();
    let (cert, key, here) = (cert.display(), key.display(), dir.display());
    let config = format!(
        "daemon off; worker_processes 1; pid {here}/nginx.pid; error_log {here}/nginx.log;\n\
         events {{ worker_connections 2048; }}\n\
         http {{ access_log off; keepalive_requests 100000000; client_body_temp_path {here}/b;\n\
         proxy_temp_path {here}/p; fastcgi_temp_path {here}/f; uwsgi_temp_path {here}/u;\n\
         scgi_temp_path {here}/s;\n\
         server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {cert};\n\
         ssl_certificate_key {key}; location / {{ return 200 \"hello\"; }} }} }}\n"
    );
    std::fs::write(dir.join("nginx.conf"), config)?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(dir.join("nginx.conf"));
    let daemon = Daemon::start(command, &dir.join("nginx.out"));
    within(Duration::from_secs(10), "nginx listens", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).ok()
    });
    Ok((daemon, format!("https://127.0.0.1:{port}/")))
}

/// Starts `wasmtime serve`, found by `HOP3_BENCH_WASMTIME`, with [`HELLO`]. It speaks plain HTTP
/// only. `None` without it.
pub(crate) fn wasmtime_serve(dir: &Path) -> Result<Option<(Daemon, String)>> {
    let Some(program) = std::env::var_os("HOP3_BENCH_WASMTIME") else {
        say("HOP3_BENCH_WASMTIME is not set: `wasmtime serve` is not run beside it");
        return Ok(None);
    };
    let component = dir.join("hello.wasm");
    std::fs::write(&component, wat::parse_str(HELLO)?)?;
    let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut command = Command::new(program);
    command
        .args(["serve", "--addr", &address.to_string()])
        .arg(&component);
    let log = dir.join("wasmtime.out");
    let mut daemon = Daemon::start(command, &log);
    let answer = within(Duration::from_secs(30), "wasmtime serve answers", || {
        ask(address).ok().or_else(|| {
            let ended = daemon.ended()?;
            Some(format!("it ended, {ended}: {}", daemon.log()))
        })
    });
    anyhow::ensure!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\nhello"),
        "wasmtime serve: {answer}"
    );
    Ok(Some((daemon, format!("http://{address}/"))))
}

/// One plain HTTP request; the whole answer.
fn ask(address: std::net::SocketAddr) -> std::io::Result<String> {
    use std::io::{Read as _, Write as _};
    let mut socket = std::net::TcpStream::connect(address)?;
    write!(
        socket,
        "GET / HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peer_s_component_is_well_formed() {
        assert!(wat::parse_str(HELLO).is_ok_and(|bytes| bytes.starts_with(b"\0asm\x0d")));
    }

    #[test]
    fn what_wrk_prints_is_understood() {
        let text = "Running 2s test @ https://127.0.0.1:1/\n  1 threads and 64 connections\n  \
                    Thread Stats   Avg      Stdev     Max   +/- Stdev\n    Latency     1.56ms  \
                    401.80us   6.86ms   81.51%\n  Latency Distribution\n     50%    1.44ms\n     \
                    75%    1.69ms\n     90%    2.02ms\n     99%    3.01s\n  81243 requests in \
                    2.01s\n  Socket errors: connect 0, read 1, write 2, timeout 0\n  Non-2xx or \
                    3xx responses: 7\nRequests/sec:  40418.76\nTransfer/sec:      5.05MB\n";
        let expected = Seen {
            per_s: 40418.76,
            p50_ms: 1.44,
            p99_ms: 3010.0,
            errors: 10,
        };
        assert_eq!(parse(text), Some(expected));
        assert_eq!(time_ms("456.00us"), Some(0.456));
        assert_eq!(parse("nothing"), None);
    }
}
