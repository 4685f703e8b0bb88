#![allow(clippy::unwrap_used)]

use std::collections::VecDeque as Model;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::super::cancel::CancelToken;
use super::*;

fn wait() -> Wait {
    Wait {
        cancel: CancelToken::new(),
        deadline: None,
    }
}

#[test]
fn bytes_cross_in_order_with_back_pressure() {
    let pipe = Pipe::new(7);
    let sent: Vec<u8> = (0..10_000_u32).map(|i| (i * 7) as u8).collect();
    let writer = thread::spawn({
        let (pipe, sent) = (pipe.clone(), sent.clone());
        move || {
            let mut at = 0;
            while at < sent.len() {
                at += pipe.write(&sent[at..], &wait()).unwrap();
            }
            pipe.end();
        }
    });
    let mut got = Vec::new();
    let mut buf = [0; 5];
    loop {
        match pipe.read(&mut buf, &wait()).unwrap() {
            0 => break,
            n => got.extend_from_slice(&buf[..n]),
        }
    }
    writer.join().unwrap();
    assert!(got == sent);
    assert_eq!((pipe.written(), pipe.consumed()), (10_000, 10_000));
}

#[test]
fn a_blocked_read_ends_on_cancel_and_on_deadline() {
    let pipe = Pipe::new(4);
    let blocked = wait();
    let reader = thread::spawn({
        let (pipe, blocked) = (pipe.clone(), blocked.clone());
        move || pipe.read(&mut [0; 4], &blocked)
    });
    blocked.cancel.cancel();
    assert_eq!(reader.join().unwrap(), Err(Stop::Cancelled));
    let soon = Wait {
        deadline: Some(Instant::now() + Duration::from_millis(2)),
        ..wait()
    };
    assert_eq!(pipe.read(&mut [0; 4], &soon), Err(Stop::Deadline));
}

#[test]
fn a_blocked_write_ends_when_the_reader_leaves() {
    let pipe = Pipe::new(2);
    assert_eq!(pipe.try_write(b"abc"), TryWrite::Wrote(2));
    assert_eq!(pipe.try_write(b"c"), TryWrite::Full);
    let writer = thread::spawn({
        let pipe = pipe.clone();
        move || pipe.write(b"c", &wait())
    });
    pipe.close();
    assert_eq!(writer.join().unwrap(), Err(WriteError::Closed));
    assert_eq!(pipe.try_write(b"c"), TryWrite::Closed);
    assert_eq!(pipe.try_read(9), TryRead::End);
}

#[test]
fn notifications_come_for_bytes_room_and_end() {
    let pipe = Pipe::new(2);
    let (readable, writable) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let count = |n: &Arc<AtomicUsize>| {
        let n = Arc::clone(n);
        move || {
            n.fetch_add(1, Ordering::SeqCst);
        }
    };
    pipe.on_readable(count(&readable));
    pipe.on_writable(count(&writable));
    assert_eq!(pipe.try_write(b"ab"), TryWrite::Wrote(2));
    assert_eq!(readable.load(Ordering::SeqCst), 1);
    assert_eq!(pipe.read(&mut [0; 1], &wait()), Ok(1));
    assert_eq!(writable.load(Ordering::SeqCst), 1);
    pipe.end();
    assert_eq!(readable.load(Ordering::SeqCst), 2);
    assert_eq!(
        pipe.try_read(9),
        TryRead::Bytes {
            offset: 1,
            bytes: b"b".to_vec()
        }
    );
    assert_eq!(pipe.try_read(9), TryRead::End);
}

#[test]
fn small_pieces_do_not_wake_each_time() {
    let pipe = Pipe::new(8);
    let (readable, writable) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (on_readable, on_writable) = (readable.clone(), writable.clone());
    pipe.on_readable(move || {
        on_readable.fetch_add(1, Ordering::SeqCst);
    });
    pipe.on_writable(move || {
        on_writable.fetch_add(1, Ordering::SeqCst);
    });
    for _ in 0..8 {
        assert_eq!(pipe.try_write(b"x"), TryWrite::Wrote(1));
    }
    assert_eq!(pipe.try_write(b"x"), TryWrite::Full);
    // The first byte, and half of what it holds.
    assert_eq!(readable.load(Ordering::SeqCst), 2);
    for read in 1..=8 {
        assert_eq!(pipe.read(&mut [0; 1], &wait()), Ok(1));
        // Half of it is free.
        assert_eq!(writable.load(Ordering::SeqCst), usize::from(read >= 4));
    }
    assert_eq!(pipe.try_write(b"x"), TryWrite::Wrote(1));
    assert_eq!(readable.load(Ordering::SeqCst), 3);
}

#[test]
fn small_pieces_of_blocking_sides_all_arrive() {
    const BYTES: usize = 200_000;
    let pipe = Pipe::new(64);
    let writer = thread::spawn({
        let pipe = pipe.clone();
        move || {
            for n in 0..BYTES {
                assert_eq!(pipe.write(&[n as u8], &wait()), Ok(1));
            }
            pipe.end();
        }
    });
    let (mut got, mut buf) = (0, [0; 3]);
    loop {
        match pipe.read(&mut buf, &wait()).unwrap() {
            0 => break,
            n => {
                assert!((0..n).all(|at| buf[at] == (got + at) as u8));
                got += n;
            }
        }
    }
    writer.join().unwrap();
    assert_eq!(got, BYTES);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn behaves_as_a_bounded_queue(
        capacity in 1_usize..20,
        steps in proptest::collection::vec((any::<bool>(), 0_usize..30), 1..60),
    ) {
        let pipe = Pipe::new(capacity);
        let mut model = Model::new();
        let mut next = 0_u8;
        for (write, n) in steps {
            if write {
                let bytes: Vec<u8> = (0..n).map(|i| next.wrapping_add(i as u8)).collect();
                let fits = n.min(capacity - model.len());
                let full = fits == 0 && n > 0;
                let expected = if full { TryWrite::Full } else { TryWrite::Wrote(fits) };
                prop_assert_eq!(pipe.try_write(&bytes), expected);
                model.extend(&bytes[..fits]);
                next = next.wrapping_add(fits as u8);
            } else {
                let offset = pipe.consumed();
                let take: Vec<u8> = model.drain(..n.min(model.len())).collect();
                match pipe.try_read(n) {
                    TryRead::Bytes { offset: at, bytes } => {
                        prop_assert_eq!(at, offset);
                        prop_assert_eq!(bytes, take);
                    }
                    other => {
                        prop_assert_eq!(other, TryRead::Empty);
                        prop_assert!(take.is_empty());
                    }
                }
            }
            prop_assert_eq!(pipe.written() - pipe.consumed(), model.len() as u64);
            prop_assert_eq!(pipe.room(), capacity - model.len());
        }
    }
}
