//! Wasm modules: the coordinator's look at an upload and the agents' look before they compile.
//! They are two programs that must be of one mind.

use hop3_runtime::{service, wasm as task};
use wasmparser::{Validator, WasmFeatures};

/// Memory for every module.
const MEMORY_BYTES_MAX: u64 = 1 << 32;
const SERVICE: &[u8] = include_bytes!("../seeds/service.wasm");
const COMMAND: &[u8] = include_bytes!("../seeds/command.wasm");

/// A module. What the coordinator admits some engine of an agent takes, and what that compiles
/// in its place is valid.
pub fn wasm(data: &[u8]) -> bool {
    let as_task = task::check(data, MEMORY_BYTES_MAX);
    let as_service = service::prepare(data, MEMORY_BYTES_MAX);
    if let Ok(prepared) = &as_service {
        let valid = Validator::new_with_features(WasmFeatures::default()).validate_all(prepared);
        assert!(valid.is_ok(), "made invalid: {:?}", valid.err());
    }
    #[cfg(feature = "coordinator")]
    admitted(data, &as_task, &as_service);
    as_task.is_ok() || as_service.is_ok()
}

#[cfg(feature = "coordinator")]
fn admitted(
    data: &[u8],
    as_task: &Result<(), task::Error>,
    as_service: &Result<Vec<u8>, task::Error>,
) {
    use hop3_coordinator::artifacts::wasm::{check, check_service};
    match check(data) {
        Ok(()) if check_service(data).is_ok() => assert!(
            as_service.is_ok(),
            "admitted as a service, but {as_service:?}"
        ),
        Ok(()) => assert!(as_task.is_ok(), "admitted as a task, but {as_task:?}"),
        Err(problem) => {
            // One with handlers is run as a service or not at all, whatever else it exports.
            let handles = data.windows(5).any(|name| name == b"hop3_");
            assert!(
                as_task.is_err() || handles,
                "an agent would run the task: {problem}"
            );
            assert!(
                as_service.is_err(),
                "an agent would run the service: {problem}"
            );
        }
    }
}

/// Seeds of [`wasm`].
#[must_use]
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    vec![
        ("ok-service".into(), SERVICE.to_vec()),
        ("ok-command".into(), COMMAND.to_vec()),
        (
            "ok-empty".into(),
            include_bytes!("../seeds/empty.wasm").to_vec(),
        ),
        ("bad-component".into(), b"\0asm\x0d\0\x01\0".to_vec()),
        ("bad-text".into(), b"(module)".to_vec()),
        ("bad-cut".into(), SERVICE[..SERVICE.len() / 2].to_vec()),
    ]
}
