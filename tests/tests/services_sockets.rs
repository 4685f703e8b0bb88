//! WebSockets through the whole mesh: many clients of one room, while the room moves and its node
//! is killed.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
};

use futures_util::future::join_all;
use hop3_tests::{
    Mesh, eventually, guest,
    sockets::{Heard, Socket},
};
use serde_json::Value;
use tokio::{sync::watch, task::block_in_place};

/// Clients of the room.
const MEMBERS: u64 = 4;
/// Messages that a client has under way, sent and not yet heard by itself: enough that a move
/// always meets some that are nowhere safe yet.
const UNDER_WAY_MAX: u64 = 64;
/// Moves while messages flow.
const MOVES: u64 = 6;
/// Kills of the node's agent after that: they cut links where moves end them.
const KILLS: u64 = 3;
/// Messages that all must hear between two faults.
const PROGRESS: u64 = 200;

/// The chat example, with so many listeners at once.
fn chat(streams: u64) -> Mesh {
    let mesh = Mesh::start(&[("edge-1", "edge"), ("edge-2", "edge")]);
    let path = guest("chat").display().to_string();
    mesh.hop3(&["artifact", "push", &path]).ok();
    let spec = format!("module: chat\n  state: single\n  limits: {{streams: {streams}}}");
    mesh.apply(&format!("kind: Service\nname: chat\nspec:\n  {spec}\n"))
        .ok();
    mesh
}

fn elsewhere(mesh: &Mesh) -> &'static str {
    match mesh.node_of("chat", 0).as_str() {
        "edge-1" => "edge-2",
        _ => "edge-1",
    }
}

/// What is going on, for all clients.
#[derive(Default)]
struct Talk {
    /// Nobody says more.
    over: AtomicBool,
    /// Messages said, by all.
    said: AtomicU64,
    /// Members that said their last.
    done: watch::Sender<u64>,
    /// The number of messages that each member heard.
    heard: [AtomicU64; MEMBERS as usize],
}

impl Talk {
    fn least_heard(&self) -> u64 {
        let heard = self.heard.iter().map(|heard| heard.load(SeqCst));
        heard.min().unwrap_or(0)
    }

    /// Whether `heard` messages are all that there will be.
    fn ended(&self, heard: u64) -> bool {
        *self.done.borrow() == MEMBERS && heard == self.said.load(SeqCst)
    }
}

/// The number and the text of a message of the room.
fn parsed(text: &str) -> (u64, String) {
    let message: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    let id = message["id"].as_u64();
    let words = message["text"].as_str();
    let (Some(id), Some(words)) = (id, words) else {
        panic!("no message of the room: {text}");
    };
    (id, words.to_owned())
}

/// Talks until it is over and hears everything; says what it heard, in order.
async fn member(mut socket: Socket, me: u64, talk: Arc<Talk>) -> Vec<(u64, String)> {
    let (mut heard, mut said, mut own) = (Vec::new(), 0, 0);
    let (mut done, mut others) = (false, talk.done.subscribe());
    while !(done && talk.ended(heard.len() as u64)) {
        while !talk.over.load(SeqCst) && said - own < UNDER_WAY_MAX {
            talk.said.fetch_add(1, SeqCst);
            socket.say(&format!("{me} {said}")).await;
            said += 1;
        }
        if talk.over.load(SeqCst) && !done {
            done = true;
            talk.done.send_modify(|done| *done += 1);
            continue;
        }
        let next = tokio::select! {
            next = socket.hear() => next,
            // Perhaps there is nothing more to hear.
            Ok(()) = others.changed(), if done => continue,
        };
        match next {
            Heard::Text(text) => heard.push(parsed(&text)),
            closed => panic!("member {me} was cut off after {}: {closed:?}", heard.len()),
        }
        let (_, words) = &heard[heard.len() - 1];
        own += u64::from(words.split(' ').next() == Some(&me.to_string()));
        talk.heard[me as usize].store(heard.len() as u64, SeqCst);
    }
    assert_eq!(socket.close(4000).await, Heard::Closed(Some(4000)));
    heard
}

/// Waits until all have heard this many; the clients go on meanwhile.
fn until_heard(talk: &Talk, count: u64) {
    block_in_place(|| {
        eventually(&format!("all heard {count} messages"), || {
            (talk.least_heard() >= count).then_some(())
        });
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_hear_everything_once_and_in_order_through_moves_and_kills() {
    let mut mesh = block_in_place(|| chat(1_000));
    let talk = Arc::new(Talk::default());
    let open = (0..MEMBERS).map(|_| Socket::open(&mesh, "/chat/rooms/a/socket"));
    let opened = join_all(open).await.into_iter();
    let sockets = opened.map(|socket| socket.unwrap_or_else(|status| panic!("{status}")));
    let members: Vec<_> = sockets
        .zip(0..)
        .map(|(socket, me)| tokio::spawn(member(socket, me, Arc::clone(&talk))))
        .collect();
    for _ in 0..MOVES {
        until_heard(&talk, talk.said.load(SeqCst) + PROGRESS);
        let before = talk.least_heard();
        block_in_place(|| {
            let to = elsewhere(&mesh);
            let args = ["service", "migrate", "chat", "--to", to, "--watch"];
            mesh.hop3(&args).ok();
            assert_eq!(mesh.node_of("chat", 0), to);
        });
        eprintln!(
            "{} messages heard by all during a move",
            talk.least_heard() - before
        );
    }
    for _ in 0..KILLS {
        until_heard(&talk, talk.said.load(SeqCst) + PROGRESS);
        block_in_place(|| {
            let node = mesh.node_of("chat", 0);
            mesh.kill_agent(&node);
            mesh.start_agent(&node);
        });
    }
    until_heard(&talk, talk.said.load(SeqCst) + PROGRESS);
    talk.over.store(true, SeqCst);
    let heard = join_all(members).await.into_iter();
    let heard: Vec<_> = heard
        .map(|heard| heard.unwrap_or_else(|error| panic!("{error}")))
        .collect();
    check(&heard, talk.said.load(SeqCst));
}

/// All heard the same: every message once, in the room's order, each member's in its own order.
fn check(heard: &[Vec<(u64, String)>], said: u64) {
    for (me, messages) in heard.iter().enumerate() {
        let ids: Vec<u64> = messages.iter().map(|(id, _)| *id).collect();
        assert_eq!(
            ids,
            (1..=said).collect::<Vec<_>>(),
            "what member {me} heard"
        );
        assert_eq!(*messages, heard[0], "member {me} heard other words");
    }
    for who in 0..MEMBERS {
        let own = heard[0].iter().filter_map(|(_, words)| {
            let (name, n) = words.split_once(' ')?;
            (name == who.to_string())
                .then(|| n.parse::<u64>().ok())
                .flatten()
        });
        let own: Vec<u64> = own.collect();
        let count = own.len() as u64;
        assert_eq!(own, (0..count).collect::<Vec<_>>(), "of member {who}");
        assert!(count > 0, "member {who} said nothing");
    }
    eprintln!("{said} messages, each heard by {} members", heard.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_is_seen_by_the_other_side() {
    let mesh = block_in_place(|| chat(2));
    let open = || Socket::open(&mesh, "/chat/rooms/a/socket");
    let (Ok(first), Ok(mut second)) = (open().await, open().await) else {
        panic!("two may listen");
    };
    let refused = open().await.err();
    assert!(refused.is_some_and(|status| status >= 500), "{refused:?}");
    // The instance has room again only once it was told that the first one has gone.
    assert_eq!(first.close(4001).await, Heard::Closed(Some(4001)));
    let open_again = async {
        loop {
            if let Ok(socket) = open().await {
                return socket;
            }
        }
    };
    let again = tokio::time::timeout(hop3_tests::PATIENCE, open_again).await;
    let mut third = again.unwrap_or_else(|_| panic!("the closed stream takes up room"));
    third.say("still here").await;
    for socket in [&mut second, &mut third] {
        let Heard::Text(text) = socket.hear().await else {
            panic!("cut off by the end of another");
        };
        assert_eq!(parsed(&text), (1, "still here".to_owned()));
    }
    // The other way: the service goes away.
    block_in_place(|| {
        mesh.hop3(&["delete", "service", "chat", "--yes"]).ok();
    });
    for socket in [&mut second, &mut third] {
        let end = socket.hear().await;
        assert!(matches!(end, Heard::Closed(Some(_))), "{end:?}");
    }
}
