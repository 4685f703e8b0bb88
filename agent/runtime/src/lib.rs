//! Runs Wasm modules and ONNX models within limits. Knows nothing of the mesh: no node, no
//! coordinator, no session; callers hand it bytes, grants and limits, and get results.

pub mod onnx;
pub mod service;
pub mod shared;
pub mod wasm;
