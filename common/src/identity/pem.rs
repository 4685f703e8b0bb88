//! Writing PEM. Reading is `rustls-pki-types`'s.

use zeroize::Zeroizing;

/// Characters of base-64 in a line (RFC 7468).
const LINE_CHARS: usize = 64;

/// `der` as one PEM block; wiped when dropped, since it may be a private key.
pub(super) fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    let base64 = Zeroizing::new(data_encoding::BASE64.encode(der));
    // Enough room at once, so that growing leaves no copies behind.
    let mut pem = Zeroizing::new(String::with_capacity(base64.len() * 2 + 128));
    pem.push_str(&format!("-----BEGIN {label}-----\n"));
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(LINE_CHARS));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}
