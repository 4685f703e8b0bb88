//! API tokens: opaque, hashed at rest, compared in constant time.
//!
//! `hop3-api-1.<id>.<secret>`: the id finds the record, the secret (256 random bits, base 32) is
//! checked against its SHA-256. A fast hash is right here: the secret is no password, there is
//! nothing to guess. Whoever holds a token may do everything.

use std::{
    collections::BTreeMap,
    sync::{PoisonError, RwLock},
};

use hop3_common::{
    codes::{Code, Problem},
    id::{UnixMs, base32_id},
};
use sha2::{Digest as _, Sha256};

use crate::records::{ApiTokenRecord, Batch, Records};

/// Longest text that is looked at.
const TOKEN_CHARS_MAX: usize = 256;
const PREFIX: &str = "hop3-api-1.";
/// The name of the token that the first start makes.
const ADMIN: &str = "admin";

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The token's id.
    pub token: String,
    /// Its name.
    pub name: String,
}

/// All API tokens.
pub(crate) struct Tokens(RwLock<BTreeMap<String, ApiTokenRecord>>);

impl Tokens {
    pub(crate) async fn load(records: &Records) -> Result<Self, Problem> {
        Ok(Self(RwLock::new(
            records.all().await?.into_iter().collect(),
        )))
    }

    pub(crate) fn authenticate(&self, token: &str) -> Result<Principal, Problem> {
        let refused = || {
            Problem::new(
                Code::Unauthenticated,
                "this API token is not valid (any more)",
            )
        };
        if token.len() > TOKEN_CHARS_MAX {
            return Err(refused());
        }
        let (id, secret) = token
            .strip_prefix(PREFIX)
            .and_then(|t| t.split_once('.'))
            .ok_or_else(refused)?;
        let hash = hash(secret);
        let tokens = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let record = tokens.get(id).ok_or_else(refused)?;
        if !same(&record.hash, &hash) {
            return Err(refused());
        }
        Ok(Principal {
            token: id.to_owned(),
            name: record.name.clone(),
        })
    }
}

fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

/// Equality that takes the same time wherever the difference is.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

/// Makes a new admin token in place of the ones before: its text, to be kept by the caller.
///
/// # Errors
/// Storage.
pub async fn reset_admin(records: &Records, now: UnixMs) -> Result<String, Problem> {
    let mut batch = Batch::new();
    for (id, record) in records.all::<ApiTokenRecord>().await? {
        if record.name == ADMIN {
            batch = batch.delete::<ApiTokenRecord>(&id)?;
        }
    }
    let id = base32_id('a', rand::random());
    let secret = data_encoding::BASE32_NOPAD
        .encode(&rand::random::<[u8; 32]>())
        .to_lowercase();
    let record = ApiTokenRecord {
        name: ADMIN.to_owned(),
        hash: hash(&secret),
        created: now,
    };
    records.commit(batch.put(&id, &record)?).await?;
    Ok(format!("{PREFIX}{id}.{secret}"))
}

/// Whether there is an admin token.
pub(crate) async fn has_admin(records: &Records) -> Result<bool, Problem> {
    let tokens = records.all::<ApiTokenRecord>().await?;
    Ok(tokens.iter().any(|(_, record)| record.name == ADMIN))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use hop3_common::store::MemoryStore;

    use super::*;

    #[tokio::test]
    async fn only_the_newest_admin_token_is_good() {
        let records = Records::new(Arc::new(MemoryStore::new()));
        assert!(!has_admin(&records).await.unwrap());
        let first = reset_admin(&records, UnixMs(1)).await.unwrap();
        let tokens = Tokens::load(&records).await.unwrap();
        assert_eq!(tokens.authenticate(&first).unwrap().name, "admin");
        let second = reset_admin(&records, UnixMs(2)).await.unwrap();
        let tokens = Tokens::load(&records).await.unwrap();
        assert!(tokens.authenticate(&second).is_ok());
        let mut forged = second.clone();
        let last = if forged.pop() == Some('a') { 'b' } else { 'a' };
        forged.push(last);
        let long = format!("{second}{}", "a".repeat(999));
        for bad in [
            &first,
            &forged,
            &long,
            "",
            PREFIX,
            "hop3-api-1.x.y",
            "Bearer x",
        ] {
            let refused = tokens.authenticate(bad).unwrap_err();
            assert_eq!(refused.code, Code::Unauthenticated, "{bad}");
        }
    }
}
