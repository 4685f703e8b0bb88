//! The outer encoding of a signed object. Parsers are lax about tags and lengths outside the
//! signed part; whoever rebuilds and compares takes one encoding only.

use super::key::Algorithm;

/// The signed object (CSR, certificate) of this signed part, with the signature of such a key.
pub(super) fn signed(part: &[u8], algorithm: Algorithm, signature: &[u8]) -> Vec<u8> {
    // AlgorithmIdentifier: ecdsa-with-SHA256, Ed25519.
    let algorithm: &[u8] = match algorithm {
        Algorithm::EcdsaP256 => b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02",
        Algorithm::Ed25519 => b"\x30\x05\x06\x03\x2b\x65\x70",
    };
    let bit_string = tlv(0x03, &[&[0], signature]);
    tlv(0x30, &[part, algorithm, &bit_string])
}

/// A DER element of at most 65,535 bytes (all that is read here is less).
fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let [.., high, low] = content.len().to_be_bytes();
    let header: &[u8] = match content.len() {
        0..0x80 => &[tag, low],
        0x80..0x100 => &[tag, 0x81, low],
        _ => &[tag, 0x82, high, low],
    };
    [header, &content].concat()
}
