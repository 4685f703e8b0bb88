//! Names of the service interface, version 1: `agent/sdk/ABI.md`.

/// The module of imports.
pub(super) const MODULE: &str = "hop3";

/// What a service may import.
pub(super) const IMPORTS: &[&str] = &[
    "input",
    "reply_status",
    "reply_header",
    "reply_write",
    "reply_stream",
    "stream_send",
    "stream_close",
    "kv_get",
    "kv_set",
    "kv_delete",
    "kv_next",
    "timer_set",
    "timer_clear",
    "publish",
    "call",
    "log",
    "now_ms",
];

/// What begins the names that only the host may export.
pub(super) const RESERVED: &str = "hop3:";

/// Of these it exports at least one.
pub(super) const HANDLERS: &[&str] = &["hop3_request", "hop3_message", "hop3_timer"];

/// All that it may export.
pub(super) const EXPORTS: &[&str] = &[
    "hop3_request",
    "hop3_message",
    "hop3_timer",
    "hop3_init",
    "hop3_upgrade",
    "hop3_schema",
];
