//! Messages on topics: which instance of a subscribing service gets one, and what its answer means.
//! Agents and coordinator decide alike.

use crate::{
    codes::{Code, Problem},
    spec::{State, service::shard_of},
};

/// The shard of a keyed subscriber that gets the messages of `topic`: its last segment is the key.
#[must_use]
pub fn shard(topic: &str, shards: u32) -> u32 {
    let key = topic.rsplit('/').next().unwrap_or(topic);
    shard_of(key.as_bytes(), shards)
}

/// Whether a subscriber that answered so is done with a message, or must get it again.
///
/// A handler that failed had its chance: the next time it would fail again. Where nobody knows,
/// one with state gets it again, and recognises it if it had it; one without state might handle it
/// twice, and does not.
#[must_use]
pub fn settled(answer: &Result<(), Problem>, subscriber: State) -> bool {
    let Err(problem) = answer else { return true };
    match problem.code {
        Code::NotHere
        | Code::ServiceNotReady
        | Code::Busy
        | Code::Storage
        | Code::Unavailable
        | Code::NodeUnreachable => false,
        Code::OutcomeUnknown | Code::Deadline | Code::TaskCancelled => subscriber == State::None,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_segment_chooses_the_shard() {
        assert_eq!(shard("plant/line/7", 16), shard_of(b"7", 16));
        assert_eq!(shard("7", 16), shard_of(b"7", 16));
    }

    #[test]
    fn what_did_not_begin_is_sent_again_and_what_failed_is_not() {
        let after = |code, state| settled(&Err(Problem::new(code, "")), state);
        assert!(settled(&Ok(()), State::Single));
        for state in [State::None, State::Single, State::Keyed] {
            assert!(!after(Code::ServiceNotReady, state) && !after(Code::Busy, state));
            assert!(after(Code::HandlerFailed, state));
        }
        assert!(after(Code::OutcomeUnknown, State::None));
        assert!(!after(Code::OutcomeUnknown, State::Keyed));
    }
}
