//! Keys and authenticated encryption of everything that is stored.
//!
//! One [`MasterKey`] per data directory; each purpose has its own subkey (BLAKE3 key derivation),
//! so that no two parts share a nonce space. A [`Cipher`] seals with XChaCha20-Poly1305 under a
//! random 192-bit nonce; the caller's context (key name, file and position) is authenticated, so
//! that sealed texts cannot be exchanged for one another.
//!
//! Sealed form: nonce (24 bytes), ciphertext, tag (16 bytes).

use std::fmt;

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{AeadInOut, inout::InOutBuf},
};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::Error;

/// Length of a master key, in bytes.
pub const MASTER_KEY_BYTES: usize = 32;
/// What sealing adds to a text, in bytes: nonce and tag.
pub const SEAL_OVERHEAD_BYTES: usize = NONCE_BYTES + TAG_BYTES;

const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;

/// What a subkey is for. The texts are frozen: changing one makes old data unreadable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Purpose {
    /// Values of records.
    Values,
    /// Frames of journal and snapshot files.
    Journal,
    /// Headers of journal and snapshot files.
    JournalHeader,
    /// Segments of blobs.
    Blobs,
    /// Headers of blobs.
    BlobHeader,
    /// MACs of compiled code and optimised models in caches.
    CodeCache,
    /// QUIC stateless resets and connection ids of a coordinator: the same after a restart.
    MeshReset,
    /// Frames of the change logs of services.
    ServiceLog,
    /// Frames of a coordinator's replicas of them.
    Replica,
    /// Fingerprints of inputs that may be what kills an agent.
    Suspects,
    /// An agent's ledger file.
    Ledger,
    /// Frames of a backup, under its own key.
    Backup,
}

impl Purpose {
    fn context(self) -> &'static str {
        match self {
            Self::Values => "hop3 2026 store values v1",
            Self::Journal => "hop3 2026 store journal v1",
            Self::JournalHeader => "hop3 2026 store journal header v1",
            Self::Blobs => "hop3 2026 blob segments v1",
            Self::BlobHeader => "hop3 2026 blob header v1",
            Self::CodeCache => "hop3 2026 code cache v1",
            Self::MeshReset => "hop3 2026 mesh reset v1",
            Self::ServiceLog => "hop3 2026 service log v1",
            Self::Replica => "hop3 2026 service replica v1",
            Self::Suspects => "hop3 2026 suspect inputs v1",
            Self::Ledger => "hop3 2026 agent ledger v1",
            Self::Backup => "hop3 2026 backup v1",
        }
    }
}

/// The key of a data directory. Wiped on drop, never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct MasterKey([u8; MASTER_KEY_BYTES]);

impl MasterKey {
    /// A key from bytes that the caller got from a key service.
    #[must_use]
    pub fn from_bytes(bytes: [u8; MASTER_KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// A new random key.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate() -> Result<Self, Error> {
        let mut key = Self([0; MASTER_KEY_BYTES]);
        getrandom::fill(&mut key.0).map_err(Error::Random)?;
        Ok(key)
    }

    pub(super) fn expose(&self) -> &[u8; MASTER_KEY_BYTES] {
        &self.0
    }

    /// The secret of one purpose, for keyed hashes.
    #[must_use]
    pub fn subkey(&self, purpose: Purpose) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(blake3::derive_key(purpose.context(), &self.0))
    }

    /// Keyed hashes of one purpose.
    #[must_use]
    pub fn mac(&self, purpose: Purpose) -> Mac {
        Mac(self.subkey(purpose))
    }

    /// The cipher of one purpose.
    #[must_use]
    pub fn cipher(&self, purpose: Purpose) -> Cipher {
        Cipher(XChaCha20Poly1305::new((&*self.subkey(purpose)).into()))
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(redacted)")
    }
}

/// Keyed hashes for one purpose (BLAKE3).
#[derive(Clone)]
pub struct Mac(Zeroizing<[u8; 32]>);

impl Mac {
    /// The hash of parts, each with its length.
    #[must_use]
    pub fn of(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        *hasher.finalize().as_bytes()
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mac(redacted)")
    }
}

/// Seals and opens texts for one purpose.
#[derive(Clone)]
pub struct Cipher(XChaCha20Poly1305);

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher(redacted)")
    }
}

/// A sealed text that does not verify: other key, other context, or altered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the sealed text does not verify")]
pub struct Forged;

impl Cipher {
    /// Seals `plain` in `context`.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn seal(&self, context: &[u8], plain: &[u8]) -> Result<Vec<u8>, Error> {
        let mut out = Vec::with_capacity(plain.len() + SEAL_OVERHEAD_BYTES);
        self.seal_into(context, plain, &mut out)?;
        Ok(out)
    }

    /// Seals `plain` in `context` and appends it to `out`.
    ///
    /// # Errors
    /// When the system has no randomness; `out` is then as before.
    pub fn seal_into(&self, context: &[u8], plain: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(Error::Random)?;
        out.extend_from_slice(&nonce);
        let start = out.len();
        out.extend_from_slice(plain);
        let tag = self
            .0
            .encrypt_inout_detached(
                &XNonce::from(nonce),
                context,
                InOutBuf::from(&mut out[start..]),
            )
            .expect("a text of less than 256 GiB can always be sealed");
        out.extend_from_slice(&tag);
        Ok(())
    }

    /// Opens what [`Cipher::seal`] made in the same context.
    ///
    /// # Errors
    /// [`Forged`] when it does not verify.
    pub fn open(&self, context: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Forged> {
        let body = sealed.get(NONCE_BYTES..).ok_or(Forged)?;
        let end = body.len().checked_sub(TAG_BYTES).ok_or(Forged)?;
        let mut plain = body[..end].to_vec();
        let nonce: [u8; NONCE_BYTES] = sealed[..NONCE_BYTES].try_into().map_err(|_| Forged)?;
        let tag: [u8; TAG_BYTES] = body[end..].try_into().map_err(|_| Forged)?;
        self.0
            .decrypt_inout_detached(
                &XNonce::from(nonce),
                context,
                InOutBuf::from(plain.as_mut_slice()),
                &tag.into(),
            )
            .map_err(|_| Forged)?;
        Ok(plain)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn cipher() -> Cipher {
        MasterKey::from_bytes([7; 32]).cipher(Purpose::Values)
    }

    #[test]
    fn debug_shows_no_key() {
        let key = MasterKey::from_bytes([0xAB; 32]);
        assert_eq!(format!("{key:?}"), "MasterKey(redacted)");
        assert_eq!(format!("{:?}", cipher()), "Cipher(redacted)");
    }

    #[test]
    fn purposes_do_not_share_keys() {
        let key = MasterKey::from_bytes([7; 32]);
        let sealed = key.cipher(Purpose::Values).seal(b"k", b"v").unwrap();
        assert_eq!(
            key.cipher(Purpose::Journal).open(b"k", &sealed),
            Err(Forged)
        );
    }

    #[test]
    fn the_same_text_is_sealed_differently() {
        assert_ne!(
            cipher().seal(b"k", b"v").unwrap(),
            cipher().seal(b"k", b"v").unwrap()
        );
    }

    proptest! {
        #[test]
        fn opens_only_unaltered_in_its_context(
            plain in proptest::collection::vec(any::<u8>(), 0..300),
            flip in any::<prop::sample::Index>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let sealed = cipher().seal(b"context", &plain).unwrap();
            prop_assert_eq!(cipher().open(b"context", &sealed).unwrap(), plain);
            prop_assert_eq!(cipher().open(b"other", &sealed), Err(Forged));
            prop_assert_eq!(cipher().open(b"context", &sealed[..cut.index(sealed.len())]),
                Err(Forged));
            let mut altered = sealed.clone();
            altered[flip.index(sealed.len())] ^= 0x10;
            prop_assert_eq!(cipher().open(b"context", &altered), Err(Forged));
        }
    }
}
