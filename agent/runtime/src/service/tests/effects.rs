use super::*;

/// A handler that copies a field to the reply.
fn echo(number: i32) -> String {
    let body = format!(
        "(local $n i32)
         (local.set $n (call $input (i32.const {number}) (i32.const 0) (i32.const 1024)
            (i32.const 4096)))
         (if (i32.lt_s (local.get $n) (i32.const 0)) (then (return (local.get $n))))
         (call $log (i32.const 2) (i32.const 1024) (local.get $n)) (i32.const 0)"
    );
    let exports = ["hop3_request", "hop3_message", "hop3_timer", "hop3_init"];
    let functions: String = exports
        .iter()
        .map(|name| format!("(func (export \"{name}\") (result i32) {body})"))
        .collect();
    guest(&functions)
}

/// What a field is for an input: a log line of the guest, or how it failed.
fn field(number: i32, input: Input) -> Result<String, Failure> {
    let wat = echo(number);
    let ours = Setup {
        stateful: true,
        ..setup()
    };
    // `hop3_init` fails where a field is not there, so only those of all calls may be asked.
    let wat = if number == 0 || (14..17).contains(&number) {
        wat
    } else {
        wat.replace("hop3_init", "other")
    };
    let mut instance = start_with(&wat, ours);
    Arc::make_mut(&mut instance.image_mut().held.streams).insert(77);
    Arc::make_mut(&mut instance.image_mut().held.timers).insert(5, 4_000);
    let called = send(&mut instance, input);
    called.result.map(|_| called.log[0].text.clone())
}

#[test]
fn every_input_has_its_fields() {
    let topic = || Input::Topic {
        topic: "a/b".into(),
        payload: Bytes::from_static(b"pay"),
        from: Some("service/x/0".into()),
    };
    let data = || Input::StreamData {
        stream: 77,
        text: true,
        bytes: Bytes::from_static(b"data"),
    };
    let closed = || Input::StreamClosed {
        stream: 77,
        code: 0x4141,
    };
    let reply = Reply {
        status: 404,
        headers: vec![("b".into(), Bytes::from_static(b"2"))],
        body: Bytes::from_static(b"no"),
        stream: None,
    };
    let ended = || Input::CallEnded {
        call: 0x42,
        result: Ok(reply.clone()),
    };
    let unanswered = || Input::CallEnded {
        call: 1,
        result: Err("gone".into()),
    };
    let timer = || Input::Timer { timer: 5 };
    let get = |number, input| field(number, input).unwrap();
    assert_eq!(get(1, request("/p?q", "abc")), "POST");
    assert_eq!(get(2, request("/p?q", "abc")), "/p?q");
    assert_eq!(get(3, request("/", "")), "x-a: 1");
    assert_eq!(get(4, request("/", "abc")), "abc");
    assert_eq!(get(13, request("/", "")), "\0");
    assert_eq!(get(14, request("/", "")), "service/test/1");
    assert_eq!(get(15, request("/", "")), "\u{1}\0\0\0");
    assert_eq!(get(16, request("/", "")), "\u{3}\0\0\0");
    assert_eq!(get(5, topic()), "a/b");
    assert_eq!(get(4, topic()), "pay");
    assert_eq!(get(6, topic()), "service/x/0");
    assert_eq!(get(7, data()), "M\0\0\0\0\0\0\0");
    assert_eq!(get(8, data()), "\u{1}");
    assert_eq!(get(4, data()), "data");
    assert_eq!(get(17, closed()), "AA\0\0");
    assert_eq!(get(9, ended()), "B\0\0\0\0\0\0\0");
    assert_eq!(get(10, ended()), "404");
    assert_eq!(get(3, ended()), "b: 2");
    assert_eq!(get(4, ended()), "no");
    assert_eq!(get(10, unanswered()), "0");
    assert_eq!(get(4, unanswered()), "gone");
    assert_eq!(get(11, timer()), "\u{5}\0\0\0\0\0\0\0");
    assert_eq!(
        get(12, timer()).as_bytes()[..2],
        [0xef, 0xbf],
        "4,000 is no text"
    );
    let kinds = [
        request("/", ""),
        topic(),
        data(),
        closed(),
        ended(),
        timer(),
    ];
    for (kind, input) in (1u8..).zip(kinds) {
        assert_eq!(get(0, input).as_bytes(), [kind]);
    }
    assert_eq!(field(5, request("/", "")), Err(Failure::Said(-1)));
    assert_eq!(field(6, request("/", "")), Err(Failure::Said(-1)));
    assert_eq!(field(99, topic()), Err(Failure::Said(-1)));
}

#[test]
fn input_is_copied_from_an_offset_and_only_what_fits() {
    let at = |offset: i32, cap: i32| {
        value_of(
            "",
            &format!(
                "(i32.add (i32.mul (i32.const 1000)
                    (call $input (i32.const 4) (i32.const {offset}) (i32.const 200)
                        (i32.const {cap})))
                  (i32.load8_u (i32.const 200)))"
            ),
            setup(),
        )
    };
    assert_eq!(at(0, 0), 3_000);
    assert_eq!(at(1, 1), 3_000 + i32::from(b'b'));
    assert_eq!(at(9, 8), 3_000);
}

#[test]
fn refusals_have_their_numbers() {
    let say = |expression: &str| value_of("out/1other-/p", expression, setup());
    let wrap = |call: &str| format!("(i32.wrap_i64 {call})");
    // -1: not there.
    let absent =
        "(call $kv_get (i32.const 64) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 0))";
    assert_eq!(say(absent), -1);
    assert_eq!(
        say("(call $kv_next (i32.const 64) (i32.const 0) (i32.const 0) (i32.const 0))"),
        -1
    );
    assert_eq!(
        say("(call $stream_send (i64.const 9) (i32.const 64) (i32.const 1) (i32.const 0))"),
        -1
    );
    assert_eq!(
        say("(call $stream_close (i64.const 9) (i32.const 1000))"),
        -1
    );
    // -2: not granted.
    assert_eq!(
        say("(call $publish (i32.const 69) (i32.const 5) (i32.const 64) (i32.const 1))"),
        -2
    );
    let call = "(call $call (i32.const 64) (i32.const 3) (i32.const 64) (i32.const 3)
        (i32.const 75) (i32.const 2) (i32.const 0) (i32.const 0))";
    assert_eq!(say(&wrap(call)), -2);
    // -3: over a limit.
    assert_eq!(
        say("(call $kv_set (i32.const 64) (i32.const 2000) (i32.const 64) (i32.const 1))"),
        -3
    );
    let mut tight = setup();
    tight.limits.kv_bytes = 50;
    tight.limits.reply_bytes = 4;
    (tight.limits.timers, tight.limits.streams) = (0, 0);
    let say_tight = |expression: &str| value_of("out/1other-/p", expression, tight.clone());
    assert_eq!(
        say_tight("(call $kv_set (i32.const 64) (i32.const 9) (i32.const 64) (i32.const 10))"),
        -3
    );
    assert_eq!(
        say_tight("(call $kv_set (i32.const 64) (i32.const 9) (i32.const 64) (i32.const 9))"),
        0
    );
    assert_eq!(
        say_tight("(call $timer_set (i64.const 1) (i64.const 1))"),
        -3
    );
    assert_eq!(say_tight(&wrap("(call $reply_stream)")), -3);
    assert_eq!(
        say_tight("(call $publish (i32.const 64) (i32.const 5) (i32.const 64) (i32.const 5))"),
        -3
    );
    // -5: invalid.
    assert_eq!(say("(call $reply_status (i32.const 99))"), -5);
    assert_eq!(say("(call $reply_status (i32.const 600))"), -5);
    let header = "(call $reply_header (i32.const 64) (i32.const 4) (i32.const 0) (i32.const 2))";
    assert_eq!(say(header), -5, "a slash in a name");
    let header = "(call $reply_header (i32.const 69) (i32.const 5) (i32.const 0) (i32.const 2))";
    assert_eq!(say(header), -5, "a NUL in a value");
    assert_eq!(
        say("(call $publish (i32.const 64) (i32.const 0) (i32.const 64) (i32.const 1))"),
        -5
    );
    assert_eq!(
        say("(call $kv_set (i32.const 64) (i32.const 0) (i32.const 64) (i32.const 1))"),
        -5
    );
    assert_eq!(say("(call $timer_set (i64.const 1) (i64.const -1))"), -5);
}

#[test]
fn a_reply_that_is_cut_is_no_reply() {
    let mut tight = setup();
    tight.limits.reply_bytes = 4;
    let wat = handler(
        "",
        "(drop (call $reply_write (i32.const 0) (i32.const 4)))
         (drop (call $reply_write (i32.const 0) (i32.const 1)))
         (i32.const 0)",
    );
    let (mut instance, _) = Instance::create(&load(&wat), tight, NOW, &CancelToken::new()).unwrap();
    let result = instance
        .call(request("/", ""), NOW, &CancelToken::new())
        .result;
    assert!(matches!(result, Err(Failure::Reply(_))), "{result:?}");
}

#[test]
fn replies_belong_to_requests() {
    // -4: not now.
    let wat = guest(
        "(func (export \"hop3_timer\") (result i32)
            (i32.add (i32.add (call $reply_status (i32.const 200))
                (call $reply_write (i32.const 0) (i32.const 0)))
              (i32.add (i32.wrap_i64 (call $reply_stream))
                (call $reply_header (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 0)))))
         (func (export \"hop3_init\") (result i32)
            (call $timer_set (i64.const 5) (i64.const 9)))",
    );
    let mut instance = start(&wat);
    assert_eq!(instance.image().next_timer(), Some((5, 9)));
    let called = send(&mut instance, Input::Timer { timer: 5 });
    assert_eq!(called.result.unwrap_err(), Failure::Said(-16));
    assert_eq!(instance.image().next_timer(), Some((5, 9)), "put back");
    assert!(instance.drop_timer(5));
    let called = send(&mut instance, Input::Timer { timer: 5 });
    assert_eq!(called.result.unwrap(), Done::default(), "no longer set");
    let called = send(&mut instance, request("/", ""));
    assert_eq!(
        called.result.unwrap_err(),
        Failure::NoHandler("hop3_request")
    );
}

#[test]
fn a_reply_and_effects_come_in_order() {
    let wat = handler(
        "(data (i32.const 64) \"out/1other-/pX-UpPOSThi\")",
        "(drop (call $reply_status (i32.const 201)))
         (drop (call $reply_header (i32.const 77) (i32.const 4) (i32.const 85) (i32.const 2)))
         (drop (call $publish (i32.const 64) (i32.const 5) (i32.const 85) (i32.const 2)))
         (drop (call $call (i32.const 69) (i32.const 5) (i32.const 81) (i32.const 4)
            (i32.const 75) (i32.const 2) (i32.const 85) (i32.const 1)))
         (drop (call $stream_send (call $reply_stream) (i32.const 85) (i32.const 2) (i32.const 1)))
         (drop (call $publish (i32.const 64) (i32.const 5) (i32.const 85) (i32.const 1)))
         (drop (call $reply_write (i32.const 85) (i32.const 2)))
         (drop (call $reply_write (i32.const 85) (i32.const 2)))
         (i32.const 0)",
    );
    let mut instance = start(&wat);
    let got = done(&mut instance, request("/", ""));
    let hi = Bytes::from_static(b"hi");
    let reply = Reply {
        status: 201,
        headers: vec![("x-up".into(), hi.clone())],
        body: Bytes::from_static(b"hihi"),
        stream: Some(1),
    };
    assert_eq!(got.reply, Some(reply));
    let topic = || "out/1".to_owned();
    let call = Effect::Call {
        call: 2,
        service: "other".into(),
        method: "POST".into(),
        path: "/p".into(),
        body: Bytes::from_static(b"h"),
    };
    let effects = [
        Effect::Publish {
            seq: 1,
            topic: topic(),
            payload: hi.clone(),
        },
        call,
        Effect::StreamSend {
            stream: 1,
            text: true,
            bytes: hi,
        },
        Effect::Publish {
            seq: 3,
            topic: topic(),
            payload: Bytes::from_static(b"h"),
        },
    ];
    assert_eq!(got.effects, effects);
    assert_eq!(instance.image().streams().collect::<Vec<_>>(), [1]);
    // Numbers go on; the client closes the first stream, which this guest does not handle.
    let again = done(&mut instance, request("/", ""));
    assert_eq!(again.reply.unwrap().stream, Some(2));
    assert!(matches!(again.effects[0], Effect::Publish { seq: 4, .. }));
    done(
        &mut instance,
        Input::StreamClosed {
            stream: 1,
            code: 1000,
        },
    );
    assert_eq!(instance.image().streams().collect::<Vec<_>>(), [2]);
    assert!(instance.drop_stream(2));
}

#[test]
fn switching_protocols_needs_a_stream() {
    let wat = handler(
        "",
        "(drop (call $reply_status (i32.const 101))) (i32.const 0)",
    );
    let called = send(&mut start(&wat), request("/", ""));
    assert!(matches!(called.result, Err(Failure::Reply(_))));
}

#[test]
fn keys_are_listed_in_order_and_values_read_in_parts() {
    let set = |key: i32, value: i32| {
        format!(
            "(drop (call $kv_set (i32.const {key}) (i32.const 1) (i32.const {value}) (i32.const 3)))"
        )
    };
    let next =
        "(local.set $n (call $kv_next (i32.const 0) (local.get $n) (i32.const 0) (i32.const 8)))";
    let wat = handler(
        "(data (i32.const 64) \"cab\")",
        &format!(
            "(local $n i32) {} {} {}
             (drop (call $kv_delete (i32.const 66) (i32.const 1)))
             {next} (drop (call $reply_write (i32.const 0) (local.get $n)))
             {next} (drop (call $reply_write (i32.const 0) (local.get $n)))
             (drop (call $kv_get (i32.const 64) (i32.const 1) (i32.const 1) (i32.const 0)
                (i32.const 9)))
             (drop (call $reply_write (i32.const 0) (i32.const 2)))
             (call $kv_next (i32.const 64) (i32.const 1) (i32.const 0) (i32.const 8))
             (i32.add (i32.const 1))",
            set(64, 64),
            set(65, 64),
            set(66, 64),
        ),
    );
    assert_eq!(body(&mut start(&wat), ""), "acab");
}

#[test]
fn time_and_randomness_are_the_callers() {
    let wat = handler(
        "",
        "(i64.store (i32.const 0) (call $now_ms))
         (drop (call $reply_write (i32.const 0) (i32.const 8))) (i32.const 0)",
    );
    let mut instance = start(&wat);
    let mut at = |now_ms| {
        let called = instance.call(request("/", ""), now_ms, &CancelToken::new());
        let reply = called.result.unwrap().reply.unwrap();
        u64::from_le_bytes(reply.body[..].try_into().unwrap())
    };
    assert_eq!(at(NOW), NOW);
    assert_eq!(at(NOW + 5_000), NOW + 5_000);
    assert_eq!(at(NOW), NOW + 5_000, "a guest's time never goes back");
}
