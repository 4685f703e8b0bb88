//! Finds what is unusual in a stream of readings, and remembers it.
//!
//! | request | what |
//! | --- | --- |
//! | `POST /readings` | lines `timestamp,value`; a first line that is a header is skipped |
//! | `GET /status` | count, mean, standard deviation, number of outliers, as JSON |
//! | `GET /outliers` | the newest outliers, as JSON |
//!
//! Readings also come from the topics `readings/*`. Each outlier is published on
//! `anomaly/outlier`; once an hour a summary goes to the log. All state is in memory: the service
//! is `state: single`, and so its memory survives restarts and moves.

mod detector;

use std::{cell::RefCell, collections::VecDeque};

use detector::{Detector, Summary};
use hop3_guest::{Error, Message, Request, Response, Service, Timer, json, log, publish, timer};

/// What one reading is judged by: a week of half hours.
const WINDOW: usize = 336;
/// Standard deviations that are unusual.
const THRESHOLD: f64 = 3.0;
/// Outliers kept; older ones are forgotten.
const OUTLIERS_MAX: usize = 1_000;
/// Bytes of a timestamp that are kept.
const TIMESTAMP_BYTES_MAX: usize = 64;
/// Lines of one body that cannot be read and are shown.
const REFUSED_SHOWN_MAX: usize = 3;
const HOUR_MS: u64 = 3_600_000;
const HOURLY: u64 = 1;
const TOPIC: &str = "anomaly/outlier";

/// Something unusual.
struct Outlier {
    timestamp: String,
    value: f64,
    score: f64,
}

impl Outlier {
    fn json(&self) -> String {
        let timestamp = json::string(&self.timestamp);
        let (value, score) = (json::number(self.value), json::number(rounded(self.score)));
        format!(r#"{{"timestamp":{timestamp},"value":{value},"score":{score}}}"#)
    }
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

struct State {
    detector: Detector,
    summary: Summary,
    found: u64,
    outliers: VecDeque<Outlier>,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::new(State {
        detector: Detector::new(WINDOW, THRESHOLD),
        summary: Summary::default(),
        found: 0,
        outliers: VecDeque::new(),
    });
}

/// What became of some lines.
#[derive(Default)]
struct Taken {
    readings: u64,
    outliers: u64,
    refused: u64,
    examples: Vec<String>,
}

impl State {
    fn take(&mut self, text: &str) -> Result<Taken, Error> {
        let mut taken = Taken::default();
        for (number, line) in text.lines().enumerate() {
            match parse(line) {
                Some((timestamp, value)) => {
                    taken.readings += 1;
                    taken.outliers += u64::from(self.reading(timestamp, value)?);
                }
                None if line.trim().is_empty() || number == 0 => {}
                None => {
                    taken.refused += 1;
                    if taken.examples.len() < REFUSED_SHOWN_MAX {
                        taken.examples.push(format!("line {}", number + 1));
                    }
                }
            }
        }
        Ok(taken)
    }

    /// Whether it is unusual.
    fn reading(&mut self, timestamp: &str, value: f64) -> Result<bool, Error> {
        self.summary.add(value);
        let Some(score) = self.detector.next(value) else {
            return Ok(false);
        };
        let outlier = Outlier {
            timestamp: timestamp.to_owned(),
            value,
            score,
        };
        publish(TOPIC, outlier.json())?;
        self.found += 1;
        if self.outliers.len() == OUTLIERS_MAX {
            self.outliers.pop_front();
        }
        self.outliers.push_back(outlier);
        Ok(true)
    }

    fn status(&self) -> String {
        let (mean, stddev) = (self.summary.mean(), self.summary.stddev());
        format!(
            r#"{{"count":{},"mean":{},"stddev":{},"outliers":{}}}"#,
            self.summary.count(),
            json::number(rounded(mean)),
            json::number(rounded(stddev)),
            self.found
        )
    }
}

/// A timestamp and a finite value, between them the last comma.
fn parse(line: &str) -> Option<(&str, f64)> {
    let (timestamp, value) = line.trim_end().rsplit_once(',')?;
    let value: f64 = value.trim().parse().ok()?;
    (value.is_finite() && timestamp.len() <= TIMESTAMP_BYTES_MAX).then_some((timestamp, value))
}

struct Anomaly;

impl Service for Anomaly {
    fn init() -> Result<(), Error> {
        timer::after(HOURLY, HOUR_MS)?;
        Ok(())
    }

    fn request(request: Request) -> Result<Response, Error> {
        match (request.method(), &request.segments()[..]) {
            ("POST", ["readings"]) => {
                let Ok(text) = request.text() else {
                    return Ok(Response::bad_request("the body is not text"));
                };
                let taken = STATE.with_borrow_mut(|state| state.take(text))?;
                let status = if taken.readings == 0 { 400 } else { 200 };
                let refused = json::array(taken.examples.iter().map(|text| json::string(text)));
                let said = format!(
                    r#"{{"readings":{},"outliers":{},"refused":{},"refused_first":{refused}}}"#,
                    taken.readings, taken.outliers, taken.refused
                );
                Ok(Response::json(said).status(status))
            }
            ("GET", ["status"]) => Ok(Response::json(STATE.with_borrow(State::status))),
            ("GET", ["outliers"]) => {
                let all = |state: &State| json::array(state.outliers.iter().map(Outlier::json));
                Ok(Response::json(STATE.with_borrow(all)))
            }
            _ => Ok(Response::not_found()),
        }
    }

    fn message(message: Message) -> Result<(), Error> {
        let Message::Topic(message) = message else {
            return Ok(());
        };
        let text = String::from_utf8_lossy(&message.payload);
        let taken = STATE.with_borrow_mut(|state| state.take(&text))?;
        if taken.readings == 0 {
            log::warn(format!("{}: no reading in {text:?}", message.topic));
        }
        Ok(())
    }

    fn timer(timer: Timer) -> Result<(), Error> {
        log::info(format!("hourly: {}", STATE.with_borrow(State::status)));
        // From when it was due, so that hours do not drift; from now, where many were missed.
        let next = (timer.due_ms + HOUR_MS).max(hop3_guest::now_ms());
        timer::set(timer.number, next)?;
        Ok(())
    }
}

hop3_guest::export!(Anomaly);

#[cfg(test)]
mod tests {
    use hop3_guest::testing::{Effect, Host};

    use super::*;

    const TAXI: &str = include_str!("../../../../../tests/guests/data/nyc_taxi.csv");

    fn host() -> Host<Anomaly> {
        let mut host = Host::new();
        host.grant_topic("anomaly/*");
        host
    }

    #[test]
    fn a_real_series_has_outliers_and_all_are_published() {
        let mut host = host();
        let posted = host.request("POST", "/readings", TAXI.as_bytes());
        let answer = posted.reply().text();
        assert!(answer.starts_with(r#"{"readings":2000,"#), "{answer}");
        assert!(
            answer.contains(r#""refused":0"#),
            "the header is none: {answer}"
        );
        let outliers = host.request("GET", "/outliers", b"").reply().text();
        let published = posted.effects.iter().map(|effect| match effect {
            Effect::Publish { topic, payload } if topic == TOPIC => {
                String::from_utf8_lossy(payload).into_owned()
            }
            other => panic!("{other:?}"),
        });
        assert_eq!(outliers, json::array(published));
        assert!(outliers.contains("timestamp"), "{outliers}");
    }

    #[test]
    fn in_pieces_it_comes_to_the_same() {
        let status = |host: &mut Host<Anomaly>| host.request("GET", "/status", b"").reply().text();
        let mut one = host();
        one.request("POST", "/readings", TAXI.as_bytes());
        let whole = status(&mut one);
        // Another instance: the state is the thread's.
        let pieces = std::thread::spawn(move || {
            let mut host = host();
            for line in TAXI.lines().skip(1) {
                host.topic("readings/taxi", line.as_bytes());
            }
            status(&mut host)
        });
        assert_eq!(pieces.join().unwrap_or_default(), whole);
    }

    #[test]
    fn what_is_no_reading_is_refused_and_named() {
        let mut host = host();
        let mixed = host.request("POST", "/readings", b"a,1\nb,x\nc,inf\nd,2\n");
        let answer = mixed.reply().text();
        let expected = r#""refused":2,"refused_first":["line 2","line 3"]"#;
        assert!(answer.contains(expected), "{answer}");
        assert_eq!(host.request("POST", "/readings", b"x").reply().status, 400);
        assert_eq!(
            host.request("POST", "/readings", b"\xff").reply().status,
            400
        );
        let warned = host.topic("readings/x", b"x");
        assert!(!warned.failed() && warned.log[0].1.contains("readings/x"));
    }

    #[test]
    fn a_summary_is_logged_every_hour() {
        let mut host = host();
        for hour in 1..=2 {
            let rung = host.next_timer().map(|called| called.log);
            assert!(rung.is_some_and(|log| log[0].1.contains("hourly")));
            assert_eq!(host.timers().get(&HOURLY), Some(&((hour + 1) * HOUR_MS)));
        }
    }
}
